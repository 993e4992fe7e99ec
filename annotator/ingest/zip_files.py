"""Read files out of a zip in place.

The directory of the zip is read once, by `ZipFiles`, and kept small; a `ZipReader` in another process is told where an
entry is and holds nothing.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from annotator.ingest.decode import Quarantine
from annotator.ingest.files import Stamp, hidden, too_big, unsafe

_PLACE = struct.Struct("<QQQIHH")
"""Offset of the local header, packed size, size, CRC, method, flags."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_PACKING_SLACK = 65_536  # what does not compress grows a little
_MAX_LIST_BYTES = 500_000_000


class ZipFiles:
    """Files of a zip archive."""

    kind: Literal["folder", "zip"] = "zip"

    def __init__(self, path: Path) -> None:
        """Read the directory.

        Raises:
            zipfile.BadZipFile: it is no zip.
        """
        self.root = path.resolve()
        with zipfile.ZipFile(path) as archive:
            self._places = {i.filename: _place(i) for i in archive.infolist() if not i.is_dir()}
        self._listed = sorted(name for name in self._places if not hidden(name))
        self._reader = ZipReader(self.root)

    @property
    def problems(self) -> list[str]:
        """Nothing: a zip is listed as a whole or not at all."""
        return []

    def walk(self, under: str = "") -> Iterator[str]:
        """Yield the path of every file below `under`, sorted."""
        prefix = f"{under}/" if under else ""
        yield from (name for name in self._listed if name.startswith(prefix))

    def folders(self, under: str = "") -> list[str]:
        """Return the names of the folders directly in `under`, sorted."""
        start = len(under) + 1 if under else 0
        parted = (path[start:].partition("/") for path in self.walk(under))
        return sorted({name for name, slash, _ in parted if slash and name not in ("", "..")})

    def exists(self, path: str) -> bool:
        """Tell whether `path` is an entry."""
        return path in self._places

    def stamp(self, path: str) -> Stamp | Quarantine:
        """Return size and CRC from the directory of the zip."""
        reason = unsafe(path)
        if reason is not None:
            return Quarantine(reason)
        place = self._places.get(path)
        if place is None:
            return Quarantine("the image is missing")
        _, _, size, crc, _, _ = _PLACE.unpack(place)
        return Stamp(size, crc)

    def locate(self, path: str) -> bytes:
        """Return where the entry is in the archive, or nothing when there is none."""
        return self._places.get(path, b"")

    def open(self, path: str) -> IO[bytes] | Quarantine:
        """Open the entry for reading, or say why not. It is unpacked into memory: meant for lists, not for images."""
        found = self.stamp(path)
        if isinstance(found, Quarantine):
            return found
        data = self._reader.read_at(path, self._places[path], _MAX_LIST_BYTES)
        return data if isinstance(data, Quarantine) else io.BytesIO(data)

    def read(self, path: str, max_bytes: int) -> bytes | Quarantine:
        """Return the entry's bytes, or why not."""
        return self._reader.read_at(path, self.locate(path), max_bytes)

    def close(self) -> None:
        """Close the archive."""
        self._reader.close()


class ZipReader:
    """Reads entries of a zip by their place. Never unpacks more than was asked for."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, path: str, place: bytes, max_bytes: int) -> bytes | Quarantine:
        """Return the bytes of the entry at `place`, or why not."""
        reason = unsafe(path)
        if reason is not None:
            return Quarantine(reason)
        if not place:
            return Quarantine("the image is missing")
        offset, packed_size, size, crc, method, flags = _PLACE.unpack(place)
        if max(size, packed_size - _PACKING_SLACK) > max_bytes:
            return Quarantine(too_big(max(size, packed_size), max_bytes))
        if flags & _ENCRYPTED:
            return Quarantine("the zip entry is encrypted")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return Quarantine(f"the zip entry is packed by method {method}; only stored and deflated ones are read")
        try:
            packed = self._packed(offset, packed_size)
            data = packed if method == zipfile.ZIP_STORED else _inflated(packed, size)
        except (OSError, zlib.error) as error:
            return Quarantine(f"the zip entry cannot be unpacked: {error}")
        if len(data) != size or zlib.crc32(data) != crc:
            return Quarantine("the zip entry cannot be unpacked: its size or checksum is wrong")
        return data

    def close(self) -> None:
        """Close the archive."""
        os.close(self._descriptor)

    def _packed(self, offset: int, size: int) -> bytes:
        header = os.pread(self._descriptor, _LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise OSError("no entry where the directory says")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        return os.pread(self._descriptor, size, offset + _LOCAL_HEADER.size + name_length + extra_length)


def _place(info: zipfile.ZipInfo) -> bytes:
    return _PLACE.pack(
        info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits
    )


def _inflated(packed: bytes, size: int) -> bytes:
    """Inflate at most one byte more than `size`: an entry that holds more than it claims is not unpacked further."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
