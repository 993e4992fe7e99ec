"""Every scorer obeys one contract; what each prefers is worked out by hand."""

import copy

import numpy as np
import pytest

from annotator.acquisition import PoolView, candidate_set, coverage, quota, random, review, uncertain
from annotator.acquisition.herding import build

NAN = np.nan


def make_pool(size: int = 40, classes: int = 4, seed: int = 0, *, model: bool = True) -> PoolView:
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(1000, size, replace=False)).astype(np.int64)
    features = draw.normal(size=(size, 6)).astype(np.float32)
    open_ = draw.random(size) < 0.7
    doubt = np.where(~open_ & (draw.random(size) < 0.5), draw.random(size), NAN)
    dispute = np.where(~open_ & np.isnan(doubt) & (draw.random(size) < 0.5), draw.random(size), NAN)
    return PoolView(
        rows=rows,
        open=open_,
        probs=draw.dirichlet(np.ones(classes), size).astype(np.float32) if model else None,
        doubt=doubt,
        dispute=dispute,
        class_counts=np.array([10.0, 5.0, 1.0, 0.0][:classes]),
        herding=build(rows, features, open_, seed) if model else None,
        seed=3,
    )


class ScorerContract:
    """Inherited by the tests of every scorer."""

    scorer: object
    needs_model = True

    def score(self, pool: PoolView) -> np.ndarray:
        return type(self).scorer.score(pool)  # type: ignore[attr-defined]

    def test_one_finite_score_or_nan_per_face(self) -> None:
        pool = make_pool()
        scores = self.score(pool)
        assert scores.shape == (40,)
        assert scores.dtype == np.float64
        assert not np.isinf(scores).any()
        assert not np.isnan(scores).all()

    def test_never_mutates_the_pool(self) -> None:
        pool = make_pool()
        before = copy.deepcopy(pool)
        self.score(pool)
        for name in ("rows", "open", "probs", "doubt", "dispute", "class_counts"):
            np.testing.assert_array_equal(getattr(pool, name), getattr(before, name))
        for name in ("rows", "kernel", "targets", "covered"):
            np.testing.assert_array_equal(getattr(pool.herding, name), getattr(before.herding, name))

    def test_the_same_pool_gives_the_same_scores(self) -> None:
        np.testing.assert_array_equal(self.score(make_pool()), self.score(make_pool()))

    def test_only_open_faces_are_new_questions(self) -> None:
        pool = make_pool()
        applies = ~np.isnan(self.score(pool))
        answered = type(self).scorer is review
        assert not (applies & (pool.open if answered else ~pool.open)).any()

    def test_without_a_model_it_applies_to_nothing_that_needs_one(self) -> None:
        scores = self.score(make_pool(model=False))
        assert np.isnan(scores).all() == self.needs_model

    def test_an_empty_pool_has_no_scores(self) -> None:
        empty = np.zeros(0)
        pool = PoolView(empty.astype(np.int64), empty.astype(bool), None, empty, empty, np.zeros(4))
        assert self.score(pool).shape == (0,)


class TestCoverage(ScorerContract):
    scorer = coverage

    def test_takes_one_face_of_each_cluster_before_a_second(self) -> None:
        draw = np.random.default_rng(0)
        centres = np.eye(5, dtype=np.float32)
        features = np.repeat(centres, 8, axis=0) + draw.normal(scale=0.02, size=(40, 5)).astype(np.float32)
        rows = np.arange(40, dtype=np.int64)
        open_ = np.ones(40, dtype=bool)
        pool = PoolView(
            rows, open_, None, np.full(40, NAN), np.full(40, NAN), np.zeros(4), build(rows, features, open_, 0)
        )
        first = np.argsort(-coverage.score(pool))[:5]
        assert sorted(first // 8) == [0, 1, 2, 3, 4]

    def test_goes_on_from_what_is_labeled(self) -> None:
        features = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
        rows, open_ = np.arange(12, dtype=np.int64), np.ones(12, dtype=bool)
        open_[:8] = [False, True, True, True, False, True, True, True]
        herding = build(rows, features, open_, 0).cover(features[[0, 4]])
        pool = PoolView(rows, open_, None, np.full(12, NAN), np.full(12, NAN), np.zeros(4), herding)
        assert np.nanargmax(coverage.score(pool)) // 4 == 2


class TestUncertain(ScorerContract):
    scorer = uncertain

    def test_margin_by_hand(self) -> None:
        probs = np.array([[0.5, 0.5, 0, 0], [0.7, 0.2, 0.1, 0], [0.4, 0.3, 0.2, 0.1]], dtype=np.float32)
        pool = PoolView(np.arange(3), np.ones(3, dtype=bool), probs, np.full(3, NAN), np.full(3, NAN), np.zeros(4))
        np.testing.assert_allclose(uncertain.score(pool), [1.0, 0.5, 0.9], atol=1e-6)

    def test_faces_that_were_not_read_are_not_uncertain(self) -> None:
        probs = np.full((2, 4), 0.25, dtype=np.float32)
        pool = PoolView(
            np.arange(2),
            np.ones(2, dtype=bool),
            probs,
            np.full(2, NAN),
            np.full(2, NAN),
            np.zeros(4),
            scored=np.array([True, False]),
        )
        assert np.isnan(uncertain.score(pool)).tolist() == [False, True]


class TestReview(ScorerContract):
    scorer = review
    needs_model = False  # doubts come from the last snapshot, disputes from people

    def test_doubts_and_disputes_share_one_scale(self) -> None:
        pool = PoolView(
            np.arange(4),
            np.array([False, False, False, True]),
            None,
            np.array([0.9, NAN, NAN, 0.8]),
            np.array([NAN, 0.4, NAN, NAN]),
            np.zeros(4),
        )
        np.testing.assert_array_equal(review.score(pool), [0.9, 0.4, NAN, NAN])


class TestQuota(ScorerContract):
    scorer = quota

    def test_deficits_by_hand(self) -> None:
        # 16 labels over 4 classes: 4 each would be equal
        np.testing.assert_allclose(quota.deficits(np.array([10.0, 5.0, 1.0, 0.0])), [0, 0, 0.75, 1])
        np.testing.assert_array_equal(quota.deficits(np.zeros(4)), np.zeros(4))

    def test_prefers_the_rarest_class(self) -> None:
        probs = np.array([[0.9, 0.1, 0, 0], [0.1, 0, 0.9, 0], [0.1, 0, 0, 0.9]], dtype=np.float32)
        pool = PoolView(
            np.arange(3),
            np.ones(3, dtype=bool),
            probs,
            np.full(3, NAN),
            np.full(3, NAN),
            np.array([10.0, 5.0, 1.0, 0.0]),
        )
        scores = quota.score(pool)
        assert np.isnan(scores[0])
        np.testing.assert_allclose(scores[1:], [0.675, 0.9], atol=1e-6)


class TestRandom(ScorerContract):
    scorer = random
    needs_model = False

    def test_a_face_keeps_its_place_when_others_come(self) -> None:
        few, many = np.arange(0, 100, 7, dtype=np.int64), np.arange(100, dtype=np.int64)

        def of(rows: np.ndarray) -> np.ndarray:
            n = len(rows)
            return random.score(PoolView(rows, np.ones(n, bool), None, np.full(n, NAN), np.full(n, NAN), np.zeros(4)))

        np.testing.assert_array_equal(of(few), of(many)[few])

    def test_one_in_so_many_is_reserved(self) -> None:
        rows = np.arange(20_000, dtype=np.int64)
        assert random.reserved(rows, 0, 10).mean() == pytest.approx(0.1, abs=0.01)
        # and reservation tells nothing about the place in the shuffle
        pool = PoolView(rows, np.ones(20_000, bool), None, np.full(20_000, NAN), np.full(20_000, NAN), np.zeros(4))
        assert random.score(pool)[random.reserved(rows, 0, 10)].mean() == pytest.approx(0.5, abs=0.02)


def test_herding_is_the_same_as_evaluating_every_gain() -> None:
    pool = make_pool(60)
    herding = pool.herding
    assert herding is not None
    allowed = np.arange(len(herding.rows)) % 3 != 0
    picks, left = herding.pick(allowed, 10)
    covered, expected = herding.covered.copy(), []
    for _ in range(10):
        gains = np.maximum(herding.kernel - covered, 0).mean(axis=1)
        gains[~allowed] = -1
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        covered = np.maximum(covered, herding.kernel[expected[-1]])
    assert picks.tolist() == expected
    np.testing.assert_allclose(left, np.maximum(herding.kernel - covered, 0).mean(axis=1), atol=1e-6)


def test_candidate_set_by_hand() -> None:
    probs = np.array(
        [
            [0.50, 0.32, 0.10, 0.08],  # LION's oracle: {0, 1}
            [0.90, 0.05, 0.03, 0.02],  # only the first
            [0.29, 0.28, 0.25, 0.18],  # the runner-up is close
            [0.29, 0.05, 0.05, 0.61],  # far from the first and below .3
            [0.25, 0.25, 0.25, 0.25],  # ties go to the lowest
        ],
        dtype=np.float32,
    )
    assert candidate_set(probs).tolist() == [0b0011, 0b0001, 0b0011, 0b1000, 0b0011]
    assert candidate_set(np.zeros((0, 4), dtype=np.float32)).shape == (0,)
