"""A real Label Studio connects our real server as its ML backend."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from annotator.errors import RefusedError
from annotator.ingest.demo_faces import render
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.linking.link import link as make_link
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.tasks.refresh import refresh
from annotator.labelstudio.wake import Wake
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask
from tests.labelstudio.conftest import People
from tests.labelstudio.studio import Studio, said
from tests.scores import write_generation
from tests.ui.conftest import Running, fill, running
from ui.link_auth import LINK_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FACES, FOREIGN = 8, 2
SCREENSHOT = "ANNOTATOR_SCREENSHOTS"
"""Names a folder to keep what the browser showed."""


@dataclass
class Connected:
    """A project with a task for each face and two more that are not ours, and our server as its backend."""

    studio: Studio
    server: Server
    page: Running
    link: Link
    tasks: list[int]
    foreign: list[int]
    rows: list[int]

    def api(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Token {self.studio.admin.token}"}
        answer = httpx.request(method, f"{self.studio.url}/api/{path}", headers=headers, json=body, timeout=60)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else None

    def retrieve(self) -> None:
        """Press "retrieve predictions" on all tasks, as the data manager does."""
        chosen = {"selectedItems": {"all": True, "excluded": []}, "project": self.link.project_id}
        self.api("POST", f"dm/actions?id=retrieve_tasks_predictions&project={self.link.project_id}", chosen)

    def predictions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("GET", f"predictions/?project={self.link.project_id}")
        return [p for p in found if p["project"] == self.link.project_id]

    def publish(self, order: list[int], **columns: Any) -> str:
        page = self.page
        write_generation(page.workspace, page.store, self.rows, order, **columns)
        page.services.follower.poll()
        return str(page.services.queue.status().model)

    def served(self, person: Any, count: int) -> list[int]:
        """Return the tasks that the labeling page shows to a person, who answers each."""
        shown = []
        for _ in range(count):
            shown.append(self.studio.next_task(person, self.link.project_id)["id"])
            self.studio.annotate(person, shown[-1], said("expression", "neutral"))
        return shown


@pytest.fixture
def empty(studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Connected]:
    """Link a new project and connect the backend; nothing is asked there yet."""
    fill(sqlite_store, tmp_path / "faces", FACES)
    for index in range(FACES):
        render(5, index).image.save(tmp_path / "faces" / f"face-{index}.png")
    with running(workspace, sqlite_store) as page, studio.server() as server:
        link = make_link(workspace, sqlite_store, server, title="Faces and a backend", public_url=page.url).link
        rows = sqlite_store.images.table().rows.tolist()
        yield Connected(studio, server, page, link, [], [], rows)


@pytest.fixture
def connected(empty: Connected, tmp_path: Path) -> Connected:
    """Make a task for each face, without a prediction, and two more that are not ours."""
    server, link = empty.server, empty.link
    files = sorted((tmp_path / "faces").iterdir())
    paths = [path for _, path in server.upload(link.project_id, [(f.name, f.read_bytes(), "image/png") for f in files])]
    tasks = server.import_tasks(link.project_id, [{"data": {"image": path, "reason": ""}} for path in paths])
    foreign = server.import_tasks(link.project_id, [{"data": {"image": paths[0], "reason": ""}}] * FOREIGN)
    pairs = zip(tasks, empty.rows, strict=True)
    empty.page.store.exchange.put_tasks(link.id, [LinkedTask(task_id, row) for task_id, row in pairs])
    return replace(empty, tasks=tasks, foreign=foreign)


def test_it_connects_and_hands_out_predictions(connected: Connected) -> None:
    version = connected.publish(connected.rows[::-1], candidates=("surprise", "fear"))
    (backend,) = connected.server.backends(connected.link.project_id)
    assert (backend["state"], backend["model_version"]) == ("CO", version)
    # Connecting made a second webhook of its own only if none was at the address.
    assert len(connected.server.webhooks(connected.link.project_id)) == 1
    assert connected.server.project(connected.link.project_id)["model_version"] in ("", None)

    # Whoever opens a task that has no prediction is shown one at once.
    opened = connected.api("GET", f"tasks/{connected.tasks[0]}/")
    assert [p["model_version"] for p in opened["predictions"]] == [version]
    assert connected.api("GET", f"tasks/{connected.foreign[0]}/")["predictions"] == []

    connected.retrieve()
    found = connected.predictions()
    # Of the tasks that are not ours nothing is stored: no empty prediction is counted or shown.
    assert sorted(p["task"] for p in found) == sorted(connected.tasks)
    assert {p["model_version"] for p in found} == {version}
    assert all(p["result"][0]["value"] == {"choices": ["surprise"]} for p in found)
    scores = {p["task"]: p["score"] for p in found}
    assert sorted(connected.tasks, key=lambda task: scores[task]) == connected.tasks[::-1]
    connected.retrieve()
    assert len(connected.predictions()) == FACES
    assert connected.api("GET", f"ml/{backend['id']}/versions") == {"versions": [version]}


def test_blind_faces_get_an_order_alone(connected: Connected) -> None:
    version = connected.publish(connected.rows, candidates=("surprise", "fear"), arms="random", blind=True)
    connected.retrieve()
    found = connected.predictions()
    assert [p["result"] for p in found] == [[]] * FACES
    assert connected.server.model_versions(connected.link.project_id) == {version: FACES}


def test_a_newer_generation_leaves_the_projects_order_alone(empty: Connected, people: People) -> None:
    """Were the newest version named instead, retrieving would store predictions that nobody sees, each time."""
    link, store, workspace = empty.link, empty.page.store, empty.page.workspace
    version = empty.publish(empty.rows[::-1], candidates=("surprise", "fear"))
    push(workspace, store, empty.server, link)
    tasks = [found[0].task_id for _, found in sorted(store.exchange.tasks_of_rows(link.id, empty.rows).items())]
    assert empty.served(people.ann, 3) == tasks[::-1][:3]
    pushed = {p["task"]: p for p in empty.predictions()}
    assert sorted(pushed) == sorted(tasks)

    empty.publish(empty.rows, candidates=("fear", "anger"), probs=(0.2, 0.7))
    time.sleep(LINK_SECONDS)
    # Label Studio asks for health and setup again whenever the backend is looked at.
    assert empty.server.backends(link.project_id)[0]["model_version"] == version
    empty.retrieve()
    assert empty.server.model_versions(link.project_id) == {version: FACES}
    assert empty.server.project(link.project_id)["model_version"] == version
    assert empty.served(people.ann, 3) == tasks[::-1][3:6]
    # A prediction that was lost there comes back as it was, in its place in today's order.
    empty.api("DELETE", f"predictions/{pushed[tasks[0]]['id']}/")
    empty.retrieve()
    again = {p["task"]: p for p in empty.predictions()}
    assert sorted(again) == sorted(tasks)
    assert again[tasks[0]]["model_version"] == version
    assert again[tasks[0]]["result"] == pushed[tasks[0]]["result"]

    # Once the sync has brought the newer one to every task, the backend names that.
    refresh(workspace, store, empty.server, link)
    newer = str(store.learning.current_generation().model_version)  # type: ignore[union-attr]
    time.sleep(LINK_SECONDS)
    assert empty.server.backends(link.project_id)[0]["model_version"] == newer
    empty.retrieve()
    newest = [p["task"] for p in empty.predictions() if p["task"] in tasks[:2] and p["model_version"] == newer]
    assert sorted(newest) == sorted(tasks[:2])
    assert empty.server.project(link.project_id)["model_version"] == newer


def test_start_training_files_a_job(connected: Connected) -> None:
    (backend,) = connected.server.backends(connected.link.project_id)
    connected.api("POST", f"ml/{backend['id']}/train", {})
    (job,) = connected.page.store.learning.jobs()
    assert (job.kind, job.state) == ("retrain", "filed")


def test_news_wake_the_sync(connected: Connected, people: People) -> None:
    wake = Wake(connected.page.workspace)
    wake.take()
    connected.studio.annotate(people.ann, connected.tasks[0], said("expression", "neutral"))
    hint = wake.take()
    assert (hint.woken, hint.full) == (True, False)
    connected.server.delete_tasks(connected.link.project_id, connected.tasks[1:2])
    assert wake.take().full


def test_a_wrong_secret_cannot_connect(connected: Connected) -> None:
    url = f"{connected.page.url}/labelstudio"
    with pytest.raises(RefusedError, match="authentication parameters"):
        connected.server.create_backend(connected.link.project_id, url, "annotator", "wrong", "guess")
    connected.page.store.exchange.close_link(connected.link.id)


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_its_page_shows_the_prediction(connected: Connected, tmp_path: Path) -> None:
    version = connected.publish(connected.rows[::-1], candidates=("surprise", "fear"))
    connected.retrieve()
    connected.server.update_project(connected.link.project_id, model_version=version)
    kept = Path(os.environ.get(SCREENSHOT, tmp_path)) / "ml_backend.png"
    # Playwright allows one driver in a thread, and the browser tests hold that of the main one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_look_at, connected, connected.tasks[0], version, kept).result()
    assert kept.stat().st_size > 10_000


def _look_at(connected: Connected, task_id: int, version: str, kept: Path) -> None:
    """Open a task in Label Studio's page and see that the prediction fills the form in."""
    admin, url = connected.studio.admin, connected.studio.url
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser,
    ):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{url}/user/login/")
        page.fill("input[name=email]", admin.email)
        page.fill("input[name=password]", admin.password)
        page.click("button[type=submit]")
        page.wait_for_url(f"{url}/**")
        page.goto(f"{url}/projects/{connected.link.project_id}/data?task={task_id}")
        expect(page.get_by_text(version, exact=True)).to_be_visible(timeout=30_000)
        ticked = page.locator("label.lsf-choice__checkbox:has(input:checked)")
        expect(ticked).to_have_count(3)
        shown = [text.partition("[")[0] for text in ticked.all_inner_texts()]
        page.screenshot(path=kept)
    assert shown == ["Surprise", "Surprise", "Fear"]
