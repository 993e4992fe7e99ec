"""Files by row: which there are, and how one is replaced."""

import os
import re
from pathlib import Path

_SHARD = re.compile(r"(pixels|features)-(\d{9})-(\d{9})\.npy")


def shards(root: Path) -> list[tuple[Path, int, int]]:
    """Return (path, start, stop) of every pixel and feature shard of a workspace: it holds the rows [start, stop)."""
    found = []
    for kind in ("cache", "encoders"):
        for path in sorted((root / kind).glob("*/*.npy")):
            match = _SHARD.fullmatch(path.name)
            if match:
                found.append((path, int(match[2]), int(match[3])))
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: complete under a temporary name, on disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
