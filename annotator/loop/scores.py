"""Write generations of scores: whole or not at all (DESIGN 4). `annotator.scores` reads them."""

import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.durable import sync_folder
from annotator.records import Generation
from annotator.scores import ARRAYS, META
from annotator.store import LabelStore


@dataclass(frozen=True, slots=True)
class Contents:
    """What a generation says: the arrays of `annotator.scores.Scores` and everything of its meta but id and time."""

    arrays: dict[str, NDArray[Any]]
    mode: str
    label_seq: int
    source: str
    """Serving snapshot or encoder: the first half of the model version."""
    encoder: str
    meta: dict[str, Any]


def publish(store: LabelStore, folder: Path, contents: Contents, keep: int) -> Generation:
    """Write a generation under a temporary name, make it durable, rename it, then record it; prune older ones."""
    number = store.learning.next_generation_id()
    generation = Generation(
        number,
        f"{contents.source}.{number}",
        contents.mode,
        contents.label_seq,
        contents.encoder,
        datetime.now(UTC),
    )
    final = folder / str(number)
    if final.exists():  # renamed just before a crash, never recorded
        shutil.rmtree(final)
    temporary = folder / f".{number}.{os.getpid()}"
    write_folder(temporary, contents, generation)
    temporary.rename(final)
    sync_folder(folder)
    store.learning.publish_generation(generation)
    prune(folder, number, keep)
    return generation


def write_folder(folder: Path, contents: Contents, generation: Generation) -> None:
    """Write the files of a generation and make them durable."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name, kind in ARRAYS.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, contents.arrays[name].astype(kind, copy=False), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    meta = {
        **contents.meta,
        "id": generation.id,
        "model_version": generation.model_version,
        "mode": generation.mode,
        "label_seq": generation.label_seq,
        "encoder": generation.encoder,
        "created_at": generation.created_at.isoformat(),
    }
    with (folder / META).open("w", encoding="utf-8") as text:
        json.dump(meta, text)
        text.flush()
        os.fsync(text.fileno())
    sync_folder(folder)


def prune(folder: Path, current: int, keep: int) -> None:
    """Delete generations that are `keep` or more behind the current one."""
    for number in numbers(folder):
        if number <= current - keep:
            shutil.rmtree(folder / str(number), ignore_errors=True)


def numbers(folder: Path) -> list[int]:
    """Return the generations in a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def sweep(store: LabelStore, folder: Path) -> None:
    """Delete what a crash left: temporary folders, and generations that were never recorded."""
    current = store.learning.current_generation()
    last = current.id if current is not None else 0
    for path in folder.iterdir():
        unfinished = path.name.startswith(".") or (path.name.isdigit() and int(path.name) > last)
        if unfinished:
            shutil.rmtree(path, ignore_errors=True)
