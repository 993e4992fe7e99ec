"""Turns: who trains next, who rests, whose snapshots stay."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.chains import chains, current, kept, longest_waiting, standings
from annotator.loop.labels import LabelArrays
from annotator.loop.rotation import FIRST_BACKOFF_SECONDS, Rotation
from annotator.records import Snapshot
from annotator.settings import LearnerSettings

NOW = datetime(2026, 11, 20, tzinfo=UTC)
THREE = ("lion", "leaf", "remop+fixmatch")


def history(*methods: str, seqs: list[int] | None = None, serving: int | None = None) -> list[Snapshot]:
    """Snapshots of these methods in this order, numbered from 1."""
    return [
        Snapshot(f"{m}-{i + 1:04d}", m, seqs[i] if seqs else i + 1, {}, NOW + timedelta(minutes=i), i == serving)
        for i, m in enumerate(methods)
    ]


def labels(*stamps: int) -> LabelArrays:
    """Labels of two classes in turn that came with these seqs."""
    count = len(stamps)
    given_ = np.arange(count) % 2
    return LabelArrays(
        np.arange(count),
        np.ones(count, np.int8),
        np.eye(2, dtype=bool)[given_],
        np.zeros((count, 2), np.float32),
        given_,
        np.zeros(count, bool),
        np.ones(count, np.int64),
        np.array(stamps, np.int64),
    )


def settings(*methods: str, **more: object) -> LearnerSettings:
    return LearnerSettings(methods=methods, **({"min_labels": 4, "new_labels": 4} | more))  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(THREE), max_size=8), st.integers(0, 12))
def test_from_any_history_on_turns_are_fair(past: list[str], rounds: int) -> None:
    snapshots = history(*past)
    taken = []
    for _ in range(rounds):
        taken.append(longest_waiting(snapshots, THREE))
        snapshots = history(*past, *taken)
    for start in range(len(taken) - len(THREE) + 1):  # any three rounds in a row are of three methods
        assert sorted(taken[start : start + len(THREE)]) == sorted(THREE)


def test_every_method_counts_its_own_new_labels() -> None:
    rotation = Rotation(settings(*THREE))
    assert rotation.due(labels(1, 2, 3), 0.0) is None  # too few labels
    rotation.know(history("lion", "leaf", seqs=[4, 2]))
    usable = labels(1, 2, 3, 4, 5, 6)
    assert rotation.due(usable, 0.0) == ("remop+fixmatch", "6 new labels")
    rotation.know(history("lion", "leaf", "remop+fixmatch", seqs=[4, 2, 6]))
    assert rotation.due(usable, 0.0) == ("leaf", "4 new labels")  # lion has learned from all but two
    rotation.know(history("lion", "leaf", "remop+fixmatch", "leaf", seqs=[4, 2, 6, 6]))
    assert rotation.due(usable, 0.0) is None
    assert rotation.due(usable, 29 * 60.0) is None
    assert rotation.due(usable, 30 * 60.0) == ("lion", "2 new labels for 30 minutes")


def test_one_class_alone_starts_nothing() -> None:
    usable = labels(1, 2, 3, 4, 5)
    usable.given[:] = 1
    assert Rotation(settings("lion")).due(usable, 0.0) is None


def test_a_method_that_fails_rests_ever_longer_and_the_others_go_on() -> None:
    rotation = Rotation(settings("lion", "leaf"))
    usable = labels(1, 2, 3, 4)
    assert rotation.due(usable, 0.0) == ("lion", "4 new labels")
    assert rotation.failed("lion", 0.0) == FIRST_BACKOFF_SECONDS
    assert rotation.due(usable, 1.0) == ("leaf", "4 new labels")
    assert rotation.next(1.0) == "leaf"
    rotation.know(history("leaf", seqs=[4]))
    assert rotation.due(usable, 1.0) is None
    assert rotation.due(usable, FIRST_BACKOFF_SECONDS) == ("lion", "4 new labels")
    assert rotation.failed("lion", 60.0) == 2 * FIRST_BACKOFF_SECONDS
    rotation.succeeded("lion")
    assert rotation.failed("lion", 60.0) == FIRST_BACKOFF_SECONDS
    assert rotation.failed("supervised", 60.0) == 0.0  # asked for by hand: takes no turns


def test_each_method_keeps_its_own_snapshots() -> None:
    snapshots = history("lion", "leaf", "lion", "lion", "leaf", "lion", serving=0)
    assert [s.id for s in chains(snapshots)["leaf"]] == ["leaf-0002", "leaf-0005"]
    stay, whole = kept(snapshots, 2)
    assert stay == {"lion-0001", "leaf-0002", "lion-0004", "leaf-0005", "lion-0006"}
    assert whole == {"lion-0001", "leaf-0005", "lion-0006"}  # the serving one and the newest of each


@pytest.mark.parametrize(
    ("past", "methods", "expected"),
    [
        ((), THREE, []),
        (("lion", "leaf", "lion"), THREE, ["leaf-0002", "lion-0003"]),
        (("leaf", "lion"), ("lion",), ["lion-0002"]),  # leaf is not trained any more
        (("lion", "supervised"), ("lion",), ["lion-0001", "supervised-0002"]),  # but this was asked for
    ],
)
def test_the_newest_of_each_method_speaks(past: tuple[str, ...], methods: tuple[str, ...], expected: list[str]) -> None:
    assert [s.id for s in current(history(*past), methods)] == expected


def test_standings_name_every_method() -> None:
    lines = standings(history("lion", "leaf", "lion", serving=0), ("lion", "remop+fixmatch"))
    told = [(s.method, s.newest.id if s.newest else None, s.rounds, s.serving, s.trained) for s in lines]
    assert told == [
        ("lion", "lion-0003", 2, "lion-0001", True),
        ("remop+fixmatch", None, 0, None, True),
        ("leaf", "leaf-0002", 1, None, False),
    ]
