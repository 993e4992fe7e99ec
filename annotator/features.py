"""Features by row on disk: append-only shards, one folder per encoder (DESIGN 4)."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.durable import sync_folder
from annotator.errors import NotFoundError, WorkspaceError

F32 = NDArray[np.float32]
Rows = NDArray[np.int64]
INFO = "encoder.json"
_SHARD = re.compile(r"features-(\d{9})-(\d{9})\.npy")


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What made the features: `kind` is hog, snapshot or network, `dim` their length.

    `source` tells where a network comes from: a file and its digest, the pool's pre-training, or timm's hub.
    """

    id: str
    kind: str
    dim: int
    image_size: int
    source: str = ""

    @classmethod
    def read(cls, folder: Path) -> "EncoderInfo":
        """Read `encoder.json`.

        Raises:
            NotFoundError: there is none.
            WorkspaceError: it cannot be read.
        """
        try:
            data = json.loads((folder / INFO).read_text(encoding="utf-8"))
            return cls(data["id"], data["kind"], int(data["dim"]), int(data["image_size"]), data.get("source", ""))
        except FileNotFoundError as error:
            raise NotFoundError(f"no encoder in {folder}; the learner makes one when it runs") from error
        except (OSError, ValueError, KeyError) as error:
            raise WorkspaceError(
                f"{folder / INFO} is damaged ({error}); delete the folder, the learner remakes it"
            ) from error


class FeatureShards:
    """The features of one encoder: float16 (stop - start, d) per shard, shards without gaps from row `first` on.

    A shard is immutable and appears by rename, so a reader in another process never sees half of one; `reload` picks up
    what came since. A row whose features are unknown (broken images, copies) is all zeros.
    """

    def __init__(self, folder: Path) -> None:
        """Open an encoder's folder.

        Raises:
            NotFoundError: there is none.
            WorkspaceError: its `encoder.json` cannot be read.
        """
        self.folder = folder
        self.info = EncoderInfo.read(folder)
        self._starts: list[int] = []
        self._parts: list[NDArray[np.float16]] = []
        self.reload()

    @classmethod
    def create(cls, folder: Path, info: EncoderInfo, extra: dict[str, NDArray[Any]] | None = None) -> "FeatureShards":
        """Make a new, empty encoder folder in one atomic step; `extra` arrays are kept beside it in `model.npz`."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        if extra is not None:
            with (temporary / "model.npz").open("wb") as file:
                np.savez(file, **extra)  # type: ignore[arg-type]
                os.fsync(file.fileno())
        with (temporary / INFO).open("w", encoding="utf-8") as file_:
            json.dump(asdict(info), file_)
            file_.flush()
            os.fsync(file_.fileno())
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
        return cls(folder)

    def reload(self) -> None:
        """Pick up shards that were appended since, by this process or another."""
        ranges = sorted((int(m[1]), int(m[2]), p) for p in self.folder.iterdir() if (m := _SHARD.fullmatch(p.name)))
        for start, stop, path in ranges[len(self._starts) :]:
            if self._parts and start != self.stop:
                raise WorkspaceError(f"{path} does not follow row {self.stop}; delete {self.folder} to remake it")
            part = np.load(path, mmap_mode="r", allow_pickle=False)
            if part.shape != (stop - start, self.info.dim) or part.dtype != np.float16:
                raise WorkspaceError(f"{path} holds {part.dtype} {part.shape}; delete {self.folder} to remake it")
            self._starts.append(start)
            self._parts.append(part)

    @property
    def first(self) -> int:
        """The first row with a shard, 0 when there is none."""
        return self._starts[0] if self._starts else 0

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self._starts[-1] + len(self._parts[-1]) if self._parts else 0

    def append(self, start: int, features: NDArray[np.float16]) -> None:
        """Add the features (n, d) of the rows from `start` on, which must follow the last shard.

        Raises:
            ValueError: a gap, an overlap, or another width.
        """
        if self._parts and start != self.stop:
            raise ValueError(f"rows from {start} do not follow row {self.stop}")
        if features.ndim != 2 or features.shape[1] != self.info.dim:
            raise ValueError(f"features {features.shape} do not have the width {self.info.dim} of {self.info.id}")
        if not len(features):
            return
        name = f"features-{start:09d}-{start + len(features):09d}.npy"
        temporary = self.folder / f".{name}.{os.getpid()}"
        with temporary.open("wb") as file:
            np.save(file, features.astype(np.float16), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / name)
        sync_folder(self.folder)
        self.reload()

    def has(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows (n,) have a shard."""
        return np.asarray((rows >= self.first) & (rows < self.stop), dtype=bool)

    def read(self, rows: Rows) -> F32:
        """Return the features (n, d) of `rows` in the order given; zeros for rows without a shard."""
        out = np.zeros((len(rows), self.info.dim), dtype=np.float32)
        if not self._parts or not len(rows):
            return out
        part_of = np.searchsorted(np.array(self._starts), rows, side="right") - 1
        part_of[~self.has(rows)] = -1
        for number in np.unique(part_of[part_of >= 0]):
            where = np.flatnonzero(part_of == number)
            out[where] = self._parts[number][rows[where] - self._starts[number]]
        return out


def unit(features: NDArray[np.float32]) -> F32:
    """Scale each line (n, d) to length one; a zero line stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(length, 1e-12), dtype=np.float32)
