"""The arithmetic of label disambiguation (LION eqs. 1, 4-6) against worked numbers and brute force."""

from typing import Any

import numpy as np
import pytest
import torch

from learner.keepers.candidates import (
    HALF_LIFE_OF_99,
    candidate_set,
    decay_of,
    enter_and_leave,
    label_doubt,
    move_weights,
    visits_to_reach,
)


def test_worked_candidates() -> None:
    p = torch.tensor([[0.50, 0.32, 0.10, 0.08]])
    label, none = torch.tensor([[False, False, True, False]]), torch.zeros(1, 4, dtype=torch.bool)
    assert candidate_set(p, label, none, 0.3, "paper").tolist() == [[True, True, False, False]]
    assert candidate_set(p, label, none, 0.3, "union").tolist() == [[True, True, True, False]]
    assert candidate_set(p, label, none, 0.3, "official").tolist() == [[True, False, True, False]]
    before = torch.tensor([[False, False, False, True]])
    assert candidate_set(p, label, before, 0.3, "official").tolist() == [[True, False, True, True]]
    exactly = candidate_set(torch.tensor([[0.5, 0.25, 0.25, 0]]), label, none, 0.25, "paper")
    assert exactly.tolist() == [[True, True, True, False]]


def test_worked_weights_under_raw_cosines() -> None:
    def move(w: float, cosine: float) -> float:
        one = torch.ones(1, 1, dtype=torch.float64)
        return move_weights(w * one, cosine * one, one.bool(), 0.99, "cosine", 0.1).item()

    assert move(0.6, 0.5) == pytest.approx(0.599, abs=1e-9)
    w = [0.6]
    for _ in range(3):
        w.append(move(w[-1], 0.9))
    assert w[1:] == pytest.approx([0.603, 0.60597, 0.6089103], abs=1e-9)


@pytest.mark.parametrize(
    ("start", "similarity", "visits"),
    [
        (0.5, 1.0, 92),
        (0.5, 0.9, 138),
        (0.7, 0.9, 69),
        (0.45, 0.85, 207),
        (0.55, 0.95, 98),
        (0.5, 0.8, None),
        (0.9, 1, 0),
    ],
)
def test_worked_numbers_of_visits(start: float, similarity: float, visits: int | None) -> None:
    assert visits_to_reach(0.8, start, similarity, 0.99) == visits
    if visits:
        w = start
        for n in range(visits):
            assert w < 0.8, n
            w = 0.99 * w + 0.01 * similarity
        assert w >= 0.8


def test_half_life() -> None:
    assert decay_of(HALF_LIFE_OF_99) == pytest.approx(0.99, abs=1e-12)
    assert decay_of(69) == pytest.approx(0.99, abs=1e-4)
    assert decay_of(10) ** 10 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("form", "shares"), [("softmax", [0.5, 0.5, 0]), ("softmax_unmasked", [0.499788, 0.499788, 0.000424])]
)
def test_worked_softmax_of_cosines(form: Any, shares: list[float]) -> None:
    cosines = torch.tensor([[0.5, 0.5, 0.0]]).sqrt()
    candidates = torch.tensor([[True, True, False]])
    w = move_weights(torch.tensor([[1.0, 0, 0]]), cosines, candidates, 0.0, form, 0.1)
    assert w[0].tolist() == pytest.approx(shares, abs=5e-7)


def test_doubt_by_both_tests() -> None:
    p = torch.tensor([[0.8, 0.1, 0.1], [0.79, 0.11, 0.1], [0.1, 0.8, 0.1], [0.25, 0.75, 0], [0.2, 0.75, 0.05]])
    answer = torch.tensor([[True, False, False]]).expand(5, 3)
    strict, by_margin, distance = label_doubt(p, answer, 0.8, 0.5)
    assert strict.tolist() == [False, True, True, True, True]
    assert by_margin.tolist() == [False, False, True, False, True]  # .5 is not more than .5
    assert distance.tolist() == pytest.approx([0, 0, 0.7, 0.5, 0.55])


def test_entering_and_leaving() -> None:
    w = torch.tensor([[0.5, 0.5, 0, 0]])
    now, before = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, False, False]])
    moved = enter_and_leave(w, now, before, torch.full((1, 4), 0.5), True)
    assert moved[0].tolist() == pytest.approx([0.5, 0, 0.5, 0])


def test_weights_equal_brute_force_and_stay_a_distribution_on_200_draws() -> None:
    rng = np.random.default_rng(11)
    for _ in range(200):
        num_classes = int(rng.choice([2, 3, 7, 8]))
        candidates = rng.random(num_classes) < 0.6
        candidates[rng.integers(num_classes)] = True
        is_set = rng.random(num_classes) < 0.7
        w = np.where(candidates, rng.random(num_classes) + 0.1, 0)
        w /= w.sum()
        cosines = rng.uniform(-1, 1, num_classes)
        usable = candidates & is_set
        expected = w.copy()
        if usable.any():
            e = np.exp(cosines[usable] / 0.1)
            expected[usable] = 0.9 * w[usable] + 0.1 * e / e.sum() * w[usable].sum()
        got = move_weights(
            *(torch.from_numpy(a)[None] for a in (w, cosines, usable)), decay=0.9, similarity="softmax", temperature=0.1
        )
        np.testing.assert_allclose(got[0], expected, rtol=1e-6, atol=1e-12)
        assert float(got.sum()) == pytest.approx(1)
