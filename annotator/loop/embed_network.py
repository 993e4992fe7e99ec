"""Embed faces with a network in a child process, as they arrive: torch stays out of ours, and nobody waits.

As a command: `python -m annotator.loop.embed_network rows FOLDER CACHE [SNAPSHOT]` appends the features of every cached
row to the encoder in FOLDER; `… make timm:NAME CACHE SIZE OUT` reads a model of timm's hub out on the cached faces.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import numpy as np
from numpy.typing import NDArray

from annotator.encoders import NETWORK, WEIGHTS
from annotator.errors import AnnotatorError
from annotator.features import FeatureShards
from annotator.loop.embed import PixelShards
from annotator.loop.processes import start_child, stop_child
from annotator.settings import Workspace

log = logging.getLogger(__name__)

STEP_ROWS = 1024
"""Rows per shard: a few seconds of work, which is what a kill costs."""
LINGER_SECONDS = 10.0
"""A child that has caught up waits this long for more: loading torch takes seconds."""
LOOK_SECONDS = 0.25
FIT_FACES = 4000
MAX_DEATHS = 3
"""A child that is killed is started again this often before it counts as failed."""
NICE = 19
Read = Callable[[NDArray[np.int64]], NDArray[np.float32]]


class NetworkFeatures:
    """Grows the features of an encoder as faces arrive. `step` never waits for the child, the shards' only writer."""

    def __init__(self, workspace: Workspace, shards: FeatureShards) -> None:
        self.shards = shards
        self.failure: str | None = None
        self._threads = workspace.settings.learner.threads
        size = shards.info.image_size if shards.info.kind != NETWORK else workspace.settings.learner.image_size
        self._pixels = PixelShards(workspace.folder("cache") / str(size))
        self._arguments = ["rows", str(shards.folder), str(self._pixels.folder)]
        if shards.info.kind != NETWORK:
            self._arguments.append(str(workspace.folder("snapshots") / shards.info.id))
        self._child: Popen[bytes] | None = None
        self._failed_at = -1
        self._deaths = 0

    @property
    def caught_up(self) -> bool:
        """Whether every cached face has features."""
        return 0 < self._pixels.stop <= self.shards.stop

    def step(self) -> int:
        """Take in what the child has appended, start one for faces that wait; return how many rows are new."""
        before = self.shards.stop
        self.shards.reload()
        self._pixels.reload()
        if self._child is not None and (code := self._child.poll()) is not None:
            self._child = None
            self.shards.reload()
            if code < 0 and self._deaths < MAX_DEATHS:
                self._deaths += 1
                log.warning("embedding with %s was killed by signal %s; going on", self.shards.info.id, -code)
            elif code != 0:
                # Without their features these faces wait, in import order, until more come or the next start.
                self._failed_at = self._pixels.stop
                self.failure = _explain(self.shards.folder / "log.txt", code)
                log.warning("embedding with %s failed: %s", self.shards.info.id, self.failure)
        if self._child is None and self.shards.stop < self._pixels.stop != self._failed_at:
            self._child = _start(self._arguments, self._threads, self.shards.folder / "log.txt")
        if self.caught_up:
            self.failure = None
        return self.shards.stop - before

    def close(self) -> None:
        """End the child; its rows are embedded at the next start."""
        if self._child is not None:
            stop_child(self._child, 1.0)
            self._child = None


class HubMaker:
    """Makes the file of an encoder from a model of timm's hub, once, in a child."""

    def __init__(self, workspace: Workspace, source: str) -> None:
        size = workspace.settings.learner.image_size
        cache = workspace.folder("cache") / str(size)
        self.file = workspace.folder("encoders") / f".hub-{size}.safetensors"
        self.failure: str | None = None
        self._log = workspace.folder("encoders") / ".hub-log.txt"
        self._child: Popen[bytes] | None = _start(
            ["make", source, str(cache), str(size), str(self.file)], workspace.settings.learner.threads, self._log
        )

    def done(self) -> bool:
        """Tell whether the file is there."""
        if self._child is None or (code := self._child.poll()) is None:
            return False
        self._child = None
        if code != 0:
            self.failure = _explain(self._log, code)
        return code == 0

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            stop_child(self._child, 1.0)
            self._child = None


def _start(arguments: list[str], threads: int, words: Path) -> "Popen[bytes]":
    return start_child(["-m", "annotator.loop.embed_network", *arguments], nice=NICE, threads=threads, log=words)


def _explain(words: Path, code: int) -> str:
    """Return why a child failed: the last thing that it said."""
    if code < 0:
        return f"killed by signal {-code}"
    try:
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"ended with code {code}"


def embed(folder: Path, cache: Path, snapshot: Path | None, linger: float = LINGER_SECONDS) -> None:
    """Append the features of every cached row to the encoder in `folder`, and of those that come within `linger` s."""
    shards, pixels = FeatureShards(folder), PixelShards(cache)
    read = _of_encoder(folder, pixels) if snapshot is None else _of_snapshot(folder, cache, snapshot)
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < linger:
        pixels.reload()
        start = max(shards.stop, pixels.first)
        stop = min(start + STEP_ROWS, pixels.stop)
        if stop <= start:
            time.sleep(LOOK_SECONDS)
            continue
        shards.append(start, read(np.arange(start, stop, dtype=np.int64)).astype(np.float16))
        idle_since = time.monotonic()


def _of_encoder(folder: Path, pixels: PixelShards) -> Read:
    from learner.pretrain.encoder import FaceEncoder

    encoder = FaceEncoder.load(folder / WEIGHTS)

    def read(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        faces = pixels.read(int(rows[0]), int(rows[-1]) + 1)
        there = faces.reshape(len(faces), -1).any(axis=1)  # broken images and copies are black
        features = np.zeros((len(faces), encoder.dim), dtype=np.float32)
        features[there] = encoder(faces[there])
        return features

    return read


def _of_snapshot(folder: Path, cache: Path, snapshot: Path) -> Read:
    from learner.data import PixelCache
    from learner.snapshot import load

    loaded = load(snapshot)
    with np.load(folder / "model.npz", allow_pickle=False) as data:
        mean, scale = data["mean"], float(data["scale"][0])

    def read(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        pixels = PixelCache(cache, loaded.config.image_size)  # anew: shards have come since
        cached = pixels.has(rows)
        found = loaded.predictor(pixels).predict(rows[cached]).features
        features = np.zeros((len(rows), found.shape[1]), dtype=np.float32)
        features[cached] = (found - mean) * scale
        return features

    return read


def make(source: str, cache: Path, size: int, out: Path) -> None:
    """Read the hub's model out on the principal components of the cached faces and write the encoder's file."""
    from learner.config import BackboneConfig
    from learner.pretrain.bodies import make_body
    from learner.pretrain.config import PretrainConfig
    from learner.pretrain.encoder import fit_readout

    name = source.split(":", 1)[1]
    config = PretrainConfig(image_size=size, backbone=BackboneConfig(name=name, weights="timm"))
    body, _ = make_body(config.backbone, size)
    pixels = PixelShards(cache)
    blocks = np.unique(np.linspace(pixels.first, max(pixels.first, pixels.stop - 256), FIT_FACES // 256).astype(int))
    sample = np.concatenate([pixels.read(start, min(start + 256, pixels.stop)) for start in blocks])
    fit_readout(body, config, sample, name.replace("/", "-"), "cpu").save(out)


def main(arguments: list[str]) -> None:
    """Do what the module says; what goes wrong ends in one line that the learner shows."""
    from learner.errors import LearnerError

    what, *rest = arguments
    try:
        if what == "rows":
            embed(Path(rest[0]), Path(rest[1]), Path(rest[2]) if len(rest) > 2 else None)
        else:
            make(rest[0], Path(rest[1]), int(rest[2]), Path(rest[3]))
    except (LearnerError, AnnotatorError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
