"""A process that pushes, for tests that kill it: it loads everything once and forks for every push.

Run as `python -m tests.labelstudio.killed WORKSPACE URL BATCH`, the key in the environment; each line that it reads
starts a push, whose process id it prints; a second line says how it ended.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "LABEL_STUDIO_API_KEY"


def main() -> None:
    import label_studio_sdk.client  # noqa: F401  (a second to load)

    from annotator.labelstudio.api.server import Server
    from annotator.labelstudio.tasks import push as pushing
    from annotator.settings import Workspace
    from annotator.store import LabelStore

    root, url, batch = sys.argv[1:]
    pushing.BATCH = int(batch)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            workspace = Workspace.open(Path(root))
            with LabelStore.open(workspace) as store, Server(url, os.environ[VARIABLE]) as server:
                link = store.exchange.link()
                assert link is not None
                print(os.getpid(), flush=True)
                pushing.push(workspace, store, server, link)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print("ended" if status == 0 else f"killed {status}", flush=True)


class Pusher:
    """The process, and what a test does with it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def push_and_kill(self, seconds: float) -> bool:
        """Start a push and kill it after `seconds`; tell whether it was killed before it had ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("push\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self._process.stdout.readline().startswith("killed")


@contextmanager
def killable(module: str, token: str, *arguments: str) -> Iterator[Pusher]:
    """Run a module as the process to be killed for the time of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {VARIABLE: token},
    )
    try:
        yield Pusher(process)
    finally:
        process.kill()
        process.wait()


def moments(seed: int, count: int, longest: float) -> list[float]:
    """Return random seconds after which to kill."""
    rng = random.Random(seed)
    return [rng.uniform(0, longest) for _ in range(count)]


if __name__ == "__main__":
    main()
