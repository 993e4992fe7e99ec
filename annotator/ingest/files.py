"""Read files of a registered folder or zip, and nothing outside of it."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from annotator.ingest.decode import Quarantine

MAX_PATH = 1024
_IGNORED_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells, without reading it, that a file is still the same: its size and its mtime (folder) or CRC (zip)."""

    file_bytes: int
    file_stamp: int


def unsafe(path: str) -> str | None:
    """Return why `path` may not be used as a path inside a source, or None when it may."""
    if not path or path in (".", "/"):
        return "the path is empty"
    if "\0" in path:
        return "the path holds a NUL character"
    if len(path) > MAX_PATH:
        return f"the path is longer than {MAX_PATH} characters"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "the file name is not valid UTF-8"
    if "\\" in path:
        return "the path holds a backslash; use forward slashes"
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "the path is absolute; paths are relative to the source"
    if ".." in path.split("/"):
        return "the path leaves the source by '..'"
    return None


def storable(path: str) -> str:
    """Return `path` in a form that any database can keep: undecodable bytes and NUL escaped, cut to `MAX_PATH`."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")[:MAX_PATH]


class FolderFiles:
    """Files of a folder. A link is followed only to a place inside the folder."""

    kind: Literal["folder", "zip"] = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._real = os.path.realpath(root)
        self._problems: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What `walk` could not read, one line each."""
        return self._problems

    def walk(self, under: str = "") -> Iterator[str]:
        """Yield the path of every file below `under`, sorted; folders reached by a link are not entered."""
        try:
            with os.scandir(os.path.join(self._real, under)) as found:  # noqa: PTH118 (paths are text here, for speed)
                entries = sorted(found, key=lambda e: e.name)
        except OSError as error:
            self._problems.append(f"{under or '.'}: {error.strerror or error}")
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _IGNORED_NAMES:
                continue
            path = f"{under}/{entry.name}" if under else entry.name
            if len(path) > MAX_PATH:
                self._problems.append(f"{storable(path[:80])}…: the path is longer than {MAX_PATH} characters")
            elif entry.is_dir(follow_symlinks=False):
                yield from self.walk(path)
            elif entry.is_symlink() and entry.is_dir():
                self._problems.append(f"{storable(path)}: a link to a folder is not followed")
            else:
                yield path

    def folders(self, under: str = "") -> list[str]:
        """Return the names of the folders directly in `under`, sorted."""
        try:
            with os.scandir(os.path.join(self._real, under)) as found:  # noqa: PTH118
                names = [e.name for e in found if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        except OSError:
            return []  # reported once, by `walk`
        return sorted(n for n in names if n not in _IGNORED_NAMES)

    def exists(self, path: str) -> bool:
        """Tell whether `path` is a regular file of the source."""
        return isinstance(self.stamp(path), Stamp)

    def stamp(self, path: str) -> Stamp | Quarantine:
        """Return size and mtime, or why they cannot be had."""
        reason = unsafe(path)
        if reason is not None:
            return Quarantine(reason)
        try:
            info = os.stat(f"{self._real}/{path}")  # noqa: PTH116
        except OSError as error:
            return _unreadable(error)
        if not stat.S_ISREG(info.st_mode):
            return Quarantine("not a regular file")
        return Stamp(info.st_size, info.st_mtime_ns)

    def open(self, path: str) -> IO[bytes] | Quarantine:
        """Open the file after following links, provided that they end inside the root."""
        reason = unsafe(path)
        if reason is not None:
            return Quarantine(reason)
        real = os.path.realpath(f"{self._real}/{path}")
        if not real.startswith(self._real.rstrip("/") + "/"):
            return Quarantine("the path leads out of the source by a link")
        try:
            # Non-blocking: opening a pipe that nobody writes to would otherwise hang the import.
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return _unreadable(error)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return Quarantine("not a regular file")
        return open(descriptor, "rb")

    def read(self, path: str, max_bytes: int) -> bytes | Quarantine:
        """Return the file's bytes, or why not."""
        file = self.open(path)
        if isinstance(file, Quarantine):
            return file
        with file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                return Quarantine(too_big(size, max_bytes))
            try:
                return file.read(max_bytes + 1)
            except OSError as error:
                return _unreadable(error)

    def locate(self, path: str) -> bytes:
        """Return nothing: the path is enough."""
        return b""

    def read_at(self, path: str, place: bytes, max_bytes: int) -> bytes | Quarantine:
        """Return the file's bytes, or why not."""
        return self.read(path, max_bytes)

    def close(self) -> None:
        """Do nothing: no handle stays open."""


def hidden(name: str) -> bool:
    """Tell whether a file of that path is left out of listings."""
    parts = name.split("/")
    return any(p in _IGNORED_NAMES or (p.startswith(".") and p != "..") for p in parts)


def _unreadable(error: OSError) -> Quarantine:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Quarantine("the image is missing")
    return Quarantine(f"the file cannot be read: {error.strerror or error}")


def too_big(size: int, limit: int) -> str:
    """Return the reason for refusing a file of `size` bytes."""
    return f"the file has {size} bytes; the limit is {limit}"
