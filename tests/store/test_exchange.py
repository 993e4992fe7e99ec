"""The link to a project in another labeling tool: every answer exactly once, whatever is repeated."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from annotator.errors import ConflictError, InputError, NotFoundError
from annotator.records import Answer, ImageRecord, Stored, User
from annotator.store import LabelStore, health
from annotator.store.exchange_records import (
    ForeignAnswer,
    ForeignRetraction,
    Link,
    LinkedAnswer,
    LinkedTask,
    Shown,
)
from annotator.store.pacing import WANTED_SECONDS, Pace
from tests.conftest import new_image

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHOWN = Shown("uncertain", "resnet.7", False, ({"class": "fear", "prob": 0.4},))


@pytest.fixture
def images(store: LabelStore) -> list[ImageRecord]:
    """Import four faces; the last is a copy of the first."""
    source = store.images.register_source("/faces", "folder", "folder")
    new = [new_image(str(i)) for i in range(3)]
    return store.images.add(source, [*new, new_image("copy", content_hash="hash-0")], "none")


@pytest.fixture
def ann(store: LabelStore) -> User:
    return store.accounts.add("ann", "annotator", None)


@pytest.fixture
def rev(store: LabelStore) -> User:
    return store.accounts.add("rev", "reviewer", None)


@pytest.fixture
def link(store: LabelStore, images: list[ImageRecord]) -> Link:
    """Link a project that has a task for every face, of id 100 and up."""
    made = store.exchange.add_link("http://studio:8080", 3, "Faces", {"top_k": 10})
    store.exchange.put_tasks(made.id, [LinkedTask(100 + image.row, image.row, shown=SHOWN) for image in images])
    return made


def foreign(
    user: User, image: ImageRecord, said: str, *, ls_id: int = 50, version: int = 0, supersedes: int | None = None
) -> ForeignAnswer:
    """Return an answer that `user` gave in the linked project; `version` counts its edits."""
    answer = Answer(f"ls:1:{ls_id}:{version}", image.image_id, "label", (said,), supersedes=supersedes)
    linked = LinkedAnswer(ls_id, 100 + image.row, "ann@lab.org", f"2026-03-01T12:00:0{version}Z", said)
    return ForeignAnswer(user, answer, SHOWN, NOW, False, linked)


def retraction(user: User, annotation_id: int, linked: LinkedAnswer) -> ForeignRetraction:
    gone = replace(linked, state="deleted", annotation_id=None)
    return ForeignRetraction(user, annotation_id, f"ls:1:{linked.ls_id}:gone", NOW, gone)


def stored(outcome: object) -> Stored:
    assert isinstance(outcome, Stored), outcome
    return outcome


def record(store: LabelStore, item: ForeignAnswer | ForeignRetraction) -> Stored:
    return stored(store.exchange.record(1, [item])[0])


def seen(store: LabelStore, ls_id: int = 50) -> LinkedAnswer:
    return store.exchange.answers_by_id(1, [ls_id])[ls_id]


def test_a_foreign_answer_is_stored_as_if_a_lease_had_shown_it(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    outcome = record(store, foreign(ann, images[0], "fear"))
    saved = store.decisions.get(outcome.annotation.id)
    assert outcome == Stored(saved, created=True)
    assert (saved.arm, saved.model_version, saved.blind, saved.late) == ("uncertain", "resnet.7", False, False)
    assert (saved.suggestions, saved.created_at, saved.source) == (SHOWN.candidates, NOW, "labelstudio")
    assert store.decisions.label(0).classes == ("fear",)
    known = LinkedAnswer(50, 100, "ann@lab.org", "2026-03-01T12:00:00Z", "fear", saved.id)
    assert store.exchange.answers_of_tasks(link.id, [100, 101]) == {100: [known]}
    assert store.exchange.answers_of_annotations(link.id, [saved.id, 99]) == {saved.id: [known]}


def test_what_was_shown_counts_as_it_would_here(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User, link: Link
) -> None:
    blind = Shown("random", "resnet.7", True)
    record(store, replace(foreign(ann, images[0], "fear"), shown=blind))
    assert store.images.table().reserved.tolist() == [True, False, False, True], "kept for validation, with its copy"
    second = record(store, foreign(rev, images[0], "anger", ls_id=51)).annotation
    assert (second.duplicate, second.adjudicates) == (True, False)
    review = Shown("review", "resnet.7", False)
    ruling = record(store, replace(foreign(rev, images[0], "sadness", ls_id=52), shown=review)).annotation
    assert (ruling.duplicate, ruling.adjudicates) == (False, True)
    assert store.decisions.label(0).locked
    unknown = record(store, replace(foreign(ann, images[1], "fear", ls_id=53), shown=None)).annotation
    assert (unknown.arm, unknown.late, unknown.suggestions) == (None, False, ())


def test_no_answer_is_from_the_future(store: LabelStore, images: list[ImageRecord], ann: User, link: Link) -> None:
    ahead = replace(foreign(ann, images[0], "fear"), at=datetime.now(UTC) + timedelta(days=1))
    assert record(store, ahead).annotation.created_at <= datetime.now(UTC)


def test_a_repeat_stores_nothing_and_still_puts_what_was_seen(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User, link: Link
) -> None:
    first = record(store, foreign(ann, images[0], "fear"))
    again = replace(foreign(ann, images[0], "fear"), linked=replace(seen(store), reason="seen again"))
    assert record(store, again) == Stored(first.annotation, created=False)
    assert (seen(store).reason, seen(store).annotation_id) == ("seen again", first.annotation.id)
    twice = foreign(ann, images[1], "fear", ls_id=51)
    outcomes = [stored(o) for o in store.exchange.record(link.id, [twice, twice])]
    assert [o.created for o in outcomes] == [True, False]
    assert outcomes[0].annotation == outcomes[1].annotation
    assert store.decisions.count() == 2
    [stolen] = store.exchange.record(link.id, [foreign(rev, images[0], "fear")])
    assert isinstance(stolen, ConflictError)


def test_a_wrong_one_leaves_the_others_alone(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    odd = foreign(ann, images[1], "joy", ls_id=51)
    lost = replace(foreign(ann, images[1], "fear", ls_id=52), answer=Answer("ls:1:52:0", "nobody", "label", ("fear",)))
    alien = replace(foreign(ann, images[1], "fear", ls_id=53), answer=Answer("x", images[1].image_id, "skip"))
    outcomes = store.exchange.record(link.id, [foreign(ann, images[0], "fear"), odd, lost, alien])
    assert [type(o) for o in outcomes[:3]] == [Stored, type(outcomes[1]), NotFoundError]
    assert "joy" in str(outcomes[1])
    assert "must begin with ls:1:" in str(outcomes[3])
    assert store.exchange.answers_by_id(link.id, [50, 51, 52, 53]).keys() == {50}
    assert store.decisions.count() == 1


def test_nobody_else_may_use_the_ids_of_linked_answers(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    with pytest.raises(InputError, match="belongs to answers of linked projects"):
        store.decisions.submit(ann, Answer("ls:1:50:0", images[0].image_id, "label", ("fear",)))
    said = record(store, foreign(ann, images[0], "fear")).annotation
    with pytest.raises(InputError, match="belongs to answers of linked projects"):
        store.decisions.undo(ann, "ls:1:50:gone:0", said.id)
    assert isinstance(store.exchange.record(2, [foreign(ann, images[0], "fear", ls_id=51)])[0], InputError)


def test_a_retraction_takes_back_an_answer_with_all_it_corrected(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    other = store.decisions.submit(ann, Answer("c-0", images[1].image_id, "label", ("anger",))).annotation
    ours = store.decisions.submit(ann, Answer("c-1", images[0].image_id, "label", ("anger",))).annotation
    edited = record(store, foreign(ann, images[0], "fear", supersedes=ours.id)).annotation
    last = record(store, foreign(ann, images[0], "sadness", version=1, supersedes=edited.id)).annotation
    gone = retraction(ann, last.id, seen(store))
    undo = record(store, gone)
    assert (undo.created, undo.annotation.kind, undo.annotation.supersedes) == (True, "undo", last.id)
    undone = [a for a in store.decisions.list() if a.kind == "undo"]
    assert [a.supersedes for a in undone] == [last.id, edited.id, ours.id]
    assert [a.client_id for a in undone] == [f"ls:1:50:gone:{n}" for n in range(3)]
    assert {a.source for a in undone} == {"labelstudio"}
    assert store.decisions.label(0).state == "unlabeled"
    assert store.exchange.standing([0, 1]) == {1: [other]}
    assert (seen(store).state, seen(store).annotation_id) == ("deleted", None)
    assert record(store, gone) == Stored(undo.annotation, created=False), "deleted is deleted"
    assert store.decisions.count() == 7


def test_a_retraction_of_what_was_undone_here_stores_nothing(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User, link: Link
) -> None:
    said = record(store, foreign(ann, images[0], "fear")).annotation
    store.decisions.undo(ann, "c-1", said.id)
    assert record(store, retraction(ann, said.id, seen(store))) == Stored(said, created=False)
    assert seen(store).state == "deleted"
    outcomes = store.exchange.record(
        link.id, [retraction(rev, said.id, seen(store)), retraction(ann, 999, seen(store))]
    )
    assert [type(o) for o in outcomes] == [InputError, NotFoundError], "another person's, and none at all"


def test_a_later_answer_survives_the_retraction_of_the_one_it_corrects(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    said = record(store, foreign(ann, images[0], "fear")).annotation
    mine = store.decisions.submit(
        ann, Answer("c-1", images[0].image_id, "label", ("anger",), supersedes=said.id)
    ).annotation
    record(store, retraction(ann, said.id, seen(store)))
    assert store.exchange.standing([0]) == {0: [mine]}
    store.decisions.undo(ann, "c-2", mine.id)
    assert store.decisions.label(0).state == "unlabeled", "what was deleted does not come back with an undo"


def test_answers_given_on_both_sides_at_once_dispute_the_label(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    said = record(store, foreign(ann, images[0], "fear")).annotation
    mine = store.decisions.submit(
        ann, Answer("c-1", images[0].image_id, "label", ("anger",), supersedes=said.id)
    ).annotation
    edit = foreign(ann, images[0], "sadness", version=1, supersedes=said.id)
    theirs = record(store, replace(edit, beside=True, linked=replace(edit.linked, state="conflict"))).annotation
    assert theirs.beside
    assert store.decisions.get(theirs.id).beside
    label = store.decisions.label(0)
    assert (label.state, label.classes, label.num_annotators) == ("disputed", ("sadness", "anger"), 1)
    assert store.decisions.differing() == []
    assert [a.id for a in store.exchange.standing([0])[0]] == [mine.id, theirs.id]
    assert store.exchange.conflicts(link.id) == [seen(store)]
    store.decisions.submit(ann, Answer("c-2", images[0].image_id, "label", ("fear",)))
    assert store.decisions.label(0).classes == ("fear",), "answering again settles it"


def test_what_stands_is_told_for_faces_and_their_copies(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User, link: Link
) -> None:
    on_copy = record(store, foreign(ann, images[3], "fear")).annotation
    skip = store.decisions.submit(rev, Answer("c-1", images[0].image_id, "skip")).annotation
    assert store.exchange.standing([3, 0, 2]) == {0: [on_copy, skip], 3: [on_copy, skip]}


@pytest.mark.parametrize("window", [1, 2, 5_000])
def test_rows_with_tasks_that_got_answers_are_told_in_order(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotator.store.exchange._WINDOW", window)
    exchange = store.exchange
    for number, image in enumerate((images[2], images[3], images[2], images[1])):
        store.decisions.submit(ann, Answer(f"c-{number}", image.image_id, "label", ("fear",)))
    assert list(exchange.touched_rows(link.id, 0, 4, 10).items()) == [(2, 1), (0, 2), (3, 2), (1, 4)]
    assert exchange.touched_rows(link.id, 1, 3, 10) == {0: 2, 3: 2, 2: 3}
    assert exchange.touched_rows(link.id, 0, 4, 1) == {2: 1}
    assert exchange.touched_rows(link.id + 1, 0, 4, 10) == {}


def test_one_project_is_linked_at_a_time_and_comes_back_as_it_was(store: LabelStore) -> None:
    exchange = store.exchange
    assert exchange.link() is None
    first = exchange.add_link("http://studio", 3, "Faces", {"top_k": 10})
    assert (exchange.link(), first.active, first.cursor, first.sent_seq) == (first, True, None, 0)
    with pytest.raises(ConflictError, match="project 3 of http://studio is linked already"):
        exchange.add_link("http://studio", 4, "More", {})
    exchange.update_link(first.id, cursor="2026-03-01T12:00:00.5Z", sent_seq=7, webhook_id=2, settings={"top_k": 5})
    with pytest.raises(ValueError, match="no column active"):
        exchange.update_link(first.id, active=False)
    exchange.close_link(first.id)
    assert exchange.link() is None
    other = exchange.add_link("http://studio", 4, "More", {})
    exchange.close_link(other.id)
    again = exchange.add_link("http://studio", 3, "Faces again", {"top_k": 1})
    assert (again.id, again.cursor, again.sent_seq, again.title) == (
        first.id,
        "2026-03-01T12:00:00.5Z",
        7,
        "Faces again",
    )
    exchange.close_link(again.id)
    anew = exchange.add_link("http://studio", 3, "Faces", {}, anew=True)
    assert anew.id not in (first.id, other.id)
    assert [link.active for link in exchange.links()] == [False, False, True]


def test_tasks_are_put_found_and_moved(store: LabelStore, images: list[ImageRecord], link: Link) -> None:
    exchange = store.exchange
    assert [t.task_id for t in exchange.tasks(link.id, limit=3)] == [100, 101, 102]
    assert [t.task_id for t in exchange.tasks(link.id, after=102)] == [103]
    exchange.put_tasks(link.id, [LinkedTask(101, 1, "answered", None, None, 9, "upload:4"), LinkedTask(200, 1)])
    assert exchange.tasks_by_id(link.id, [101, 999]) == {101: LinkedTask(101, 1, "answered", None, None, 9, "upload:4")}
    assert {row: [t.task_id for t in found] for row, found in exchange.tasks_of_rows(link.id, [0, 1, 77]).items()} == {
        0: [100],
        1: [101, 200],
    }
    exchange.set_task_state(link.id, [200, 102, 999], "gone")
    assert [t.task_id for t in exchange.tasks(link.id, states=["gone"])] == [102, 200]
    assert exchange.open_rows().tolist() == [0, 3]
    counts = exchange.counts(link.id)
    assert counts["tasks"] == {"open": 2, "answered": 1, "withdrawn": 0, "gone": 2, "erase": 0}
    assert counts["answers"] == {"linked": 0, "quarantined": 0, "deleted": 0, "conflict": 0}
    mark = exchange.open_mark()
    exchange.close_link(link.id)
    assert (exchange.open_rows().tolist(), exchange.open_rows(link.id).tolist()) == ([], [0, 3])
    assert exchange.open_mark() != mark


def test_stale_tasks_are_those_that_show_another_version(store: LabelStore, link: Link) -> None:
    exchange = store.exchange
    assert [t.task_id for t in exchange.stale_tasks(link.id, "v2", 10)] == [100, 101, 102, 103]
    later = Shown("random", "v2", True)
    exchange.confirm_predictions(link.id, [(101, later), (102, SHOWN)], "v2")
    assert exchange.tasks_by_id(link.id, [101])[101] == LinkedTask(101, 1, "open", later, "v2")
    exchange.set_task_state(link.id, [103], "answered")
    assert [t.task_id for t in exchange.stale_tasks(link.id, "v2", 10)] == [100]
    assert [t.task_id for t in exchange.stale_tasks(link.id, "v3", 2)] == [100, 101]
    assert [t.task_id for t in exchange.stale_tasks(link.id, "v3", 2, after=101)] == [102]


def test_quarantined_answers_are_listed_with_their_reasons(store: LabelStore, link: Link) -> None:
    odd = LinkedAnswer(
        60, 100, "who@lab.org", "2026-03-01T12:00:00Z", "[]", None, "quarantined", "nobody is who@lab.org"
    )
    store.exchange.put_answers(link.id, [odd, replace(odd, ls_id=59, state="deleted", reason=None)])
    assert store.exchange.quarantined(link.id) == [odd]
    store.exchange.put_answers(link.id, [replace(odd, state="linked")])
    assert store.exchange.quarantined(link.id) == []


def test_the_outbox_keeps_each_thing_once_until_it_is_done(store: LabelStore, link: Link) -> None:
    exchange = store.exchange
    assert exchange.enqueue(link.id, [("send", "a", {"row": 1}), ("send", "b", {}), ("send", "a", {"row": 2})]) == 2
    assert exchange.enqueue(link.id, [("send", "b", {"x": 1}), ("delete", "c", {})], sent_seq=12) == 1
    assert getattr(exchange.link(), "sent_seq", None) == 12
    now = datetime.now(UTC)
    first, second = exchange.due(link.id, ["send"], now, 10)
    assert (first.key, first.payload, first.attempts, second.payload) == ("a", {"row": 1}, 0, {})
    assert [i.key for i in exchange.due(link.id, ["send", "delete"], now, 2)] == ["a", "b"]
    later = now + timedelta(seconds=30)
    exchange.retry_later(first.id, "timed out", later)
    assert [i.key for i in exchange.due(link.id, ["send"], now, 10)] == ["b"]
    [waited] = [i for i in exchange.due(link.id, ["send"], later, 10) if i.key == "a"]
    assert (waited.attempts, waited.error, waited.not_before) == (1, "timed out", later)
    exchange.bury(second.id, "refused: 400")
    assert [(i.key, i.state, i.error) for i in exchange.dead(link.id)] == [("b", "dead", "refused: 400")]
    assert exchange.enqueue(link.id, [("send", "b", {})]) == 0, "what was given up does not come back by itself"
    assert exchange.counts(link.id)["outbox"] == {"waiting": 2, "dead": 1}
    assert exchange.revive(link.id) == 1
    assert [i.key for i in exchange.due(link.id, ["send"], datetime.now(UTC), 10)] == ["b"]
    exchange.done([first.id, second.id])
    assert exchange.enqueue(link.id, [("send", "b", {})]) == 1, "what was done may be asked for again"


def test_answers_here_slip_in_between_the_commits_of_a_long_list(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    many = [LinkedTask(1000 + n, n % 4) for n in range(5_000)]
    writing = threading.Thread(target=store.exchange.put_tasks, args=(link.id, many))
    writing.start()
    seen_between: set[int] = set()
    while writing.is_alive():
        store.decisions.submit(ann, Answer(f"c-{len(seen_between)}", images[0].image_id, "label", ("fear",)))
        seen_between.add(sum(store.exchange.counts(link.id)["tasks"].values()))
    writing.join()
    assert store.exchange.counts(link.id)["tasks"]["open"] == 5_004
    assert len(seen_between) > 3, "it was not one long transaction"


def test_batches_become_as_large_as_a_short_commit_allows() -> None:
    pace = Pace(40)
    pace.took(40, WANTED_SECONDS * 2)
    assert pace.size == 20, "too slow: half as many at once"
    pace.took(20, WANTED_SECONDS / 10)
    assert pace.size == 31, "fast: by half more, for the next may be slower"
    pace.took(3, WANTED_SECONDS / 100)
    assert pace.size == 31, "the short rest of a list teaches nothing"
    pace.took(31, 60)
    assert pace.size == 5


def test_health_names_what_contradicts_itself(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    record(store, foreign(ann, images[0], "fear"))
    assert health.problems(store.database) == []
    said = store.decisions.submit(ann, Answer("c-1", images[1].image_id, "label", ("fear",))).annotation
    odd = seen(store)
    store.exchange.put_answers(
        link.id, [replace(odd, ls_id=61, task_id=999), replace(odd, ls_id=62, annotation_id=999)]
    )
    store.exchange.put_answers(link.id, [replace(odd, ls_id=63, annotation_id=said.id)])
    store.exchange.put_answers(link.id, [replace(odd, ls_id=64, task_id=998, annotation_id=None, state="quarantined")])
    record(store, foreign(ann, images[2], "fear", ls_id=65))
    with store.database.write() as connection:
        connection.execute(text("DELETE FROM exchange_answers WHERE ls_id = 65"))
    store.exchange.set_task_state(link.id, [102], "lost")  # type: ignore[arg-type]
    assert health.problems(store.database) == [
        "exchange_tasks holds the state 'lost'",
        "linked answers 61 are of tasks that are not known",
        "linked answers 62 are linked to annotations that do not exist",
        "linked answers 63 are linked to annotations of another face",
        "annotations 3 came from a linked project that is not known",
    ]
