"""Open a source: the files of a folder or of a zip, and lean readers of them for other processes."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, Protocol

from annotator.errors import ImportSourceError
from annotator.ingest.decode import Quarantine
from annotator.ingest.files import FolderFiles, Stamp
from annotator.ingest.zip_files import ZipFiles, ZipReader


class SourceFiles(Protocol):
    """The files under one root. Paths are relative, with forward slashes."""

    root: Path
    kind: Literal["folder", "zip"]

    def walk(self, under: str = "") -> Iterator[str]:
        """Yield the path of every file below the folder `under`, sorted, hidden ones left out."""

    def folders(self, under: str = "") -> list[str]:
        """Return the names of the folders directly in `under`, sorted, hidden ones left out."""

    def exists(self, path: str) -> bool:
        """Tell whether `path` is a regular file of the source."""

    def stamp(self, path: str) -> Stamp | Quarantine:
        """Return the file's stamp, or why it cannot be had."""

    def locate(self, path: str) -> bytes:
        """Return what a `Reader` of this source needs besides the path to find the file at once."""

    def open(self, path: str) -> IO[bytes] | Quarantine:
        """Open the file for reading, or say why not."""

    def read(self, path: str, max_bytes: int) -> bytes | Quarantine:
        """Return the file's bytes, or why not; never more than `max_bytes` are read."""

    @property
    def problems(self) -> list[str]:
        """What `walk` could not read, one line each."""

    def close(self) -> None:
        """Release the file handles."""


class Reader(Protocol):
    """Reads files of a source that was listed elsewhere."""

    def read_at(self, path: str, place: bytes, max_bytes: int) -> bytes | Quarantine:
        """Return the bytes of `path`, which `SourceFiles.locate` found at `place`, or why not."""


def open_reader(root: Path, kind: Literal["folder", "zip"]) -> Reader:
    """Open `root` for reading only, without listing it."""
    return ZipReader(root) if kind == "zip" else FolderFiles(root)


def open_files(root: Path) -> SourceFiles:
    """Open a folder or a zip.

    Raises:
        ImportSourceError: it does not exist, cannot be read, or is neither.
    """
    if not root.exists():
        raise ImportSourceError(f"{root} does not exist")
    if root.is_dir():
        try:
            os.scandir(root).close()
        except OSError as error:
            raise ImportSourceError(f"{root} cannot be read: {error.strerror or error}") from error
        return FolderFiles(root)
    if not root.is_file():
        raise ImportSourceError(f"{root} is neither a folder nor a file")
    try:
        return ZipFiles(root)
    except PermissionError as error:
        raise ImportSourceError(f"{root} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise ImportSourceError(f"{root} is neither a folder nor a readable zip file: {error}") from error
