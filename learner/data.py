"""Faces by row from the uint8 cache, people's answers frozen at one label_seq, and which rows a step trains on."""

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from learner import draws
from learner.errors import InputError, PixelsMissingError
from learner.parts import LabelView

Rows = NDArray[np.int64]
SHARD_BYTES = 32_000_000
_SHARD = re.compile(r"^pixels-(\d+)-(\d+)\.npy$")


class PixelCache:
    """Reader of `cache/<size>/pixels-<start>-<stop>.npy`: memory-mapped uint8 (stop-start, size, size, 3) RGB."""

    def __init__(self, folder: str | Path, image_size: int) -> None:
        """Index the shards of `folder`; nothing is read until `gather`.

        Raises:
            PixelsMissingError: there is no shard, or one has another shape or type than its name says.
        """
        self.folder = Path(folder)
        self.image_size = image_size
        found = []
        for path in self.folder.glob("pixels-*.npy"):
            match = _SHARD.match(path.name)
            if match is not None:
                found.append((int(match[1]), int(match[2]), path))
        if not found:
            raise PixelsMissingError(f"no pixel shards in {self.folder}; import images first")
        found.sort()
        self._starts = np.array([start for start, _, _ in found], np.int64)
        self._stops = np.array([stop for _, stop, _ in found], np.int64)
        self._shards = [self._map(start, stop, path) for start, stop, path in found]

    def _map(self, start: int, stop: int, path: Path) -> NDArray[np.uint8]:
        try:
            shard: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PixelsMissingError(f"cannot read {path}: {error}") from error
        wanted = (stop - start, self.image_size, self.image_size, 3)
        if shard.shape != wanted or shard.dtype != np.uint8:
            raise PixelsMissingError(f"{path} holds {shard.dtype} {shard.shape}, expected uint8 {wanted}")
        return shard

    def _shard_of(self, rows: Rows) -> Rows:
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        inside = (shard >= 0) & (rows < self._stops[np.maximum(shard, 0)])
        return np.where(inside, shard, -1)

    def has(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows are in the cache, (B,) bool."""
        return self._shard_of(rows) >= 0

    def gather(self, rows: Rows) -> NDArray[np.uint8]:
        """Copy the faces of `rows` (B,) in the order given: uint8 (B, size, size, 3) RGB.

        Raises:
            PixelsMissingError: a row is in no shard.
        """
        shard = self._shard_of(rows)
        if (shard < 0).any():
            missing = rows[shard < 0]
            raise PixelsMissingError(
                f"{len(missing)} rows have no pixels in {self.folder}, first {missing[:5].tolist()}"
            )
        out = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for number in np.unique(shard):
            where = np.flatnonzero(shard == number)
            out[where] = self._shards[number][rows[where] - self._starts[number]]
        return out


def write_shards(folder: Path, images: NDArray[np.uint8], start: int = 0) -> None:
    """Write faces uint8 (N, size, size, 3) as shards for the rows from `start` on, each under 32 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = max(1, SHARD_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for begin in range(0, len(images), per_shard):
        block = images[begin : begin + per_shard]
        first, last = start + begin, start + begin + len(block)
        temporary = folder / f".{first}.npy"
        np.save(temporary, block, allow_pickle=False)
        temporary.replace(folder / f"pixels-{first:09d}-{last:09d}.npy")


def save_view(path: Path, view: LabelView) -> None:
    """Write a label view as `view.npz`."""
    columns = {name: getattr(view, name).numpy() for name in VIEW_COLUMNS}
    np.savez(path, label_seq=np.int64(view.label_seq), classes=np.array(view.classes, dtype=str), **columns)


VIEW_COLUMNS = ("rows", "target", "allowed", "excluded", "given", "locked", "stamp")


def load_view(path: Path) -> LabelView:
    """Read `view.npz`, checked.

    Raises:
        InputError: a column is missing, misshapen or contradicts another.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            classes = tuple(str(c) for c in data["classes"])
            label_seq = int(data["label_seq"])
            columns = {name: torch.from_numpy(data[name]) for name in VIEW_COLUMNS}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read label view {path}: {error}") from error
    view = LabelView(
        label_seq=label_seq,
        classes=classes,
        rows=columns["rows"].long(),
        target=columns["target"].float(),
        allowed=columns["allowed"].bool(),
        excluded=columns["excluded"].bool(),
        given=columns["given"].long(),
        locked=columns["locked"].bool(),
        stamp=columns["stamp"].long(),
    )
    _check_view(view, path)
    return view


def _check_view(view: LabelView, path: Path) -> None:
    num_labels, num_classes = len(view.rows), len(view.classes)
    if num_classes < 2 or len(set(view.classes)) != num_classes:
        raise InputError(f"{path}: classes must be two or more different names, got {list(view.classes)}")
    for name in ("target", "allowed", "excluded"):
        if tuple(getattr(view, name).shape) != (num_labels, num_classes):
            raise InputError(
                f"{path}: {name} has shape {tuple(getattr(view, name).shape)}, not {num_labels, num_classes}"
            )
    if num_labels > 1 and bool((view.rows[1:] <= view.rows[:-1]).any()):
        raise InputError(f"{path}: rows must ascend without repeats")
    sums = view.target.sum(dim=1)
    if bool(((sums - 1).abs() > 1e-3).any()) or bool((view.target < 0).any()):
        raise InputError(f"{path}: every target must be a distribution over the classes")
    if bool(((view.given < -1) | (view.given >= num_classes)).any()):
        raise InputError(f"{path}: given holds a class outside -1..{num_classes - 1}")


class Cycle:
    """Rows in shuffled passes over a fixed set; the cursor is the lifetime step, so nothing needs to be saved.

    Pass n is a permutation drawn from (seed, purpose, n); a batch that reaches the end goes on with the next pass. The
    order in which `rows` are given does not matter.
    """

    def __init__(self, rows: Rows, batch: int, seed: int, purpose: int) -> None:
        if len(rows) == 0:
            raise ValueError("a cycle needs at least one row")
        self.rows = np.sort(rows)
        self.batch = batch
        self._seed = draws.key(seed, purpose)
        self._pass: tuple[int, Rows] = (-1, self.rows)

    def _permuted(self, number: int) -> Rows:
        if self._pass[0] != number:
            order = np.random.default_rng(draws.key(self._seed, number)).permutation(len(self.rows))
            self._pass = (number, self.rows[order])
        return self._pass[1]

    def at(self, step: int) -> Rows:
        """Return the rows (batch,) of one step."""
        start, stop = step * self.batch, (step + 1) * self.batch
        size, parts = len(self.rows), []
        while start < stop:
            number, offset = divmod(start, size)
            taken = min(stop - start, size - offset)
            parts.append(self._permuted(number)[offset : offset + taken])
            start += taken
        return np.concatenate(parts)


class Balanced:
    """Rows drawn with replacement so that every class present has the same expected share of the batch.

    `target` (L,K) are the labels' distributions; a soft label counts for each of its classes by its share.
    """

    def __init__(self, rows: Rows, target: NDArray[np.float32], batch: int, seed: int, purpose: int) -> None:
        if len(rows) == 0:
            raise ValueError("a balanced draw needs at least one row")
        order = np.argsort(rows)
        self.rows, shares = rows[order], target[order].astype(np.float64)
        mass = shares.sum(axis=0)
        weight = (shares / np.where(mass > 0, mass, 1)).sum(axis=1)
        self._cumulative = np.cumsum(weight / weight.sum())
        self.batch = batch
        self._seed = draws.key(seed, purpose)

    def at(self, step: int) -> Rows:
        """Return the rows (batch,) of one step."""
        drawn = np.random.default_rng(draws.key(self._seed, step)).random(self.batch)
        index = np.searchsorted(self._cumulative, drawn, side="right")
        rows: Rows = self.rows[np.minimum(index, len(self.rows) - 1)]
        return rows
