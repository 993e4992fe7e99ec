"""From answers to labels, worked by hand; Dawid-Skene against a hand-worked step and planted annotators."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.consensus import dawid_skene, derive, effective
from annotator.records import Label

CLASSES = ("anger", "fear", "happiness", "sadness")


@dataclass(frozen=True)
class Said:
    """An annotation as `derive` sees it; `seq` doubles as the id."""

    seq: int
    user_id: int | None
    kind: str
    classes: tuple[str, ...] = ()
    supersedes: int | None = None
    adjudicates: bool = False
    votes: Mapping[str, int] | None = None
    beside: bool = False

    @property
    def id(self) -> int:
        return self.seq


def label(*said: Said) -> Label:
    return derive(said, CLASSES)


def test_no_opinion_is_no_label() -> None:
    assert label() == Label("unlabeled")
    assert label(Said(1, 1, "skip"), Said(2, 2, "flag")) == Label("unlabeled")


@pytest.mark.parametrize(
    ("said", "state", "classes"),
    [
        ([("label", "fear")], "labeled", ("fear",)),
        ([("label", "fear"), ("label", "fear")], "labeled", ("fear",)),
        ([("candidates", "fear anger")], "partial", ("anger", "fear")),
        ([("candidates", "fear anger"), ("label", "fear")], "labeled", ("fear",)),
        ([("candidates", "fear anger"), ("candidates", "fear sadness")], "labeled", ("fear",)),
        ([("candidates", "fear anger sadness"), ("candidates", "fear sadness")], "partial", ("fear", "sadness")),
        ([("not", "fear")], "partial", ("anger", "happiness", "sadness")),
        ([("not", "fear anger happiness")], "labeled", ("sadness",)),
        ([("not", "fear"), ("not", "anger happiness")], "labeled", ("sadness",)),
        ([("candidates", "fear anger"), ("not", "anger")], "labeled", ("fear",)),
        ([("label", "fear"), ("label", "anger")], "disputed", ("anger", "fear")),
        ([("label", "fear"), ("not", "fear")], "disputed", ("fear",)),
        ([("not", "anger fear"), ("not", "happiness sadness")], "disputed", CLASSES),
        ([("unusable", "")], "unusable", ()),
        ([("unusable", ""), ("unusable", "")], "unusable", ()),
        ([("unusable", ""), ("label", "fear")], "disputed", ("fear",)),
        ([("unusable", ""), ("not", "fear")], "disputed", ("anger", "happiness", "sadness")),
    ],
)
def test_sets_are_intersected_and_contradictions_disputed(
    said: list[tuple[str, str]], state: str, classes: tuple[str, ...]
) -> None:
    rows = [Said(i + 1, i + 1, kind, tuple(names.split())) for i, (kind, names) in enumerate(said)]
    for order in permutations(rows):
        got = derive(order, CLASSES)
        assert (got.state, got.classes, got.num_annotators, got.seq) == (state, classes, len(said), len(said))
        assert not got.locked
        assert bool(got.soft) == (state == "disputed")


def test_soft_labels_are_shares_of_voices() -> None:
    got = label(Said(1, 1, "label", ("fear",)), Said(2, 2, "candidates", ("anger", "sadness")), Said(3, 3, "unusable"))
    assert got.soft == {"anger": 0.25, "fear": 0.5, "sadness": 0.25}
    got = label(Said(1, 1, "label", ("fear",)), Said(2, 2, "not", ("fear",)))
    assert got.soft == pytest.approx({"anger": 1 / 6, "fear": 1 / 2, "happiness": 1 / 6, "sadness": 1 / 6})


def test_the_latest_answer_of_a_person_counts() -> None:
    first, second = Said(1, 1, "label", ("fear",)), Said(2, 1, "label", ("anger",))
    assert label(first, second).classes == ("anger",)
    assert label(second, first).num_annotators == 1
    assert label(first, second, Said(3, 1, "skip")).classes == ("anger",), "skipping later takes nothing back"
    assert label(first, Said(2, 1, "skip", supersedes=1)).state == "unlabeled", "superseding by a skip does"


def test_undo_gives_back() -> None:
    first, second = Said(1, 1, "label", ("fear",)), Said(2, 1, "label", ("anger",), supersedes=1)
    undo = Said(3, 1, "undo", supersedes=2)
    assert label(first, second, undo).classes == ("fear",)
    assert [a.seq for a in effective([undo, second, first])] == [1]
    assert label(first, second, Said(3, 1, "undo", supersedes=1)).classes == ("anger",)
    third = Said(4, 1, "label", ("sadness",), supersedes=1)
    assert label(first, second, undo, third).classes == ("sadness",)


def test_an_answer_beside_another_is_a_second_voice_of_one_person() -> None:
    ours, theirs = Said(1, 1, "label", ("fear",)), Said(2, 1, "label", ("anger",), beside=True)
    assert label(ours, theirs) == Label("disputed", ("anger", "fear"), {"anger": 0.5, "fear": 0.5}, False, 1, False, 2)
    assert label(ours, replace(theirs, classes=("fear",))).state == "labeled", "the same said twice is no dispute"
    assert label(ours, theirs, Said(3, 1, "undo", supersedes=2)).classes == ("fear",)
    assert label(ours, theirs, Said(3, 1, "undo", supersedes=1)).classes == ("anger",)
    again = Said(3, 1, "label", ("sadness",))
    assert label(ours, theirs, again).classes == ("sadness",), "answering again settles it"
    assert label(ours, theirs, replace(again, beside=True, supersedes=2)).classes == ("fear", "sadness")
    assert label(ours, theirs, replace(again, user_id=2)).num_annotators == 2
    assert label(theirs).classes == ("anger",), "alone it is an answer like any other"


def test_a_reviewer_who_ruled_two_things_at_once_has_not_ruled() -> None:
    ours = Said(1, 1, "label", ("fear",), adjudicates=True)
    theirs = Said(2, 1, "label", ("anger",), adjudicates=True, beside=True)
    assert (label(ours, theirs).state, label(ours, theirs).locked) == ("disputed", False)
    agreed = label(ours, replace(theirs, classes=("fear",)))
    assert (agreed.classes, agreed.locked) == (("fear",), True)
    settled = label(ours, theirs, Said(3, 2, "label", ("sadness",), adjudicates=True))
    assert (settled.classes, settled.locked) == (("sadness",), True)
    doubted = label(ours, Said(2, 1, "label", ("anger",), beside=True))
    assert (doubted.state, doubted.locked) == ("disputed", False)


def test_a_ruling_wins_and_locks() -> None:
    rows = [
        Said(1, 1, "label", ("fear",)),
        Said(2, 2, "label", ("anger",), adjudicates=True),
        Said(3, 3, "label", ("fear",)),
        Said(4, 2, "label", ("fear",)),
    ]
    assert label(*rows) == Label("labeled", ("anger",), {}, True, 1, False, 2)
    later = Said(5, 4, "candidates", ("fear", "sadness"), adjudicates=True)
    assert label(*rows, later) == Label("partial", ("fear", "sadness"), {}, True, 1, False, 5)
    undone = Said(6, 4, "undo", supersedes=5)
    assert label(*rows, later, undone).classes == ("anger",)


def test_people_outrank_imports() -> None:
    given_label = Said(1, None, "label", ("fear",))
    votes = Said(2, None, "label", ("fear",), votes={"fear": 10})
    assert label(given_label) == Label("labeled", ("fear",), {}, False, 0, True, 1)
    person = Said(3, 1, "label", ("anger",))
    assert label(given_label, votes, person) == Label("labeled", ("anger",), {}, False, 1, False, 3)
    assert label(given_label, votes, person, Said(4, 1, "undo", supersedes=3)).imported
    assert label(given_label, Said(2, None, "label", ("anger",))).state == "disputed", (
        "copies that contradict each other"
    )


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({"fear": 6, "anger": 4}, Label("labeled", ("fear",), imported=True, seq=1)),
        (
            {"fear": 5, "anger": 5},
            Label("disputed", ("anger", "fear"), {"anger": 0.5, "fear": 0.5}, imported=True, seq=1),
        ),
        (
            {"fear": 4, "anger": 4, "sadness": 2},
            Label(
                "disputed",
                ("anger", "fear", "sadness"),
                {"anger": 0.4, "fear": 0.4, "sadness": 0.2},
                imported=True,
                seq=1,
            ),
        ),
        ({"fear": 3, "anger": 2, "unusable": 5}, Label("labeled", ("fear",), imported=True, seq=1)),
        ({"fear": 2, "anger": 2, "unusable": 6}, Label("unusable", imported=True, seq=1)),
        ({"unusable": 10}, Label("unusable", imported=True, seq=1)),
        ({"fear": 1}, Label("labeled", ("fear",), imported=True, seq=1)),
    ],
)
def test_votes_need_a_winner_above_half(votes: dict[str, int], expected: Label) -> None:
    got = label(Said(1, None, "label", ("fear",), votes=votes))
    assert got.soft == pytest.approx(expected.soft)
    assert (got.state, got.classes, got.imported) == (expected.state, expected.classes, True)


def test_votes_of_copies_are_added() -> None:
    first = Said(1, None, "label", ("fear",), votes={"fear": 6, "anger": 4})
    second = Said(2, None, "label", ("anger",), votes={"anger": 9, "fear": 1})
    assert label(first, second).classes == ("anger",)
    assert label(first, second).seq == 2


subsets = st.sets(st.sampled_from(CLASSES), min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))
answers = st.lists(
    st.one_of(
        st.tuples(st.just("label"), st.sampled_from(CLASSES).map(lambda c: (c,))),
        st.tuples(st.just("candidates"), subsets),
        st.tuples(st.just("not"), subsets),
        st.tuples(st.just("unusable"), st.just(())),
    ),
    max_size=5,
)


@given(answers)
def test_labels_never_claim_what_somebody_excluded(said: list[tuple[str, tuple[str, ...]]]) -> None:
    got = label(*(Said(i, i, kind, classes) for i, (kind, classes) in enumerate(said, 1)))
    if got.state in ("labeled", "partial"):
        assert (len(got.classes) == 1) == (got.state == "labeled")
        for kind, classes in said:
            assert set(got.classes).isdisjoint(classes) if kind == "not" else set(got.classes) <= set(classes)
    assert (got.state == "unlabeled") == (not said)
    if got.soft:
        assert sum(got.soft.values()) == pytest.approx(1)
        assert min(got.soft.values()) > 0


def test_dawid_skene_one_step_by_hand() -> None:
    # Two items, three annotators, no smoothing. Item 0: 0, 0, 1. Item 1: 1, 1, 1. Vote shares: (2/3, 1/3) and (0, 1).
    table = [(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 0, 1), (1, 1, 1), (1, 2, 1)]
    got = dawid_skene(table, 2, max_iterations=1, smoothing=0)
    assert got.prior == pytest.approx([1 / 3, 2 / 3])
    # Annotator 0 says 0 for mass 2/3 of class 0 and 1/3 of class 1, and 1 for mass 1 of class 1.
    assert got.confusion[0] == pytest.approx(np.array([[1, 0], [1 / 4, 3 / 4]]))
    assert got.confusion[2] == pytest.approx(np.array([[0, 1], [0, 1]]))
    # Item 0: 1/3 * 1 * 1 * 1 against 2/3 * 1/4 * 1/4 * 1, that is 8 to 1. Item 1: 0 against something.
    assert got.posterior == pytest.approx(np.array([[8 / 9, 1 / 9], [0, 1]]))
    assert got.iterations == 1


def test_dawid_skene_recovers_planted_annotators() -> None:
    rng = np.random.default_rng(3)
    truth = rng.choice(3, 3000, p=(0.5, 0.3, 0.2))
    planted = np.array(
        [
            [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]],
            [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
            [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
            [[0.1, 0.85, 0.05], [0.85, 0.1, 0.05], [0.1, 0.1, 0.8]],  # takes 0 for 1 and 1 for 0
        ]
    )
    table = [(i, a, rng.choice(3, p=planted[a, k])) for i, k in enumerate(truth) for a in range(4)]
    got = dawid_skene(table, 3)
    assert np.abs(got.confusion - planted).max() < 0.06
    assert np.abs(got.prior - np.bincount(truth) / 3000).max() < 0.03
    votes = np.zeros((3000, 3))
    for item, _, said in table:
        votes[item, said] += 1
    assert (got.posterior.argmax(1) == truth).mean() > max(0.93, (votes.argmax(1) == truth).mean())
    assert got.posterior.sum(1) == pytest.approx(np.ones(3000))


def test_dawid_skene_with_one_answer_each_keeps_to_it() -> None:
    got = dawid_skene([(0, 0, 1), (2, 0, 0)], 2)
    assert got.posterior.argmax(1)[[0, 2]].tolist() == [1, 0]
    assert np.isfinite(got.posterior).all()


@pytest.mark.parametrize("table", [[], [(0, 0)], [(0, 0, 2)], [(-1, 0, 0)]])
def test_dawid_skene_refuses_what_is_no_table(table: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="answers"):
        dawid_skene(table, 2)
