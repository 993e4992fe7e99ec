"""The mix: properties that hold for any scores and shares."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from annotator.acquisition import PoolView, mix, order_pool
from annotator.acquisition.herding import build
from annotator.records import ARMS, Arm

SIZE = 60


@st.composite
def mixes(draw: st.DrawFn) -> tuple[dict[Arm, np.ndarray], dict[Arm, float]]:
    arms = draw(st.lists(st.sampled_from(ARMS), min_size=1, unique=True))
    scores, shares = {}, {}
    for arm in arms:
        values = draw(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=SIZE, max_size=SIZE))
        scores[arm] = np.array([np.nan if v is None else float(v) for v in values])
        shares[arm] = draw(st.integers(1, 10)) / 10
    return scores, shares


@given(mixes())
def test_every_wanted_face_once(case: tuple[dict[Arm, np.ndarray], dict[Arm, float]]) -> None:
    scores, shares = case
    mixed = mix(scores, shares)
    wanted = np.flatnonzero(~np.isnan(np.stack(list(scores.values()))).all(axis=0))
    assert sorted(mixed.positions.tolist()) == wanted.tolist()
    for position, arm in zip(mixed.positions, mixed.arms, strict=True):
        assert not np.isnan(scores[ARMS[arm]][position])


@given(mixes())
def test_each_arm_offers_its_best_first(case: tuple[dict[Arm, np.ndarray], dict[Arm, float]]) -> None:
    scores, shares = case
    mixed = mix(scores, shares)
    for arm, values in scores.items():
        own = values[mixed.positions[mixed.arms == ARMS.index(arm)]]
        assert (np.diff(own) <= 0).all()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 3))
def test_every_beginning_has_the_shares(weights: list[int], seed: int) -> None:
    arms = ARMS[: len(weights)]
    count = 200 * len(arms)
    scores: dict[Arm, np.ndarray] = {}
    for i, arm in enumerate(arms):  # no two arms want the same face, so none runs out early
        values = np.full(count, np.nan)
        values[200 * i : 200 * (i + 1)] = np.random.default_rng(seed).random(200)
        scores[arm] = values
    shares: dict[Arm, float] = {arm: w / sum(weights) for arm, w in zip(arms, weights, strict=True)}
    mixed = mix(scores, shares)
    before_one_runs_out = int(200 / max(shares.values()))
    for i, arm in enumerate(arms):
        served = np.cumsum(mixed.arms[:before_one_runs_out] == ARMS.index(arm))
        due = shares[arm] * np.arange(1, before_one_runs_out + 1)
        assert np.abs(served - due).max() < 1, (i, arm)


def test_an_exhausted_arm_leaves_its_share_to_the_others_in_proportion() -> None:
    many = np.arange(1000.0)
    few = np.where(np.arange(1000) < 5, many, np.nan)
    mixed = mix(
        {"coverage": many, "random": np.roll(many, 500), "review": few},
        {"coverage": 0.4, "random": 0.2, "review": 0.4},
    )
    later = mixed.arms[50:350]
    assert (later == ARMS.index("coverage")).sum() in range(198, 203)
    assert (mixed.arms == ARMS.index("review")).sum() == 5


def test_an_arm_without_share_asks_for_nothing() -> None:
    mixed = mix({"coverage": np.ones(3), "random": np.ones(3)}, {"coverage": 1.0, "random": 0.0})
    assert set(mixed.arms.tolist()) == {ARMS.index("coverage")}
    assert len(mix({}, {}).positions) == 0


def make_pool(known: int) -> PoolView:
    rows = np.arange(50, dtype=np.int64)
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    open_ = np.ones(50, dtype=bool)
    open_[:2] = False
    return PoolView(
        rows,
        open_,
        np.random.default_rng(1).dirichlet(np.ones(3), 50).astype(np.float32),
        np.full(50, np.nan),
        np.full(50, np.nan),
        np.array([1.0, 1.0, 0.0]),
        build(rows, features, open_, 0) if known else None,
        scored=np.arange(50) < known,
    )


def test_before_the_first_label_coverage_alone_decides() -> None:
    mixed = order_pool(make_pool(50), {"coverage": 0.1, "random": 0.9}, has_labels=False)
    assert set(mixed.arms.tolist()) == {ARMS.index("coverage")}
    assert sorted(mixed.positions.tolist()) == list(range(2, 50))


def test_faces_that_no_arm_can_read_come_last_in_import_order() -> None:
    mixed = order_pool(make_pool(0), {"uncertain": 1.0}, has_labels=True)
    assert mixed.positions.tolist() == list(range(2, 50))
    mixed = order_pool(make_pool(30), {"uncertain": 1.0}, has_labels=True)
    assert mixed.positions[28:].tolist() == list(range(30, 50))


def test_shares_hold_when_only_the_first_face_of_every_order_is_asked() -> None:
    """An order lives for one answer: the arms must get their shares over many orders, not only within one."""
    shares: dict[Arm, float] = {"coverage": 0.3, "uncertain": 0.35, "review": 0.15, "quota": 0.15, "random": 0.05}
    asked: list[Arm] = []
    for _ in range(400):
        scores = {arm: np.arange(5, dtype=float) for arm in shares}
        first = mix(scores, shares, Counter(asked[-40:])).arms[0]
        asked.append(ARMS[int(first)])
    found = Counter(asked)
    for arm, share in shares.items():
        assert abs(found[arm] - 400 * share) <= 400 * 0.02


def test_an_arm_that_comes_late_does_not_take_over() -> None:
    shares: dict[Arm, float] = {"coverage": 0.5, "uncertain": 0.35, "review": 0.15}
    lately: dict[Arm, int] = {"coverage": 24, "uncertain": 16}
    arms = mix({arm: np.arange(100, dtype=float) for arm in shares}, shares, lately).arms[:40]
    assert Counter(ARMS[int(a)] for a in arms)["review"] <= 40 * 0.15 + 40 * 0.15 + 1
