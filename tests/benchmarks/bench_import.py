"""How fast images are imported, in how much memory, and how long others wait for an import's transactions.

    python -m tests.benchmarks.bench_import [--ferplus ../shared/data/ferplus.zip] [--images 100000] [--naive 2000]

Prints one JSON object: the FER+ archive where it is given, a generated zip of `--images` small PNGs, and for comparison
a plain loop over the same zip (open, resize, hash, commit, one by one). Memory is the sum over the importing process
and its children, sampled five times a second; pages that several of them share are counted once (PSS).
"""

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
import psutil
from PIL import Image

from annotator import taxonomy
from annotator.ingest.importer import run_import
from annotator.records import ImageRecord, NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import GivenAs

SIDE = 48


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferplus", type=Path, default=None, help="the FER+ archive")
    parser.add_argument("--images", type=int, default=100_000, help="how many PNGs to generate")
    parser.add_argument("--naive", type=int, default=2_000, help="how many images the plain loop takes")
    parser.add_argument("--folder", default=None, help="where the workspaces go; a temporary folder when left out")
    options = parser.parse_args()
    figures: dict[str, object] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.ferplus is not None:
            figures["ferplus"] = measure(folder / "fer", options.ferplus, "ferplus")
        if options.images:
            archive = generate(folder / "faces.zip", options.images)
            figures["generated"] = measure(folder / "gen", archive, "folder")
            figures["naive"] = naive(folder / "naive", archive, min(options.naive, options.images))
    print(json.dumps(figures, indent=2))


def generate(archive: Path, count: int) -> Path:
    """Write a zip of `count` different gray PNGs."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for number in range(count):
            buffer = BytesIO()
            pixels = np.repeat(np.repeat(rng.integers(0, 256, (12, 12), dtype=np.uint8), 4, 0), 4, 1)
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            out.writestr(f"{number // 1000:04d}/{number:07d}.png", buffer.getvalue())
    return archive


def measure(root: Path, source: Path, format: str) -> dict[str, object]:
    """Import `source` twice into a new workspace."""
    workspace = Workspace.create(root, taxonomy.FERPLUS)
    with LabelStore.open(workspace) as store:
        timed = _Timed(store)
        with PeakMemory() as memory:
            first = run_import(workspace, store, source, format)
        second = run_import(workspace, store, source, format)
    spent = np.array(timed.seconds) * 1000
    return {
        "samples": first.samples,
        "images_per_s": round(first.images_per_s),
        "seconds": round(first.seconds, 2),
        "cpu_seconds": round(memory.cpu_seconds, 2),
        "peak_mb": round(memory.peak / 1e6),
        "transactions": len(spent),
        "transaction_ms": {
            "p50": round(float(np.quantile(spent, 0.5)), 1),
            "p99": round(float(np.quantile(spent, 0.99)), 1),
            "max": round(float(spent.max()), 1),
        },
        "repeated_rows": first.repeated_rows,
        "distinct": first.distinct,
        "straddling_groups": first.straddling,
        "second_run": {"added": second.added, "unchanged": second.unchanged, "seconds": round(second.seconds, 2)},
    }


def naive(root: Path, source: Path, count: int) -> dict[str, object]:
    """Import the first `count` images of a zip one by one: open, resize, hash, commit."""
    workspace = Workspace.create(root, taxonomy.FERPLUS)
    with LabelStore.open(workspace) as store, zipfile.ZipFile(source) as archive:
        source_id = store.images.register_source(str(source), "zip", "folder")
        began = time.perf_counter()
        for name in archive.namelist()[:count]:
            with Image.open(BytesIO(archive.read(name))) as opened:
                image = opened.convert("RGB").resize((SIDE, SIDE))
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            new = NewImage(name, "pool", "active", digest, 1, 1, SIDE, SIDE, "image/png")
            store.images.add(source_id, [new], "none")
        seconds = time.perf_counter() - began
    return {"samples": count, "images_per_s": round(count / seconds)}


class _Timed:
    """Time every transaction that adds images to `store`."""

    def __init__(self, store: LabelStore) -> None:
        self.seconds: list[float] = []
        self._add = store.images.add
        store.images.add = self._timed  # type: ignore[method-assign]

    def _timed(self, source_id: int, new: Sequence[NewImage], given_as: GivenAs) -> list[ImageRecord]:
        began = time.perf_counter()
        try:
            return self._add(source_id, new, given_as)
        finally:
            self.seconds.append(time.perf_counter() - began)


class PeakMemory:
    """Sample the memory of this process and its children; `peak` in bytes, `cpu_seconds` of all of them."""

    def __init__(self) -> None:
        self.peak = 0
        self.cpu_seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._cpu: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._own = sum(psutil.Process().cpu_times()[:2])
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        own = psutil.Process().pid
        self.cpu_seconds = sum(self._cpu.values()) - self._own if own in self._cpu else 0.0

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.2):
            total = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    total += member.memory_full_info().pss
                    self._cpu[member.pid] = sum(member.cpu_times()[:2])
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


if __name__ == "__main__":
    main()
