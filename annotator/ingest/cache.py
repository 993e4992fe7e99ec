"""The pixel cache: decoded faces in immutable shards of consecutive rows, `cache/<size>/pixels-<start>-<stop>.npy`.

Rows are committed to the store first and reach a shard a little later. What a kill leaves between the two is rebuilt
from the original files by `ensure_cache`.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.durable import sync_folder
from annotator.errors import ImportSourceError, WorkspaceError
from annotator.ingest.crops import parse_crop
from annotator.ingest.decode import Decoded, Limits
from annotator.ingest.decode_pool import DecodePool, chunk_size
from annotator.ingest.decode_worker import Outcome, Task
from annotator.ingest.sources import open_files
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore

Progress = Callable[[int, int, str], None]
"""Called with (done, total, message)."""
Pixels = NDArray[np.uint8]
GONE = "file gone or changed since import"
SHARD_BYTES = 32_000_000
_HEADER_BYTES = 128
_FLUSH_SECONDS = 20.0
_SHARD = re.compile(r"pixels-(\d{9})-(\d{9})\.npy")
_LOCK = ".lock"
_WORTH_PROCESSES, _WORTH_SEARCHING = 200, 16
"""Below this many files, to be decoded or searched for faces, starting processes takes longer than it saves."""


def limits_of(workspace: Workspace) -> Limits:
    """Return the decode limits of the workspace's settings."""
    imports = workspace.settings.imports
    return Limits(imports.max_bytes, imports.max_pixels, imports.min_side)


def workers_for(count: int, searched: bool = False) -> int:
    """Return how many processes to decode `count` files with; 0 means in this one."""
    return min(os.cpu_count() or 1, 8) if count >= (_WORTH_SEARCHING if searched else _WORTH_PROCESSES) else 0


def cache_folder(workspace: Workspace, size: int) -> Path:
    """Return `cache/<size>` of the workspace, made when missing."""
    folder = workspace.folder("cache") / str(size)
    folder.mkdir(exist_ok=True)
    return folder


def shards(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (start, stop, path) of every shard in `folder`, ascending."""
    matches = ((_SHARD.fullmatch(p.name), p) for p in folder.glob("pixels-*.npy"))
    return sorted((int(m[1]), int(m[2]), p) for m, p in matches if m is not None)


@contextmanager
def cache_lock(folder: Path) -> Iterator[bool]:
    """Hold the right to add shards to `folder`; yields False when another process has it."""
    with open(folder / _LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        for stale in folder.glob(".pixels-*"):  # of a writer that was killed: whoever holds the lock is the only one
            stale.unlink()
        yield True


class PixelCacheWriter:
    """Collect faces by ascending row and write them as shards. Hold `cache_lock` meanwhile."""

    def __init__(self, folder: Path, size: int, capacity: int | None = None) -> None:
        """Write into `folder`; a shard holds at most `capacity` faces, by default as many as stay below 32 MB."""
        self._folder = folder
        self._black = np.zeros((size, size, 3), np.uint8)
        self._capacity = capacity or max(1, (SHARD_BYTES - _HEADER_BYTES) // self._black.nbytes)
        # Reused from shard to shard; pages of it that no face has touched yet take no memory.
        self._faces = np.empty((self._capacity, *self._black.shape), np.uint8)
        self._count = self._start = 0
        self._since = time.monotonic()

    def add(self, row: int, pixels: Pixels | None) -> None:
        """Take the face of `row`, None for a quarantined one; a gap in the rows begins another shard.

        Raises:
            ValueError: `row` does not ascend, or the face is not uint8 (size, size, 3).
        """
        face = self._black if pixels is None else pixels
        if face.shape != self._black.shape or face.dtype != np.uint8:
            raise ValueError(f"row {row}: expected uint8 {self._black.shape}, got {face.dtype} {face.shape}")
        following = self._start + self._count
        if self._count and row < following:
            raise ValueError(f"row {row} comes after row {following - 1}")
        if self._count and row > following:
            self.flush()
        if not self._count:
            self._start, self._since = row, time.monotonic()
        self._faces[self._count] = face
        self._count += 1
        if self._count >= self._capacity or time.monotonic() - self._since > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is collected as one shard: complete under a temporary name, then renamed.

        Raises:
            WorkspaceError: the disk is full or cannot be written.
        """
        if not self._count:
            return
        name = f"pixels-{self._start:09d}-{self._start + self._count:09d}.npy"
        temporary = self._folder / f".{name}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                np.save(file, self._faces[: self._count], allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / name)
            sync_folder(self._folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise WorkspaceError(f"cannot write {self._folder / name}: {error.strerror or error}") from error
        self._count = 0


def ensure_cache(workspace: Workspace, store: LabelStore, size: int, progress: Progress | None = None) -> int:
    """Give every row of the store pixels of `size`; return how many rows were missing.

    A face whose file is gone or has changed is taken from the cache of another size where there is one, and quarantined
    otherwise. While another process adds shards of this size nothing is done and 0 returned: it completes them itself.

    Raises:
        ImportSourceError: a whole source is gone and its faces are in no other cache.
    """
    folder = cache_folder(workspace, size)
    with cache_lock(folder) as held:
        return complete_cache(workspace, store, size, progress) if held else 0


def complete_cache(workspace: Workspace, store: LabelStore, size: int, progress: Progress | None = None) -> int:
    """Do what `ensure_cache` does for a caller that holds `cache_lock` already."""
    folder = cache_folder(workspace, size)
    missing = _uncached(store.images.table().rows, folder)
    if len(missing) == 0:
        return 0
    writer = PixelCacheWriter(folder, size)
    step, done = 2000, 0
    for begin in range(0, len(missing), step):
        records = store.images.by_rows(missing[begin : begin + step].tolist())
        for source_id, found in groupby(records, key=lambda r: r.source_id):
            segment = list(found)
            for record, pixels in zip(segment, _rebuilt(workspace, store, source_id, segment, size), strict=True):
                writer.add(record.row, pixels)
        done += len(records)
        if progress is not None:
            progress(done, len(missing), "rebuilding the pixel cache")
    writer.flush()
    return len(missing)


def _uncached(rows: NDArray[np.int64], folder: Path) -> NDArray[np.int64]:
    covered = np.zeros(len(rows), np.bool_)
    for start, stop, _ in shards(folder):
        covered[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] = True
    return rows[~covered]


def _rebuilt(
    workspace: Workspace, store: LabelStore, source_id: int, records: list[ImageRecord], size: int
) -> Iterator[Pixels | None]:
    """Yield the pixels of `records`, all of one source, in order."""
    wanted = [r for r in records if r.state in ("active", "leak")]
    root = Path(store.images.source(source_id).root)
    other = _OtherSizes(workspace, size)
    outcomes = _decoded(root, wanted, size, limits_of(workspace)) if wanted and root.exists() else iter(())
    for record in records:
        if record.state not in ("active", "leak"):
            yield None
            continue
        outcome = next(outcomes, None)
        if isinstance(outcome, Decoded) and outcome.content_hash == record.content_hash:
            yield outcome.pixels
            continue
        pixels = other.find(record.row)
        if pixels is None and outcome is None:
            raise ImportSourceError(f"{root} is gone and the pixels of {record.path} are in no cache; bring it back")
        if pixels is None:
            store.images.quarantine(record.row, GONE)
        yield pixels


def _decoded(root: Path, records: list[ImageRecord], size: int, limits: Limits) -> Iterator[Outcome]:
    tasks: list[Task] = [(r.path, parse_crop(r.crop)) for r in records]
    step = chunk_size(size)
    files = open_files(root)
    try:
        with DecodePool(files, size, limits, workers_for(len(tasks))) as pool:
            for outcomes in pool.map(tasks[i : i + step] for i in range(0, len(tasks), step)):
                yield from outcomes
    finally:
        files.close()


class _OtherSizes:
    """Faces from the caches of other sizes, larger ones first."""

    def __init__(self, workspace: Workspace, size: int) -> None:
        self._size = size
        folders = [f for f in workspace.folder("cache").iterdir() if f.name.isdecimal() and f.name != str(size)]
        self._shards = [shard for f in sorted(folders, key=lambda f: -int(f.name)) for shard in shards(f)]

    def find(self, row: int) -> Pixels | None:
        for start, stop, path in self._shards:
            if start <= row < stop:
                face = np.load(path, mmap_mode="r", allow_pickle=False)[row - start]
                resized = Image.fromarray(face).resize((self._size, self._size), Image.Resampling.BILINEAR)
                return np.asarray(resized, dtype=np.uint8)
        return None
