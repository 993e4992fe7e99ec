"""How a running `watch` is woken: `labelstudio.wake`, a file of the workspace that webhooks are noted in.

What it says is a hint and nothing else: a word that is lost, doubled or late costs a look, never an answer.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from annotator.settings import Workspace

WAKE = "labelstudio.wake"
_LOOK, _FULL = b"look\n", b"full\n"


@dataclass(frozen=True, slots=True)
class Hint:
    """What has been noted since the last look: `woken` at all; `full`, that something was deleted there."""

    woken: bool
    full: bool


class Wake:
    """Both ends of the file: `ring` for whoever hears of news, `waiting` and `take` for the one who acts on them."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / WAKE

    def ring(self, *, full: bool = False) -> None:
        """Note that there is news; `full`: compare the ids of both sides, a deletion shows nowhere else."""
        with self._held() as file:
            noted = os.read(file, len(_LOOK + _FULL))
            word = _FULL if full else _LOOK
            if word not in noted:  # so the file never grows past both words
                os.write(file, word)
            os.utime(file)

    def waiting(self) -> bool:
        """Tell whether there is news; costs one look at the file's size."""
        try:
            return self._path.stat().st_size > 0
        except OSError:
            return False

    def take(self) -> Hint:
        """Return what was noted, and forget it."""
        if not self.waiting():
            return Hint(woken=False, full=False)
        with self._held() as file:
            noted = os.read(file, len(_LOOK + _FULL))
            os.ftruncate(file, 0)
        return Hint(woken=bool(noted), full=_FULL in noted)

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        # Never renamed or deleted, and read and changed under one lock: no word falls between two looks.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)
