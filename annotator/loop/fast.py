"""The fast learner: calibrated logistic regression on frozen features, from every kind of answer (ALGORITHMS.md 10.7).

It minimises over weights W and bias b, with p = softmax(W x + b),

    sum_i a_i l_i + l2/2 |W|^2 + prior * CE(uniform, softmax(b))

where l_i is -log sum_{c in A_i} p_c for a single class, a candidate set or "not these" (A_i is what remains possible)
and CE(q_i, p) for vote shares q_i. The prior keeps classes without a label possible and makes one label enough. While a
class has few labels its probability leans on the cosine to the mean direction of its faces (a prototype), times how
often the class was answered. Temperatures are fitted on predictions for faces that were held out.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from annotator.acquisition.pool import shuffled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

L2 = 1.0
PRIOR = 1.0
LEAN = 5.0
"""With this many labels a class rests half on its prototype, half on the regression."""
SHARPNESS = (2.5, 5.0, 10.0, 20.0)
"""Inverse temperatures of the cosine that calibration chooses from."""
MIN_CALIBRATION = 24
MAX_CALIBRATION = 3000
RECALIBRATE_GROWTH = 0.08
FOLDS = 4


@dataclass(frozen=True, slots=True)
class Supervision:
    """What people said about n faces, K classes, aligned by position.

    rows (n,) int64 distinct; allowed (n, K) bool, at least one true in each line; soft (n, K) float32 vote shares, read
    where is_soft (n,) is true; weight (n,) float32.
    """

    rows: NDArray[np.int64]
    allowed: Bools
    soft: F32
    is_soft: Bools
    weight: F32

    def __len__(self) -> int:
        return len(self.allowed)

    def mass(self) -> F64:
        """Return how many labels each class (K,) has: single classes and vote shares; candidate sets count nowhere."""
        return np.asarray(self.shares().sum(axis=0), dtype=np.float64)

    def shares(self) -> F64:
        """Return one-hot rows for single classes, vote shares for votes, zeros for candidate sets: (n, K)."""
        single = self.allowed & (self.allowed.sum(axis=1, keepdims=True) == 1) & ~self.is_soft[:, None]
        return np.asarray(np.where(self.is_soft[:, None], self.soft, single), dtype=np.float64)

    def take(self, where: NDArray[np.int64] | Bools) -> "Supervision":
        """Return the part at `where`."""
        return Supervision(
            self.rows[where], self.allowed[where], self.soft[where], self.is_soft[where], self.weight[where]
        )

    def balanced(self) -> "Supervision":
        """Return the same answers with each class weighing the same in total."""
        mass = self.mass()
        present = mass > 0
        scale = np.where(present, mass.sum() / np.maximum(mass, 1e-12) / max(1, present.sum()), 1.0)
        shares = self.shares()
        factor = np.where(shares.any(axis=1), shares @ scale, 1.0)
        return replace(self, weight=(self.weight * factor).astype(np.float32))


@dataclass(frozen=True, slots=True)
class FastModel:
    """A fitted fast learner.

    weights (K, d), bias (K,); prototypes (K, d) unit or zero; log_prior (K,) of the classes answered; lean (K,)
    in [0, 1], how much of a class rests on its prototype.
    """

    weights: F32
    bias: F32
    prototypes: F32
    log_prior: F32
    lean: F32
    temperature: float = 1.0
    sharpness: float = 5.0

    def predict(self, features: F32, chunk: int = 8192) -> F32:
        """Return calibrated probabilities (n, K) of unit features (n, d)."""
        parts = [self._predict(features[start : start + chunk]) for start in range(0, len(features), chunk)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.bias)), dtype=np.float32)

    def _predict(self, features: F32) -> F32:
        return _mixed(self.read(features), self.temperature, self.sharpness).astype(np.float32)

    def read(self, features: F32) -> "Reading":
        """Return what the model says about features (n, d) before temperatures."""
        lines = (len(features), len(self.bias))
        return Reading(
            features @ self.weights.T + self.bias,
            features @ self.prototypes.T,
            np.broadcast_to(self.log_prior, lines),
            np.broadcast_to(self.lean, lines),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits of the regression, cosines to the prototypes, log priors and leans, each (n, K)."""

    logits: NDArray[np.floating]
    cosines: NDArray[np.floating]
    log_prior: NDArray[np.floating]
    lean: NDArray[np.floating]


class FastLearner:
    """Keeps the last fit to start the next one from, and the temperatures until labels have grown enough."""

    def __init__(self, num_classes: int, *, l2: float = L2, balance: bool = False) -> None:
        self.num_classes = num_classes
        self.l2 = l2
        self.balance = balance
        self._last: FastModel | None = None
        self._folds: dict[int, FastModel] = {}
        self._calibrated_at = 0

    def refresh(self, features: F32, supervision: Supervision) -> FastModel:
        """Fit to unit features (n, d), n >= 1, and return the model. Starts from the previous fit of the same width."""
        answers = supervision.balanced() if self.balance else supervision
        model = self._fit(features, answers, self._last)
        grown = len(answers) - self._calibrated_at
        if len(answers) >= MIN_CALIBRATION and (
            self._calibrated_at == 0 or abs(grown) > RECALIBRATE_GROWTH * self._calibrated_at
        ):
            temperature, sharpness = self._calibrate(features, answers)
            self._calibrated_at = len(answers)
        else:
            temperature, sharpness = self._temperatures()
        self._last = replace(model, temperature=temperature, sharpness=sharpness)
        return self._last

    def _temperatures(self) -> tuple[float, float]:
        return (self._last.temperature, self._last.sharpness) if self._last is not None else (1.0, 5.0)

    def _fit(self, features: F32, answers: Supervision, start: FastModel | None) -> FastModel:
        d, k = features.shape[1], self.num_classes
        theta: F64 = np.zeros(k * (d + 1), dtype=np.float64)
        if start is not None and start.weights.shape == (k, d):
            theta = np.asarray(np.concatenate([start.weights.ravel(), start.bias]), dtype=np.float64)
        result = minimize(
            objective,
            theta,
            args=(features, answers, self.l2, PRIOR),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "gtol": 1e-3, "ftol": 1e-9},
        )
        weights = result.x[: k * d].reshape(k, d).astype(np.float32)
        return FastModel(weights, result.x[k * d :].astype(np.float32), *_prototypes(features, answers))

    def _calibrate(self, features: F32, answers: Supervision) -> tuple[float, float]:
        """Choose both temperatures by the log-loss of held-out answers."""
        if len(answers) > MAX_CALIBRATION:  # more would tell little and cost seconds
            some = shuffled(answers.rows, 2) < MAX_CALIBRATION / len(answers)
            features, answers = features[some], answers.take(some)
        held = self._held_out(features, answers)

        def loss(log_temperature: float, sharpness: float) -> float:
            return answer_loss(_mixed(held, float(np.exp(log_temperature)), sharpness), answers)

        best = (np.inf, 1.0, 5.0)
        for sharpness in SHARPNESS:
            found = minimize_scalar(
                lambda t, s=sharpness: loss(t, s), bounds=(-2.0, 2.0), method="bounded", options={"xatol": 0.02}
            )
            best = min(best, (float(found.fun), float(np.exp(found.x)), sharpness))
        return best[1], best[2]

    def _held_out(self, features: F32, answers: Supervision) -> Reading:
        # A row stays in its fold, so a fold's last fit has never seen the rows that it is asked about.
        fold = (shuffled(answers.rows, 1) * FOLDS).astype(int)
        parts = [np.zeros((len(answers), self.num_classes)) for _ in range(4)]
        for f in range(FOLDS):
            out = fold == f
            if out.all():  # nothing else to learn from
                fitted = self._fit(features, answers, None)
            else:
                fitted = self._folds[f] = self._fit(features[~out], answers.take(~out), self._folds.get(f))
            reading = fitted.read(features[out])
            for part, value in zip(
                parts, (reading.logits, reading.cosines, reading.log_prior, reading.lean), strict=True
            ):
                part[out] = value
        return Reading(*parts)


def objective(theta: F64, features: F32, answers: Supervision, l2: float, prior: float) -> tuple[float, F64]:
    """Return the objective and its gradient at theta = (W, b) flattened, (K * d + K,)."""
    d = features.shape[1]
    k = answers.allowed.shape[1]
    weights, bias = theta[: k * d].reshape(k, d), theta[k * d :]
    logits = (features @ weights.T.astype(np.float32)).astype(np.float64) + bias
    log_p = logits - _logsumexp(logits)
    p = np.exp(log_p)
    inside = np.where(answers.allowed, log_p, -np.inf)
    log_allowed = _logsumexp(inside)
    pulled = np.where(answers.is_soft[:, None], answers.soft, np.exp(inside - log_allowed))
    soft_loss = -np.where(answers.is_soft[:, None], answers.soft * log_p, 0.0).sum(axis=1)
    losses = np.where(answers.is_soft, soft_loss, -log_allowed[:, 0])
    residual = (p - pulled) * answers.weight[:, None]
    bias_log_p = bias - _logsumexp(bias[None])[0]
    value = float(losses @ answers.weight) + 0.5 * l2 * float((weights * weights).sum())
    value -= prior * float(bias_log_p.mean())
    gradient_w = (residual.T.astype(np.float32) @ features).astype(np.float64) + l2 * weights
    gradient_b = residual.sum(axis=0) + prior * (np.exp(bias_log_p) - 1 / k)
    return value, np.concatenate([gradient_w.ravel(), gradient_b])


def answer_loss(probs: NDArray[np.floating], answers: Supervision) -> float:
    """Return the mean log-loss of probabilities (n, K) on what people said; each answer counts once."""
    return float(answer_losses(probs, answers).mean())


def answer_losses(probs: NDArray[np.floating], answers: Supervision) -> F64:
    """Return the log-loss (n,) of probabilities (n, K) on each answer."""
    p = np.maximum(np.asarray(probs, dtype=np.float64), 1e-9)
    sets = -np.log(np.where(answers.allowed, p, 0.0).sum(axis=1))
    soft = -(answers.soft * np.log(p)).sum(axis=1)
    return np.asarray(np.where(answers.is_soft, soft, sets), dtype=np.float64)


def _prototypes(features: F32, answers: Supervision) -> tuple[F32, F32, F32]:
    shares = answers.shares()
    directions = (shares.T @ features).astype(np.float32)
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    mass = shares.sum(axis=0)
    lean = np.where(length[:, 0] > 1e-6, LEAN / (LEAN + mass), 0.0)
    log_prior = np.log((mass + PRIOR / len(mass)) / (mass.sum() + PRIOR))
    return directions / np.maximum(length, 1e-6), log_prior.astype(np.float32), lean.astype(np.float32)


def _mixed(reading: Reading, temperature: float, sharpness: float) -> F64:
    """Mix regression and prototypes class by class (n, K). Classes without prototypes keep what the regression says."""
    z = np.asarray(reading.logits, dtype=np.float64) / temperature
    p = np.exp(z - _logsumexp(z))
    lean = np.asarray(reading.lean, dtype=np.float64)
    has = lean > 0
    c = np.where(has, np.asarray(reading.cosines, dtype=np.float64) * sharpness + reading.log_prior, -np.inf)
    top = np.where(has.any(axis=1, keepdims=True), c.max(axis=1, keepdims=True), 0.0)
    e = np.exp(c - top)
    # The prototypes divide among themselves what the regression gives to the classes that have one.
    q = e / np.maximum(e.sum(axis=1, keepdims=True), 1e-12) * np.where(has, p, 0.0).sum(axis=1, keepdims=True)
    mixed = (1 - lean) * p + lean * q
    return np.asarray(mixed / mixed.sum(axis=1, keepdims=True), dtype=np.float64)


def _logsumexp(x: F64) -> F64:
    top = x.max(axis=1, keepdims=True)
    return np.asarray(top + np.log(np.exp(x - top).sum(axis=1, keepdims=True)), dtype=np.float64)
