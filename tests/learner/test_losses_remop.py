"""ReMoP's pure functions: hand-worked numbers, brute force in numpy, gradients, and what must not change them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from learner.losses import (
    MixtureMode,
    center_cosines,
    center_loss,
    center_similarity,
    etf_regularizer,
    mix_readings,
    mixture_logits,
    simplex_etf,
)

Array = NDArray[np.float64]
MODES: tuple[MixtureMode, ...] = ("logit_cos", "prob", "literal", "official")
THREE = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
FOUR = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(tensor: Tensor, expected: Any, abs_: float = 5e-7) -> bool:
    return bool(np.allclose(tensor.detach().numpy(), np.asarray(expected), atol=abs_, rtol=0))


@pytest.mark.parametrize(
    ("num_classes", "off", "eigenvalue", "frobenius"), [(7, -1 / 6, 7 / 6, 2.857738), (8, -1 / 7, 8 / 7, 3.023716)]
)
def test_simplex_etf_of_the_worked_examples(num_classes: int, off: float, eigenvalue: float, frobenius: float) -> None:
    m = simplex_etf(num_classes, 512).double()
    gram = m @ m.T
    assert m.shape == (num_classes, 512)
    assert close(gram.diagonal(), np.ones(num_classes), 1e-6)
    assert close(gram[~torch.eye(num_classes, dtype=torch.bool)], np.full(num_classes * (num_classes - 1), off), 1e-6)
    assert close(m.sum(dim=0), np.zeros(512), 1e-6)
    assert close(torch.linalg.eigvalsh(gram), [0.0, *[eigenvalue] * (num_classes - 1)], 1e-6)
    assert int(torch.linalg.matrix_rank(m, rtol=1e-5)) == num_classes - 1
    assert float(gram.norm()) == pytest.approx(num_classes / (num_classes - 1) ** 0.5, abs=1e-5)
    assert float(m.norm()) ** 2 == pytest.approx(num_classes, abs=1e-5)
    assert float(gram.norm()) == pytest.approx(frobenius, abs=2e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 7, 8])
def test_an_etf_needs_no_more_than_k_minus_1_dimensions_and_pays_nothing(num_classes: int) -> None:
    vertices = simplex_etf(num_classes, num_classes - 1).double()
    assert float(etf_regularizer(vertices)) == pytest.approx(0, abs=1e-10)
    assert float(etf_regularizer(vertices, nc2_norm=True)) == pytest.approx(num_classes / (num_classes - 1), abs=1e-6)
    with pytest.raises(ValueError, match="needs K >= 2 and d >= K-1"):
        simplex_etf(num_classes, num_classes - 2)


@pytest.mark.parametrize(("centers", "paper", "code"), [(THREE, 0.315089, 1.558846), (FOUR, 0.751197, 1.533474)])
def test_regularizer_of_the_worked_examples(centers: Tensor, paper: float, code: float) -> None:
    assert float(etf_regularizer(centers)) == pytest.approx(paper, abs=5e-7)
    assert float(etf_regularizer(centers, nc2_norm=True)) == pytest.approx(code, abs=5e-7)


def test_cosines_of_the_worked_examples() -> None:
    for centers, expected in (
        (THREE, [[1, -0.316228, -0.316228], [-0.316228, 1, -0.8], [-0.316228, -0.8, 1]]),
        (FOUR, [[1, -0.633300, 0.058824, -0.242536], [-0.633300, 1, -0.633300, -0.174078]]),
    ):
        cosines, pairs, number = center_cosines(centers)
        assert close(cosines[: len(expected)], expected)
        assert int(pairs.sum()) == len(centers) * (len(centers) - 1), "ordered pairs: each counts twice"
        assert int(number) == len(centers)


@pytest.mark.parametrize(("num_classes", "least"), [(7, 1.166667), (8, 1.142857)])
def test_orthogonal_centers_of_equal_length_are_an_etf_once_centered(num_classes: int, least: float) -> None:
    centers = 3 * torch.eye(num_classes, 512, dtype=torch.float64)
    assert float(etf_regularizer(centers)) == pytest.approx(0, abs=1e-12)
    assert float(etf_regularizer(centers, nc2_norm=True)) == pytest.approx(least, abs=5e-7)


def test_random_centers_are_nearly_an_etf() -> None:
    draw = torch.Generator().manual_seed(0)
    paper, code = [], []
    for _ in range(200):  # the order in which the worked numbers were drawn
        paper.append(etf_regularizer(torch.randn(7, 512, generator=draw, dtype=torch.float64)))
        code.append(etf_regularizer(torch.randn(7, 512, generator=draw, dtype=torch.float64), nc2_norm=True))
    assert float(torch.stack(paper).mean()) == pytest.approx(0.0744, abs=5e-5)
    assert float(torch.stack(code).mean()) == pytest.approx(1.1988, abs=5e-5)


def test_both_forms_have_the_same_minimum() -> None:
    centers = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for _ in range(300):
        (slope,) = torch.autograd.grad(etf_regularizer(centers, nc2_norm=True), centers)
        with torch.no_grad():
            centers -= slope
    assert float(etf_regularizer(centers.detach(), nc2_norm=True)) == pytest.approx(5 / 4, abs=1e-3)
    assert float(etf_regularizer(centers.detach())) == pytest.approx(0, abs=1e-3)


def brute_regularizer(h: Array, norm: bool) -> float:
    num = len(h)
    centered = [h[k] - h.mean(axis=0) for k in range(num)]
    unit = [c / np.linalg.norm(c) for c in centered]
    pairs = [float(unit[k] @ unit[t]) for k in range(num) for t in range(num) if k != t]
    if norm:
        return float(np.sqrt(sum(c**2 for c in pairs) + num * (1 / (num - 1)) ** 2))
    return sum((c + 1 / (num - 1)) ** 2 for c in pairs)


def brute_mixture(z: Array, f: Array, h: Array, beta: float, t: float, mode: MixtureMode) -> Array:
    def softmax(a: Array) -> Array:
        e = np.exp(a - a.max())
        return e / e.sum()

    rows = []
    for logits, feature in zip(z, f, strict=True):
        cos = np.array([feature @ c / (np.linalg.norm(feature) * np.linalg.norm(c)) for c in h])
        rows.append(
            {
                "logit_cos": softmax(beta * logits + (1 - beta) * cos / t),
                "official": softmax(beta * logits + (1 - beta) * np.array([feature @ c for c in h])),
                "prob": beta * softmax(logits) + (1 - beta) * softmax(cos / t),
                "literal": beta * softmax(logits) + (1 - beta) * cos,
            }[mode]
        )
    return np.array(rows)


def reading(mixed: Tensor, mode: MixtureMode) -> Tensor:
    return mixed if mode == "literal" else mixed.softmax(dim=1)


def test_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for turn in range(200):
        num, batch, width = int(rng.integers(2, 9)), int(rng.integers(1, 6)), int(rng.integers(1, 12))
        z, f, h = rng.normal(0, 3, (batch, num)), rng.normal(0, 2, (batch, width)), rng.normal(0, 1, (num, width))
        y, keep = rng.integers(0, num, batch), rng.random(batch) < 0.7
        beta, t = float(rng.random()), float(rng.uniform(0.05, 1))
        mode = MODES[turn % 4]
        mixed = mixture_logits(double(z), double(f), double(h), beta, t, mode)
        np.testing.assert_allclose(reading(mixed, mode).numpy(), brute_mixture(z, f, h, beta, t, mode), rtol=1e-6)
        distances = [float(((a - h[c]) ** 2).sum()) for a, c in zip(f, y, strict=True)]
        found = center_loss(double(f), torch.from_numpy(y), double(h))
        np.testing.assert_allclose(float(found), np.mean(distances), rtol=1e-6)
        some = center_loss(double(f), torch.from_numpy(y), double(h), torch.from_numpy(keep))
        np.testing.assert_allclose(float(some), np.mean(np.array(distances)[keep]) if keep.any() else 0, rtol=1e-6)
        for norm in (False, True):
            found = etf_regularizer(double(h), norm)
            np.testing.assert_allclose(float(found), brute_regularizer(h, norm), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "h", "mean", "half_sum", "half_mean"),
    [
        ([[1.0, 2], [0, 0], [3, 1]], [1, 0, 1], [[0.0, 0], [1, 1]], 1.666667, 2.5, 0.833333),
        ([[0.0, 0], [2, 2]], [0, 1], [[3.0, 4], [2, 1]], 13.0, 13.0, 6.5),
    ],
)
def test_center_loss_of_the_worked_examples(
    x: Any, y: list[int], h: Any, mean: float, half_sum: float, half_mean: float
) -> None:
    found = float(center_loss(double(x), torch.tensor(y), double(h)))
    assert found == pytest.approx(mean, abs=5e-7)
    assert found * len(y) / 2 == pytest.approx(half_sum, abs=5e-7)
    assert found / 2 == pytest.approx(half_mean, abs=5e-7)


def test_gradient_of_the_centers() -> None:
    centers = double([[0.0, 0], [1, 1]]).requires_grad_()
    center_loss(double([[1.0, 2], [0, 0], [3, 1]]), torch.tensor([1, 0, 1]), centers).backward()
    assert centers.grad is not None
    assert close(centers.grad, [[0, 0], [-1.333333, -0.666667]])


def test_center_loss_of_nobody_is_zero_with_zero_gradient() -> None:
    features, centers = torch.randn(3, 4).requires_grad_(), torch.randn(2, 4).requires_grad_()
    for batch, weight in ((features[:0], None), (features, torch.zeros(3))):
        loss = center_loss(batch, torch.zeros(len(batch), dtype=torch.int64), centers, weight)
        loss.backward()
        assert float(loss.detach()) == 0
        assert centers.grad is not None
        assert not centers.grad.any()
    assert features.grad is not None
    assert not features.grad.any()


FIRST = (double([[2.0, 1, 0]]), double([[3.0, 4]]), double([[1.0, 0], [0, 1], [-1, 0]]))
SECOND = (double([[0.0, 1, 0]]), double([[1.0, 2]]), double([[2.0, 0], [0, 1], [1, 1]]))


@pytest.mark.parametrize(
    ("case", "mode", "expected"),
    [
        (FIRST, "literal", [0.632620, 0.522364, -0.254985]),
        (FIRST, "official", [0.495463, 0.495463, 0.009075]),
        (FIRST, "prob", [0.392222, 0.562762, 0.045016]),
        (FIRST, "logit_cos", [0.377411, 0.622245, 0.000344]),
        (SECOND, "official", [0.232697, 0.383652, 0.383652]),
        (SECOND, "logit_cos", [0.034845, 0.537526, 0.427629]),
        (SECOND, "prob", [0.108061, 0.471086, 0.420853]),
        (SECOND, "literal", [0.329578, 0.735272, 0.580312]),
    ],
)
def test_mixture_of_the_worked_examples(
    case: tuple[Tensor, Tensor, Tensor], mode: MixtureMode, expected: list[float]
) -> None:
    assert close(reading(mixture_logits(*case, mode=mode), mode)[0], expected)


def test_cosines_and_dot_products_of_the_worked_examples() -> None:
    assert close(center_similarity(FIRST[1], FIRST[2])[0], [0.6, 0.8, -0.6])
    assert close(center_similarity(SECOND[1], SECOND[2])[0], [0.447214, 0.894427, 0.948683])
    assert close(mixture_logits(*FIRST, beta=0, mode="official")[0], [3, 4, -3])
    assert close(mixture_logits(*SECOND, beta=0, mode="official")[0], [2, 2, 3])
    assert close(mixture_logits(*FIRST, beta=1, mode="literal")[0], [0.665241, 0.244728, 0.090031])


@pytest.mark.parametrize(("length", "confident"), [(10, 0.36), (20, 0.64), (30, 0.75)])
def test_dot_products_with_random_centers_are_confident_before_any_learning(length: float, confident: float) -> None:
    """Simulated start of the public code: the longer the features, the more noise passes a threshold of .95."""
    draw = torch.Generator().manual_seed(0)
    passing, most_frequent, ours = [], [], []
    for _ in range(200):
        h, f = torch.randn(7, 512, generator=draw), torch.randn(64, 512, generator=draw).relu()
        f = length * f / f.norm(dim=1, keepdim=True)
        p = mixture_logits(torch.zeros(64, 7), f, h, mode="official").softmax(dim=1)
        passing.append(float((p.max(dim=1).values >= 0.95).float().mean()))
        most_frequent.append(int(p.argmax(dim=1).bincount().max()) / 64)
        ours.append(float(mixture_logits(torch.zeros(64, 7), f, h).softmax(dim=1).max()))
    assert np.mean(passing) == pytest.approx(confident, abs=0.02)
    assert np.mean(most_frequent) == pytest.approx(0.39, abs=0.02)
    assert max(ours) < 0.95, "cosines at a temperature of .1 are sure of nothing there"


def test_the_average_of_logits_is_the_geometric_mean_of_softmaxes() -> None:
    z, f, h = (torch.randn(*s, dtype=torch.float64) for s in ((5, 4), (5, 3), (4, 3)))
    mixed = mixture_logits(z, f, h, mode="official").softmax(dim=1)
    geometric = (z.softmax(dim=1) * (f @ h.T).softmax(dim=1)).sqrt()
    torch.testing.assert_close(mixed, geometric / geometric.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("mode", ["logit_cos", "prob", "official"])
def test_beta_of_one_is_the_head_and_zero_the_centers(mode: MixtureMode) -> None:
    z, f, h = torch.randn(5, 4), torch.randn(5, 3), torch.randn(4, 3)
    assert torch.equal(mixture_logits(z, f, h, beta=1.0, mode=mode), z)
    similarity = f @ h.T if mode == "official" else center_similarity(f, h) / 0.1
    found = mixture_logits(z, f, h, beta=0.0, mode=mode).softmax(dim=1)
    torch.testing.assert_close(found, similarity.softmax(dim=1))
    assert torch.equal(mixture_logits(z, f, h, beta=1.0, mode="literal"), z.softmax(dim=1))


@pytest.mark.parametrize("mode", MODES)
def test_a_class_without_center_is_read_by_the_head_alone(mode: MixtureMode) -> None:
    z, u = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    present = torch.tensor([True, False, True, False])
    mixed = mix_readings(z, u, 0.5, 0.1, mode, present)
    alone = {"literal": z.softmax(dim=1), "prob": z.log_softmax(dim=1)}.get(mode, z)
    assert torch.equal(mixed[:, ~present], alone[:, ~present])
    assert not torch.isclose(mixed[:, present], alone[:, present]).any()
    nobody = mix_readings(z, u, 0.5, 0.1, mode, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(nobody, alone)
    if mode == "prob":
        torch.testing.assert_close(mixed.exp().sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_what_mixtures_refuse() -> None:
    with pytest.raises(ValueError, match="share in \\[0, 1\\]"):
        mixture_logits(*FIRST, beta=1.5)
    with pytest.raises(ValueError, match="no mixture 'sum'"):
        mixture_logits(*FIRST, mode="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain dot product"):
        mixture_logits(*FIRST, mode="official", mean=torch.zeros(2))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_mixtures(mode: MixtureMode) -> None:
    draw = torch.Generator().manual_seed(2)
    inputs = [torch.randn(*s, dtype=torch.float64, generator=draw).requires_grad_() for s in ((3, 4), (3, 5), (4, 5))]
    present = torch.tensor([True, True, False, True])

    def mixed(z: Tensor, f: Tensor, h: Tensor) -> Tensor:
        return mixture_logits(z, f, h, 0.3, 0.5, mode, present=present)

    assert torch.autograd.gradcheck(mixed, inputs)


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_of_losses(norm: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    centers = torch.randn(5, 4, dtype=torch.float64, generator=draw).requires_grad_()
    features = torch.randn(3, 4, dtype=torch.float64, generator=draw).requires_grad_()
    present = torch.tensor([True, True, True, False, True])
    assert torch.autograd.gradcheck(lambda h: etf_regularizer(h, norm), centers)
    assert torch.autograd.gradcheck(lambda h: etf_regularizer(h, norm, present), centers)
    assert torch.autograd.gradcheck(lambda f, h: center_loss(f, torch.tensor([0, 4, 4]), h), (features, centers))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), num_classes=st.integers(2, 8), width=st.integers(2, 12), scale=st.floats(0.01, 100.0)
)
def test_regularizer_sees_shape_alone(seed: int, num_classes: int, width: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, width, dtype=torch.float64, generator=draw)
    rotation = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=draw))[0]
    shift = torch.randn(width, dtype=torch.float64, generator=draw)
    order = torch.randperm(num_classes, generator=draw)
    for norm in (False, True):
        value = etf_regularizer(centers, norm)
        assert value >= (num_classes / (num_classes - 1) - 1e-9 if norm else 0)
        for changed in (centers @ rotation, centers + shift, scale * centers, centers[order]):
            torch.testing.assert_close(etf_regularizer(changed, norm), value, rtol=1e-6, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), mode=st.sampled_from(MODES), scale=st.floats(0.1, 50.0))
def test_mixture_follows_samples_classes_and_lengths(seed: int, mode: MixtureMode, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    z, f, h = (torch.randn(*s, dtype=torch.float64, generator=draw) for s in ((4, 5), (4, 3), (5, 3)))
    order, samples = torch.randperm(5, generator=draw), torch.randperm(4, generator=draw)
    mixed = mixture_logits(z, f, h, mode=mode)
    torch.testing.assert_close(mixture_logits(z[:, order], f, h[order], mode=mode), mixed[:, order])
    torch.testing.assert_close(mixture_logits(z[samples], f[samples], h, mode=mode), mixed[samples])
    if mode != "official":
        torch.testing.assert_close(mixture_logits(z, scale * f, scale * h, mode=mode), mixed)
    shifted = reading(mixture_logits(z + 7.0, f, h, mode=mode), mode)
    torch.testing.assert_close(shifted, reading(mixed, mode))


def test_a_missing_class_takes_no_part_in_the_geometry() -> None:
    present = torch.tensor([True, False, True, True, True])
    five = torch.randn(5, 3, dtype=torch.float64)
    five[present] = FOUR
    for norm, expected in ((False, 0.751197), (True, 1.533474)):
        assert float(etf_regularizer(five, norm, present)) == pytest.approx(expected, abs=5e-7)
        for few in (0, 1):
            assert float(etf_regularizer(five, norm, torch.arange(5) < few)) == 0


def test_equal_centers_and_huge_values_stay_finite() -> None:
    for norm in (False, True):
        centers = torch.ones(4, 6).requires_grad_()
        etf_regularizer(centers, norm).backward()
        assert centers.grad is not None
        assert centers.grad.isfinite().all()
    z = (1e4 * torch.randn(3, 4).sign()).requires_grad_()
    for mode in MODES:
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                mixed = mixture_logits(z.to(dtype), torch.zeros(3, 5), torch.randn(4, 5), mode=mode)
            assert mixed.dtype == torch.float32
            assert mixed.isfinite().all()
            assert bool(reading(mixed, mode).isfinite().all())
