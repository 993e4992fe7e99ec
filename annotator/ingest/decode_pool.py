"""Decode in other processes: in order, with bounded memory, surviving a file that crashes the decoder.

A process of the pool ends by itself when its parent dies, whatever killed it: its end of the pipe closes.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from annotator.ingest.decode import Box, Decoded, Limits, Quarantine, decode
from annotator.ingest.files import SourceFiles, open_files

Task = tuple[str, Box | None]
"""A path in the source and the crop to take of it."""
Outcome = Decoded | Quarantine
MAX_CHUNK = 64
_CHUNK_BYTES = 4_000_000
_AHEAD = 2
"""Chunks a process may be ahead: their paths must fit a socket's buffer, or both sides would wait for each other."""
_NICE = 10


def chunk_size(size: int) -> int:
    """Return how many faces of `size` make a chunk whose pixels stay near 4 MB."""
    return max(1, min(MAX_CHUNK, _CHUNK_BYTES // (size * size * 3)))


class DecodePool:
    """Decode files of one source at one size. With `workers` 0 it decodes in this process."""

    def __init__(self, root: Path, size: int, limits: Limits, workers: int) -> None:
        self._root, self._size, self._limits = root, size, limits
        self._files = open_files(root) if workers == 0 else None
        self._workers = [_Worker(root, size, limits) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes."""
        if self._files is not None:
            self._files.close()
        for worker in self._workers:
            worker.stop()

    def map(self, chunks: Iterable[list[Task]]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each chunk in order, at most `_AHEAD` chunks a process ahead of the caller."""
        if self._files is not None:
            for chunk in chunks:
                yield [_decode_one(self._files, task, self._size, self._limits) for task in chunk]
            return
        source = iter(chunks)
        order: deque[_Worker] = deque()
        for turn, chunk in enumerate(source):
            worker = self._workers[turn % len(self._workers)]
            worker.send(chunk)
            order.append(worker)
            if len(order) >= _AHEAD * len(self._workers):
                yield order.popleft().receive()
        while order:
            yield order.popleft().receive()


class _Worker:
    """One decoding process and the chunks that it still owes."""

    def __init__(self, root: Path, size: int, limits: Limits) -> None:
        self._arguments = (root, size, limits)
        self._owed: deque[list[Task]] = deque()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True, name="decode")
        self._process.start()
        theirs.close()

    def send(self, chunk: list[Task]) -> None:
        self._owed.append(chunk)
        with suppress(OSError):  # a dead process is noticed, and its chunks done again, by `receive`
            self._pipe.send(chunk)

    def receive(self) -> list[Outcome]:
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

    def _restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, root: Path, size: int, limits: Limits) -> None:
    """Decode chunks until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(_NICE)  # people's clicks come before an import
    files = open_files(root)
    with suppress(EOFError, OSError):
        while True:
            pipe.send([_decode_one(files, task, size, limits) for task in pipe.recv()])


def _decode_one(files: SourceFiles, task: Task, size: int, limits: Limits) -> Outcome:
    path, crop = task
    data = files.read(path, limits.max_bytes)
    return data if isinstance(data, Quarantine) else decode(data, path, size, limits, crop)
