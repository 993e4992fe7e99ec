"""Losses against hand-worked numbers, brute force in numpy, and the properties that every loss must have."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learner import losses
from learner.losses import (
    cross_entropy,
    masked_mean,
    negative_learning,
    partial_label,
    sigmoid_gap_bce,
    soft_cross_entropy,
)

Z = torch.tensor([[3.0, 2.0, -0.5, -1.0]], dtype=torch.float64)
STRONG = torch.tensor([[2.0, 2.5, 0.5, -0.5]], dtype=torch.float64)


def bits(*classes: int, size: int = 4) -> Tensor:
    return torch.tensor([[c in classes for c in range(size)]])


def fixmatch_loss(weak: list[list[float]], strong: list[list[float]], reduction: losses.Reduction) -> float:
    z_w, z_s = torch.tensor(weak, dtype=torch.float64), torch.tensor(strong, dtype=torch.float64)
    conf, hard = z_w.softmax(1).max(1)
    return float(masked_mean(cross_entropy(z_s, hard), conf >= 0.95, reduction))


@pytest.mark.parametrize(
    ("weak", "strong", "over_all", "over_selected"),
    [
        ([[5, 1, 0], [2, 1, 0], [0, 4.5, 0]], [[2, 1, 0], [2, 1, 0], [1, 1, 1]], 0.502073, 0.753109),
        ([[0, 6], [1, 0], [4, 0]], [[1, 0], [0, 0], [-1, 1]], 1.146730, 1.720095),
    ],
)
def test_consistency_reproduces_the_worked_examples(
    weak: list[list[float]], strong: list[list[float]], over_all: float, over_selected: float
) -> None:
    assert fixmatch_loss(weak, strong, "all") == pytest.approx(over_all, abs=5e-7)
    assert fixmatch_loss(weak, strong, "selected") == pytest.approx(over_selected, abs=5e-7)


def test_cross_entropy_of_the_worked_example() -> None:
    z = torch.tensor([[2.0, 1, 0], [2, 1, 0], [1, 1, 1]])
    assert cross_entropy(z, torch.tensor([0, 0, 1])).tolist() == pytest.approx([0.407606, 0.407606, 1.098612], abs=1e-6)
    z = torch.tensor([[1.0, 0], [0, 0], [-1, 1]])
    assert cross_entropy(z, torch.tensor([1, 0, 0])).tolist() == pytest.approx([1.313262, 0.693147, 2.126928], abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "excluded", "expected"),
    [
        (Z, bits(3), 0.013016),
        (Z, bits(2, 3), 0.034566),
        (STRONG, bits(2, 3), 0.106724),
        (torch.zeros(1, 4), bits(3), 0.287682),
        (torch.zeros(1, 4), bits(2, 3), 0.575364),
        (torch.tensor([[40.0, 0, 0]]), bits(0, size=3), 39.306853),
    ],
)
def test_negative_learning_reproduces_the_worked_examples(logits: Tensor, excluded: Tensor, expected: float) -> None:
    assert negative_learning(logits, excluded).item() == pytest.approx(expected, abs=5e-6 if expected > 1 else 5e-7)


def test_gradient_of_negative_learning() -> None:
    z = Z.clone().requires_grad_()
    negative_learning(z, bits(2, 3)).sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == pytest.approx([-0.024629, -0.009061, 0.021041, 0.012649], abs=5e-7)
    assert float(z.grad.sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("excluded", "printed"), [(bits(3), -0.987069), (bits(2, 3), -1.965749)])
def test_negative_learning_is_not_the_printed_form_without_log(excluded: Tensor, printed: float) -> None:
    """As printed eq. 10 is negative and bounded, and its gradient dies where the loss is needed most."""
    z = torch.tensor([[40.0, 0, 0]], requires_grad=True)
    literal = -((1 - Z.softmax(1)) * excluded).sum()
    assert literal.item() == pytest.approx(printed, abs=5e-7)
    assert negative_learning(Z, excluded).item() > 0 > literal.item()
    (-(1 - z.softmax(1)[0, 0])).backward()
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-15


def test_official_negative_consistency() -> None:
    assert sigmoid_gap_bce(STRONG, bits(2, 3)).item() == pytest.approx(0.461682, abs=5e-7)


def test_negative_learning_keeps_its_gradient_where_the_naive_form_loses_it() -> None:
    z = torch.tensor([[40.0, 0, 0]], requires_grad=True)
    naive = -torch.log(1 - z.softmax(1)[0, 0])
    assert torch.isinf(naive)
    negative_learning(z, bits(0, size=3)).sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == pytest.approx([1, -0.5, -0.5], abs=1e-6)


def naive_losses(z: np.ndarray, t: np.ndarray, some: np.ndarray) -> dict[str, np.ndarray]:
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    s = 1 / (1 + np.exp(-z))
    gap = s.max(axis=1, keepdims=True) - s
    on, off = -np.log(np.maximum(gap, np.finfo(float).eps)), -np.log(1 - gap)
    inside = (p * some).sum(axis=1)
    return {
        "soft": -(t * np.log(p)).sum(axis=1),
        "negative": -(some * np.log(1 - p)).sum(axis=1),
        "partial": np.where(some.any(axis=1), -np.log(np.where(inside > 0, inside, 1)), 0),
        "official": np.where(some, on, off).mean(axis=1),
    }


def test_losses_equal_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        size, num_classes = int(rng.integers(1, 6)), int(rng.choice([2, 3, 7, 8]))
        z = rng.normal(0, 2, (size, num_classes))
        t = rng.dirichlet(np.ones(num_classes), size)
        some = rng.random((size, num_classes)) < 0.4
        expected = naive_losses(z, t, some)
        logits, sets = torch.from_numpy(z), torch.from_numpy(some)
        np.testing.assert_allclose(soft_cross_entropy(logits, torch.from_numpy(t)), expected["soft"], rtol=1e-6)
        np.testing.assert_allclose(negative_learning(logits, sets), expected["negative"], rtol=1e-6)
        np.testing.assert_allclose(partial_label(logits, sets), expected["partial"], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(sigmoid_gap_bce(logits, sets), expected["official"], rtol=1e-6)
        weight = rng.random(size) * (rng.random(size) < 0.5)
        for reduction, count in (("all", size), ("selected", max(1, int((weight > 0).sum())))):
            got = masked_mean(torch.from_numpy(t[:, 0].copy()), torch.from_numpy(weight), reduction)
            np.testing.assert_allclose(got, (t[:, 0] * weight).sum() / count, rtol=1e-6)


def all_losses(z: Tensor, some: Tensor) -> dict[str, Tensor]:
    target = some / some.sum(dim=1, keepdim=True).clamp(min=1)
    return {
        "soft": soft_cross_entropy(z, target),
        "hard": cross_entropy(z, some.float().argmax(dim=1)),
        "negative": negative_learning(z, some),
        "partial": partial_label(z, some),
        "official": sigmoid_gap_bce(z, some),
    }


@pytest.mark.parametrize("num_classes", [2, 3, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("mask", ["none", "some", "every"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("half", [False, True])
def test_losses_and_gradients_are_finite(num_classes: int, size: int, mask: str, scale: float, half: bool) -> None:
    torch.manual_seed(num_classes * size)
    sign = torch.where(torch.rand(size, num_classes) < 0.5, -1.0, 1.0)
    some = {"none": torch.zeros, "every": torch.ones}.get(mask, lambda *s: (torch.rand(*s) < 0.5).float())
    sets = some(size, num_classes).bool()
    z = (scale * sign).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = z @ torch.eye(num_classes)
        assert logits.dtype == (torch.bfloat16 if half else torch.float32)
        found = all_losses(logits, sets)
        torch.stack([v.sum() for v in found.values()]).sum().backward()
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name
        assert (value >= 0).all(), name
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("reduction", ["all", "selected"])
def test_empty_subset_is_exactly_zero_with_a_graph(reduction: losses.Reduction) -> None:
    z = torch.randn(3, 4, requires_grad=True)
    loss = masked_mean(cross_entropy(z, torch.tensor([0, 1, 2])), torch.zeros(3, dtype=torch.bool), reduction)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert (z.grad == 0).all()
    assert masked_mean(torch.zeros(0), torch.zeros(0), reduction).item() == 0


def test_empty_sets_cost_nothing_and_train_nothing() -> None:
    z = torch.randn(2, 5, requires_grad=True)
    none, every = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    cost = negative_learning(z, none) + partial_label(z, none) + partial_label(z, every)
    assert cost.tolist() == [0, 0]
    cost.sum().backward()
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_order_of_classes_and_shift_of_logits_do_not_matter() -> None:
    torch.manual_seed(3)
    z, sets, order = torch.randn(5, 7), torch.rand(5, 7) < 0.4, torch.randperm(7)
    plain, permuted, shifted = (
        all_losses(a, b) for a, b in ((z, sets), (z[:, order], sets[:, order]), (z + torch.randn(5, 1), sets))
    )
    for name in ("soft", "negative", "partial", "official"):
        torch.testing.assert_close(plain[name], permuted[name])
    for name in ("soft", "hard", "negative", "partial"):
        torch.testing.assert_close(plain[name], shifted[name])


def test_negative_learning_grows_with_every_excluded_probability() -> None:
    z = torch.zeros(1, 4)
    costs = []
    for lift in (-2.0, 0.0, 1.0, 5.0):
        z[0, 2] = lift
        costs.append(negative_learning(z, bits(2, 3)[:, :4]).item())
    # Class 3 loses what class 2 gains; the sum still grows, as class 2 has more to pay.
    assert costs == sorted(costs)
    assert costs[0] > 0


def test_gradients_are_right_in_float64() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4, dtype=torch.float64)
    some = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, target), (z,))
    assert torch.autograd.gradcheck(lambda x: negative_learning(x, some), (z,))
    assert torch.autograd.gradcheck(lambda x: partial_label(x, some), (z,))
    assert torch.autograd.gradcheck(lambda x: sigmoid_gap_bce(x, some), (z,))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([0, 1, 3])), (z,))


def test_partial_label_of_one_class_is_cross_entropy() -> None:
    z = torch.randn(6, 8)
    y = torch.arange(6)
    torch.testing.assert_close(partial_label(z, torch.eye(8)[y].bool()), cross_entropy(z, y))
    assert partial_label(torch.zeros(1, 8), bits(1, 2, size=8)).item() == pytest.approx(math.log(4))
