"""A day of a team: two people in Label Studio, one of them in its web page, a third on our page, the same faces."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from annotator import auth
from annotator.cli import app
from annotator.labelstudio.tasks.push import push
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.conftest import People
from tests.labelstudio.pair import Pair, part
from tests.labelstudio.pushing import linked
from tests.labelstudio.studio import Person, Studio
from tests.ui.conftest import PASSWORD, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FACES = 6

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


def _press_in_the_page(studio: Studio, person: Person, project_id: int, task_id: int, choice: str) -> None:
    """Sign in to Label Studio, open a task, choose a class and submit it."""
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        with driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser:
            page = browser.new_page(viewport={"width": 1366, "height": 900})
            page.set_default_timeout(60_000)
            page.goto(f"{studio.url}/user/login/")
            page.fill("input[name=email]", person.email)
            page.fill("input[name=password]", person.password)
            page.click("button[type=submit]")
            page.wait_for_load_state()
            page.goto(f"{studio.url}/projects/{project_id}/data?task={task_id}")
            page.get_by_text(choice, exact=False).first.click()
            with page.expect_response(lambda reply: "/annotations" in reply.url and reply.request.method == "POST"):
                page.get_by_role("button", name="Submit").click()


def _say(page: httpx.Client, face: str, number: int, slug: str, supersedes: int | None = None) -> int:
    body = {
        "client_id": f"cat-{number}",
        "image_id": face,
        "kind": "label",
        "classes": [slug],
        "supersedes": supersedes,
    }
    reply = page.post("/api/v1/annotations", json=body)
    assert reply.status_code == 201, reply.text
    return int(reply.json()["id"])


def _exported(pair: Pair, target: Path) -> dict[str, dict[str, object]]:
    ran = CliRunner().invoke(app, ["export", str(pair.workspace.root), str(target), "--format", "jsonl"])
    assert ran.exit_code == 0, ran.output
    return {row["image_id"]: row for row in map(json.loads, target.read_text(encoding="utf-8").splitlines())}


def test_a_day_of_a_team(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path
) -> None:
    cat = studio.join("cat")
    for name in ("ann", "ben"):
        sqlite_store.accounts.add(name, "annotator", auth.hash_password(PASSWORD))
    with running(workspace, sqlite_store) as site, studio.server() as server:
        page = site.account("cat")
        users = {people.ann.email: "ann", people.ben.email: "ben", cat.email: "cat"}
        bench = linked(workspace, sqlite_store, server, FACES, tmp_path / "faces", top_k=FACES, users=users)
        bench.publish(bench.rows)
        assert push(workspace, sqlite_store, server, bench.link).pushed == FACES
        tasks = {task["data"]["image_id"]: int(task["id"]) for task in bench.there()}
        faces = [bench.image_id(row) for row in bench.rows]
        pair = Pair(workspace, sqlite_store, studio, server, bench.link, faces, [tasks[face] for face in faces])

        # Two people in Label Studio.
        ann = [
            pair.annotate(people.ann, face, slug) for face, slug in enumerate(("anger", "fear", "neutral", "sadness"))
        ]
        ben = [pair.annotate(people.ben, face, slug) for face, slug in enumerate(("anger", "disgust"))]
        project, task = pair.link.project_id, pair.tasks[4]
        with ThreadPoolExecutor(1) as thread:  # other browser tests hold Playwright's one driver of the main thread
            thread.submit(_press_in_the_page, studio, people.ben, project, task, "Surprise").result()
        # A third person on our page: the same faces, before anything was synced.
        said = [_say(page, faces[face], face, slug) for face, slug in enumerate(("anger", "fear", "happiness"))]
        pair.sync()
        assert pair.differences() == []
        assert pair.there(4) == pair.says(4) == [("ben", "surprise")]

        # One edits, one deletes, the third changes her mind, and takes another answer back.
        pair.edit(people.ann, ann[1], "disgust")
        studio.delete(people.ben, ben[0])
        _say(page, faces[2], 20, "neutral", supersedes=said[2])
        assert page.post("/api/v1/undo", json={"client_id": "cat-undo", "annotation_id": said[0]}).status_code == 201
        studio.annotate(people.ann, pair.tasks[5], *part("anger", "disgust"))
        pair.sync(full=True)
        assert pair.differences() == []
        assert not pair.sync()

        wanted = {
            0: ([("ann", "anger")], "labeled"),
            1: ([("ann", "disgust"), ("ben", "disgust"), ("cat", "fear")], "disputed"),
            2: ([("ann", "neutral"), ("cat", "neutral")], "labeled"),
            3: ([("ann", "sadness")], "labeled"),
            4: ([("ben", "surprise")], "labeled"),
            5: ([("ann", "anger+disgust")], "partial"),
        }
        rows = _exported(pair, tmp_path / "out.jsonl")
        for face, (voices, state) in wanted.items():
            row = rows[faces[face]]
            answers = row["answers"]
            assert isinstance(answers, list)
            stands = sorted((a["user"], "+".join(a["classes"])) for a in answers if a["stands"])
            assert pair.there(face) == pair.says(face) == stands == voices
            assert row["state"] == state
        assert rows[faces[1]]["candidates"] == ["disgust", "fear"]
        shown = page.get("/api/v1/status").json()
        assert shown["labels"]["disputed"] == 1
