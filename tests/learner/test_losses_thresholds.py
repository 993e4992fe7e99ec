"""Thresholds, contrast and consistency as pure functions: worked numbers, brute force, gradients, properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.distributions import align_distribution, completed, follow, softmatch_weights
from learner.losses import (
    ThresholdMapping,
    adaptive_margins,
    fairness,
    flexmatch_thresholds,
    learning_status,
    nt_xent,
    squared_error,
)

FIRST = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
SECOND = torch.tensor([[0.6, 0.8], [0, 1]], dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# FlexMatch.


@pytest.mark.parametrize(
    ("counts", "unused", "warmup", "beta", "thresholds"),
    [
        ([4, 1, 0], 5, True, [0.8, 0.2, 0], [0.633333, 0.105556, 0]),
        ([4, 1, 0], 5, False, [1, 0.25, 0], [0.95, 0.135714, 0]),
        ([3, 1, 0], 5, True, [0.6, 0.2, 0], [0.407143, 0.105556, 0]),
        ([0, 0, 0], 10, True, [0, 0, 0], [0, 0, 0]),
        ([0, 0, 0], 0, False, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_flexmatch_worked_examples(
    counts: list[int], unused: int, warmup: bool, beta: list[float], thresholds: list[float]
) -> None:
    assert learning_status(torch.tensor(counts), unused, warmup).tolist() == pytest.approx(beta, abs=1e-6)
    found = flexmatch_thresholds(torch.tensor(counts), unused, 0.95, warmup)
    assert found.tolist() == pytest.approx(thresholds, abs=5e-7)
    assert torch.equal(found, flexmatch_thresholds(torch.tensor(counts), torch.tensor(unused), 0.95, warmup))


@pytest.mark.parametrize(
    ("mapping", "at_zero", "at_half"),
    [
        ("convex", 0.0, 1 / 3),
        ("linear", 0.5, 0.75),
        ("low_limit", 0.5, 2 / 3),
        ("concave", 0.5 / (math.log(2) + 0.5), (math.log(1.5) + 0.5) / (math.log(2) + 0.5)),
    ],
)
def test_mappings_of_the_learning_status(mapping: ThresholdMapping, at_zero: float, at_half: float) -> None:
    found = flexmatch_thresholds(vector(2, 4, 0), 1, 0.9, mapping=mapping)
    assert found.tolist() == pytest.approx([0.9 * at_half, 0.9, 0.9 * at_zero])
    assert flexmatch_thresholds(vector(2, 4, 0), 1, 0.9, mapping=mapping, minimum=0.6).min() >= 0.6


def test_flexmatch_equals_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        counts = rng.integers(0, 6, int(rng.choice([2, 3, 7, 8])))
        unused, tau, warmup = int(rng.integers(0, 9)), rng.uniform(0.5, 1), bool(rng.integers(2))
        largest = max([*counts, unused] if warmup else counts)
        beta = [c / largest if largest else 0.0 for c in counts]
        expected = [tau * b / (2 - b) for b in beta]
        got = flexmatch_thresholds(torch.from_numpy(counts).double(), unused, tau, warmup)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8), st.integers(0, 1000))
def test_thresholds_lie_between_zero_and_tau_in_the_order_of_the_counts(counts: list[int], unused: int) -> None:
    found = flexmatch_thresholds(torch.tensor(counts), unused)
    assert bool(((found >= 0) & (found <= 0.95 + 1e-6)).all())
    order = torch.tensor(counts).argsort()
    assert bool((found[order].diff() >= -1e-7).all())


# Ada-CM's margins.


@pytest.mark.parametrize(
    ("mean", "epoch", "margin"),
    [
        (0.95, 1, 0.8),
        (0.95, 2, 0.811655),
        (0.95, 5, 0.915333),
        (0.95, 20, 0.921500),
        (0.85, 5, 0.818982),
        (1.0, 20, 0.97),
        (0.0, 20, 0.8),
        (math.nan, 20, 0.8),
    ],
)
def test_margins_of_the_worked_examples(mean: float, epoch: int, margin: float) -> None:
    assert adaptive_margins(vector(mean), epoch).item() == pytest.approx(margin, abs=5e-7)


def test_the_first_epoch_gives_the_floor_before_the_maximum_is_taken() -> None:
    assert adaptive_margins(vector(0.95), 1, floor=0.0).item() == pytest.approx(0.673670, abs=5e-7)


def test_margins_equal_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        mean, epoch = rng.uniform(0, 1, int(rng.integers(2, 9))), float(rng.uniform(0, 30))
        floor, ceiling = rng.uniform(0, 0.9), rng.uniform(0.9, 1)
        expected = [max(floor, ceiling * m / (1 + math.exp(-epoch))) for m in mean]
        np.testing.assert_allclose(adaptive_margins(torch.from_numpy(mean), epoch, floor, ceiling), expected, rtol=1e-6)


# NT-Xent.


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 0.922667), (0.5, 0.758885)])
def test_nt_xent_of_the_worked_example(temperature: float, expected: float) -> None:
    assert nt_xent(FIRST, SECOND, temperature).item() == pytest.approx(expected, abs=5e-7)


def naive_nt_xent(a: np.ndarray, b: np.ndarray, t: float) -> list[float]:
    u = np.concatenate([a, b])
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    size, costs = len(a), []
    for anchor in range(2 * size):
        others = [u[anchor] @ u[j] / t for j in range(2 * size) if j != anchor]
        positive = u[anchor] @ u[(anchor + size) % (2 * size)] / t
        costs.append(float(np.logaddexp.reduce(others)) - positive)
    return costs


def test_nt_xent_of_the_worked_example_anchor_by_anchor() -> None:
    costs = naive_nt_xent(FIRST.numpy(), SECOND.numpy(), 0.07)
    assert costs == pytest.approx([0.000379, 0.055845, 3.578602, 0.055845], abs=5e-7)


def test_nt_xent_equals_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        size, dim = int(rng.integers(1, 6)), int(rng.integers(2, 6))
        a, b, t = rng.normal(size=(size, dim)), rng.normal(size=(size, dim)), float(rng.uniform(0.05, 1))
        keep = rng.random(size) < 0.6
        all_of_them = nt_xent(torch.from_numpy(a), torch.from_numpy(b), t)
        np.testing.assert_allclose(all_of_them, np.mean(naive_nt_xent(a, b, t)), rtol=1e-6, atol=1e-12)
        some = nt_xent(torch.from_numpy(a), torch.from_numpy(b), t, torch.from_numpy(keep))
        expected = np.mean(naive_nt_xent(a[keep], b[keep], t)) if keep.any() else 0.0
        np.testing.assert_allclose(some, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_gradient_of_nt_xent(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    keep = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, temperature), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, temperature, keep), (a, b))


@pytest.mark.parametrize("size", [0, 1, 3])
def test_nobody_to_differ_from_costs_exactly_nothing(size: int) -> None:
    a, b = (torch.randn(size, 5, requires_grad=True) for _ in range(2))
    keep = torch.arange(size) < (1 if size == 1 else 0)
    loss = nt_xent(a, b, keep=keep)
    loss.backward()
    assert loss.item() == 0
    assert a.grad is not None
    assert bool((a.grad == 0).all())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_nt_xent_forgets_order_of_samples_and_views_and_scale(seed: int, size: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    order = torch.randperm(size, generator=draw)
    loss = nt_xent(a, b)
    assert loss >= 0
    torch.testing.assert_close(loss, nt_xent(b, a))
    torch.testing.assert_close(loss, nt_xent(a[order], b[order]))
    torch.testing.assert_close(loss, nt_xent(3.5 * a, 0.1 * b))


def test_nt_xent_stays_in_full_precision_and_refuses_other_shapes() -> None:
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(a, b)
    assert torch.equal(inside, nt_xent(a, b))
    with pytest.raises(ValueError, match="same shape"):
        nt_xent(a, b[:2])


# Consistency, fairness, distributions.


def test_squared_error_of_the_worked_example() -> None:
    assert squared_error(vector(1, 0, 0)[None], vector(0.5, 0.3, 0.2)[None]).item() == pytest.approx(0.004564, abs=5e-7)


def worked_fairness(logits: Tensor, selected: Tensor) -> float:
    return fairness(logits, selected, vector(0.5, 0.3, 0.2), vector(0.6, 0.2, 0.2)).item()


def test_fairness_of_the_worked_example_without_its_constant() -> None:
    """The public form adds .3 * log(1e-12) for the class that no sample is predicted as: -8.787501."""
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    found = worked_fairness(logits, torch.tensor([True, True, False]))
    assert found + 0.3 * math.log(1e-12) == pytest.approx(-8.787501, abs=5e-6)
    assert found == pytest.approx(0.25 * math.log(0.529412) + 0.45 * math.log(0.470588), abs=1e-6)


def test_fairness_of_nobody_is_nothing() -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    loss = fairness(logits, torch.zeros(3, dtype=torch.bool), torch.full((3,), 1 / 3), torch.full((3,), 1 / 3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())


def naive_fairness(p: np.ndarray, chosen: np.ndarray, mean_p: np.ndarray, histogram: np.ndarray) -> float:
    if not chosen.any():
        return 0.0
    some = p[chosen]
    shares = np.bincount(some.argmax(axis=1), minlength=p.shape[1]) / len(some)
    a = mean_p / histogram / (mean_p / histogram).sum()
    seen = shares > 0
    b = np.zeros(p.shape[1])
    b[seen] = some.mean(axis=0)[seen] / shares[seen]
    b = b / b.sum()
    return float((a[seen] * np.log(b[seen])).sum())


def test_the_rest_equals_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        size, num_classes = int(rng.integers(1, 6)), int(rng.choice([2, 3, 7, 8]))
        z, t = rng.normal(0, 2, (size, num_classes)), rng.dirichlet(np.ones(num_classes), size)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        logits = torch.from_numpy(z)
        np.testing.assert_allclose(squared_error(logits, torch.from_numpy(t)), ((p - t) ** 2).mean(axis=1), rtol=1e-6)
        chosen = rng.random(size) < 0.6
        mean_p, histogram = rng.dirichlet(np.ones(num_classes)), rng.dirichlet(np.ones(num_classes))
        got = fairness(logits, torch.from_numpy(chosen), torch.from_numpy(mean_p), torch.from_numpy(histogram))
        np.testing.assert_allclose(got, naive_fairness(p, chosen, mean_p, histogram), rtol=1e-6, atol=1e-12)
        moved = p * (mean_p + 1e-6) / (histogram + 1e-6)
        aligned = align_distribution(torch.from_numpy(p), torch.from_numpy(histogram), torch.from_numpy(mean_p))
        np.testing.assert_allclose(aligned, moved / moved.sum(axis=1, keepdims=True), rtol=1e-6)
        conf, mean, variance = p.max(axis=1), float(rng.uniform(0.2, 1)), float(rng.uniform(0.001, 0.5))
        expected = np.exp(-(np.minimum(conf - mean, 0) ** 2) / (2 * variance / 4))
        weights = softmatch_weights(torch.from_numpy(conf), vector(mean)[0], vector(variance)[0])
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_gradients_of_consistency_and_fairness() -> None:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(4, 3, dtype=torch.float64, generator=draw).requires_grad_()
    t = torch.randn(4, 3, dtype=torch.float64, generator=draw).softmax(dim=1)
    assert torch.autograd.gradcheck(lambda x: squared_error(x, t), (z,))
    keep = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda x: fairness(x, keep, t[0], t[1]), (z,))


def test_softmatch_weights_of_the_worked_examples() -> None:
    found = softmatch_weights(vector(0.95, 0.8, 0.7, 0.6, 0.62), vector(0.8)[0], vector(0.01)[0])
    assert found.tolist() == pytest.approx([1, 1, 0.135335, 0.000335, 0.001534], abs=5e-7)


def test_alignment_of_the_worked_example() -> None:
    found = align_distribution(vector(0.6, 0.3, 0.1)[None], vector(0.5, 0.3, 0.2), torch.full((3,), 1 / 3).double())
    assert found[0].tolist() == pytest.approx([0.444445, 0.370370, 0.185185], abs=1e-6)


def test_aligning_with_what_the_model_does_anyway_changes_nothing() -> None:
    p = torch.rand(5, 4).softmax(dim=1)
    torch.testing.assert_close(align_distribution(p, p.mean(dim=0), p.mean(dim=0)), p)


def test_freematchs_first_average() -> None:
    assert follow(vector(1 / 7)[0], vector(0.6)[0], 0.999).item() == pytest.approx(0.143314, abs=5e-7)


def test_a_saved_distribution_takes_up_a_new_class_and_is_otherwise_untouched() -> None:
    whole = torch.tensor([0.2, 0.5, 0.3])
    assert completed(whole) is whole
    grown = completed(torch.tensor([0.2, 0.5, 0.3, 0.0]))
    assert grown.tolist() == pytest.approx([0.16, 0.4, 0.24, 0.2])
    assert completed(torch.tensor([0.2, 0.3])).tolist() == pytest.approx([0.4, 0.6])
