"""The routes that a linked Label Studio calls: who gets in, what comes back, what is never told."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from annotator.auth import token_digest
from annotator.labelstudio.api.server import SECRET_HEADER
from annotator.labelstudio.config.generated import own_mapping
from annotator.labelstudio.tasks.wanted import UNREAD
from annotator.labelstudio.wake import Wake
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown
from tests.scores import write_generation
from tests.ui.conftest import Running, fill, running
from ui.link_auth import LINK_SECONDS, MAX_FAILURES
from ui.security import MAX_LINKED_BYTES

SECRET = "correct-horse-battery-staple-0123456789"
TOKEN = "feedfacefeedfacefeedfacefeedfacefeedface"
PROJECT = 7
ROUTES = [("GET", "health"), ("POST", "setup"), ("POST", "predict"), ("GET", "versions"), ("POST", "webhook")]


@dataclass
class Linked:
    """A server whose workspace is linked to project 7; task 100 + n is face n, in order of row."""

    server: Running
    link: Link
    rows: list[int]

    def client(self, secret: str | None = SECRET) -> httpx.Client:
        auth = ("label studio", secret) if secret is not None else None
        return httpx.Client(base_url=f"{self.server.url}/labelstudio/", auth=auth, timeout=30)

    def predict(self, tasks: list[Any], project: object = f"{PROJECT}.1763"):
        with self.client() as client:
            reply = client.post("predict", json={"tasks": tasks, "project": project, "params": {"login": None}})
        assert reply.status_code == 200, reply.text
        return reply.json()["results"]

    def publish(self, **columns: Any) -> None:
        """Publish a generation that asks the last face first, and wait until the server serves it."""
        workspace, store = self.server.workspace, self.server.store
        write_generation(workspace, store, self.rows, self.rows[::-1], **columns)
        self.server.services.follower.poll()


def add_link(store: LabelStore, workspace: Workspace, **settings: Any) -> Link:
    mapping = own_mapping(workspace.settings.taxonomy).as_dict()
    link = store.exchange.add_link("http://label.example:8080", PROJECT, "Faces", {"mapping": mapping, **settings})
    store.exchange.update_link(link.id, secret_digest=token_digest(SECRET))
    return link


@pytest.fixture
def linked(workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Linked]:
    fill(sqlite_store, tmp_path / "pictures", 10)
    rows = sqlite_store.images.table().rows.tolist()
    link = add_link(sqlite_store, workspace)
    sqlite_store.exchange.put_tasks(link.id, [LinkedTask(100 + n, row) for n, row in enumerate(rows)])
    with running(workspace, sqlite_store) as server:
        yield Linked(server, link, rows)


def task(task_id: object, **more: Any) -> dict[str, Any]:
    return {"id": task_id, "data": {"image": "/data/upload/1/x.png"}, "annotations": [], "predictions": [], **more}


# Who gets in


def test_without_a_link_nothing_is_there(untouched: Running) -> None:
    with httpx.Client(base_url=f"{untouched.url}/labelstudio/", auth=("x", SECRET)) as client:
        for method, path in ROUTES:
            assert client.request(method, path, json={}).status_code == 404, path


def test_only_the_secret_of_the_link_gets_in(linked: Linked) -> None:
    for wrong in ("", "wrong", SECRET[:-1], SECRET + "x", SECRET.upper(), linked.link.secret_digest, None):
        with linked.client(wrong) as client:
            for method, path in ROUTES:
                # Bearer tokens and cookies are people's, not Label Studio's.
                reply = client.request(method, path, json={})
                assert reply.status_code in (401, 429), (wrong, path)
    with linked.client() as client:
        assert client.get("health").status_code == 200
        assert client.get("versions").status_code == 200
        assert client.post("setup", json={"project": f"{PROJECT}.1"}).status_code == 200
        assert client.post("predict", json={"tasks": []}).status_code == 200
        assert client.post("webhook", json={"action": "TASKS_CREATED"}).status_code == 200
        assert client.get("nothing").status_code == 404
        assert client.get("predict").status_code == 404
    with linked.client(None) as client:
        refused = client.get("health")
        assert refused.headers["www-authenticate"] == "Basic"
        assert client.post("webhook", json={"action": "x"}, headers={SECRET_HEADER: SECRET}).status_code == 200
        assert client.post("webhook", json={"action": "x"}, headers={SECRET_HEADER: "wrong"}).status_code == 401


def test_a_user_of_the_page_is_not_label_studio(linked: Linked) -> None:
    with linked.server.account("boss", "admin") as person:
        assert person.get("/labelstudio/health").status_code == 401
        assert person.post("/labelstudio/webhook", json={"action": "START_TRAINING"}).status_code == 401
    with linked.client() as client:
        assert client.get("../api/v1/status").status_code == 401


def test_odd_authorizations_are_refused(linked: Linked) -> None:
    odd = ("Basic", "Basic !!!", "Basic YQ==", "Basic /w==", f"Bearer {SECRET}", SECRET, "basic  " + "A" * 5000)
    with linked.client(None) as client:
        for value in odd:
            assert client.get("health", headers={"Authorization": value}).status_code == 401, value


def test_wrong_secrets_run_into_a_wall_and_the_right_one_does_not(linked: Linked) -> None:
    with linked.client("guess") as stranger:
        replies = [stranger.get("health").status_code for _ in range(MAX_FAILURES + 5)]
        assert replies[:MAX_FAILURES] == [401] * MAX_FAILURES
        assert replies[MAX_FAILURES:] == [429] * 5
        assert int(stranger.get("health").headers["retry-after"]) >= 1
    with linked.client() as client:
        assert client.get("health").status_code == 200


def test_a_link_counts_from_the_moment_it_is_made_and_not_after_its_end(
    served: Running, wait_until: Callable[..., None]
) -> None:
    with httpx.Client(base_url=f"{served.url}/labelstudio/", auth=("any", SECRET)) as client:
        assert client.get("health").status_code == 404
        link = add_link(served.store, served.workspace)
        # Label Studio asks for the health while it connects the backend: right after the link is made.
        assert client.get("health").status_code == 200
        served.store.exchange.update_link(link.id, secret_digest=token_digest("another"))
        wait_until(lambda: client.get("health").status_code == 401)
        served.store.exchange.update_link(link.id, secret_digest=token_digest(SECRET))
        assert client.get("health").status_code == 200
        served.store.exchange.close_link(link.id)
        began = time.monotonic()
        wait_until(lambda: client.get("health").status_code == 404)
        assert time.monotonic() - began < LINK_SECONDS + 1


def test_a_page_elsewhere_cannot_use_what_the_browser_remembers(linked: Linked) -> None:
    with linked.client() as client:
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert client.post("webhook", json={"action": "START_TRAINING"}, headers=headers).status_code == 403
        assert client.get("health", headers={"Host": "evil.example"}).status_code == 400
    assert linked.server.store.learning.jobs() == []


# What comes back


def test_the_backend_says_what_label_studio_waits_for(linked: Linked) -> None:
    with linked.client() as client:
        assert client.get("health").json()["status"] == "UP"
        assert client.post("setup", json={"project": f"{PROJECT}.1763", "schema": "<View/>"}).json() == {
            "model_version": UNREAD
        }
        assert client.get("versions", params={"project": f"{PROJECT}.1763"}).json() == {"versions": [UNREAD]}
        linked.publish(candidates=("surprise", "fear"))
        assert client.post("setup", json={"project": f"{PROJECT}.1763"}).json() == {"model_version": "test.1"}
        refused = client.post("setup", json={"project": "8.1763", "access_token": TOKEN})
        assert refused.status_code == 409
        assert TOKEN not in refused.text


def test_predictions_are_those_of_the_current_scores(linked: Linked) -> None:
    (unread,) = linked.predict([task(100)])
    assert (unread["model_version"], unread["result"]) == (UNREAD, [])
    assert 0 < unread["score"] < 1
    linked.publish(candidates=("surprise", "fear"))
    first, last = linked.predict([task(100), task(109)])
    assert first["model_version"] == last["model_version"] == "test.1"
    assert [item["from_name"] for item in first["result"]] == ["expression", "candidates"]
    assert first["result"][0]["value"]["choices"] == ["surprise"]
    assert first["result"][0]["score"] == pytest.approx(0.6)
    assert first["result"][1]["value"]["choices"] == ["surprise", "fear"]
    # The last face is asked first here: Label Studio asks for the lowest score first.
    assert (first["score"], last["score"]) == pytest.approx((10 / 12, 1 / 12), abs=1e-5)
    linked.publish(candidates=("fear", "anger"), probs=(0.2, 0.7))
    assert linked.predict([task(100)])[0]["model_version"] == "test.2"
    assert linked.predict([task(100)])[0]["result"][0]["value"]["choices"] == ["fear"]


def test_what_the_project_shows_is_what_comes_again(linked: Linked, caplog: pytest.LogCaptureFixture) -> None:
    store, link = linked.server.store, linked.link
    linked.publish(candidates=("surprise", "fear"))
    shown = Shown("uncertain", "test.1", False, ({"class": "anger", "prob": 0.5}, {"class": "fear", "prob": 0.3}))
    store.exchange.confirm_predictions(link.id, [(100, shown)], "test.1")
    store.exchange.update_link(link.id, model_version="test.1")
    linked.publish(candidates=("surprise", "fear"))
    with linked.client() as client:
        time.sleep(LINK_SECONDS + 0.1)
        # Else Label Studio would collect predictions that nobody sees with every generation.
        assert client.post("setup", json={}).json() == {"model_version": "test.1"}
        assert client.get("versions").json() == {"versions": ["test.1"]}
    with caplog.at_level(logging.WARNING):
        known, unknown = linked.predict([task(100), task(101)])
    assert known["model_version"] == "test.1"
    assert known["result"][0]["value"]["choices"] == ["anger"]
    assert known["score"] == pytest.approx(10 / 12, abs=1e-5)
    assert unknown == []
    assert "no prediction of test.1 is kept for it, the sync brings the next (task 101)" in caplog.text


def test_blind_faces_get_an_order_and_no_suggestion(linked: Linked) -> None:
    linked.publish(candidates=("surprise", "fear"), arms="random", blind=True)
    (blind,) = linked.predict([task(105)])
    assert blind["result"] == []
    assert 0 < blind["score"] < 1
    linked.publish(candidates=("surprise", "fear"))
    exchange, link_id = linked.server.store.exchange, linked.link.id
    said = ({"class": "fear", "prob": 0.9},)
    exchange.confirm_predictions(link_id, [(105, Shown("random", "test.2", True, said))], "test.2")
    # What was asked blind stays blind, though the newer order would suggest something.
    exchange.put_tasks(link_id, [LinkedTask(106, linked.rows[6], shown=Shown("random", "test.1", True))])
    results = linked.predict([task(105), task(106), task(107)])
    assert [bool(prediction["result"]) for prediction in results] == [False, False, True]


def test_tasks_that_are_not_ours_are_left_out_with_a_reason(linked: Linked, caplog: pytest.LogCaptureFixture) -> None:
    linked.publish(candidates=("surprise", "fear"))
    store = linked.server.store
    store.exchange.set_task_state(linked.link.id, [101], "withdrawn")
    store.exchange.set_task_state(linked.link.id, [102], "erase")
    odd: list[Any] = [task(5_000), task(True), task("100"), task(-1), task(2**70), {}, None, "x", task(101), task(102)]
    with caplog.at_level(logging.WARNING):
        results = linked.predict([*odd, task(100)])
    assert results[:-1] == [[]] * len(odd)
    assert results[-1]["result"]
    assert "not a task of this workspace (task 5000" in caplog.text
    assert "withdrawn (task 101)" in caplog.text
    caplog.clear()
    # The same ids in another project are other tasks.
    assert linked.predict([task(100), task(103)], project="8.1763") == [[], []]
    assert f"not of the linked project {PROJECT}" in caplog.text


def test_a_copy_has_the_place_of_the_face_it_is_a_copy_of(
    workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    from tests.conftest import new_image

    source = sqlite_store.images.register_source("/x", "folder", "folder")
    sqlite_store.images.add(source, [new_image("a", content_hash="1" * 64), new_image("b")], "none")
    sqlite_store.images.add(source, [new_image("c", content_hash="1" * 64)], "none")
    table = sqlite_store.images.table()
    copy = next(int(row) for row, group in zip(table.rows, table.group, strict=True) if row != group)
    link = add_link(sqlite_store, workspace)
    sqlite_store.exchange.put_tasks(link.id, [LinkedTask(1, copy), LinkedTask(2, 0)])
    faces = [int(row) for row, group in zip(table.rows, table.group, strict=True) if row == group]
    write_generation(workspace, sqlite_store, faces, faces, candidates=("surprise", "fear"))
    with running(workspace, sqlite_store) as server:
        results = Linked(server, link, faces).predict([task(1), task(2)])
    assert results[0]["result"][0]["value"]["choices"] == ["surprise"]
    assert results[0]["score"] <= 2 / 3


def test_confidence_can_be_what_orders(workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> None:
    fill(sqlite_store, tmp_path / "pictures", 3)
    rows = sqlite_store.images.table().rows.tolist()
    link = add_link(sqlite_store, workspace, order="confidence")
    sqlite_store.exchange.put_tasks(link.id, [LinkedTask(1, rows[0])])
    write_generation(workspace, sqlite_store, rows, rows, candidates=("surprise", "fear"), probs=(0.55, 0.25))
    with running(workspace, sqlite_store) as server:
        assert Linked(server, link, rows).predict([task(1)])[0]["score"] == pytest.approx(0.55)


# Webhooks


def test_webhooks_wake_the_sync_and_say_nothing_else(linked: Linked, caplog: pytest.LogCaptureFixture) -> None:
    wake = Wake(linked.server.workspace)
    with linked.client(None) as client, caplog.at_level(logging.WARNING):
        client.headers[SECRET_HEADER] = SECRET
        for action in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"):
            assert client.post("webhook", json={"action": action}).json() == {"status": "noted"}
            hint = wake.take()
            assert (hint.woken, hint.full) == (True, False), action
        client.post("webhook", json={"action": "TASKS_DELETED", "tasks": [{"id": 1}]})
        client.post("webhook", json={"action": "TASKS_CREATED", "tasks": [{"id": 1}]})
        assert wake.take().full
        for odd in ("PROJECT_UPDATED", None, 3, ["TASKS_DELETED"], {"a": 1}, "x" * 10_000):
            assert client.post("webhook", json={"action": odd}).json() == {"status": "ignored"}, odd
        assert not wake.waiting()
    assert "PROJECT_UPDATED" in caplog.text
    assert "x" * 200 not in caplog.text
    assert linked.server.store.decisions.count() == 0


def test_start_training_files_one_job(linked: Linked) -> None:
    with linked.client() as client:
        for _ in range(3):
            body = {"action": "START_TRAINING", "project": {"id": PROJECT, "title": "Faces"}}
            assert client.post("webhook", json=body).json() == {"status": "filed"}
    (job,) = linked.server.store.learning.jobs()
    assert (job.kind, job.state, job.payload) == ("retrain", "filed", {"trigger": "Label Studio"})
    assert not Wake(linked.server.workspace).waiting()


def test_webhooks_are_answered_within_milliseconds(linked: Linked) -> None:
    with linked.client() as client:
        client.post("webhook", json={"action": "ANNOTATION_CREATED"})
        times = []
        for _ in range(100):
            began = time.perf_counter()
            client.post("webhook", json={"action": "ANNOTATION_CREATED"})
            times.append(time.perf_counter() - began)
    assert sorted(times)[50] < 0.05


# Bad bodies, sizes, secrets


def test_bad_bodies_are_told(linked: Linked) -> None:
    malformed = (b"", b"{", b"\xff", b"[" * 100_000)
    unfit = (b"[]", b'"x"', b"null", b"3")
    with linked.client() as client:
        for path in ("setup", "predict", "webhook"):
            for body in malformed:
                assert client.post(path, content=body).status_code == 400, (path, body[:10])
            for body in unfit:
                assert client.post(path, content=body).status_code == 422, (path, body)
        for tasks in (None, {}, "x", 3):
            assert client.post("predict", json={"tasks": tasks}).status_code == 422, tasks


def test_a_hundred_annotated_tasks_fit_and_a_flood_does_not(linked: Linked) -> None:
    linked.publish(candidates=("surprise", "fear"))
    heavy = {"annotations": [{"result": [{"value": {"choices": ["x" * 200]}} for _ in range(20)]} for _ in range(20)]}
    tasks = [task(100 + n % 10, **heavy) for n in range(100)]
    assert len(json.dumps(tasks)) > 5_000_000
    assert all(prediction["result"] for prediction in linked.predict(tasks))
    with linked.client() as client:
        flood = b'{"tasks": [], "x": "' + b"x" * MAX_LINKED_BYTES + b'"}'
        assert client.post("predict", content=flood).status_code == 413

        def unannounced() -> Iterator[bytes]:
            for start in range(0, len(flood), 1 << 20):
                yield flood[start : start + (1 << 20)]

        assert client.post("predict", content=unannounced()).status_code == 413


def test_no_secret_is_told_or_kept(linked: Linked, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    setup = {"project": "8.1", "access_token": TOKEN, "hostname": "http://x", "schema": "<View/>"}
    with caplog.at_level(logging.DEBUG), linked.client() as client:
        said += [client.post("setup", json=setup).text, client.post("setup", json=setup | {"project": "7.1"}).text]
        for broken in (json.dumps(setup)[:-1], json.dumps([setup]), json.dumps(setup | {"project": {"x": TOKEN}})):
            said.append(client.post("setup", content=broken).text)
        said.append(client.post("webhook", json=setup | {"action": None}).text)
        said.append(client.post("predict", json=setup | {"tasks": 3}).text)
        said.append(client.get("versions", params={"token": TOKEN}).text)
        with linked.client(TOKEN) as stranger:
            said.append(stranger.get("health").text)
    # The test's own client runs in this process, too, and logs what it sends.
    logged = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert any("without the secret" in line for line in logged)
    told = "\n".join(said + logged)
    assert TOKEN not in told
    assert SECRET not in told
    kept = b"".join(path.read_bytes() for path in linked.server.workspace.root.rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept
    assert SECRET.encode() not in kept


def test_the_routes_are_described(untouched: Running) -> None:
    with untouched.client() as client:
        page = client.get("/api/v1/docs").text
    for _, path in ROUTES:
        assert f"/labelstudio/{path}" in page
