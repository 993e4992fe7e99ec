"""Make a bank of view features: resumable, shard by shard (ALGORITHMS.md 10.7; the format is in `learner.bank`)."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import draws
from learner.augment import Augmenter
from learner.bank import FORMAT, SECTIONS, U8, Encoder, FeatureBank, gaps, read_arrays, read_note, shards_of
from learner.checkpoint import sync
from learner.config import AugmentConfig, write_json
from learner.data import PixelCache, Rows
from learner.errors import InputError

MAX_POOL = 50_000
BLOCK = 256  # faces that are augmented and encoded together
STATISTICS = 10_000  # faces that mean and scale, and a fitted encoder, are taken from
OnDone = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bank is to hold: rows with all views and rows with the clean feature alone (a row in both has views)."""

    full: Rows
    clean: Rows
    weak: int = 1
    strong: int = 6
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def check(self) -> None:
        """Refuse plans without meaning.

        Raises:
            InputError: no row, or no weak or strong view.
        """
        if len(self.full) == 0:
            raise InputError("a feature bank needs at least one row to train on")
        if self.weak < 1 or self.strong < 1:
            raise InputError(f"a feature bank needs weak and strong views, got {self.weak} and {self.strong}")


def choose_rows(labeled: Rows, pool: Rows, everything: Rows, most: int = MAX_POOL, seed: int = 0) -> tuple[Rows, Rows]:
    """Return the rows that get every view, all labeled ones and a sample of the pool, and those that get a clean one.

    The sample is the rows with the smallest draws, so a pool that grows keeps most of it.
    """
    pool = np.setdiff1d(pool, labeled)
    if len(pool) > most:
        order = np.argsort(draws.uniform(seed, 0, pool, 40, 1)[:, 0], kind="stable")
        pool = pool[order[:most]]
    full = np.union1d(labeled, pool)
    return full, np.setdiff1d(everything, full)


def build(
    folder: Path, encoder: Encoder, cache: PixelCache, plan: Plan, on_done: OnDone | None = None
) -> "FeatureBank":
    """Make a bank, or go on with one: only rows that are missing are encoded.

    Killed at any moment, the same call goes on. A plan may name more rows than the bank has; they are added. `on_done`
    hears (views done, views in all).

    Raises:
        InputError: the folder holds something else, or a bank of another encoder, seed or augmentation.
        PixelsMissingError: a face is not in the cache.
    """
    plan.check()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*"):
        stale.unlink()
    note = _note(folder, encoder, cache, plan)
    fitted = read_arrays(folder)
    encoder.restore(fitted)
    mean, scale = fitted["mean"], np.float32(fitted["scale"][0])
    augmenter = Augmenter(plan.augment, cache.image_size, plan.seed, torch.device("cpu"))
    wanted = dict(zip(SECTIONS, (plan.full, np.setdiff1d(plan.clean, plan.full)), strict=True))
    work: list[tuple[str, int, int, Rows]] = []
    for kind in SECTIONS:
        rows = _grow(folder / f"{kind}.npy", wanted[kind])
        work += [(kind, a, b, rows[a:b]) for a, b in gaps(shards_of(folder, note["encoder"], kind), len(rows))]
    views = {"full": 1 + plan.weak + plan.strong, "clean": 1}
    total, done = sum(views[kind] * len(rows) for kind, _, _, rows in work), 0
    for kind, start, stop, rows in work:
        shard = np.empty((len(rows), views[kind], note["dim"]), np.float16)
        for begin in range(0, len(rows), BLOCK):
            part = rows[begin : begin + BLOCK]
            for index, faces in enumerate(_views(augmenter, cache.gather(part), part, plan, kind)):
                shard[begin : begin + len(part), index] = (encoder(faces) - mean) * scale
                done += len(part)
                if on_done is not None:
                    on_done(done, total)
        _put(folder / f"{note['encoder']}-{kind}-{start:09d}-{stop:09d}.npy", shard)
    return FeatureBank(folder)


def _note(folder: Path, encoder: Encoder, cache: PixelCache, plan: Plan) -> dict[str, Any]:
    """Return what `bank.json` says; fit the encoder and write it first where the folder is new."""
    request = {
        "asked": encoder.asked,
        "image_size": cache.image_size,
        "weak": plan.weak,
        "strong": plan.strong,
        "seed": plan.seed,
        "augment": plan.augment.model_dump(mode="json"),
    }
    path = folder / "bank.json"
    if path.exists():
        note = read_note(folder)
        other = [name for name, value in request.items() if note.get(name) != value]
        if other:
            raise InputError(f"{folder} holds a bank with another {', '.join(other)}; choose another folder")
        return note
    known = {"encoder.npz", "full.npy", "clean.npy", "source.json"}
    if any(p.name not in known and p.is_file() for p in folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another folder")
    sample = plan.full
    if len(sample) > STATISTICS:
        sample = np.sort(np.random.default_rng(draws.key(plan.seed, 46)).choice(sample, STATISTICS, replace=False))
    faces = cache.gather(sample)
    encoder.fit(faces)
    raw = np.concatenate([encoder(faces[i : i + BLOCK]) for i in range(0, len(faces), BLOCK)])
    mean = raw.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = float(np.sqrt(np.square(raw - mean, dtype=np.float64).mean()))
    arrays = {**encoder.arrays(), "mean": mean, "scale": np.array([1 / max(spread, 1e-6)], np.float32)}
    temporary = folder / f".encoder.{os.getpid()}.npz"
    np.savez(temporary, **arrays)
    sync(temporary)
    temporary.replace(folder / "encoder.npz")
    note = {"format": FORMAT, "encoder": _identify(encoder.asked, arrays), "dim": raw.shape[1], **request}
    write_json(path, note)
    sync(path)
    sync(folder)
    return note


def _identify(asked: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(asked.encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return f"{asked.partition(':')[0]}-{digest.hexdigest()[:8]}"


def _views(augmenter: Augmenter, faces: U8, rows: Rows, plan: Plan, kind: str) -> list[U8]:
    """Make the views of some faces, the clean one first; view n is drawn as step n."""
    made = [faces]
    if kind == "full":
        x = augmenter.upload(faces)
        made += [_faces(augmenter.weak_pixels(x, rows, step, "w")) for step in range(plan.weak)]
        for step in range(plan.strong):
            strong = augmenter.strong_pixels(x, rows, step, "s")
            made.append(_faces(augmenter.weak_pixels(strong, rows, step, "s")))
    return made


def _faces(x: Tensor) -> U8:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _grow(path: Path, wanted: Rows) -> Rows:
    """Return the rows of a section: those it has, in their order, then the wanted ones that it lacks."""
    have = np.load(path, allow_pickle=False) if path.exists() else np.zeros(0, np.int64)
    rows: Rows = np.concatenate([have, np.setdiff1d(wanted, have)]).astype(np.int64)
    if len(rows) > len(have) or not path.exists():
        _put(path, rows)
    return rows


def _put(path: Path, array: NDArray[Any]) -> None:
    """Let an array appear under its name, whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(temporary, array, allow_pickle=False)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
