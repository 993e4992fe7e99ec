"""The fast learner against hand-worked numbers, finite differences and scikit-learn."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from annotator.loop import fast
from annotator.loop.fast import FastLearner, Supervision, answer_loss, objective


def answers(allowed: list[list[int]], classes: int, soft: dict[int, list[float]] | None = None) -> Supervision:
    mask = np.zeros((len(allowed), classes), dtype=bool)
    shares = np.zeros((len(allowed), classes), dtype=np.float32)
    for i, possible in enumerate(allowed):
        mask[i, possible] = True
    for i, share in (soft or {}).items():
        shares[i] = share
        mask[i] = True
    is_soft = np.isin(np.arange(len(allowed)), list(soft or {}))
    return Supervision(np.arange(len(allowed)), mask, shares, is_soft, np.ones(len(allowed), dtype=np.float32))


def singles(y: np.ndarray, classes: int) -> Supervision:
    return answers([[int(k)] for k in y], classes)


def blobs(n: int, classes: int = 4, d: int = 12, noise: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = np.eye(classes, d)[y] + draw.normal(scale=noise, size=(n, d)) / np.sqrt(d) * 2
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), y


def test_losses_by_hand() -> None:
    probs = np.array([[0.5, 0.3, 0.2]] * 4)
    given = answers([[0], [1, 2], [0, 2], []], 3, soft={3: [0.5, 0.5, 0.0]})
    expected = [-np.log(0.5), -np.log(0.5), -np.log(0.7), -(np.log(0.5) + np.log(0.3)) / 2]
    np.testing.assert_allclose(fast.answer_losses(probs, given), expected)


def test_objective_by_hand() -> None:
    # W = 0 and b = log([.5, .3, .2]): every face has those probabilities whatever its features
    theta = np.concatenate([np.zeros(6), np.log([0.5, 0.3, 0.2])])
    x = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    value, gradient = objective(theta, x, answers([[0], [1, 2]], 3), l2=1.0, prior=0.0)
    assert value == pytest.approx(-np.log(0.5) - np.log(0.5))
    # p - r: [.5,.3,.2] - [1,0,0], and [.5,.3,.2] - [0,.6,.4]
    np.testing.assert_allclose(gradient[:6].reshape(3, 2), [[-0.5, 0.5], [0.3, -0.3], [0.2, -0.2]], atol=1e-6)
    np.testing.assert_allclose(gradient[6:], [0.0, 0.0, 0.0], atol=1e-6)
    value, gradient = objective(theta, x, answers([[0], [1, 2]], 3), l2=1.0, prior=3.0)
    assert value == pytest.approx(-2 * np.log(0.5) - np.log([0.5, 0.3, 0.2]).sum())
    np.testing.assert_allclose(gradient[6:], 3 * (np.array([0.5, 0.3, 0.2]) - 1 / 3), atol=1e-6)


def test_gradient_agrees_with_finite_differences() -> None:
    x, _ = blobs(20, classes=5, d=3)
    draw = np.random.default_rng(1)
    sets = [sorted(draw.choice(5, draw.integers(1, 4), replace=False).tolist()) for _ in range(20)]
    given = answers(sets, 5, soft={3: [0.1, 0.2, 0.3, 0.4, 0.0], 7: [1.0, 0, 0, 0, 0]})
    theta = draw.normal(size=5 * 4)
    error = check_grad(
        lambda t: objective(t, x, given, 0.7, 1.3)[0],
        lambda t: objective(t, x, given, 0.7, 1.3)[1],
        theta,
        epsilon=1e-4,
    )
    # the matrix products run in float32
    assert error < 2e-2 * np.linalg.norm(objective(theta, x, given, 0.7, 1.3)[1])


def test_single_labels_give_what_scikit_learn_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "PRIOR", 0.0)
    x, y = blobs(200)
    model = FastLearner(4, l2=1.0)._fit(x, singles(y, 4), None)
    reference = LogisticRegression(C=1.0, max_iter=1000, tol=1e-6).fit(x, y)
    np.testing.assert_allclose(model.weights, reference.coef_, atol=5e-3)
    ours = np.exp(x @ model.weights.T + model.bias)
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), reference.predict_proba(x), atol=2e-3)


def test_one_label_is_enough_and_is_believed() -> None:
    x, _ = blobs(8)
    model = FastLearner(4).refresh(x[:1], singles(np.array([2]), 4))
    probs = model.predict(x)
    assert np.isfinite(probs).all()
    assert (probs > 0).all()
    assert (probs.argmax(axis=1) == 2).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_candidate_sets_alone_can_tell_classes_apart() -> None:
    # every face carries its class and one other: only what they share identifies the class
    x, y = blobs(300, noise=0.3)
    draw = np.random.default_rng(0)
    sets = [sorted({int(k), int((k + draw.integers(1, 4)) % 4)}) for k in y]
    model = FastLearner(4).refresh(x, answers(sets, 4))
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.95


def test_not_these_moves_probability_elsewhere() -> None:
    x, y = blobs(40, noise=0.2)
    given = answers([[0, 1, 2] if k == 3 else [int(k)] for k in y], 4)
    probs = FastLearner(4).refresh(x, given).predict(x[y == 3])
    assert probs[:, 3].max() < 0.25


def test_vote_shares_are_matched_on_average() -> None:
    x = np.ones((60, 1), dtype=np.float32)
    shares = [0.6, 0.3, 0.1]
    given = answers([[]] * 60, 3, soft=dict.fromkeys(range(60), shares))
    np.testing.assert_allclose(FastLearner(3).refresh(x, given).predict(x[:1])[0], shares, atol=0.03)


def test_calibration_repairs_confidence_on_noisy_labels() -> None:
    x, y = blobs(400, noise=0.4)
    draw = np.random.default_rng(5)
    noisy = np.where(draw.random(400) < 0.4, draw.integers(0, 4, 400), y)
    learner = FastLearner(4, l2=0.001)  # hardly regularised: overconfident
    model = learner.refresh(x[:200], singles(noisy[:200], 4))
    held_out = singles(noisy[200:], 4)
    raw = fast._mixed(model.read(x[200:]), 1.0, model.sharpness)
    assert model.temperature > 1.2
    assert answer_loss(model.predict(x[200:]), held_out) < answer_loss(raw, held_out)


def test_balanced_answers_weigh_the_same_by_class() -> None:
    given = answers([[0]] * 9 + [[1]] + [[0, 1]], 3).balanced()
    assert given.weight[:9].sum() == pytest.approx(given.weight[9])
    assert given.weight[10] == 1


def test_one_more_answer_starts_from_the_last_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(1001, classes=8, d=64)
    learner, spent = FastLearner(8), []

    def counted(*given: Any) -> Any:
        spent[-1] += 1
        return objective(*given)

    monkeypatch.setattr(fast, "objective", counted)
    for known in (1000, 1001):
        spent.append(0)
        learner.refresh(x[:known], singles(y[:known], 8))
    first, then = spent
    assert 0 < then < first / 4
