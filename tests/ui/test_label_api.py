"""The hot path over real HTTP: faces, answers, undo, leases, bad input."""

import threading
import uuid
from collections import Counter
from datetime import datetime

import httpx
import pytest

from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ui.conftest import Running, running

ITEM_KEYS = {
    "image_id",
    "image_url",
    "lease_id",
    "lease_expires_at",
    "classes",
    "candidates",
    "question",
    "reason",
    "arm",
    "given",
    "blind",
    "model_version",
    "width",
    "height",
}
ANNOTATION_KEYS = {
    "id",
    "annotation_id",
    "client_id",
    "image_id",
    "kind",
    "classes",
    "confidence",
    "note",
    "late",
    "duplicate",
    "mismatch",
    "supersedes",
    "model_version",
    "arm",
    "created_at",
}


def answer_to(item: dict[str, object], **fields: object) -> dict[str, object]:
    body: dict[str, object] = {
        "client_id": str(uuid.uuid4()),
        "image_id": item["image_id"],
        "lease_id": item["lease_id"],
        "kind": "label",
        "classes": ["anger"],
    }
    return body | fields


def take(client: httpx.Client, n: int = 1, **query: str) -> list[dict[str, object]]:
    reply = client.get("/api/v1/next", params={"n": n, **query})
    assert reply.status_code == 200, reply.text
    items: list[dict[str, object]] = reply.json()["items"]
    return items


def submit(client: httpx.Client, body: dict[str, object]) -> httpx.Response:
    return client.post("/api/v1/annotations", json=body)


def test_next_says_what_and_why(served: Running) -> None:
    with served.client() as client:
        reply = client.get("/api/v1/next?n=3").json()
    assert len(reply["items"]) == 3
    item = reply["items"][0]
    assert set(item) == ITEM_KEYS
    assert item["classes"] == list(served.workspace.settings.classes)
    assert reply["queue"]["mode"] == "import order"
    assert reply["queue"]["model"] is None
    assert "import order" in item["reason"]
    assert datetime.fromisoformat(item["lease_expires_at"]).tzinfo is not None


def test_an_answer_is_stored_once_and_its_face_does_not_come_again(served: Running) -> None:
    with served.client() as client:
        [item] = take(client)
        body = answer_to(item, confidence=0.5, note="<b>x</b>'; DROP TABLE images; --", duration_ms=800)
        first, second = submit(client, body), submit(client, body)
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.json() == second.json()
        assert set(first.json()) == ANNOTATION_KEYS
        assert first.json()["note"] == body["note"]
        rest = {i["image_id"] for i in take(client, 20)} | {i["image_id"] for i in take(client, 20)}
        assert item["image_id"] not in rest
        assert len(rest) == 29
    assert served.store.decisions.count() == 1


def test_faces_are_shared_out_without_doubles(served: Running) -> None:
    clients = [served.account(f"person-{n}") for n in range(4)]
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def work(client: httpx.Client) -> None:
        while items := take(client, 2):
            for item in items:
                with lock:
                    seen[str(item["image_id"])] += 1
                stored = submit(client, answer_to(item)).json()
                assert not stored["late"]
                assert not stored["duplicate"]

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 30
    assert set(seen.values()) == {1}
    assert served.store.decisions.count() == 30


def test_the_other_persons_client_id_is_a_conflict(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    [hers], [his] = take(alice), take(bob)
    body = answer_to(hers)
    assert submit(alice, body).status_code == 201
    reply = submit(bob, answer_to(his, client_id=body["client_id"]))
    assert reply.status_code == 409
    assert str(body["client_id"]) in reply.json()["detail"]


def test_an_answer_for_another_face_is_kept_and_marked(served: Running) -> None:
    with served.client() as client:
        shown, other = take(client, 2)
        stored = submit(client, answer_to(shown, image_id=other["image_id"])).json()
        assert stored["mismatch"]
        assert stored["image_id"] == other["image_id"]
        # The leased face was not answered: it is still this person's to answer.
        again = submit(client, answer_to(shown)).json()
        assert not again["mismatch"]
        assert not again["late"]


def test_a_late_answer_is_kept_and_marked(
    workspace: Workspace, sqlite_store: LabelStore, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served.client() as client:
        [item] = take(client)
        sqlite_store.leases.renew(str(item["lease_id"]), 1, datetime.fromisoformat("2000-01-01T00:00:00+00:00"))
        stored = submit(client, answer_to(item))
        assert stored.status_code == 201
        assert stored.json()["late"]


def test_two_answers_to_one_face_are_both_kept(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    [item] = take(alice)
    assert not submit(alice, answer_to(item)).json()["duplicate"]
    stored = submit(bob, answer_to(item, lease_id=None, classes=["fear"])).json()
    assert stored["duplicate"]
    assert served.store.decisions.label(served.store.images.by_id(str(item["image_id"])).row).state == "disputed"


def test_undo_gives_the_face_back_to_the_same_person(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    [item] = take(alice)
    stored = submit(alice, answer_to(item)).json()
    body = {"client_id": str(uuid.uuid4()), "annotation_id": stored["annotation_id"]}
    assert bob.post("/api/v1/undo", json=body).status_code == 422
    reply = alice.post("/api/v1/undo", json=body)
    assert reply.status_code == 201, reply.text
    assert reply.json()["kind"] == "undo"
    assert reply.json()["item"]["image_id"] == item["image_id"]
    assert reply.json()["lease_id"] == reply.json()["item"]["lease_id"]
    assert alice.post("/api/v1/undo", json=body).status_code == 200
    assert alice.post("/api/v1/undo", json=body | {"client_id": "another"}).status_code == 409
    taken = {i["image_id"] for i in take(bob, 20)} | {i["image_id"] for i in take(bob, 20)}
    assert item["image_id"] not in taken
    assert submit(alice, answer_to(reply.json()["item"], classes=["fear"])).status_code == 201
    history = alice.get("/api/v1/history").json()["items"]
    assert [(row["image_id"], row["classes"]) for row in history] == [(item["image_id"], ["fear"])]


def test_a_correction_supersedes(served: Running) -> None:
    with served.client() as client:
        [item] = take(client)
        first = submit(client, answer_to(item)).json()
        second = submit(client, answer_to(item, classes=["fear"], supersedes=first["id"])).json()
        assert second["supersedes"] == first["id"]
        assert [row["id"] for row in client.get("/api/v1/history").json()["items"]] == [second["id"]]
        assert client.get("/api/v1/live").json()["you"]["today"] == 1


def test_a_skipped_face_goes_to_others_and_comes_back_at_the_very_end(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    [first] = take(alice)
    assert submit(alice, answer_to(first, kind="skip", classes=[])).status_code == 201
    [his] = take(bob)
    assert his["image_id"] == first["image_id"]
    submit(bob, answer_to(his, kind="skip", classes=[]))
    for _ in range(29):
        [item] = take(alice)
        assert item["image_id"] != first["image_id"]
        submit(alice, answer_to(item))
    reply = alice.get("/api/v1/next").json()
    assert [item["image_id"] for item in reply["items"]] == [first["image_id"]]
    assert "put off" in reply["message"]
    submit(alice, answer_to(reply["items"][0]))
    end = alice.get("/api/v1/next").json()
    assert end["items"] == []
    assert end["message"] == "Every face has been answered."


def test_a_reloaded_page_gets_its_faces_again_when_nothing_else_is_left(served: Running) -> None:
    with served.client() as client:
        held = [i["image_id"] for _ in range(2) for i in take(client, 15)]
        assert take(client, 5) == []
        assert take(client, 5, have=",".join(map(str, held))) == []
        again = take(client, 5, have=",".join(map(str, held[5:])))
        assert [item["image_id"] for item in again] == held[:5]


def test_a_lease_can_be_renewed_by_its_owner_only(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    [item] = take(alice)
    renewed = alice.post(f"/api/v1/leases/{item['lease_id']}/renew")
    assert renewed.status_code == 200
    assert renewed.json()["lease_expires_at"] > str(item["lease_expires_at"])
    assert bob.post(f"/api/v1/leases/{item['lease_id']}/renew").status_code == 404
    assert alice.post("/api/v1/leases/nonsense/renew").status_code == 404
    submit(alice, answer_to(item))
    assert alice.post(f"/api/v1/leases/{item['lease_id']}/renew").status_code == 404


def test_leases_outlive_a_restart(workspace: Workspace, sqlite_store: LabelStore, served: Running) -> None:
    with served.client() as client:
        held = {i["image_id"] for i in take(client, 10)}
    with running(workspace, sqlite_store) as second, second.client() as client:
        fresh = {i["image_id"] for i in take(client, 20)}
    assert not held & fresh
    assert len(fresh) == 20


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"image_id": "im-nowhere"}, 404, "im-nowhere"),
        ({"kind": "undo"}, 422, "undo"),
        ({"kind": "shout"}, 422, "shout"),
        ({"classes": ["joy"]}, 422, "joy"),
        ({"classes": []}, 422, "exactly one class"),
        ({"classes": "anger"}, 422, "anger"),
        ({"classes": ["anger"] * 65}, 422, "64"),
        ({"confidence": 1.5}, 422, "1.5"),
        ({"client_id": ""}, 422, "client_id"),
        ({"client_id": "x" * 81}, 422, "80"),
        ({"duration_ms": -1}, 422, "-1"),
        ({"kind": "flag", "classes": []}, 422, "note"),
        ({"supersedes": 99}, 404, "99"),
        ({"colour": "red"}, 422, "colour"),
        ({"note": "nul\0"}, 422, "NUL"),
    ],
)
def test_bad_answers_are_named_and_nothing_is_stored(
    untouched: Running, change: dict[str, object], status: int, word: str
) -> None:
    with untouched.client() as client:
        [item] = take(client)
        reply = submit(client, answer_to(item) | change)
    assert reply.status_code == status, reply.text
    assert word in reply.json()["detail"]
    assert untouched.store.decisions.count() == 0


def test_malformed_and_oversize_bodies(served: Running) -> None:
    with served.client() as client:
        broken = client.post("/api/v1/annotations", content=b'{"kind": ', headers={"Content-Type": "application/json"})
        assert broken.status_code == 400
        assert "JSON" in broken.json()["detail"]
        assert client.post("/api/v1/annotations", json=["a", "list"]).status_code == 422
        assert client.post("/api/v1/annotations", json={"note": "x" * 70_000}).status_code == 413

        def unannounced() -> object:
            yield b'{"note": "'
            for _ in range(80):
                yield b"x" * 1_000

        assert client.post("/api/v1/annotations", content=unannounced()).status_code == 413  # type: ignore[arg-type]
        assert client.get("/api/v1/next?n=0").status_code == 422
        assert client.get("/api/v1/next?n=many").status_code == 422
        assert client.get("/api/v1/nothing").status_code == 404
        assert client.put("/api/v1/annotations", json={}).status_code == 404
        assert client.get("/api/v1/next").status_code == 200
