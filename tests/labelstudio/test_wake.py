"""The file that webhooks are noted in: one process rings, another looks."""

import threading
import time
from pathlib import Path

from annotator.labelstudio.wake import WAKE, Hint, Wake
from annotator.settings import Workspace


def test_what_was_noted_is_told_once(workspace: Workspace) -> None:
    wake = Wake(workspace)
    assert not wake.waiting()
    assert wake.take() == Hint(woken=False, full=False)
    wake.ring()
    assert Wake(workspace).waiting()
    assert Wake(workspace).take() == Hint(woken=True, full=False)
    assert not wake.waiting()
    wake.ring(full=True)
    wake.ring()
    assert wake.take() == Hint(woken=True, full=True)
    assert wake.take() == Hint(woken=False, full=False)


def test_a_ring_moves_the_time_of_the_file_and_it_does_not_grow(workspace: Workspace) -> None:
    wake, path = Wake(workspace), Path(workspace.root / WAKE)
    wake.ring()
    before = path.stat().st_mtime_ns
    for _ in range(200):
        wake.ring()
        wake.ring(full=True)
    assert path.stat().st_mtime_ns > before
    assert path.stat().st_size < 20


def test_no_word_is_lost_between_a_ring_and_a_look(workspace: Workspace) -> None:
    rung, told = 1_000, [0]
    done, give_up = threading.Event(), time.monotonic() + 30

    def look() -> None:
        while not done.is_set():
            told[0] += Wake(workspace).take().woken
        told[0] += Wake(workspace).take().woken

    looker = threading.Thread(target=look)
    looker.start()
    wake = Wake(workspace)
    for _ in range(rung):
        wake.ring()
        while wake.waiting() and time.monotonic() < give_up:
            pass
    done.set()
    looker.join()
    # Each ring waited until its word was taken: every one of them was told.
    assert told[0] == rung
