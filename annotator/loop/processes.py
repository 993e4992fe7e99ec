"""Child processes that never outlive their parent and never get in the way of the page."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def start_child(
    arguments: list[str],
    *,
    nice: int = 0,
    threads: int | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `python -m …` as a child that is ended when this process dies, kill -9 included (on Linux).

    Args:
        arguments: what follows the interpreter, e.g. `["-m", "learner", "round", path]`.
        nice: added to this process's niceness, 0 to 19.
        threads: fixed thread budget of numeric libraries; None leaves the environment as it is.
        log: file that takes standard output and error, appended to; None inherits ours.
        cwd: the child's working folder.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        if nice:
            _step_back(nice)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # The parent may have died between fork and prctl; then no signal would ever come.
            if os.getppid() != parent:
                os._exit(1)

    environment = dict(os.environ)
    if threads is not None:
        environment.update({name: str(threads) for name in _THREAD_VARIABLES})
    command = [sys.executable, *arguments]
    if log is None:
        return subprocess.Popen(command, env=environment, cwd=cwd, preexec_fn=prepare)
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, env=environment, cwd=cwd, preexec_fn=prepare, stdout=stream, stderr=subprocess.STDOUT
        )


def _step_back(nice: int) -> None:
    """Lower the priority of this process, which is about to become a child.

    Linux weighs sessions before it weighs the processes in them (autogroups): niceness alone would leave the page's
    fsync waiting for a training run. So the child gets a session of its own, and that session the same niceness.
    """
    os.nice(nice)
    os.setsid()
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
        group.write(str(nice))


def stop_child(child: "subprocess.Popen[bytes]", grace_seconds: float) -> int:
    """End a child by SIGTERM, by SIGKILL after `grace_seconds`, and return its exit code."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()
