"""`annotator up`: what dies is started again, and nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from annotator.loop.processes import start_child, stop_child


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from annotator.loop.processes import start_child\n"
        "print(start_child(['-c', 'import time; time.sleep(600)']).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    give_up = time.monotonic() + 10
    while alive(child) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not alive(child)


def test_a_child_has_its_own_niceness_threads_and_log(tmp_path: Path) -> None:
    code = "import os; print(os.nice(0), os.environ['OMP_NUM_THREADS'], flush=True)"
    child = start_child(["-c", code], nice=5, threads=1, log=tmp_path / "log")
    assert child.wait(30) == 0
    assert (tmp_path / "log").read_text().split() == [str(os.nice(0) + 5), "1"]


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    child = start_child(["-c", code], log=tmp_path / "log")
    give_up = time.monotonic() + 30
    while not (tmp_path / "log").read_text() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert stop_child(child, grace_seconds=0.2) == -signal.SIGKILL
