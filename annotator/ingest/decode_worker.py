"""A decoding process: `python -m annotator.ingest.decode_worker FD`, started by `decode_pool` with a socket to it."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from annotator.ingest.decode import Box, Decoded, Limits, Quarantine, decode
from annotator.ingest.sources import Reader, open_reader

Task = tuple[str, Box | None]
"""A path in the source and the crop to take of it."""
Located = tuple[str, Box | None, bytes]
"""A task with the place of its file, from `SourceFiles.locate`."""
Outcome = Decoded | Quarantine
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

    def open(self) -> Reader:
        """Open the source for reading."""
        return open_reader(self.root, self.kind)


def decode_at(reader: Reader, task: Located, setup: Setup) -> Outcome:
    """Read and decode one file."""
    path, crop, place = task
    data = reader.read_at(path, place, setup.limits.max_bytes)
    return data if isinstance(data, Quarantine) else decode(data, path, setup.size, setup.limits, crop)


def serve(pipe: Connection) -> None:
    """Decode chunks until the other side closes its end, which it does by dying, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the importing process's to handle
    os.nice(_NICE)  # people's clicks come before an import
    with suppress(EOFError, OSError):
        setup: Setup = pipe.recv()
        reader = setup.open()
        pipe.send(READY)
        while True:
            pipe.send([decode_at(reader, task, setup) for task in pipe.recv()])


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
