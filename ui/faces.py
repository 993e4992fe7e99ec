"""The picture of a face: the original, or the part of it that is the face, while it is there; else the cached copy."""

import io
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool

from annotator.errors import NotFoundError
from annotator.ingest.cache import limits_of
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import Source
from ui.crops import FaceCrops, FaceFile

_OPEN_ZIPS = 8


class FaceFiles:
    """Read face images; thread-safe.

    Args:
        workspace: its cache and limits.
        store: where the sources are registered.
    """

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._cache = workspace.root / "cache"
        limits = limits_of(workspace)
        self._max_bytes = limits.max_bytes
        self._images = store.images
        self._sources: dict[int, Source] = {}
        self._zips: OrderedDict[Path, tuple[tuple[int, int], zipfile.ZipFile]] = OrderedDict()
        self._lock = threading.Lock()
        self._crops = FaceCrops(self._original, limits)

    def close(self) -> None:
        """Finish what is being cut and close the archives."""
        self._crops.close()
        with self._lock:
            for _, archive in self._zips.values():
                archive.close()
            self._zips.clear()

    def record(self, image_id: str) -> ImageRecord:
        """Return the image of a public id.

        Raises:
            NotFoundError: there is none, or it was quarantined or erased.
        """
        record = self._images.by_id(image_id)
        if record.state in ("quarantined", "erased"):
            raise NotFoundError(f"image {image_id!r} is {record.state}: there is nothing to show")
        return record

    async def read(self, record: ImageRecord, *, small: bool = False) -> FaceFile:
        """Return the picture of a record: its file, or what its crop names of it.

        With `small` the cached copy of a crop will do: a row of faces costs no decoding of photos.

        Raises:
            NotFoundError: neither the original nor a cached copy is there.
        """
        if not record.crop:
            return await run_in_threadpool(self._whole, record)
        copy = await run_in_threadpool(self._cached, record) if small else None
        if copy is not None:
            return FaceFile(copy, "image/png")
        face = await self._crops.cut(record)
        return face if face is not None else await run_in_threadpool(self._stand_in, record)

    def _whole(self, record: ImageRecord) -> FaceFile:
        data = self._original(record)
        found = sniff(data) if data is not None else None
        if data is None or found is None or found != record.media_type:
            return self._stand_in(record)
        return FaceFile(data, found)

    def _stand_in(self, record: ImageRecord) -> FaceFile:
        copy = self._cached(record)
        if copy is None:
            raise NotFoundError(f"image {record.image_id!r}: its file is gone and no copy of it is cached")
        return FaceFile(copy, "image/png", stands_in=True)

    def _original(self, record: ImageRecord) -> bytes | None:
        source = self._sources.get(record.source_id)
        if source is None:
            source = self._sources[record.source_id] = self._images.source(record.source_id)
        try:
            if source.kind == "zip":
                return self._zip_member(Path(source.root), record.path)
            return self._file(Path(source.root), record.path)
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError):
            # Moved, unreadable, replaced or damaged since the import: the cached copy serves.
            return None

    def _file(self, root: Path, relative: str) -> bytes | None:
        folder = root.resolve(strict=True)
        path = (folder / relative).resolve(strict=True)
        if not path.is_relative_to(folder) or not path.is_file() or path.stat().st_size > self._max_bytes:
            return None
        return path.read_bytes()

    def _zip_member(self, path: Path, name: str) -> bytes | None:
        stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_size)
        # One archive is one file handle and one decompressor at a time; faces are small.
        with self._lock:
            known = self._zips.get(path)
            if known is None or known[0] != version:
                if known is not None:
                    known[1].close()
                self._zips[path] = known = (version, zipfile.ZipFile(path))
                while len(self._zips) > _OPEN_ZIPS:
                    self._zips.popitem(last=False)[1][1].close()
            self._zips.move_to_end(path)
            if known[1].getinfo(name).file_size > self._max_bytes:
                return None
            return known[1].read(name)

    def _cached(self, record: ImageRecord) -> bytes | None:
        for folder in sorted(self._cache.glob("[0-9]*"), key=lambda f: -int(f.name) if f.name.isdigit() else 0):
            for shard in folder.glob("pixels-*-*.npy"):
                start, stop = (int(part) for part in shard.stem.split("-")[1:])
                if start <= record.row < stop:
                    pixels = np.load(shard, mmap_mode="r", allow_pickle=False)[record.row - start]
                    out = io.BytesIO()
                    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
                    return out.getvalue()
        return None


def sniff(data: bytes) -> str | None:
    """Return the type of a still image by its first bytes, None for anything a browser should not be given."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"BM"):
        return "image/bmp"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None
