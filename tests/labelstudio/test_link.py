"""Linking against a real Label Studio: made once, adopted without guessing, brought up to date, ended."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from annotator import taxonomy
from annotator.errors import ConflictError, InputError, RefusedError, UnreachableError
from annotator.labelstudio.api.server import PROJECT_DEFAULTS, SECRET_HEADER, Server
from annotator.labelstudio.config.generated import Mapping, own_mapping
from annotator.labelstudio.linking.link import LinkReport, link
from annotator.labelstudio.linking.project import MARK
from annotator.labelstudio.linking.unlink import num_not_pulled, unlink
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedAnswer, LinkedTask
from tests.conftest import new_image
from tests.labelstudio.conftest import People
from tests.labelstudio.hooks import Receiver
from tests.labelstudio.proxy import Proxy, loses_answer
from tests.labelstudio.studio import Studio, said

THEIR_CONFIG = """
<View>
  <Image name="img" value="$photo"/>
  <Choices name="mood" toName="img" choice="single">
    <Choice value="Joy"/><Choice value="Sad"/><Choice value="Meh"/>
  </Choices>
</View>
"""


@pytest.fixture
def server(studio: Studio) -> Iterator[Server]:
    """Return the administrator's client."""
    with studio.server() as opened:
        yield opened


@pytest.fixture
def faces(sqlite_store: LabelStore) -> list[str]:
    """Store five faces, two of them called b.png, and return their image ids."""
    names = ("a.png", "one/b.png", "two/b.png", "c d.png", "e.png")
    source = sqlite_store.images.register_source("/data/faces", "folder", "imagefolder")
    new = [new_image(name, path=name) for name in names]
    return [record.image_id for record in sqlite_store.images.add(source, new, "none")]


def _active(store: LabelStore) -> Link:
    found = store.exchange.link()
    assert found is not None
    return found


def _marked(server: Server, workspace: Workspace) -> list[int]:
    """Return the projects that were made for a workspace."""
    name = repr(workspace.settings.name)
    return [p["id"] for p in server.projects() if name in p["description"] and "annotator:" in p["description"]]


@pytest.fixture
def named(tmp_path: Path) -> Workspace:
    """Make a workspace whose name no other test has."""
    return Workspace.create(tmp_path / "named", taxonomy.FERPLUS, name=tmp_path.name)


# Made


def test_a_project_is_made_from_the_taxonomy(workspace: Workspace, sqlite_store: LabelStore, server: Server) -> None:
    report = link(workspace, sqlite_store, server, title="Our faces", top_k=50)
    project = server.project(report.link.project_id)
    assert report.created
    assert report.problems == ()
    assert project["title"] == report.link.title == "Our faces"
    assert {name: project[name] for name in PROJECT_DEFAULTS} == PROJECT_DEFAULTS
    settings = _active(sqlite_store).settings
    assert Mapping.from_dict(settings["mapping"]) == own_mapping(workspace.settings.taxonomy)
    assert (settings["top_k"], settings["created_project"], settings["pictures"]) == (50, True, "upload")
    assert not (workspace.root / MARK).exists()
    assert "made and linked project" in report.summary()


def test_linking_again_updates_the_link_and_makes_nothing(named: Workspace, server: Server) -> None:
    with LabelStore.open(named) as store:
        first = link(named, store, server, top_k=50)
        store.exchange.update_link(first.link.id, cursor="2026-01-01T00:00:00.000000Z")
        again = link(named, store, server, order="confidence")
        assert (again.link.id, again.link.project_id) == (first.link.id, first.link.project_id)
        assert not again.created
        assert again.link.cursor is None
        settings = again.link.settings
        assert (settings["top_k"], settings["order"], settings["created_project"]) == (50, "confidence", True)
        assert _marked(server, named) == [first.link.project_id]


def test_another_project_waits_until_the_first_is_unlinked(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, project_id: int
) -> None:
    link(workspace, sqlite_store, server)
    with pytest.raises(ConflictError, match="unlink"):
        link(workspace, sqlite_store, server, project_id=project_id)
    unlink(workspace, sqlite_store, server)
    assert link(workspace, sqlite_store, server, project_id=project_id).link.project_id == project_id


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"title": "ab"}, "3 to 50 characters"),
        ({"title": "x" * 51}, "3 to 50 characters"),
        ({"public_url": "annotator:7860"}, "no address"),
        ({"public_url": "http://ann:pw@host:7860"}, "password"),
        ({"top_k": 0}, "top_k"),
        ({"order": "random"}, "order"),
        ({"pictures": "local"}, "local_folder and document_root"),
        ({"pictures": "local", "local_folder": "/a/b", "document_root": "/a/b"}, "below document_root"),
        ({"pictures": "local", "local_folder": "b", "document_root": "/a"}, "below document_root"),
        ({"colour": "red"}, "no setting colour"),
        ({"users": {"nobody@example.com": "local"}}, "not the email address"),
        ({"project_id": 999_999}, "no project 999999"),
    ],
)
def test_wrong_values_make_nothing(named: Workspace, server: Server, wrong: dict[str, Any], message: str) -> None:
    with LabelStore.open(named) as store:
        with pytest.raises(InputError, match=message):
            link(named, store, server, **wrong)
        assert store.exchange.link() is None
        if "users" not in wrong:
            assert _marked(server, named) == []


def test_cut_off_anywhere_and_run_again_it_makes_one_of_everything(
    studio: Studio, server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    cut_off = 0
    with Receiver() as receiver, studio.server(url=proxy.url) as through:
        for at in range(40):
            made = Workspace.create(tmp_path / f"cut-{at}", taxonomy.FERPLUS, name=f"{tmp_path.name}-{at}")
            with LabelStore.open(made) as store:
                proxy.plan(loses_answer(), skip=at)
                try:
                    link(made, store, through, public_url=receiver.url)
                except UnreachableError:
                    cut_off += 1
                else:
                    break
                proxy.calm()
                report = link(made, store, through, public_url=receiver.url)
                project_id = report.link.project_id
                assert _marked(server, made) == [project_id], f"cut off at request {at}"
                assert [hook["id"] for hook in server.webhooks(project_id)] == [report.link.webhook_id]
                assert [found["id"] for found in server.backends(project_id)] == [report.link.backend_id]
                assert report.link.settings["created_project"]
    assert cut_off == 9  # every request of a whole run


# Adopted


def test_tasks_are_linked_by_image_id_path_and_unique_name_and_never_guessed(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, studio: Studio, people: People, faces: list[str]
) -> None:
    project = server.create_project("theirs", THEIR_CONFIG)["id"]
    pictures = [
        {"photo": "s3://bucket/whatever.png", "image_id": faces[4]},
        {"photo": "/data/local-files/?d=faces/two/b.png"},
        {"photo": "https://example.com/pictures/a.png"},
        {"photo": "https://example.com/pictures/b.png"},
        {"photo": "https://example.com/pictures/z.png"},
        {"photo": "data:image/png;base64,AAAA"},
    ]
    ((_, uploaded),) = server.upload(project, [("c d.png", b"a picture", "image/png")])
    tasks = server.import_tasks(project, [{"data": data} for data in [*pictures, {"photo": uploaded}]])
    studio.annotate(people.ann, tasks[2], said("mood", "Joy", to_name="img"))
    report = link(workspace, sqlite_store, server, project_id=project)
    rows = {image_id: sqlite_store.images.by_id(image_id).row for image_id in faces}
    found = sqlite_store.exchange.tasks_by_id(report.link.id, tasks)
    assert {task_id: (task.row, task.state) for task_id, task in found.items()} == {
        tasks[0]: (rows[faces[4]], "open"),
        tasks[1]: (rows[faces[2]], "open"),
        tasks[2]: (rows[faces[0]], "answered"),
        tasks[6]: (rows[faces[3]], "open"),
    }
    assert report.tasks.linked == 4
    assert set(report.tasks.left_out) == {tasks[3], tasks[4], tasks[5]}
    assert "2 images" in report.tasks.left_out[tasks[3]]
    assert "no image is called" in report.tasks.left_out[tasks[4]]
    assert f"task {tasks[3]}: " in report.summary()
    assert not report.link.settings["created_project"]


def test_tasks_that_are_known_stay_as_they_are(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, project_id: int, faces: list[str]
) -> None:
    tasks = server.import_tasks(project_id, [{"data": {"image": "x", "image_id": face}} for face in faces[:2]])
    first = link(workspace, sqlite_store, server, project_id=project_id)
    assert first.tasks.linked == 2
    sqlite_store.exchange.set_task_state(first.link.id, tasks[:1], "withdrawn")
    more = server.import_tasks(project_id, [{"data": {"image": "x", "image_id": faces[2]}}])
    again = link(workspace, sqlite_store, server)
    assert (again.tasks.linked, again.tasks.known) == (1, 2)
    states = {t.task_id: t.state for t in sqlite_store.exchange.tasks(again.link.id)}
    assert states == {tasks[0]: "withdrawn", tasks[1]: "open", more[0]: "open"}


def test_an_adopted_configuration_says_what_does_not_fit(
    workspace: Workspace, sqlite_store: LabelStore, server: Server
) -> None:
    project = server.create_project("theirs", THEIR_CONFIG)["id"]
    server.update_project(project, sampling="Sequential sampling", evaluate_predictions_automatically=True)
    report = link(workspace, sqlite_store, server, project_id=project)
    mapping = Mapping.from_dict(report.link.settings["mapping"])
    assert mapping.expression.values == {"Joy": "happiness", "Sad": "sadness"}
    assert mapping.data_key == "photo"
    told = "\n".join(report.problems)
    for sentence in ("'Meh'", "candidate sets", "unusable", "Sequential sampling", "asks the ML backend"):
        assert sentence in told
    assert server.project(project)["sampling"] == "Sequential sampling"


def test_what_a_person_says_of_a_choice_is_kept(workspace: Workspace, sqlite_store: LabelStore, server: Server) -> None:
    project = server.create_project("theirs", THEIR_CONFIG)["id"]
    link(workspace, sqlite_store, server, project_id=project, choices={"Meh": "neutral"})
    again = link(workspace, sqlite_store, server)
    assert Mapping.from_dict(again.link.settings["mapping"]).expression.values["Meh"] == "neutral"


def test_a_project_without_our_classes_is_refused(
    workspace: Workspace, sqlite_store: LabelStore, server: Server
) -> None:
    config = '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="Cat"/></Choices></View>'
    project = server.create_project("cats", config)["id"]
    with pytest.raises(InputError, match="choice that means one of"):
        link(workspace, sqlite_store, server, project_id=project)
    assert sqlite_store.exchange.link() is None


# People


def _users(report: LinkReport) -> dict[str, str]:
    return dict(report.link.settings["users"])


def test_people_are_joined_by_address_or_by_word_and_nobody_else(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, people: People
) -> None:
    sqlite_store.accounts.add(people.ann.email.upper(), "annotator", None)
    sqlite_store.accounts.add("ben@example.co", "annotator", None)
    sqlite_store.accounts.add("ben", "annotator", None)  # may be another ben: only proposed
    sqlite_store.accounts.add("Bernard", "annotator", None)
    report = link(workspace, sqlite_store, server)
    assert _users(report)[people.ann.email] == people.ann.email.upper()
    assert people.ben.email in report.people.strangers
    assert f"--user {people.ben.email}=ben" in report.summary()
    again = link(workspace, sqlite_store, server, users={people.ben.email.upper(): "bernard"})
    assert _users(again) == {**_users(report), people.ben.email: "Bernard"}
    assert _users(link(workspace, sqlite_store, server)) == _users(again)


def test_nobody_can_be_named_and_stays_named(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, people: People
) -> None:
    sqlite_store.accounts.add(people.ann.email, "annotator", None)
    link(workspace, sqlite_store, server, users={people.ann.email: ""})
    again = link(workspace, sqlite_store, server)
    assert people.ann.email in again.people.strangers
    assert people.ann.email not in again.people.alike


def test_strangers_can_get_accounts(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, people: People
) -> None:
    report = link(workspace, sqlite_store, server, add_users=True)
    assert report.people.strangers == ()
    assert {people.ann.email, people.ben.email} <= set(report.people.added)
    assert sqlite_store.accounts.get(people.ann.email).role == "annotator"
    assert not sqlite_store.accounts.has_people()  # nobody can sign in with them: the single user is not locked out
    assert link(workspace, sqlite_store, server, add_users=True).people.added == ()


def test_simulated_users_are_nobody(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, people: People
) -> None:
    sqlite_store.accounts.add(people.ann.email, "annotator", None, simulated=True)
    assert people.ann.email in link(workspace, sqlite_store, server).people.strangers
    with pytest.raises(InputError, match="simulated"):
        link(workspace, sqlite_store, server, users={people.ann.email: people.ann.email})


# What Label Studio calls


def test_webhook_and_backend_share_a_secret_of_which_the_digest_is_kept(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, studio: Studio, faces: list[str]
) -> None:
    with Receiver() as receiver:
        report = link(workspace, sqlite_store, server, public_url=f"{receiver.url}/")
        project_id = report.link.project_id
        server.import_tasks(project_id, [{"data": {"image": "x", "reason": ""}}])
        hook = receiver.wait_for("TASKS_CREATED")[0]
        calls = [post for post in receiver.posts if post.path == "/labelstudio/setup"]
    secret = hook.headers[SECRET_HEADER]
    assert hook.path == "/labelstudio/webhook"
    assert len(secret) >= 32
    assert calls
    assert {call.basic for call in calls} == {("annotator", secret)}
    assert report.link.secret_digest == hashlib.sha256(secret.encode()).hexdigest()
    assert server.project(project_id)["model_version"] == ""
    kept = json.dumps([report.link.settings, report.summary()]) + repr(report)
    assert secret not in kept
    for path in workspace.root.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_registering_again_changes_the_secret_and_leaves_one_of_each(
    workspace: Workspace, sqlite_store: LabelStore, server: Server
) -> None:
    with Receiver() as first, Receiver() as second:
        one = link(workspace, sqlite_store, server, public_url=first.url).link
        two = link(workspace, sqlite_store, server, public_url=second.url).link
        assert [hook["url"] for hook in server.webhooks(two.project_id)] == [f"{second.url}/labelstudio/webhook"]
        assert [found["id"] for found in server.backends(two.project_id)] == [two.backend_id]
        assert one.secret_digest != two.secret_digest
        kept = link(workspace, sqlite_store, server).link
        assert (kept.webhook_id, kept.backend_id, kept.secret_digest) == (
            two.webhook_id,
            two.backend_id,
            two.secret_digest,
        )


def test_a_backend_that_does_not_answer_is_told_and_the_link_stands(
    workspace: Workspace, sqlite_store: LabelStore, server: Server
) -> None:
    report = link(workspace, sqlite_store, server, public_url="http://127.0.0.1:9")
    assert report.link.webhook_id is not None
    assert report.link.backend_id is None
    assert any("annotator serve" in problem for problem in report.problems)
    alone = link(workspace, sqlite_store, server, public_url="http://127.0.0.1:9", backend=False)
    assert alone.problems == ()


# Pictures


def test_local_pictures_get_a_folder_that_label_studio_shows(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, studio: Studio
) -> None:
    folder = studio.documents / workspace.root.parent.name / "faces"
    local = {"pictures": "local", "local_folder": str(folder), "document_root": str(studio.documents)}
    link(workspace, sqlite_store, server, **local)
    (folder / "a.png").write_bytes(b"a picture")
    path = f"{studio.url}/data/local-files/?d={folder.relative_to(studio.documents)}/a.png"
    shown = httpx.get(path, headers={"Authorization": f"Token {studio.admin.token}"})
    assert shown.content == b"a picture"


def test_a_folder_that_label_studio_does_not_show_is_refused(named: Workspace, server: Server, tmp_path: Path) -> None:
    local = {"pictures": "local", "local_folder": str(tmp_path / "elsewhere"), "document_root": str(tmp_path)}
    with LabelStore.open(named) as store:
        with pytest.raises(RefusedError, match="must be a subdirectory"):
            link(named, store, server, **local)
        report = link(named, store, server)
        assert _marked(server, named) == [report.link.project_id]


# Ended


def test_unlinking_takes_the_calls_down_and_keeps_the_project(
    workspace: Workspace, sqlite_store: LabelStore, server: Server
) -> None:
    with Receiver() as receiver:
        project_id = link(workspace, sqlite_store, server, public_url=receiver.url).link.project_id
        report = unlink(workspace, sqlite_store, server)
        assert sqlite_store.exchange.link() is None
        assert server.webhooks(project_id) == []
        assert server.backends(project_id) == []
    assert server.project(project_id)["id"] == project_id
    assert all(earlier.secret_digest is None for earlier in sqlite_store.exchange.links())
    assert not report.deleted_project
    with pytest.raises(InputError, match="no project is linked"):
        unlink(workspace, sqlite_store, server)


def test_a_project_that_was_there_is_not_deleted(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, project_id: int
) -> None:
    link(workspace, sqlite_store, server, project_id=project_id)
    with pytest.raises(InputError, match="was there before"):
        unlink(workspace, sqlite_store, server, delete_project=True)
    assert server.project(project_id)


def test_a_project_with_answers_that_are_not_here_is_not_deleted(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, studio: Studio, people: People, faces: list[str]
) -> None:
    linked = link(workspace, sqlite_store, server).link
    data = {"image": "x", "reason": "", "image_id": faces[0]}
    (task_id,) = server.import_tasks(linked.project_id, [{"data": data}])
    sqlite_store.exchange.put_tasks(linked.id, [LinkedTask(task_id, 0)])
    answer = studio.annotate(people.ann, task_id, said("expression", "happiness"))
    studio.skip(people.ben, task_id)
    assert num_not_pulled(sqlite_store, server, linked) == 1
    with pytest.raises(InputError, match="1 answers"):
        unlink(workspace, sqlite_store, server, delete_project=True)
    pulled = LinkedAnswer(answer["id"], task_id, people.ann.email, answer["updated_at"], "x")
    sqlite_store.exchange.put_answers(linked.id, [pulled])
    assert num_not_pulled(sqlite_store, server, linked) == 0
    studio.edit(people.ann, answer["id"], said("expression", "fear"))
    assert num_not_pulled(sqlite_store, server, linked) == 1
    unlink(workspace, sqlite_store, server, delete_project=True, force=True)
    with pytest.raises(RefusedError):
        server.project(linked.project_id)


def test_a_server_that_is_gone_can_be_left(workspace: Workspace, sqlite_store: LabelStore, server: Server) -> None:
    link(workspace, sqlite_store, server)
    report = unlink(workspace, sqlite_store, None)
    assert report.left_alone
    assert sqlite_store.exchange.link() is None


def test_a_project_that_is_gone_can_be_unlinked(workspace: Workspace, sqlite_store: LabelStore, server: Server) -> None:
    with Receiver() as receiver:
        linked = link(workspace, sqlite_store, server, public_url=receiver.url).link
    server.delete_project(linked.project_id)
    unlink(workspace, sqlite_store, server)
    assert sqlite_store.exchange.link() is None


def test_cut_off_while_unlinking_it_can_be_run_again(
    workspace: Workspace, sqlite_store: LabelStore, server: Server, studio: Studio, proxy: Proxy
) -> None:
    with Receiver() as receiver:
        linked = link(workspace, sqlite_store, server, public_url=receiver.url).link
        with studio.server(url=proxy.url) as through:
            for at in range(3):
                proxy.plan(loses_answer(), skip=at)
                with pytest.raises(UnreachableError):
                    unlink(workspace, sqlite_store, through)
                assert _active(sqlite_store).id == linked.id
                proxy.calm()
            unlink(workspace, sqlite_store, through)
        assert server.webhooks(linked.project_id) == []
        assert server.backends(linked.project_id) == []
