"""The partition of classes and the ambiguous loss: hand-worked numbers, brute force in numpy, and invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import ambiguous_consistency, cross_entropy, partition_weight, positive_partition, topk_gate

S = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
SEVENTH = [1 / 7] * 7


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def bits(*classes: int, size: int = 4) -> Tensor:
    return torch.tensor([[c in classes for c in range(size)]])


@pytest.mark.parametrize(
    ("q", "paper", "official", "weight"),
    [
        ([0.95, 0.03, 0.015, 0.005], 1, 1, 0.981281),
        ([0.6, 0.35, 0.03, 0.02], 2, 1, 0.617360),
        ([0.5, 0.3, 0.15, 0.05], 3, 2, 0.791111),
        ([0.4, 0.3, 0.15, 0.1, 0.05], 4, 3, 0.807617),
        (SEVENTH, 7, 3, 0.0),
        ([0.34, 0.33, 0.33, 0.0, 0.0, 0.0, 0.0], 3, 2, 0.053680),
    ],
)
def test_worked_partitions(q: list[float], paper: int, official: int, weight: float) -> None:
    probs = row(*q)
    assert positive_partition(probs, capped=False).sum() == paper
    assert positive_partition(probs).sum() == min(paper, len(q) - 1)
    split = positive_partition(probs, rule="official")
    assert split.sum() == official
    assert partition_weight(probs, split).item() == pytest.approx(weight, abs=5e-7)


def test_partition_takes_the_most_probable_classes_and_ties_go_to_the_lowest() -> None:
    assert positive_partition(row(0.1, 0.5, 0.05, 0.35)).tolist() == [[True, True, False, True]]
    assert positive_partition(row(*SEVENTH), threshold=0.4).tolist() == [[True] * 3 + [False] * 4]
    assert positive_partition(row(0, 0, 0, 1.0)).tolist() == [[False, False, False, True]]


def test_a_sum_that_meets_the_threshold_is_enough_in_every_precision() -> None:
    for kind in (torch.float32, torch.float64):
        assert positive_partition(torch.tensor([[0.5, 0.4, 0.1]], dtype=kind)).sum() == 2
        assert positive_partition(torch.tensor([[0.3, 0.6, 0.1]], dtype=kind)).sum() == 2
        for three in ([0.7, 0.1, 0.1], [0.5, 0.2, 0.2], [0.45, 0.25, 0.2]):  # .89999… in float64
            q = torch.tensor([[*three, 0.05, 0.03, 0.02]], dtype=kind)
            assert positive_partition(q).sum() == 3


@pytest.mark.parametrize(
    ("positive", "loss"),
    [((0, 1), 0.523744), ((0,), 0.440190), ((0, 1, 2), 0.440190), ((1, 2), 2.451914), ((0, 1, 2, 3), 0.0), ((), 0.0)],
)
def test_worked_losses(positive: tuple[int, ...], loss: float) -> None:
    assert ambiguous_consistency(S, bits(*positive)).item() == pytest.approx(loss, abs=5e-7)


def test_worked_parts_and_gradient() -> None:
    s = S.clone().requires_grad_()
    assert torch.logsumexp(-S[:, :2], 1).item() == pytest.approx(-0.686738, abs=5e-7)
    assert torch.logsumexp(S[:, 2:], 1).item() == pytest.approx(0.313262, abs=5e-7)
    assert (torch.logsumexp(-S[:, :2], 1) + torch.logsumexp(S[:, 2:], 1)).item() == pytest.approx(-0.373477, abs=1e-6)
    ambiguous_consistency(s, bits(0, 1)).sum().backward()
    assert s.grad is not None
    assert s.grad[0].tolist() == pytest.approx([-0.109648, -0.298053, 0.298053, 0.109648], abs=5e-7)
    assert ambiguous_consistency(S, bits(0, 1), 0.5).item() == pytest.approx(0.758409, abs=5e-7)


def test_worked_losses_on_probabilities_never_reach_zero() -> None:
    assert ambiguous_consistency(S.softmax(1), bits(0, 1)).item() == pytest.approx(1.332663, abs=5e-7)
    perfect = torch.eye(7, dtype=torch.float64)[:1]
    assert ambiguous_consistency(perfect, perfect.bool()).item() == pytest.approx(1.165422, abs=5e-7)


def test_worked_losses_of_two_and_seven_classes() -> None:
    assert ambiguous_consistency(row(0, 0), bits(0, size=2)).item() == pytest.approx(0.693147, abs=5e-7)
    s = row(0.3, -0.2, 1.1, 0.4, 0, -0.5, 0.2)
    assert ambiguous_consistency(s, bits(0, 2, size=7)).item() == pytest.approx(1.874436, abs=5e-7)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_enormous_scores_stay_finite(kind: torch.dtype) -> None:
    s = torch.tensor([[200.0, -300, 100, 0]], dtype=kind, requires_grad=True)
    loss = ambiguous_consistency(s, bits(0, 1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(400, rel=1e-6 if kind != torch.bfloat16 else 1e-2)
    assert loss.dtype != torch.bfloat16
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    steep = torch.tensor([[1e4, -1e4, 1e4, -1e4]], dtype=kind)
    assert ambiguous_consistency(steep, bits(0, 1)).item() == pytest.approx(2e4, rel=1e-2)


@pytest.mark.parametrize("positive", [(), (0, 1, 2, 3)])
@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_no_class_or_every_class_costs_nothing_and_trains_nothing(positive: tuple[int, ...], margin: float) -> None:
    s = torch.full((1, 4), 1e4, requires_grad=True)
    loss = ambiguous_consistency(s, bits(*positive), margin)
    loss.sum().backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert (s.grad == 0).all()


def brute_partition(q: np.ndarray, threshold: float) -> np.ndarray:
    order = sorted(range(len(q)), key=lambda c: (-q[c], c))
    chosen, total = [], 0.0
    for c in order[: len(q) - 1]:
        chosen.append(c)
        total += q[c]
        if total >= threshold - 1e-6:
            break
    return np.isin(np.arange(len(q)), chosen)


def brute_official(q: np.ndarray, threshold: float) -> tuple[np.ndarray, float]:
    order = sorted(range(len(q)), key=lambda c: (-q[c], c))
    j = next((j for j in (2, 3) if q[order[:j]].sum() >= threshold - 1e-6), 4)
    m = min(j - 1, len(q) - 1)
    a = q[order[: m + 1]].mean()
    weight = min(1.0, np.log(1 + 50 * (a - q[order[m]])) / np.log(1 + 50 * a))
    return np.isin(np.arange(len(q)), order[:m]), weight


def test_partitions_and_losses_equal_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        num_classes = int(rng.integers(2, 9))
        s, q = rng.normal(0, 3, num_classes), rng.dirichlet(np.full(num_classes, 0.5))
        threshold, margin = rng.uniform(0.3, 1.0), rng.uniform(0, 1)
        probs, logits = torch.from_numpy(q)[None], torch.from_numpy(s)[None]
        split = positive_partition(probs, threshold)
        p = brute_partition(q, threshold)
        assert split[0].numpy().tolist() == p.tolist()
        public = positive_partition(probs, threshold, "official")
        other, weight = brute_official(q, threshold)
        assert public[0].numpy().tolist() == other.tolist()
        np.testing.assert_allclose(partition_weight(probs, public)[0], weight, rtol=1e-6, atol=1e-12)
        naive = np.log1p(np.exp(margin) * np.exp(-s[p]).sum() * np.exp(s[~p]).sum())
        np.testing.assert_allclose(ambiguous_consistency(logits, split, margin)[0], naive, rtol=1e-6)


def test_gradient_is_right_in_float64() -> None:
    torch.manual_seed(1)
    s = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    split = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    assert torch.autograd.gradcheck(lambda x: ambiguous_consistency(x, split, 0.3), (s,))


rows_of_scores = st.integers(2, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-30, 30), min_size=k, max_size=k), st.integers(1, k - 1), st.permutations(range(k))
    )
)


@settings(max_examples=150, deadline=None)
@given(rows_of_scores)
def test_invariants(drawn: tuple[list[float], int, list[int]]) -> None:
    values, size, order = drawn
    s = row(*values).requires_grad_()
    split = bits(*order[:size], size=len(values))
    loss = ambiguous_consistency(s, split)
    loss.sum().backward()
    assert s.grad is not None
    assert loss.item() >= 0
    assert abs(s.grad.sum().item()) < 1e-9
    assert (s.grad[split] <= 0).all()  # lowering a positive score costs, raising a negative one too
    assert (s.grad[~split] >= 0).all()
    hard = max(0.0, (s[~split].max() - s[split].min()).item())
    assert loss.item() >= hard - 1e-9
    torch.testing.assert_close(ambiguous_consistency(s + 7.5, split), loss)
    torch.testing.assert_close(ambiguous_consistency(s[:, order], split[:, order]), loss)
    if size == 1:
        torch.testing.assert_close(loss, cross_entropy(s, torch.tensor([order[0]])), rtol=1e-9, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 8), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_partition_invariants(num_classes: int, threshold: float, seed: int) -> None:
    q = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(num_classes), 3))
    split = positive_partition(q, threshold)
    assert split.dtype == torch.bool
    size = split.sum(1)
    assert ((size >= 1) & (size < num_classes)).all()
    lowest = q.masked_fill(~split, 2).min(1).values
    assert (lowest >= q.masked_fill(split, -1).max(1).values).all()
    held = (q * split).sum(1)
    assert ((held >= threshold - 1e-6) | (size == num_classes - 1)).all()
    assert ((held - lowest < threshold - 1e-6) | (size == 1)).all()  # without its last class it would be too little
    assert (positive_partition(q, threshold, "official").sum(1) <= min(3, num_classes - 1)).all()


def test_gate_can_be_had_from_the_losses() -> None:
    assert math.isclose(topk_gate(row(1, 0, -1, 2), 2)[0, 0].item(), 0.268941, abs_tol=5e-7)
