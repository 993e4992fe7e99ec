"""The client against a real Label Studio, and against one behind a proxy that spoils its answers."""

import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import httpx
import jwt
import pytest

from annotator.errors import InputError, RefusedError, UnreachableError
from annotator.labelstudio.api import server as requests
from annotator.labelstudio.api.server import SECRET_HEADER, WEBHOOK_ACTIONS, Server
from tests.labelstudio.conftest import PLAIN_CONFIG, People
from tests.labelstudio.hooks import Receiver
from tests.labelstudio.install import TOKEN, VERSION
from tests.labelstudio.proxy import Proxy, answers, hangs, loses_answer, spoils_answer
from tests.labelstudio.studio import Studio, said


@pytest.fixture
def server(studio: Studio) -> Iterator[Server]:
    """Return the administrator's client."""
    with studio.server() as opened:
        yield opened


def _task(name: str) -> dict[str, object]:
    return {"data": {"image": f"/faces/{name}.png", "image_id": name}}


def _prediction(task_id: int, model_version: str, score: float, choice: str = "neutral") -> dict[str, object]:
    return {"task": task_id, "model_version": model_version, "score": score, "result": [said("expression", choice)]}


def test_it_says_who_is_asking_what_runs_there_and_who_else_there_is(server: Server, people: People) -> None:
    assert server.whoami()["email"] == "admin@example.com"
    assert server.version() == VERSION
    found = {user["email"]: user["id"] for user in server.users()}
    assert found[people.ann.email] == people.ann.id
    assert found[people.ben.email] == people.ben.id


def test_a_project_is_made_changed_and_deleted(server: Server) -> None:
    made = server.create_project("faces", PLAIN_CONFIG, description="made by a test")
    assert {key: made[key] for key in requests.PROJECT_DEFAULTS} == requests.PROJECT_DEFAULTS
    assert (made["id"], "faces", "made by a test") in [
        (project["id"], project["title"], project["description"]) for project in server.projects()
    ]
    assert server.update_project(made["id"], title="more faces")["title"] == "more faces"
    assert server.project(made["id"])["title"] == "more faces"
    assert server.delete_project(made["id"])
    assert not server.delete_project(made["id"])
    with pytest.raises(RefusedError) as refused:
        server.project(made["id"])
    assert refused.value.status == 404


def test_all_projects_are_listed_beyond_one_page(server: Server) -> None:
    made = {server.create_project(f"page {k}", PLAIN_CONFIG)["id"] for k in range(3)}
    listed = [project["id"] for project in server.projects(page_size=2)]
    assert made <= set(listed)
    assert len(listed) == len(set(listed))
    for project_id in made:
        server.delete_project(project_id)


def test_tasks_come_back_in_the_order_they_were_sent(server: Server, project_id: int) -> None:
    names = [f"im{k}" for k in range(25)]
    ids = server.import_tasks(project_id, [_task(name) for name in names])
    found = list(server.iter_tasks(project_id, include=("data",), page_size=10))
    assert {task["id"]: task["data"]["image_id"] for task in found} == dict(zip(ids, names, strict=True))
    page, total = server.tasks(project_id, include=("id",), ordering=["-tasks:id"], page_size=3)
    assert [task["id"] for task in page] == sorted(ids, reverse=True)[:3]
    assert total == 25
    assert server.import_tasks(project_id, []) == []


def test_iterating_misses_nothing_when_tasks_go_meanwhile(server: Server, project_id: int) -> None:
    ids = server.import_tasks(project_id, [_task(f"im{k}") for k in range(20)])
    walk = server.iter_tasks(project_id, include=("id",), page_size=5)
    first = [next(walk)["id"] for _ in range(5)]
    server.delete_tasks(project_id, first)
    assert [*first, *(task["id"] for task in walk)] == ids


def test_deleting_tasks_deletes_these_and_no_others(server: Server, project_id: int) -> None:
    ids = server.import_tasks(project_id, [_task(f"im{k}") for k in range(4)])
    server.delete_tasks(project_id, [])
    server.delete_tasks(project_id, ids[:2])
    server.delete_tasks(project_id, ids[:2])
    assert [task["id"] for task in server.iter_tasks(project_id, include=("id",))] == ids[2:]


def test_filters_find_by_time_id_data_and_answers(
    server: Server, studio: Studio, people: People, project_id: int
) -> None:
    ids = server.import_tasks(project_id, [_task(f"im{k}") for k in range(4)])
    before = datetime.now(UTC)
    studio.annotate(people.ann, ids[1], said("expression", "sadness"))

    def found(*filters: requests.Filter) -> list[int]:
        return [task["id"] for task in server.iter_tasks(project_id, include=("id",), filters=filters)]

    assert found(requests.since(before)) == [ids[1]]
    assert found(requests.since(datetime.now(UTC))) == []
    assert found(requests.above(ids[2])) == [ids[3]]
    assert found(requests.data_equals("image_id", "im2")) == [ids[2]]
    assert found(requests.annotated()) == [ids[1]]
    assert found(requests.annotated(), requests.above(ids[1])) == []


def test_a_change_is_found_to_the_microsecond(server: Server, studio: Studio, people: People, project_id: int) -> None:
    (task_id,) = server.import_tasks(project_id, [_task("im")])
    studio.annotate(people.ann, task_id, said("expression", "sadness"))
    (task,), _ = server.tasks(project_id, include=("id", "updated_at"))
    moment = datetime.fromisoformat(task["updated_at"])
    assert server.tasks(project_id, include=("id",), filters=[requests.since(moment)])[1] == 1
    later = moment + timedelta(microseconds=1)
    assert server.tasks(project_id, include=("id",), filters=[requests.since(later)])[1] == 0


def test_a_time_is_written_with_microseconds_in_utc() -> None:
    assert requests.stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000000Z"
    east = timezone(timedelta(hours=2))
    assert requests.stamp(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=east)) == "2026-01-02T01:04:05.000006Z"
    with pytest.raises(ValueError, match="zone"):
        requests.stamp(datetime(2026, 1, 2))


def test_predictions_are_counted_by_version(server: Server, project_id: int) -> None:
    ids = server.import_tasks(project_id, [_task(f"im{k}") for k in range(5)])
    assert server.import_predictions(project_id, [_prediction(i, "v1", 0.5) for i in ids]) == 5
    assert server.import_predictions(project_id, [_prediction(i, "v2", 0.5) for i in ids[:3]]) == 3
    assert server.model_versions(project_id) == {"v1": 5, "v2": 3}
    assert server.update_project(project_id, model_version="v2")["model_version"] == "v2"
    server.delete_model_version(project_id, "v1")
    assert server.model_versions(project_id) == {"v2": 3}
    with pytest.raises(RefusedError):
        server.update_project(project_id, model_version="v3")
    assert server.import_predictions(project_id, []) == 0


def test_a_prediction_that_does_not_fit_is_missing_from_the_count(server: Server, project_id: int) -> None:
    ids = server.import_tasks(project_id, [_task("a"), _task("b")])
    fitting, other = _prediction(ids[0], "v1", 0.5), _prediction(ids[1], "v1", 0.5, "no such choice")
    assert server.import_predictions(project_id, [fitting, other]) == 1


def test_answers_are_written_read_changed_and_deleted(server: Server, people: People, project_id: int) -> None:
    (task_id,) = server.import_tasks(project_id, [_task("im")])
    body = {
        "result": [said("expression", "sadness")],
        "completed_by": people.ben.id,
        "unique_id": str(uuid.uuid4()),
        "import_id": 7,
        "lead_time": 2.5,
    }
    made = server.create_annotation(task_id, body)
    assert (made["completed_by"], made["import_id"], made["lead_time"]) == (people.ben.id, 7, 2.5)
    with pytest.raises(RefusedError) as repeated:
        server.create_annotation(task_id, body)
    assert repeated.value.status == 409
    changed = server.update_annotation(made["id"], {"result": [said("expression", "neutral")]})
    assert changed["result"][0]["value"] == {"choices": ["neutral"]}
    read = server.annotation(made["id"])
    assert read is not None
    assert (read["result"], read["completed_by"], read["import_id"]) == (changed["result"], people.ben.id, 7)
    assert server.delete_annotation(made["id"])
    assert not server.delete_annotation(made["id"])
    assert server.annotation(made["id"]) is None


def test_files_are_stored_shown_and_deleted(server: Server, studio: Studio, project_id: int) -> None:
    contents = [bytes([k]) * 500 for k in range(12)]
    stored = server.upload(project_id, [(f"face {k}.png", content, "image/png") for k, content in enumerate(contents)])
    assert len(stored) == 12
    for (upload_id, path), content in zip(stored, contents, strict=True):
        shown = httpx.get(studio.url + path, headers={"Authorization": f"Token {studio.admin.token}"})
        assert shown.content == content, f"upload {upload_id}"
    listed = {upload["id"]: f"/data/{upload['file']}" for upload in server.uploads(project_id)}
    assert listed == dict(stored)
    assert server.delete_upload(stored[0][0])
    assert not server.delete_upload(stored[0][0])
    assert len(server.uploads(project_id)) == 11
    assert server.upload(project_id, []) == []


def test_files_of_the_same_name_are_told_apart(server: Server, studio: Studio, project_id: int) -> None:
    stored = server.upload(project_id, [("a.png", b"one", "image/png"), ("a.png", b"two", "image/png")])
    shown = [
        httpx.get(studio.url + path, headers={"Authorization": f"Token {studio.admin.token}"}).content
        for _, path in stored
    ]
    assert shown == [b"one", b"two"]


def test_local_files_are_shown_from_a_storage_that_is_made_once(
    server: Server, studio: Studio, project_id: int
) -> None:
    folder = studio.documents / f"p{project_id}"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"one")
    local = f"{studio.url}/data/local-files/?d={folder.name}/a.png"
    header = {"Authorization": f"Token {studio.admin.token}"}
    assert httpx.get(local, headers=header).status_code == 404
    storage = server.local_storage(project_id, str(folder), "ours")
    assert server.local_storage(project_id, f"{folder}/", "ours") == storage
    assert httpx.get(local, headers=header).content == b"one"
    with pytest.raises(RefusedError, match="must be a subdirectory"):
        server.local_storage(project_id, "/etc", "not ours")


def test_a_webhook_carries_the_secret_and_is_listed_without_it(
    server: Server, studio: Studio, people: People, project_id: int
) -> None:
    with Receiver() as receiver:
        webhook = server.create_webhook(project_id, f"{receiver.url}/hook", "the-secret")
        (task_id,) = server.import_tasks(project_id, [_task("im")])
        studio.annotate(people.ann, task_id, said("expression", "sadness"))
        posts = receiver.wait_for("ANNOTATION_CREATED")
    assert posts[-1].headers[SECRET_HEADER] == "the-secret"
    assert set(json.loads(posts[-1].body)) == {"action"}
    (listed,) = server.webhooks(project_id)
    assert (listed["id"], set(listed["actions"])) == (webhook, set(WEBHOOK_ACTIONS))
    assert "the-secret" not in str(listed)
    assert server.delete_webhook(webhook)
    assert not server.delete_webhook(webhook)
    assert server.webhooks(project_id) == []


def test_a_backend_is_connected_with_its_password(server: Server, project_id: int) -> None:
    with Receiver() as receiver:
        backend = server.create_backend(project_id, receiver.url, "annotator", "the-secret", "ours")
        assert {post.path for post in receiver.posts} == {"/setup"}
        assert all(post.basic == ("annotator", "the-secret") for post in receiver.posts)
        (listed,) = server.backends(project_id)
    assert (listed["id"], listed["title"], listed["is_interactive"]) == (backend, "ours", False)
    assert "the-secret" not in str(listed)
    assert server.delete_backend(backend)
    assert not server.delete_backend(backend)
    with pytest.raises(RefusedError, match="health check failed"):
        server.create_backend(project_id, "http://127.0.0.1:9", "annotator", "the-secret", "ours")


def test_a_wrong_key_is_refused_and_not_repeated_in_the_message(studio: Studio) -> None:
    key = "f" * 40
    with Server(studio.url, key) as server, pytest.raises(RefusedError) as refused:
        server.whoami()
    assert refused.value.status == 401
    assert key not in str(refused.value)
    assert key not in repr(server)


@pytest.mark.filterwarnings("ignore:The `parse_obj` method:DeprecationWarning")
def test_a_personal_access_token_opens_it_too(studio: Studio, people: People, project_id: int) -> None:
    token = studio.personal_token(people.ann)
    with Server(studio.url, token) as server:
        assert server.tasks(project_id, include=("id",)) == ([], 0)  # by a request of ours
        assert server.whoami()["email"] == people.ann.email  # and by one of the SDK's
    with Server(studio.url, f"{token[:-4]}AAAA") as server:
        for ask in (server.whoami, lambda: server.tasks(project_id, include=("id",))):
            with pytest.raises(RefusedError) as refused:
                ask()
            assert refused.value.status == 401
            assert token[:20] not in str(refused.value)


def test_a_token_that_has_expired_is_an_input_error(studio: Studio) -> None:
    with pytest.raises(InputError, match="expired"):
        Server(studio.url, jwt.encode({"exp": 1000, "token_type": "refresh"}, "0" * 40))


def test_an_address_that_is_none_is_an_input_error() -> None:
    for address in ("", "localhost:8080", "ftp://host", "http://"):
        with pytest.raises(InputError, match="no address"):
            Server(address, TOKEN)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with Server("http://127.0.0.1:9", TOKEN) as server, pytest.raises(UnreachableError):
        server.whoami()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_answers_that_say_later_are_not_repeated_by_the_client(studio: Studio, proxy: Proxy, status: int) -> None:
    with studio.server(url=proxy.url) as server:
        proxy.plan(answers(status))
        with pytest.raises(UnreachableError, match=str(status)):
            server.whoami()
        proxy.plan(answers(status))
        with pytest.raises(UnreachableError, match=str(status)):
            server.tasks(1, include=("id",))
    assert proxy.count() == 2


def test_a_conflict_is_not_repeated_by_the_client(studio: Studio, proxy: Proxy, project_id: int) -> None:
    with studio.server(url=proxy.url) as server:
        (task_id,) = server.import_tasks(project_id, [_task("im")])
        proxy.plan(answers(409), path="annotations")
        with pytest.raises(RefusedError) as refused:
            server.create_annotation(task_id, {"result": []})
    assert refused.value.status == 409
    assert proxy.count("POST", "annotations") == 1


def test_a_server_that_does_not_answer_in_time_is_unreachable(studio: Studio, proxy: Proxy) -> None:
    with studio.server(url=proxy.url, timeout=0.3) as server:
        proxy.plan(hangs())
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="no answer in time"):
            server.whoami()
        assert time.monotonic() - began < 3
    proxy.calm()


def test_an_answer_that_is_lost_leaves_the_work_done(studio: Studio, proxy: Proxy, project_id: int) -> None:
    with studio.server(url=proxy.url) as server:
        proxy.plan(loses_answer(), method="POST")
        with pytest.raises(UnreachableError):
            server.import_tasks(project_id, [_task("im")])
        assert server.tasks(project_id, include=("id",))[1] == 1
        proxy.plan(spoils_answer(502), method="POST")
        with pytest.raises(UnreachableError, match="502"):
            server.import_tasks(project_id, [_task("im")])
        assert server.tasks(project_id, include=("id",))[1] == 2


def test_a_page_that_is_not_label_studio_is_unreachable(studio: Studio, proxy: Proxy) -> None:
    with studio.server(url=proxy.url) as server:
        proxy.plan(spoils_answer(200), times=2)
        with pytest.raises(UnreachableError, match="not one of Label Studio's"):
            server.whoami()
        with pytest.raises(UnreachableError, match="not one of Label Studio's"):
            server.tasks(1, include=("id",))


def test_a_killed_server_is_unreachable_and_comes_back_with_everything(own_studio: Studio) -> None:
    with own_studio.server() as server:
        project_id = server.create_project("faces", PLAIN_CONFIG)["id"]
        ids = server.import_tasks(project_id, [_task("im")])
        own_studio.kill()
        with pytest.raises(UnreachableError):
            server.tasks(project_id, include=("id",))
        own_studio.start()
        assert [task["id"] for task in server.iter_tasks(project_id, include=("id",))] == ids
