"""Files by row: which there are, and how one is replaced."""

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
