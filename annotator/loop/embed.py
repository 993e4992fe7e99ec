"""Embed faces as they arrive: HOG features of the pixel cache, a few thousand rows at a time."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import AnnotatorError
from annotator.features import EncoderInfo, FeatureShards
from annotator.settings import Workspace
from learner import hog

STEP_ROWS = 2048
"""Rows per step: about half a second at the slowest, so that an answer never waits long for it."""
ENOUGH_TO_FIT = 512
REFIT_BELOW = 4000
"""A projection that was fitted while the pool was smaller than this is fitted again when it has grown."""
REFIT_GROWTH = 4
_SHARD = re.compile(r"pixels-(\d{9})-(\d{9})\.npy")
_PREFIX = "hog-"


class PixelShards:
    """The pixel cache of one size, without torch: which rows are there, and their pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ranges: list[tuple[int, int, Path]] = []
        self.reload()

    def reload(self) -> None:
        """Look for shards that the importer has added."""
        if self.folder.is_dir():
            found = ((m, p) for p in self.folder.iterdir() if (m := _SHARD.fullmatch(p.name)))
            self._ranges = sorted((int(m[1]), int(m[2]), p) for m, p in found)

    @property
    def first(self) -> int:
        """The first cached row, 0 when there is none."""
        return self._ranges[0][0] if self._ranges else 0

    @property
    def stop(self) -> int:
        """The row after the last cached one."""
        return self._ranges[-1][1] if self._ranges else 0

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which rows (n,) are cached."""
        if not self._ranges:
            return np.zeros(len(rows), dtype=bool)
        starts, stops = (np.array([r[i] for r in self._ranges], dtype=np.int64) for i in (0, 1))
        part = np.searchsorted(starts, rows, side="right") - 1
        return np.asarray((part >= 0) & (rows < stops[np.maximum(part, 0)]), dtype=bool)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the pixels (n, s, s, 3) of consecutive cached rows; rows that no shard holds are black."""
        parts = [(a, b, p) for a, b, p in self._ranges if a < stop and b > start]
        shape = np.load(self._ranges[0][2], mmap_mode="r").shape[1:]
        out = np.zeros((stop - start, *shape), dtype=np.uint8)
        for a, b, path in parts:
            low, high = max(a, start), min(b, stop)
            out[low - start : high - start] = np.load(path, mmap_mode="r")[low - a : high - a]
        return out


class HogEncoder:
    """The encoder of the first minute. `shards` is what is complete enough to serve, or None before the first fit.

    The projection is fitted on the faces that are there first. When the pool has grown far beyond a small first sample
    it is fitted again under a new id, and the old features serve until the new ones are complete.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.folder("encoders")
        self._size = workspace.settings.learner.image_size
        self._pixels = PixelShards(workspace.folder("cache") / str(self._size))
        self.shards: FeatureShards | None = None
        self._building: FeatureShards | None = None
        self._projection: dict[str, hog.Projection] = {}
        self._pool_size: dict[str, int] = {}
        self._resume()

    def _resume(self) -> None:
        for path in self._folder.glob(f".{_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
        found = sorted(
            (int(path.name[len(_PREFIX) :]), path)
            for path in self._folder.glob(f"{_PREFIX}*")
            if path.name[len(_PREFIX) :].isdigit()
        )
        opened = []
        for _, path in found:
            try:
                shards = FeatureShards(path)
                self._load_projection(shards)
                opened.append(shards)
            except (AnnotatorError, OSError, ValueError, KeyError):
                shutil.rmtree(path, ignore_errors=True)  # derived data: made again from the pixels
        usable = [s for s in opened if s.info.image_size == self._size]
        if not usable:
            return
        self.shards = usable[0]
        for shards in usable[1:]:
            if shards.stop >= self._pixels.stop:
                self.shards = shards
            else:
                self._building = shards

    def _load_projection(self, shards: FeatureShards) -> hog.Projection:
        if shards.info.id not in self._projection:
            with np.load(shards.folder / "model.npz", allow_pickle=False) as data:
                self._projection[shards.info.id] = hog.Projection.from_arrays(
                    data["mean"], data["components"], data["scale"]
                )
                self._pool_size[shards.info.id] = int(data["pool_size"])
        return self._projection[shards.info.id]

    def pending(self) -> int:
        """Return how many cached rows have no features yet."""
        self._pixels.reload()
        target = self._building or self.shards
        return self._pixels.stop - max(target.stop if target is not None else 0, self._pixels.first)

    @property
    def enough(self) -> bool:
        """Whether there are faces to fit to."""
        return self._pixels.stop - self._pixels.first >= 2

    def step(self, *, quiet: bool) -> int:
        """Embed up to `STEP_ROWS` more rows and return how many; 0 when there is nothing to do.

        `quiet` says that no new faces have come for a while: only then is a small sample enough to fit to, and a refit
        begun.
        """
        waiting = self.pending()
        if self.shards is None and self._building is None:
            if waiting >= (2 if quiet else ENOUGH_TO_FIT):
                self.shards = self._create()
                return self._embed(self.shards) if self.shards is not None else 0
            return 0
        if self._building is None and quiet and waiting == 0 and self._outgrown():
            self._building = self._create()
        done = self._embed(self._building) if self._building is not None else 0
        if self._building is not None and self._building.stop >= self._pixels.stop:
            self.shards, self._building = self._building, None
        elif self._building is None and self.shards is not None:
            done += self._embed(self.shards)
        return done

    def _outgrown(self) -> bool:
        if self.shards is None:
            return False
        known = self._pool_size[self.shards.info.id]
        return known < REFIT_BELOW and self._pixels.stop - self._pixels.first >= REFIT_GROWTH * max(1, known)

    def _create(self) -> FeatureShards | None:
        descriptors = self._sample()
        try:
            projection = hog.fit(descriptors)
        except ValueError:
            return None  # nothing but broken images so far
        taken = [
            int(p.name[len(_PREFIX) :]) for p in self._folder.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()
        ]
        name = f"{_PREFIX}{max(taken, default=0) + 1}"
        info = EncoderInfo(name, "hog", projection.dim, self._size)
        known = self._pixels.stop - self._pixels.first
        extra: dict[str, NDArray[Any]] = {**projection.arrays(), "pool_size": np.array(known, dtype=np.int64)}
        shards = FeatureShards.create(self._folder / name, info, extra)
        self._projection[name] = projection
        self._pool_size[name] = known
        return shards

    def _sample(self) -> NDArray[np.float32]:
        """Return descriptors of rows spread evenly over the cache, at most as many as a fit uses."""
        first, stop = self._pixels.first, self._pixels.stop
        blocks = max(1, min(hog.MAX_FIT // 4, stop - first) // 256)
        starts = np.linspace(first, max(first, stop - 256), blocks).astype(int)
        return np.concatenate([hog.describe(self._pixels.read(s, min(s + 256, stop))) for s in np.unique(starts)])

    def _embed(self, shards: FeatureShards) -> int:
        start = max(shards.stop, self._pixels.first)
        stop = min(start + STEP_ROWS, self._pixels.stop)
        if stop <= start:
            return 0
        projection = self._load_projection(shards)
        shards.append(start, projection(hog.describe(self._pixels.read(start, stop))))
        return stop - start
