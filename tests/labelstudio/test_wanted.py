"""What the queue would ask next, without a web server: the same faces in the same order with the same words."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from annotator.labelstudio.tasks.wanted import LAST, UNREAD, QueueView, Wanted
from annotator.records import Answer, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.conftest import new_image
from tests.labelstudio.pushing import lease
from tests.scores import write_generation
from tests.test_queue import Desk, close, open_desk


@pytest.fixture
def desk(workspace: Workspace, store: LabelStore) -> Iterator[Desk]:
    opened = open_desk(workspace, store, faces=20)
    yield opened
    close(opened)


def view(desk: Desk) -> QueueView:
    return QueueView.read(desk.workspace, desk.store)


def first(desk: Desk, count: int) -> list[Wanted]:
    found = view(desk)
    return found.tell(found.top(count))


def answer(desk: Desk, user: User, row: int, kind: str = "label") -> int:
    image_id = desk.store.images.by_rows([row])[0].image_id
    classes = ("anger",) if kind == "label" else ()
    given = Answer(f"a{row}-{user.id}-{kind}", image_id, kind, classes, note="odd")  # type: ignore[arg-type]
    return desk.writer.submit(user, given).result(30).annotation.id


@pytest.mark.parametrize(
    "columns",
    [
        {"candidates": ("fear", "surprise")},
        {"candidates": ("fear", "anger"), "arms": "quota"},
        {"candidates": ("fear", "surprise"), "arms": "random", "blind": True},
        {"mode": "coverage", "arms": "coverage"},
    ],
)
def test_it_says_what_a_lease_would_say(desk: Desk, columns: dict[str, object]) -> None:
    order = desk.rows[::-1]
    desk.publish(order, **columns)
    found = first(desk, 20)
    leases = [item.lease for item in desk.take(desk.person("alice"), 20)]
    assert [item.row for item in found] == [one.row for one in leases] == order
    for item, one in zip(found, leases, strict=True):
        said = (item.arm, item.model_version, item.reason, item.blind, item.candidates)
        assert said == (one.arm, one.model_version, one.reason, one.blind, one.candidates)
        assert (item.shown.arm, item.shown.candidates) == (one.arm, one.candidates)


def test_without_scores_it_is_import_order(desk: Desk) -> None:
    found = view(desk)
    assert found.version == UNREAD
    assert [item.row for item in found.tell(found.top(5))] == desk.rows[:5]
    assert found.tell(found.top(5))[0].confidence == LAST


def test_answered_held_and_named_faces_are_left_out(desk: Desk) -> None:
    alice = desk.person("alice")
    desk.publish(desk.rows[::-1])
    undone = answer(desk, alice, desk.rows[19])
    answer(desk, alice, desk.rows[18])
    desk.writer.undo(alice, "undo", undone).result(30)
    desk.store.leases.open([lease(alice, desk.rows[17])])
    over = lease(alice, desk.rows[16])
    now = datetime.now(UTC)
    desk.store.leases.open([type(over)(**{**_fields(over), "expires_at": now - timedelta(seconds=1)})])
    expected = [desk.rows[n] for n in (19, 16, 14, 13)]
    assert view(desk).top(4, [desk.rows[15]]) == expected


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}  # type: ignore[attr-defined]


def test_faces_that_cannot_be_asked_any_more_are_left_out(desk: Desk) -> None:
    desk.publish(desk.rows)
    desk.store.images.quarantine(desk.rows[0], "broken")
    source = desk.store.images.register_source("/more", "folder", "folder")
    desk.store.images.add(source, [new_image("copy", content_hash="hash-1", given="anger")], "annotations")
    found = view(desk)
    assert found.top(2) == desk.rows[2:4]
    assert found.gone(desk.rows[:3]).tolist() == [True, False, False]
    assert found.settled(desk.rows[1:3]).tolist() == [True, False]


def test_a_review_is_for_others_and_tells_nobody_what_was_said(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    answer(desk, alice, desk.rows[3])
    desk.publish([desk.rows[3], desk.rows[4]], arms="review", given="anger", candidates=("fear", "anger"))
    both = view(desk).top(2, people=[alice.id, bob.id])
    assert both[0] == desk.rows[3]
    assert "anger" not in first(desk, 1)[0].reason.lower()
    assert desk.rows[3] not in view(desk).top(2, people=[alice.id])
    assert view(desk).top(1, people=[bob.id]) == [desk.rows[3]]


def test_what_all_of_them_have_put_off_is_left_out(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    answer(desk, alice, desk.rows[0], "skip")
    assert view(desk).top(1, people=[alice.id, bob.id])[0] == desk.rows[0]
    answer(desk, bob, desk.rows[0], "flag")
    assert view(desk).top(1, people=[alice.id, bob.id])[0] == desk.rows[1]
    assert view(desk).top(1)[0] == desk.rows[0]


def test_the_priority_keeps_its_order_while_faces_are_imported(desk: Desk) -> None:
    write_generation(desk.workspace, desk.store, desk.rows[:8], desk.rows[:8][::-1])
    before = {item.row: item.priority for item in first(desk, 20)}
    source = desk.store.images.register_source("/more", "folder", "folder")
    desk.store.images.add(source, [new_image(f"more{n}") for n in range(30)], "none")
    after = first(desk, 50)
    assert {item.row: item.priority for item in after[:20]} == before
    priorities = np.array([item.priority for item in after])
    assert (np.diff(priorities) > 0).all()
    assert 0 <= priorities.min() < priorities.max() < LAST
    assert [item.model_version is None for item in after] == [False] * 8 + [True] * 42


def test_it_knows_what_was_answered_since(desk: Desk) -> None:
    alice = desk.person("alice")
    first = desk.store.decisions.get(answer(desk, alice, desk.rows[0])).seq
    answer(desk, alice, desk.rows[1])
    found = view(desk)
    assert found.answered_since(desk.rows[:3], [0, 0, 0]).tolist() == [True, True, False]
    assert found.answered_since(desk.rows[:3], [first] * 3).tolist() == [False, True, False]
    assert [item.row for item in found.tell(desk.rows[:2])] == desk.rows[:2]
