"""A process that syncs and pushes without pause, for tests that kill it: it loads once and forks for every life.

Run as `python -m tests.labelstudio.killed_sync WORKSPACE URL`; the protocol is that of `killed`.
"""

import os
import random
import sys
import time
from pathlib import Path

from tests.labelstudio.killed import VARIABLE


def main() -> None:
    import label_studio_sdk.client  # noqa: F401  (a second to load)

    root, url = sys.argv[1:]
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _work(Path(root), url)
        _, status = os.waitpid(pid, 0)
        print(f"killed {status}", flush=True)


def _work(root: Path, url: str) -> None:
    from annotator.errors import LabelStudioError
    from annotator.labelstudio.answers.sync import sync_once
    from annotator.labelstudio.api.server import Server
    from annotator.labelstudio.tasks.push import push
    from annotator.settings import Workspace
    from annotator.store import LabelStore

    workspace = Workspace.open(root)
    chance = random.Random(os.getpid())
    with LabelStore.open(workspace) as store, Server(url, os.environ[VARIABLE]) as server:
        link = store.exchange.link()
        assert link is not None
        print(os.getpid(), flush=True)
        while True:
            try:
                sync_once(workspace, store, server, link, full=chance.random() < 0.3)
                push(workspace, store, server, link)
            except LabelStudioError:
                time.sleep(0.1)


if __name__ == "__main__":
    main()
