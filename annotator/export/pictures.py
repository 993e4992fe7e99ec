"""The picture of a face for an export: the original bytes where they are still what was imported, the cache else."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from annotator.errors import ImportSourceError, NotFoundError
from annotator.ingest.cache import limits_of, shards
from annotator.ingest.crops import parse_crop
from annotator.ingest.decode import Decoded, Quarantine, decode, to_rgb
from annotator.ingest.sources import SourceFiles, open_files
from annotator.settings import Workspace
from annotator.store.reading import Face

_SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
}


class Pictures:
    """Reads pictures from the sources of a workspace. Close it after use."""

    def __init__(self, workspace: Workspace) -> None:
        self._limits = limits_of(workspace)
        self._cache = workspace.root / "cache"
        self._files: dict[str, SourceFiles | None] = {}

    def read(self, face: Face) -> tuple[bytes, str]:
        """Return the picture and its file extension: the untouched original, or a PNG of a crop or of the cache.

        Raises:
            NotFoundError: the original is gone or changed and no cache holds the face.
        """
        data = self._original(face)
        if data is None:
            return self._cached(face), ".png"
        if not face.image.crop:
            return data, _SUFFIXES[face.image.media_type]
        return self._cropped(data, face), ".png"

    def png(self, face: Face) -> bytes:
        """Return the picture as a PNG."""
        data, suffix = self.read(face)
        if suffix == ".png":
            return data
        with Image.open(io.BytesIO(data)) as image:
            return _as_png(to_rgb(ImageOps.exif_transpose(image)))

    def close(self) -> None:
        """Release the sources."""
        for files in self._files.values():
            if files is not None:
                files.close()
        self._files = {}

    def _original(self, face: Face) -> bytes | None:
        """Return the original's bytes if they decode to the very content that was labeled."""
        files = self._source(face.source.root)
        data = files.read(face.image.path, self._limits.max_bytes) if files is not None else None
        if data is None or isinstance(data, Quarantine):
            return None
        found = decode(data, face.image.path, 16, self._limits, parse_crop(face.image.crop))
        same = isinstance(found, Decoded) and found.content_hash == face.image.content_hash
        return data if same else None

    def _source(self, root: str) -> SourceFiles | None:
        if root not in self._files:
            try:
                self._files[root] = open_files(Path(root))
            except ImportSourceError:
                self._files[root] = None
        return self._files[root]

    def _cropped(self, data: bytes, face: Face) -> bytes:
        crop = parse_crop(face.image.crop)
        with Image.open(io.BytesIO(data)) as image:
            upright = to_rgb(ImageOps.exif_transpose(image))
        return _as_png(upright if crop is None else crop.cut(upright))

    def _cached(self, face: Face) -> bytes:
        sizes = sorted((f for f in self._cache.glob("*") if f.name.isdecimal()), key=lambda f: -int(f.name))
        for folder in sizes:
            for start, stop, path in shards(folder):
                if start <= face.image.row < stop:
                    pixels = np.load(path, mmap_mode="r", allow_pickle=False)[face.image.row - start]
                    return _as_png(Image.fromarray(np.asarray(pixels)))
        raise NotFoundError(
            f"image {face.image.image_id} ({face.source.root}/{face.image.path}) is gone or changed and in no cache"
        )


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
