"""Tasks that need no answer any more come back, and no answer of anybody is lost with them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from annotator.labelstudio.answers.sync import sync_once
from annotator.labelstudio.linking.link import link as make_link
from annotator.labelstudio.tasks.inflight import delete_unanswered
from annotator.labelstudio.tasks.pictures import named
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.tasks.wanted import QueueView
from annotator.labelstudio.tasks.withdraw import Withdrawn, plan_withdraw, withdraw
from annotator.maintenance.erase import erase
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.conftest import new_image
from tests.labelstudio.pushing import Bench, linked, result, with_faces
from tests.labelstudio.studio import Studio


@pytest.fixture
def bench(studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Bench]:
    """Link a workspace of 12 faces to a project and push eight of them."""
    with studio.server() as server:
        made = linked(workspace, sqlite_store, server, 12, tmp_path / "faces", top_k=8)
        made.publish(made.rows, candidates=("fear", "surprise"))
        push(made.workspace, made.store, made.server, made.link)
        yield made


def take_back(bench: Bench) -> Withdrawn:
    return withdraw(bench.workspace, bench.store, bench.server, bench.link)


def task_of(bench: Bench, row: int) -> int:
    return bench.store.exchange.tasks_of_rows(bench.link.id, [row])[row][-1].task_id


def planned(bench: Bench) -> dict[int, str]:
    view = QueueView.read(bench.workspace, bench.store)
    return {item.row: item.reason for item in plan_withdraw(bench.store, bench.link, view)}


def test_what_was_answered_on_our_page_comes_back(bench: Bench) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    bench.answer(alice, bench.rows[2])
    assert planned(bench) == {bench.rows[2]: "answered by alice"}
    task = task_of(bench, bench.rows[2])
    assert take_back(bench) == Withdrawn(withdrawn=1)
    bench.check([row for row in bench.rows[:8] if row != bench.rows[2]])
    assert bench.store.exchange.tasks_by_id(bench.link.id, [task])[task].state == "withdrawn"
    assert take_back(bench) == Withdrawn()


def test_an_answer_that_was_taken_back_leaves_the_task(bench: Bench) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    answer = bench.answer(alice, bench.rows[2])
    bench.store.decisions.undo(alice, "undo", answer)
    assert planned(bench) == {}


def test_a_face_that_comes_again_takes_its_picture_again(bench: Bench) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    answer = bench.answer(alice, bench.rows[2])
    take_back(bench)
    bench.store.decisions.undo(alice, "undo", answer)
    assert push(bench.workspace, bench.store, bench.server, bench.link).pushed == 1
    bench.check(bench.rows[:8])
    found = [named(str(upload["file"])) for upload in bench.server.uploads(bench.project_id)]
    assert len(found) == len(set(found)) == 8


def test_answers_of_mapped_people_go_out_instead(bench: Bench, studio: Studio) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    settings = bench.link.settings | {"users": {studio.admin.email: "alice"}}
    bench.store.exchange.update_link(bench.link.id, settings=settings)
    bench.answer(alice, bench.rows[2])
    assert planned(bench) == {}
    assert take_back(bench) == Withdrawn()
    sync_once(bench.workspace, bench.store, bench.server, bench.link)
    assert take_back(bench) == Withdrawn()
    assert [a["task"] for a in studio.annotations(bench.project_id)] == [task_of(bench, bench.rows[2])]


def test_a_task_with_an_answer_is_never_deleted(bench: Bench, studio: Studio) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    for row in bench.rows[:3]:
        bench.answer(alice, row)
    studio.annotate(studio.admin, task_of(bench, bench.rows[0]), *result("fear"))
    studio.skip(studio.admin, task_of(bench, bench.rows[1]))
    assert take_back(bench) == Withdrawn(withdrawn=1, kept=2)
    bench.check_rows([*bench.rows[:2], *bench.rows[3:8]])
    assert len(studio.annotations(bench.project_id)) == 2


def test_an_answer_between_planning_and_deleting_is_seen(bench: Bench, studio: Studio) -> None:
    tasks = [task_of(bench, row) for row in bench.rows[:8]]
    studio.annotate(studio.admin, tasks[5], *result("fear"))
    gone, kept = delete_unanswered(bench.server, bench.link, [*tasks, 999_999])
    assert (sorted(gone), kept) == (sorted([*tasks[:5], *tasks[6:], 999_999]), [tasks[5]])
    bench.check_rows([bench.rows[5]])


def test_a_label_from_an_import_decides(bench: Bench) -> None:
    source = bench.store.images.register_source("/more", "folder", "folder")
    copy = new_image("copy", content_hash="hash-4", given="anger")
    bench.store.images.add(source, [copy], "annotations")
    assert planned(bench) == {bench.rows[4]: "the face has a label that nothing doubts"}
    assert take_back(bench).withdrawn == 1


def test_a_review_that_is_not_wanted_any_more_comes_back(bench: Bench) -> None:
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    bench.answer(alice, bench.rows[9])
    bench.publish([bench.rows[9], *bench.rows[:8]], arms="review", given="anger")
    bench.store.exchange.update_link(bench.link.id, settings=bench.link.settings | {"top_k": 9})
    assert push(bench.workspace, bench.store, bench.server, bench.link).pushed == 1
    assert planned(bench) == {}
    bench.publish(bench.rows[:8])
    assert planned(bench) == {bench.rows[9]: "the face has a label that nothing doubts"}


def test_faces_that_cannot_be_used_come_back(bench: Bench) -> None:
    bench.store.images.quarantine(bench.rows[1], "broken")
    assert planned(bench) == {bench.rows[1]: "the face cannot be used any more"}
    assert take_back(bench).withdrawn == 1
    bench.check_rows([bench.rows[0], *bench.rows[2:8]])


def test_an_erased_face_goes_with_its_answers_and_its_picture(bench: Bench, studio: Studio) -> None:
    row = bench.rows[3]
    image_id, task = bench.image_id(row), task_of(bench, row)
    twice = bench.server.upload(bench.project_id, [(f"{image_id}.png", b"\x89PNG\r\n\x1a\n", "image/png")])
    studio.annotate(studio.admin, task, *result("fear"))
    sync_once(bench.workspace, bench.store, bench.server, bench.link)
    erase(bench.workspace, image_id=image_id, reason="asked to")
    assert len(twice) == 1
    assert take_back(bench).erased == 1
    bench.check_rows([r for r in bench.rows[:8] if r != row])
    assert studio.annotations(bench.project_id) == []
    assert image_id not in {named(str(upload["file"])) for upload in bench.server.uploads(bench.project_id)}
    left = bench.store.exchange.tasks_by_id(bench.link.id, [task])[task]
    assert (left.state, left.picture, left.shown) == ("withdrawn", None, None)
    assert take_back(bench) == Withdrawn()


def test_an_erased_face_goes_from_the_served_folder(
    studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    folder = studio.documents / tmp_path.name
    settings = {"pictures": "local", "local_folder": str(folder), "document_root": str(studio.documents)}
    with studio.server() as server:
        bench = linked(workspace, sqlite_store, server, 3, tmp_path / "faces", **settings)
        push(workspace, sqlite_store, server, bench.link)
        image_id = bench.image_id(bench.rows[0])
        assert (folder / f"{image_id}.png").is_file()
        erase(workspace, image_id=image_id, reason="asked to")
        assert take_back(bench).erased == 1
        assert sorted(path.stem for path in folder.iterdir()) == sorted(map(bench.image_id, bench.rows[1:]))


def test_tasks_that_the_project_had_before_are_not_ours_to_delete(
    studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    rows = with_faces(workspace, sqlite_store, tmp_path / "faces", 4)
    with studio.server() as server:
        images = sqlite_store.images.by_rows(rows)
        bench = linked(workspace, sqlite_store, server, 0, tmp_path / "none")
        bench.rows = rows
        server.import_tasks(
            bench.project_id, [{"data": {"image": "x", "reason": "", "image_id": i.image_id}} for i in images[:3]]
        )
        make_link(workspace, sqlite_store, server, project_id=bench.project_id)
        assert len(sqlite_store.exchange.tasks(bench.link.id, states=("open",))) == 3
        assert push(workspace, sqlite_store, server, bench.link).pushed == 1
        alice = sqlite_store.accounts.add("alice", "annotator", "hash")
        for row in rows:
            bench.answer(alice, row)
        assert take_back(bench) == Withdrawn(withdrawn=1)
        assert bench.rows_there() == rows[:3]


def test_a_face_that_is_asked_twice_keeps_one_task(bench: Bench) -> None:
    first = bench.store.exchange.tasks(bench.link.id, limit=1)[0]
    [copy] = bench.server.import_tasks(bench.project_id, [{"data": bench.there()[0]["data"]}])
    bench.store.exchange.put_tasks(bench.link.id, [replace(first, task_id=copy)])
    assert take_back(bench) == Withdrawn(withdrawn=1)
    bench.check(bench.rows[:8])
