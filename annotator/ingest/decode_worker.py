"""A decoding process: `python -m annotator.ingest.decode_worker FD`, started by `decode_pool` with a socket to it."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from annotator.ingest.crops import Crop
from annotator.ingest.decode import Decoded, Limits, Quarantine, open_upright, take
from annotator.ingest.faces.detector import DetectorChoice
from annotator.ingest.faces.search import Detected, FaceSearch
from annotator.ingest.sources import open_reader

Task = tuple[str, Crop | None]
"""A path in the source and the crop to take of it."""
Located = tuple[str, Crop | None, bytes]
"""A task with the place of its file, from `SourceFiles.locate`."""
Outcome = Decoded | Quarantine | list[Detected]
"""What becomes of a file; a list of one or more where it was searched for faces."""
_NICE = 15
READY = "ready"
"""The first message of a process: before it no file has been touched, so no file can be why it does not come."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a decoding process has to know."""

    root: Path
    kind: Literal["folder", "zip"]
    size: int
    limits: Limits
    detector: DetectorChoice | None = None

    def open(self) -> "Decoder":
        """Open the source for reading, and the detector where there is one."""
        return Decoder(self)


class Decoder:
    """Reads and decodes files of one source; with a detector, a file without a crop is searched for faces."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._reader = open_reader(setup.root, setup.kind)
        self._search = FaceSearch(setup.detector) if setup.detector is not None else None

    def __call__(self, task: Located) -> Outcome:
        """Read and decode one file."""
        path, crop, place = task
        size, limits = self._setup.size, self._setup.limits
        data = self._reader.read_at(path, place, limits.max_bytes)
        upright = data if isinstance(data, Quarantine) else open_upright(data, path, limits)
        if isinstance(upright, Quarantine):
            return upright
        if self._search is not None and crop is None:
            return self._search(upright, size, limits)
        return take(upright, size, limits, crop)


def serve(pipe: Connection) -> None:
    """Decode chunks until the other side closes its end, which it does by dying, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the importing process's to handle
    os.nice(_NICE)  # people's clicks come before an import
    with suppress(EOFError, OSError):
        setup: Setup = pipe.recv()
        decoder = setup.open()
        pipe.send(READY)
        while True:
            pipe.send([decoder(task) for task in pipe.recv()])


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
