"""Real child processes without the seconds that loading torch or Gradio takes: one process loads, and forks the others.

`Zygote.start` does what `annotator.loop.processes.start_child` does for `python -m …`, `Zygote.popen` and `Zygote.run`
what their namesakes of `subprocess` do. The children are processes with a pid, an exit code and signals of their own;
they share nothing but what importing has left in memory.
"""

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_PR_SET_PDEATHSIG = 1


class Child:
    """A forked process, with the methods of `subprocess.Popen` that the project uses."""

    def __init__(self, zygote: "Zygote", pid: int, said: tuple[Path, Path] | None = None) -> None:
        self._zygote = zygote
        self._said = said
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative for a signal), None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; `subprocess.TimeoutExpired` after `timeout` seconds."""
        give_up = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to standard output and to standard error."""
        assert self._said is not None
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8") for path in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """Loads modules once; a context manager. Its children die with it, and it dies with this process."""

    def __init__(self, *modules: str) -> None:
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="zygote-"))
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *modules],
            cwd=REPOSITORY,
            env={**os.environ, **_ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()
        shutil.rmtree(self._folder)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send one request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: list[str],
        *,
        nice: int = 0,
        threads: int | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Run `python -m …` in a fork. Its priority stays: rounds must make headway on a machine busy with tests."""
        assert arguments[0] == "-m"
        name = str(log or os.devnull)
        told = {"arguments": arguments[1:], "out": name, "err": name, "cwd": str(cwd or Path.cwd()), "env": {}}
        return Child(self, self.ask({"start": told}))

    def popen(self, arguments: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> Child:
        """Run `python -m arguments` with the further environment `env`; `communicate` returns what it says."""
        self._number += 1
        out, err = (self._folder / f"{self._number}.{name}" for name in ("out", "err"))
        told = {"arguments": arguments, "out": str(out), "err": str(err), "cwd": str(cwd or Path.cwd())}
        return Child(self, self.ask({"start": told | {"env": env or {}}}), (out, err))

    def run(
        self, arguments: list[str], cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python -m arguments` to its end and return exit code and words."""
        child = self.popen(arguments, cwd, env)
        out, err = child.communicate(timeout)
        assert child.returncode is not None
        return subprocess.CompletedProcess(arguments, child.returncode, out, err)


def serve() -> None:
    """Answer requests on standard input until it ends."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = _fork(**request["start"]) if "start" in request else _poll(request["poll"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _poll(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _fork(arguments: list[str], out: str, err: str, cwd: str, env: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(env)
        os.chdir(cwd)
        sys.argv = arguments.copy()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    serve()
