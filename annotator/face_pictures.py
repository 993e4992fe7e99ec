"""The picture of a face as people see it: the original, or the part of it that is the face; else the cached copy."""

import io
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from annotator.errors import NotFoundError
from annotator.ingest.cache import limits_of, shards
from annotator.ingest.crops import parse_crop
from annotator.ingest.decode import Quarantine, content_hash, open_upright, part
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore, Source

LARGEST_SIDE = 512
"""Pixels; the desk shows a face no larger than its frame."""
LOSSLESS_SIDE = 128
"""Pixels up to which a crop goes as PNG: the desk enlarges it, and JPEG's blocks with it. Above, PNG has three to four
times the bytes of a JPEG that looks the same, and takes a tenth of a second to write."""
_QUALITY = 92
_OPEN_ZIPS = 8


@dataclass(frozen=True, slots=True)
class FaceFile:
    """Bytes that a browser may show, and their type.

    `stands_in`: not the picture that the record names but the small copy of it, for as long as the original is away.
    """

    data: bytes
    media_type: str
    stands_in: bool = False


class FacePictures:
    """Read face images; thread-safe.

    Args:
        workspace: its cache and limits.
        store: where the sources are registered.
    """

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._cache = workspace.root / "cache"
        self._limits = limits_of(workspace)
        self._images = store.images
        self._sources: dict[int, Source] = {}
        self._zips: OrderedDict[Path, tuple[tuple[int, int], zipfile.ZipFile]] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the archives."""
        with self._lock:
            for _, archive in self._zips.values():
                archive.close()
            self._zips.clear()

    def read(self, record: ImageRecord) -> FaceFile:
        """Return the picture of a record: its file, or what its crop names of it, at most `LARGEST_SIDE` a side.

        Raises:
            NotFoundError: neither the original nor a cached copy is there.
        """
        face = self.cut(record) if record.crop else self.whole(record)
        return face if face is not None else self.stand_in(record)

    def whole(self, record: ImageRecord) -> FaceFile | None:
        """Return the file of a record as it is; None where it is not what was imported."""
        data = self._original(record)
        found = sniff(data) if data is not None else None
        if data is None or found is None or found != record.media_type:
            return None
        return FaceFile(data, found)

    def cut(self, record: ImageRecord) -> FaceFile | None:
        """Return what the crop of a record names of its photo; None where the photo does not show it any more.

        Of the largest photos one takes 120 MB to decode, twice that while it is turned.
        """
        data = self._original(record)
        upright = open_upright(data, record.path, self._limits) if data is not None else None
        if upright is None or isinstance(upright, Quarantine):
            return None
        face = part(upright, self._limits, parse_crop(record.crop))
        # Of another photo under the same name the place of the face says nothing.
        if isinstance(face, Quarantine) or content_hash(face) != record.content_hash:
            return None
        return _encoded(face, upright.image.info.get("icc_profile"))

    def stand_in(self, record: ImageRecord) -> FaceFile:
        """Return the cached copy in place of an original that is away.

        Raises:
            NotFoundError: there is none.
        """
        copy = self.cached(record)
        if copy is None:
            raise NotFoundError(f"image {record.image_id!r}: its file is gone and no copy of it is cached")
        return FaceFile(copy, "image/png", stands_in=True)

    def cached(self, record: ImageRecord) -> bytes | None:
        """Return the largest cached copy as PNG, None without one."""
        folders = (folder for folder in self._cache.glob("[0-9]*") if folder.name.isdigit())
        for folder in sorted(folders, key=lambda f: -int(f.name)):
            for start, stop, shard in shards(folder):
                if start <= record.row < stop:
                    pixels = np.load(shard, mmap_mode="r", allow_pickle=False)[record.row - start]
                    out = io.BytesIO()
                    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
                    return out.getvalue()
        return None

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
        if not path.is_relative_to(folder) or not path.is_file() or path.stat().st_size > self._limits.max_bytes:
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
            if known[1].getinfo(name).file_size > self._limits.max_bytes:
                return None
            return known[1].read(name)


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


def _encoded(face: Image.Image, profile: bytes | None) -> FaceFile:
    """Encode a face without what the photo says about itself (place, owner, comments), but in its colours."""
    face.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    face.info.clear()
    # The profile of a photo that was gray or CMYK does not describe the RGB that was made of it.
    colours = {"icc_profile": profile} if profile is not None and profile[16:20] == b"RGB " else {}
    out = io.BytesIO()
    if max(face.size) <= LOSSLESS_SIDE:
        face.save(out, "PNG", **colours)
        return FaceFile(out.getvalue(), "image/png")
    face.save(out, "JPEG", quality=_QUALITY, subsampling="4:4:4", **colours)
    return FaceFile(out.getvalue(), "image/jpeg")
