"""Rows are given once, copies form groups, and no group straddles a split."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator.errors import NotFoundError, TaxonomyError
from annotator.records import Answer, ImageRecord, NewImage
from annotator.store import KnownFile, LabelStore, health
from tests.conftest import new_image
from tests.store.test_invariants import fresh_store


def add(store: LabelStore, *new: NewImage, given_as: str = "none", root: str = "/faces") -> list[ImageRecord]:
    source = store.images.register_source(root, "folder", "folder")
    return store.images.add(source, new, given_as)  # type: ignore[arg-type]


def places(store: LabelStore) -> list[tuple[int, str, str]]:
    records = store.images.by_rows(store.images.table().rows.tolist())
    return [(r.group, r.split, r.state) for r in records]


def test_a_source_is_registered_once(store: LabelStore) -> None:
    first = store.images.register_source("/a b/ü'\"", "zip", "ferplus")
    assert store.images.register_source("/a b/ü'\"", "zip", "ferplus") == first
    assert store.images.register_source("/other", "folder", "folder") != first
    assert store.images.source(first).root == "/a b/ü'\""
    assert [s.format for s in store.images.sources()] == ["ferplus", "folder"]
    with pytest.raises(NotFoundError, match="no source 99"):
        store.images.source(99)


def test_rows_are_consecutive_and_ids_opaque(store: LabelStore) -> None:
    first = add(store, *(new_image(str(i)) for i in range(3)))
    second = add(store, new_image("x"), root="/elsewhere")
    assert [r.row for r in first + second] == [0, 1, 2, 3]
    assert len({r.image_id for r in first + second}) == 4
    assert store.images.by_id(second[0].image_id) == second[0]
    source, record = store.images.locate(3)
    assert (source.root, record.path) == ("/elsewhere", "x.png")
    with pytest.raises(NotFoundError, match="'im-none'"):
        store.images.by_id("im-none")
    with pytest.raises(NotFoundError, match="row 9"):
        store.images.by_rows([0, 9])


def test_adding_again_changes_nothing(store: LabelStore) -> None:
    new = [new_image("a", votes={"fear": 9, "anger": 1}), new_image("b", given="unusable")]
    first = add(store, *new, given_as="annotations")
    again = add(store, *new, new_image("c"), new[0], given_as="annotations")
    assert again[:2] == first
    assert [r.row for r in again] == [0, 1, 2, 0]
    assert store.decisions.count() == 2
    known = store.images.known_files(1)
    assert known["a.png", ""] == KnownFile(0, 100, 1, "hash-a", "active")


def test_a_changed_file_is_a_new_sample(store: LabelStore) -> None:
    add(store, new_image("a"))
    changed = add(store, new_image("a", content_hash="other", file_stamp=2))
    assert changed[0].row == 1
    assert store.images.known_files(1)["a.png", ""].file_stamp == 2


def test_copies_in_a_weaker_split_are_leaks_also_when_they_came_first(store: LabelStore) -> None:
    add(store, new_image("t", split="test", content_hash="x"), new_image("v", split="val", content_hash="x"))
    assert places(store) == [(1, "test", "leak"), (1, "val", "active")]
    add(store, new_image("p", content_hash="x"), new_image("q", content_hash="x"))
    assert places(store) == [(2, "test", "leak"), (2, "val", "leak"), (2, "pool", "active"), (2, "pool", "active")]
    add(store, new_image("v2", split="val", content_hash="x"))
    assert places(store)[4] == (2, "val", "leak")
    counts = store.images.counts()
    assert {k: counts[k] for k in ("pool", "val", "test", "leak", "quarantined", "duplicate_groups")} == {
        "pool": 2,
        "val": 0,
        "test": 0,
        "leak": 3,
        "quarantined": 0,
        "duplicate_groups": 1,
    }


def test_answers_move_with_the_representative(store: LabelStore) -> None:
    early = add(store, new_image("v", split="val", content_hash="x"))[0]
    user = store.accounts.local_user()
    store.decisions.submit(user, Answer("c", early.image_id, "label", ("fear",)))
    assert store.decisions.label(0).classes == ("fear",)
    add(store, new_image("p", content_hash="x"))
    assert [(r.row, r.label.classes, r.members) for r in store.decisions.labels()] == [(1, ("fear",), (1,))]
    assert store.decisions.label(0) == store.decisions.label(1)
    assert store.decisions.differing() == []


def test_quarantine_hands_the_group_on(store: LabelStore) -> None:
    add(store, new_image("v", split="val", content_hash="x"), new_image("p", content_hash="x"))
    user = store.accounts.local_user()
    store.decisions.submit(user, Answer("c", store.images.by_rows([1])[0].image_id, "label", ("fear",)))
    store.images.quarantine(1, "the file is gone")
    assert places(store) == [(0, "val", "active"), (0, "pool", "quarantined")]
    assert store.images.by_rows([1])[0].quarantine_reason == "the file is gone"
    assert store.decisions.label(0).classes == ("fear",)
    assert store.decisions.label_view()[1] == [], "no pool face is left in the group"
    with pytest.raises(NotFoundError, match="row 5"):
        store.images.quarantine(5, "x")


def test_quarantined_files_are_counted_but_never_grouped(store: LabelStore) -> None:
    broken = {"state": "quarantined", "content_hash": None, "quarantine_reason": "the file is empty"}
    add(store, new_image("a", **broken), new_image("b", **broken), new_image("a", **broken))
    assert places(store) == [(0, "pool", "quarantined"), (1, "pool", "quarantined")]
    assert store.images.counts()["quarantined"] == 2
    assert store.images.counts()["duplicate_groups"] == 0


@pytest.mark.parametrize(
    ("given_as", "answers", "truths"), [("none", 0, []), ("truth", 0, [0, 1, 2]), ("annotations", 3, [0, 1, 2])]
)
def test_what_becomes_of_labels_that_come_along(
    store: LabelStore, given_as: str, answers: int, truths: Sequence[int]
) -> None:
    add(
        store,
        new_image("a", given="fear"),
        new_image("b", votes={"fear": 3, "anger": 3, "unusable": 4}),
        new_image("c", votes={"fear": 6, "anger": 4, "sadness": 0}),
        new_image("d", votes={}),
        new_image("v", split="val", given="anger", votes={"anger": 10}),
        given_as=given_as,
    )
    stored = store.decisions.list()
    assert len(stored) == answers
    assert [t.row for t in store.images.truth("pool")] == truths
    assert [(t.truth, t.votes) for t in store.images.truth("val")] == ([("anger", {"anger": 10})] if truths else [])
    if answers:
        assert [(a.kind, a.classes, a.votes, a.user_id, a.source) for a in stored] == [
            ("label", ("fear",), None, None, "import"),
            ("unusable", (), {"fear": 3, "anger": 3, "unusable": 4}, None, "import"),
            ("label", ("fear",), {"fear": 6, "anger": 4}, None, "import"),
        ]
        states = [(r.row, r.label.state, r.label.imported) for r in store.decisions.labels()]
        assert states == [(0, "labeled", True), (1, "disputed", True), (2, "labeled", True)]
        assert store.decisions.label(1).soft == {"anger": 0.5, "fear": 0.5}
    assert store.decisions.differing() == []


def test_a_tie_of_votes_is_a_candidate_set(store: LabelStore) -> None:
    add(store, new_image("a", votes={"fear": 5, "anger": 5}), given_as="annotations")
    stored = store.decisions.list()[0]
    assert (stored.kind, stored.classes) == ("candidates", ("anger", "fear"))
    assert store.images.truth("pool") == []


def test_copies_pool_their_votes(store: LabelStore) -> None:
    add(
        store,
        new_image("a", content_hash="x", votes={"fear": 6, "anger": 4}),
        new_image("b", content_hash="x", votes={"fear": 2, "anger": 8}),
        given_as="annotations",
    )
    assert [(r.row, r.label.classes, r.members) for r in store.decisions.labels()] == [(0, ("anger",), (0, 1))]


def test_unknown_classes_stop_the_batch_before_anything_is_stored(store: LabelStore) -> None:
    with pytest.raises(TaxonomyError, match=r"b\.png: unknown class 'joy'"):
        add(store, new_image("a"), new_image("b", given="joy"), given_as="truth")
    with pytest.raises(TaxonomyError, match="-1 votes"):
        add(store, new_image("a", votes={"fear": -1}), given_as="truth")
    assert len(store.images.table().rows) == 0


def test_names_are_data(store: LabelStore) -> None:
    nasty = "'; DROP TABLE images; -- <b>\"%s{}\\x.png"
    record = add(store, new_image("a", path=nasty, subject_id="O'Brien <i>"))[0]
    assert store.images.by_id(record.image_id).path == nasty
    assert store.images.by_id(record.image_id).subject_id == "O'Brien <i>"


def test_the_table_is_columns(store: LabelStore) -> None:
    empty = store.images.table()
    assert [len(c) for c in (empty.rows, empty.group, empty.split, empty.state, empty.reserved)] == [0] * 5
    broken = {"state": "quarantined", "content_hash": None}
    add(store, new_image("a", split="val"), new_image("b", **broken), new_image("c", content_hash="hash-a"))
    table = store.images.table()
    assert table.rows.tolist() == [0, 1, 2]
    assert table.group.tolist() == [2, 1, 2]
    assert table.split.tolist() == [1, 0, 0]
    assert table.state.tolist() == [2, 1, 0]
    assert (table.split.dtype, table.state.dtype, table.reserved.dtype) == (np.uint8, np.uint8, np.bool_)
    assert store.images.table(since_row=2).rows.tolist() == [2]
    assert [m.row for m in store.images.members(0)] == [0, 2]


arrivals = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["pool", "val", "test"]), st.sampled_from("xyz"), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals)
def test_groups_never_straddle_a_split_in_any_order_of_arrival(batches: list[list[tuple[str, str, bool]]]) -> None:
    with fresh_store() as store:
        number = 0
        for batch in batches:
            new = []
            for split, content, voted in batch:
                votes = {"fear": 3, "anger": 1} if voted else None
                new.append(new_image(f"f{number}", split=split, content_hash=content, votes=votes))
                number += 1
            add(store, *new, given_as="annotations")
            records = store.images.by_rows(range(number))
            for record in records:
                group = [r for r in records if r.content_hash == record.content_hash]
                strongest = min(("pool", "val", "test").index(r.split) for r in group)
                lowest = min(r.row for r in group if ("pool", "val", "test").index(r.split) == strongest)
                assert record.group == lowest
                assert (record.state == "active") == (("pool", "val", "test").index(record.split) == strongest)
            assert store.decisions.differing() == []
            assert health.problems(store.database) == []
