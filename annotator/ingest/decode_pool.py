"""Decode in other processes: in order, with bounded memory, surviving a file that crashes the decoder.

A process of the pool ends by itself when its parent dies, whatever killed it: its end of the pipe closes.
"""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Self

from annotator.errors import WorkspaceError
from annotator.ingest.decode import Limits, Quarantine
from annotator.ingest.decode_worker import READY, Located, Outcome, Setup, Task
from annotator.ingest.faces.detector import DetectorChoice
from annotator.ingest.sources import SourceFiles

MAX_CHUNK = 64
_SEARCHED_CHUNK = 8
"""Files in a chunk that is searched for faces: each takes long, and may hold many faces."""
_CHUNK_BYTES = 4_000_000
_AHEAD = 2
"""Chunks a process may be ahead: their paths must fit a socket's buffer, or both sides would wait for each other."""


def chunk_size(size: int, searched: bool = False) -> int:
    """Return how many files make a chunk: pixels at `size` stay near 4 MB; a few when they are `searched` for faces."""
    return max(1, min(_SEARCHED_CHUNK if searched else MAX_CHUNK, _CHUNK_BYTES // (size * size * 3)))


class DecodePool:
    """Decode files of one source at one size. With `workers` 0 it decodes in this process."""

    def __init__(
        self, files: SourceFiles, size: int, limits: Limits, workers: int, detector: DetectorChoice | None = None
    ) -> None:
        self._files = files
        self._setup = Setup(files.root, files.kind, size, limits, detector)
        self._workers = [_Worker(self._setup) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes."""
        for worker in self._workers:
            worker.stop()

    def map(self, chunks: Iterable[list[Task]]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each chunk in order, at most `_AHEAD` chunks a process ahead of the caller.

        Raises:
            WorkspaceError: a process could not be started.
        """
        if not self._workers:
            decoder = self._setup.open()
            for chunk in chunks:
                yield [decoder(task) for task in self._located(chunk)]
            return
        order: deque[_Worker] = deque()
        for turn, chunk in enumerate(chunks):
            worker = self._workers[turn % len(self._workers)]
            worker.send(self._located(chunk))
            order.append(worker)
            if len(order) >= _AHEAD * len(self._workers):
                yield order.popleft().receive()
        while order:
            yield order.popleft().receive()

    def _located(self, chunk: list[Task]) -> list[Located]:
        return [(path, crop, self._files.locate(path)) for path, crop in chunk]


class _Worker:
    """One decoding process and the chunks that it still owes."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._owed: deque[list[Located]] = deque()
        self._start()

    def _start(self) -> None:
        """Start a bare interpreter: it imports the decoder and not, as multiprocessing would, this program's main."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "annotator.ingest.decode_worker", str(theirs.fileno())]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._pipe = Connection(ours.detach())
        self._ready = False
        with suppress(OSError):
            self._pipe.send(self._setup)

    def send(self, chunk: list[Located]) -> None:
        self._owed.append(chunk)
        with suppress(OSError):  # a dead process is noticed, and its chunks done again, by `receive`
            self._pipe.send(chunk)

    def receive(self) -> list[Outcome]:
        self._await_ready()
        try:
            outcomes: list[Outcome] = self._pipe.recv()
        except (EOFError, OSError):
            return self._recover()
        self._owed.popleft()
        return outcomes

    def _recover(self) -> list[Outcome]:
        """Do the chunk in hand again, one file at a time, so that only the file that crashes the decoder is lost."""
        outcomes: list[Outcome] = []
        self._restart()
        for task in self._owed.popleft():
            self._await_ready()
            try:
                self._pipe.send([task])
                outcomes += self._pipe.recv()
            except (EOFError, OSError):
                outcomes.append(Quarantine("the image crashes the decoder"))
                self._restart()
        for chunk in self._owed:
            with suppress(OSError):
                self._pipe.send(chunk)
        return outcomes

    def _await_ready(self) -> None:
        if self._ready:
            return
        try:
            self._ready = self._pipe.recv() == READY
        except (EOFError, OSError) as error:
            code = self.process.wait()
            raise WorkspaceError(
                f"a decoding process for {self._setup.root} did not start (exit code {code}); nothing was decided "
                "about its images, run the import again"
            ) from error

    def _restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._pipe.close()
        self.process.kill()
        self.process.wait()
