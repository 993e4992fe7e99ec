"""A bank of view features: what a frozen encoder says about faces, made once and trained on many times.

ALGORITHMS.md 10.7. A bank's folder holds

* `bank.json`: format, encoder, width, number of views, seed, augmentation, image size; written when the encoder is
  fixed, so that everything after it can be gone on with;
* `encoder.npz`: mean and scale of the clean features of the pool, and what the encoder itself was fitted to;
* `full.npy` and `clean.npy`: the rows with every view and the rows with the clean feature alone, in shard order;
* `<encoder>-full-<start>-<stop>.npy`: float16 (stop-start, 1 + weak + strong, d), the clean feature first, and
  `<encoder>-clean-<start>-<stop>.npy`: float16 (stop-start, 1, d). A shard appears whole and is never changed.

Every feature is (raw - mean) * scale, so that clean features have mean 0 and entries of mean square 1.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from learner import draws, methods
from learner.config import RunConfig
from learner.data import Rows
from learner.errors import InputError, PixelsMissingError
from learner.models import FEATURES
from learner.transfer import send

FORMAT = 1
SHARD_ROWS = 4096
SECTIONS = ("full", "clean")
EXPERT_RANK = 32
EXPERT_DECAY = 0.02
_PURPOSES = {"l": 41, "w": 42, "w2": 43, "s": 44, "s2": 45}
_SHARD = re.compile(r"^(.+)-(full|clean)-(\d{9})-(\d{9})\.npy$")
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class Encoder(Protocol):
    """Turns faces into features, the same face always into the same feature."""

    @property
    def asked(self) -> str:
        """What was asked for: equal for encoders that would make the same features of the same pool."""
        ...

    def fit(self, faces: U8) -> None:
        """Fit what has to be fitted to faces (n,s,s,3) of the pool."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what was fitted, for a file."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `arrays` returned."""
        ...

    def __call__(self, faces: U8) -> F32:
        """Encode faces (n,s,s,3) uint8 as (n,d) float32."""
        ...


def read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Read `encoder.npz`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with np.load(folder / "encoder.npz", allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no feature bank: {error}") from error


def gaps(shards: list[tuple[int, int, Path]], num: int) -> list[tuple[int, int]]:
    """Return what is missing of positions 0 … num-1, in pieces of a shard each."""
    gaps: list[tuple[int, int]] = []
    reached = 0
    for start, stop in [(a, b) for a, b, _ in shards] + [(num, num)]:
        gaps += [(a, min(a + SHARD_ROWS, start)) for a in range(reached, start, SHARD_ROWS)]
        reached = max(reached, stop)
    return gaps


def shards_of(folder: Path, encoder: str, kind: str) -> list[tuple[int, int, Path]]:
    """List the shards of a section by position: (start, stop, file)."""
    found = ((m, path) for path in folder.glob("*.npy") if (m := _SHARD.match(path.name)) is not None)
    return sorted((int(m[3]), int(m[4]), path) for m, path in found if (m[1], m[2]) == (encoder, kind))


def read_note(folder: Path) -> dict[str, Any]:
    """Read `bank.json`.

    Raises:
        InputError: the folder is no bank, or one of another format.
    """
    try:
        note = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no feature bank: {error}; make one with: python -m learner bank") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise InputError(f"{folder} has another bank format; this version reads {FORMAT}")
    return note


class _Section:
    """The shards of one kind: features of the rows that it knows."""

    def __init__(self, folder: Path, note: Mapping[str, Any], kind: str) -> None:
        views = 1 + note["weak"] + note["strong"] if kind == "full" else 1
        rows: Rows = np.load(folder / f"{kind}.npy", allow_pickle=False)
        shards = shards_of(folder, note["encoder"], kind)
        if gaps(shards, len(rows)):
            missing = len(rows) - sum(b - a for a, b, _ in shards)
            raise InputError(f"{folder} is not finished, {missing} rows are missing; the command that made it goes on")
        self._order = np.argsort(rows, kind="stable")
        self.rows = rows[self._order]
        self._starts = np.array([a for a, _, _ in shards], np.int64)
        # As plain arrays: indexing a memmap object costs as much again as the copy.
        self._shards = [np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray) for _, _, path in shards]
        for (a, b, path), shard in zip(shards, self._shards, strict=True):
            if shard.shape != (b - a, views, note["dim"]) or shard.dtype != np.float16:
                raise InputError(f"{path} holds {shard.dtype} {shard.shape}; delete the bank and make it again")

    def find(self, rows: Rows) -> Rows:
        """Return positions (B,), -1 for rows that are not here."""
        if not len(self.rows):
            return np.full(len(rows), -1, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, self._order[at], -1)

    def read(self, positions: Rows, views: Rows, out: F16, where: Rows | None = None) -> None:
        """Write views (B,) of positions (B,) into `out`, at `where` if that is given."""
        shard = np.searchsorted(self._starts, positions, side="right") - 1
        inside = positions - self._starts[shard]
        order = np.argsort(shard, kind="stable")
        ends = np.cumsum(np.bincount(shard, minlength=len(self._shards))).tolist()
        begin = 0
        for number, end in enumerate(ends):
            if end > begin:
                here = order[begin:end]
                out[here if where is None else where[here]] = self._shards[number][inside[here], views[here]]
            begin = end


class FeatureBank:
    """Reader of a finished bank; the features stay on the disk until they are asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Open a bank.

        Raises:
            InputError: it is none, or not finished.
        """
        self.folder = Path(folder)
        note = read_note(self.folder)
        self.encoder, self.asked = str(note["encoder"]), str(note["asked"])
        self.dim, self.image_size = int(note["dim"]), int(note["image_size"])
        self.weak, self.strong = int(note["weak"]), int(note["strong"])
        try:
            self._full, self._clean = (_Section(self.folder, note, kind) for kind in SECTIONS)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder} is no complete bank: {error}") from error

    @property
    def full_rows(self) -> Rows:
        """Rows with every view, ascending."""
        return self._full.rows

    def trainable(self, rows: Rows) -> Rows:
        """Return those of `rows` that have every view, in their order."""
        return rows[self._full.find(rows) >= 0]

    def check(self, labeled: Rows) -> None:
        """Refuse labels that cannot be learned from.

        Raises:
            InputError: a labeled row has no views.
        """
        missing = labeled[self._full.find(labeled) < 0]
        if len(missing):
            raise InputError(
                f"{len(missing)} labeled rows have no views in {self.folder}, first {missing[:5].tolist()}; add them "
                "with: python -m learner bank"
            )

    def has(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows (B,) have a clean feature at least."""
        return (self._full.find(rows) >= 0) | (self._clean.find(rows) >= 0)

    def gather(self, rows: Rows, views: Rows) -> F16:
        """Copy one feature per row: views (B,) counts the clean one 0, then the weak ones, then the strong ones.

        A row that has the clean feature alone gives that for every view.

        Raises:
            PixelsMissingError: a row is not in the bank.
        """
        out = np.empty((len(rows), self.dim), np.float16)
        at = self._full.find(rows)
        known = at >= 0
        if known.all():
            self._full.read(at, views, out)
            return out
        here, rest = np.flatnonzero(known), np.flatnonzero(~known)
        other = self._clean.find(rows[rest])
        if (other < 0).any():
            missing = rows[rest[other < 0]]
            raise PixelsMissingError(f"{len(missing)} rows are not in {self.folder}, first {missing[:5].tolist()}")
        if len(here):
            self._full.read(at[here], views[here], out, here)
        self._clean.read(other, np.zeros_like(other), out, rest)
        return out

    def encode(self, encoder: Encoder, faces: U8) -> F32:
        """Encode faces (n,s,s,3) that are in no bank with this bank's statistics: (n,d), rounded as in the bank.

        Raises:
            InputError: it is not the encoder of this bank.
        """
        if encoder.asked != self.asked:
            raise InputError(f"{self.folder} was made by {self.asked}, not by {encoder.asked}")
        fitted = read_arrays(self.folder)
        encoder.restore(fitted)
        features = (encoder(faces) - fitted["mean"]) * np.float32(fitted["scale"][0])
        rounded: F32 = features.astype(np.float16).astype(np.float32)
        return rounded


def adapt(config: RunConfig) -> RunConfig:
    """Return a configuration for training on a bank: backbone "features", small experts, calibrated LION.

    EAF experts get rank `EXPERT_RANK` where no rank is asked for, and weight decay where there is none: full-width ones
    learn a hundred labels by heart. LION's bank of complementary labels needs calibrated probabilities.

    Raises:
        InputError: an unknown method or option.
    """
    try:
        resolved = methods.resolve(config.method, config.options)
    except ValueError as error:
        raise InputError(str(error)) from error
    method, options, optimizer = config.method, dict(config.options), config.optimizer
    everyone = {"": resolved.options, **resolved.plug_ins}
    for place in [name for name, chosen in everyone.items() if hasattr(chosen, "experts")]:
        section = dict(options.get(place, {})) if place else options
        section["experts"] = {"rank": EXPERT_RANK} | dict(section.get("experts", {}))
        options |= {place: section} if place else section
        optimizer = optimizer.model_copy(update={"weight_decay": optimizer.weight_decay or EXPERT_DECAY})
    if resolved.host == "lion" and "calibrated" not in resolved.plug_ins:
        method = f"{method}+calibrated"
    backbone = config.backbone.model_copy(update={"name": FEATURES, "weights": None})
    changed = {"method": method, "options": options, "optimizer": optimizer, "backbone": backbone}
    return config.replace(**{k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in changed.items()})


class BankSource:
    """Network inputs (B,d) from a bank. Which view is drawn depends on (seed, step, row) alone.

    "l" is the clean feature or a weak one; "w" a weak one, "w2" another weak one (of a single one, the clean feature);
    "s" and "s2" two different strong ones.
    """

    def __init__(self, bank: FeatureBank, seed: int, device: torch.device | str = "cpu") -> None:
        self.bank, self.seed, self.device = bank, seed, torch.device(device)

    def clean(self, rows: Rows) -> Tensor:
        """Return the clean features of rows (B,) as (B,d) float32."""
        return self._send(self.bank.gather(rows, np.zeros(len(rows), np.int64)))

    def view(self, name: str, rows: Rows, steps: Rows) -> Tensor:
        """Return one view of rows (B,) at lifetime steps (B,) as (B,d) float32."""
        return self._send(self.bank.gather(rows, self.choose(name, rows, steps)))

    def boxes(self, name: str, rows: Rows, step: int | Rows) -> None:
        """Know no face boxes: a feature has no place in an image."""
        return

    def choose(self, name: str, rows: Rows, steps: Rows) -> Rows:
        """Return which view (B,) of the bank is drawn: 0 clean, then weak, then strong."""
        weak, strong = self.bank.weak, self.bank.strong
        if name == "l":
            return self._draw("l", rows, steps, 1 + weak)
        if name.startswith("w"):
            if name == "w2" and weak == 1:
                return np.zeros(len(rows), np.int64)
            return 1 + self._pair(name, "w", rows, steps, weak)
        return 1 + weak + self._pair(name, "s", rows, steps, strong)

    def _pair(self, name: str, first: str, rows: Rows, steps: Rows, count: int) -> Rows:
        """Draw below `count`; the second of a pair differs from the first."""
        chosen = self._draw(first, rows, steps, count)
        if name == first or count == 1:
            return chosen
        return (chosen + 1 + self._draw(name, rows, steps, count - 1)) % count

    def _draw(self, name: str, rows: Rows, steps: Rows, count: int) -> Rows:
        if count == 1:
            return np.zeros(len(rows), np.int64)
        drawn = draws.uniform(self.seed, steps, rows, _PURPOSES[name], 1)[:, 0]
        return np.minimum((drawn * count).astype(np.int64), count - 1)

    def _send(self, features: F16) -> Tensor:
        return send(features, self.device).float()
