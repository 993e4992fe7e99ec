"""One refresh: labels and features in, a complete reading of the pool out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.acquisition import PoolView, candidate_set, order_pool
from annotator.acquisition.herding import Herding, build
from annotator.acquisition.policy import Mixed
from annotator.acquisition.random import reserved
from annotator.features import FeatureShards, unit
from annotator.loop.fast import FastLearner, FastModel
from annotator.loop.labels import DISPUTED, LABELED, LabelArrays
from annotator.loop.pool import PoolFollower
from annotator.loop.scores import Contents
from annotator.loop.signals import Board, Doubted
from annotator.records import ARMS, Arm, Sight
from annotator.scores import Mode
from annotator.settings import Settings

CHUNK = 8192
ENOUGH_OPINIONS = 3
"""A doubted label that this many people have given is not asked again."""
_REVIEW, _RANDOM = ARMS.index("review"), ARMS.index("random")


@dataclass(frozen=True, slots=True)
class _Reading:
    """Probabilities (N, K) of the pool, which rows (N,) they mean anything for, and the model, None before labels."""

    probs: NDArray[np.float32]
    known: NDArray[np.bool_]
    model: FastModel | None


class Refresher:
    """Makes generations. Keeps what a refresh can start from: the last fit and the herding kernel."""

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        self._settings = settings
        self._classes = settings.taxonomy.slugs
        self._seed = seed
        self._learners: dict[str, FastLearner] = {}
        self._coverage = _Coverage(seed)

    def read(self, pool: PoolFollower, shards: FeatureShards | None, signals: Board, source: str) -> Contents:
        """Read the pool with the features of `shards`; `source` names the serving snapshot or encoder."""
        labels = pool.labels()
        has_labels = bool(len(labels)) and shards is not None
        reading = self._predict(pool, labels, shards)
        doubted = signals.doubted(labels)
        view = self._view(pool, labels, shards, doubted.margin, reading)
        mixed = order_pool(view, _shares(self._settings), has_labels=has_labels, served=Counter(pool.lately))
        mode: Mode = "import order" if shards is None else "fast" if reading.model is not None else "coverage"
        arrays: dict[str, NDArray[Any]] = {
            "rows": pool.rows,
            "probs": reading.probs,
            **self._items(view, mixed, labels, reading, doubted, signals.open_sets(pool.rows)),
        }
        meta = {
            "signals": signals.snapshots,
            "classes": list(self._classes),
            "shares": {arm: float(share) for arm, share in _shares(self._settings).items()},
            "temperature": reading.model.temperature if reading.model is not None else None,
            "num_labels": int(labels.trainable.sum()),
        }
        return Contents(arrays, mode, pool.seq, source, shards.info.id if shards is not None else "", meta)

    def _predict(self, pool: PoolFollower, labels: LabelArrays, shards: FeatureShards | None) -> _Reading:
        count, k = len(pool.rows), len(self._classes)
        probs = np.full((count, k), 1 / k, dtype=np.float32)
        known = np.zeros(count, dtype=bool)
        if shards is None:
            return _Reading(probs, known, None)
        model = self._fit(pool, labels, shards)
        for start in range(0, count, CHUNK):
            features = unit(shards.read(pool.rows[start : start + CHUNK]))
            here = features.any(axis=1)
            known[start : start + CHUNK] = here
            if model is not None:
                probs[start : start + CHUNK][here] = model.predict(features[here])
        return _Reading(probs, known, model)

    def _fit(self, pool: PoolFollower, labels: LabelArrays, shards: FeatureShards) -> FastModel | None:
        usable = labels.take(labels.trainable & ~pool.reserved(labels.rows))
        features = unit(shards.read(usable.rows))
        known = np.asarray(features.any(axis=1), dtype=bool)
        if not known.any():
            return None
        learner = self._learners.setdefault(shards.info.id, FastLearner(len(self._classes)))
        self._learners = {shards.info.id: learner}
        return learner.refresh(features[known], usable.take(known).supervision())

    def _view(
        self,
        pool: PoolFollower,
        labels: LabelArrays,
        shards: FeatureShards | None,
        margin: NDArray[np.float64],
        reading: _Reading,
    ) -> PoolView:
        open_ = ~np.isin(pool.rows, labels.rows, assume_unique=True) & ~pool.reserved(pool.rows)
        doubt, dispute = np.full(len(pool.rows), np.nan), np.full(len(pool.rows), np.nan)
        at = np.searchsorted(pool.rows, labels.rows)
        free = ~labels.locked & ~pool.reserved(labels.rows)
        split = free & (labels.state == DISPUTED) & labels.soft.any(axis=1)
        top = np.sort(labels.soft, axis=1)[:, -2:]
        dispute[at[split]] = 1 - (top[split, 1] - top[split, 0])
        standing = free & (labels.state == LABELED) & (labels.num_people < ENOUGH_OPINIONS)
        doubt[at] = np.where(standing, margin, np.nan)
        return PoolView(
            rows=pool.rows,
            open=open_,
            probs=reading.probs if reading.model is not None else None,
            doubt=doubt,
            dispute=dispute,
            class_counts=labels.targets()[labels.trainable].sum(axis=0).astype(np.float64),
            herding=self._coverage.herding(pool.rows, open_, labels.rows, shards),
            seed=self._seed,
            scored=reading.known,
        )

    def _items(
        self,
        view: PoolView,
        mixed: Mixed,
        labels: LabelArrays,
        reading: _Reading,
        seen_in: Doubted,
        open_sets: NDArray[np.int64],
    ) -> dict[str, NDArray[Any]]:
        order = view.rows[mixed.positions]
        masks: NDArray[np.int64] = np.zeros(len(view.rows), dtype=np.int64)
        if reading.model is not None:
            masks = np.where(reading.known, candidate_set(reading.probs) | open_sets, 0)
        seen = np.where((masks & open_sets) != 0, int(Sight.OPEN_SET), 0).astype(np.uint8)
        given = np.full(len(view.rows), -1, dtype=np.int8)
        at = np.searchsorted(view.rows, labels.rows)
        bits = np.left_shift(np.int64(1), np.arange(len(self._classes), dtype=np.int64))
        disputed = labels.state == DISPUTED
        masks[at[disputed]], seen[at[disputed]] = labels.allowed[disputed] @ bits, 0
        doubted = ~np.isnan(view.doubt[at]) & (labels.given >= 0)
        given[at[doubted]] = labels.given[doubted]
        masks[at[doubted]] |= bits[labels.given[doubted]] | seen_in.sets[doubted]
        seen[at[doubted]] |= seen_in.seen[doubted]
        blind = (mixed.arms == _RANDOM) & reserved(order, self._seed, self._settings.queue.reserve_every)
        return {
            "order": order,
            "arms": mixed.arms,
            "candidates": np.where(blind, 0, masks[mixed.positions]),
            "given": np.where(mixed.arms == _REVIEW, given[mixed.positions], -1),
            "blind": blind,
            "seen": np.where(blind, 0, seen[mixed.positions]).astype(np.uint8),
        }


class _Coverage:
    """The herding kernel of a pool, sampled again when encoder or pool have changed, and what labels cover of it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._herding: Herding | None = None
        self._encoder = ""
        self._covered: set[int] = set()

    def herding(
        self,
        rows: NDArray[np.int64],
        open_: NDArray[np.bool_],
        answered: NDArray[np.int64],
        shards: FeatureShards | None,
    ) -> Herding | None:
        if shards is None or not open_.any():
            return None
        if self._outdated(rows, open_, shards):
            known = shards.has(rows)
            if not known.any():
                return None
            # Only faces with features can cover or be covered.
            self._herding = _sample(rows[known], open_[known], shards, self._seed)
            self._encoder = shards.info.id
            self._covered = set()
        if self._herding is None:
            return None
        now = set(answered.tolist())
        if self._covered - now:  # an answer was taken back
            self._herding = self._herding.uncovered()
            self._covered = set()
        new = np.array(sorted(now - self._covered), dtype=np.int64)
        if len(new):
            features = shards.read(new)
            self._herding = self._herding.cover(features[features.any(axis=1)])
            self._covered = now
        return self._herding

    def _outdated(self, rows: NDArray[np.int64], open_: NDArray[np.bool_], shards: FeatureShards) -> bool:
        if self._herding is None or self._encoder != shards.info.id:
            return True
        known = int(shards.has(rows).sum())
        if known > 1.1 * self._herding.pool_size:
            return True
        still_open = int(np.isin(self._herding.rows, rows[open_], assume_unique=True).sum())
        left = int((open_ & shards.has(rows)).sum())
        return still_open < len(self._herding.rows) // 2 and left > still_open


def _sample(rows: NDArray[np.int64], open_: NDArray[np.bool_], shards: FeatureShards, seed: int) -> Herding | None:
    """Sample the kernel without reading the features of the whole pool."""
    if not open_.any():
        return None
    return build(rows, shards.read, open_, seed)


def _shares(settings: Settings) -> Mapping[Arm, float]:
    shares = settings.queue.shares
    return {arm: float(getattr(shares, arm)) for arm in ARMS}
