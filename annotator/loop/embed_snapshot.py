"""Embed faces that arrived after a snapshot with that snapshot's network, in a child process: torch stays out of ours.

As a command: `python -m annotator.loop.embed_snapshot SNAPSHOT CACHE START STOP OUT` writes the features (n, d) float16
of the cached rows START to STOP.
"""

import logging
import os
import sys
from pathlib import Path
from subprocess import Popen

import numpy as np
from numpy.typing import NDArray

from annotator.features import FeatureShards
from annotator.loop.embed import PixelShards
from annotator.loop.processes import start_child, stop_child
from annotator.settings import Workspace

log = logging.getLogger(__name__)

MAX_ROWS = 20_000
NICE = 19


class SnapshotEncoder:
    """Grows the features of a serving snapshot as faces arrive. `step` never waits for the child."""

    def __init__(self, workspace: Workspace, shards: FeatureShards) -> None:
        self.shards = shards
        self._snapshot = workspace.folder("snapshots") / shards.info.id
        self._threads = workspace.settings.learner.threads
        self._pixels = PixelShards(workspace.folder("cache") / str(shards.info.image_size))
        self._out = shards.folder / ".new.npy"
        with np.load(shards.folder / "model.npz", allow_pickle=False) as data:
            self._mean: NDArray[np.float32] = data["mean"]
            self._scale = float(data["scale"][0])
        self._child: Popen[bytes] | None = None
        self._attempt = self._failed_at = -1

    def step(self) -> int:
        """Take in what the child has finished, start one for faces that wait; return how many rows were added."""
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return 0
            self._child = None
            return self._take(code)
        self._pixels.reload()
        start, stop = self.shards.stop, min(self._pixels.stop, self.shards.stop + MAX_ROWS)
        if stop > start and stop != self._failed_at:
            self._attempt = stop
            arguments = [str(self._snapshot), str(self._pixels.folder), str(start), str(stop), str(self._out)]
            self._child = start_child(
                ["-m", "annotator.loop.embed_snapshot", *arguments],
                nice=NICE,
                threads=self._threads,
                log=self.shards.folder / "log.txt",
            )
        return 0

    def _take(self, code: int) -> int:
        if code != 0 or not self._out.is_file():
            # Without their features these faces wait, in import order, for the next snapshot.
            self._failed_at = self._attempt
            log.warning("embedding new faces ended with code %s; see %s", code, self.shards.folder / "log.txt")
            return 0
        raw = np.load(self._out, allow_pickle=False).astype(np.float32)
        self.shards.append(self.shards.stop, ((raw - self._mean) * self._scale).astype(np.float16))
        self._out.unlink()
        return len(raw)

    def close(self) -> None:
        """End the child; its rows are embedded at the next start."""
        if self._child is not None:
            stop_child(self._child, 1.0)
            self._child = None


def main(snapshot: Path, cache: Path, start: int, stop: int, out: Path) -> None:
    """Write the raw features of the cached rows from `start` to `stop`."""
    from learner.data import PixelCache
    from learner.snapshot import load

    loaded = load(snapshot)
    rows = np.arange(start, stop, dtype=np.int64)
    pixels = PixelCache(cache, loaded.config.image_size)
    cached = pixels.has(rows)
    features = loaded.predictor(pixels).predict(rows[cached]).features
    block = np.zeros((len(rows), features.shape[1]), dtype=np.float16)
    block[cached] = features
    temporary = out.with_name(f"{out.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, block, allow_pickle=False)
    temporary.replace(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
