"""A real server on a real workspace of drawn faces, for tests and benchmarks that drive a browser."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from annotator import taxonomy
from annotator.auth import hash_password
from annotator.ingest.demo_faces import render
from annotator.records import NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from ui.app import build_app

READY_SECONDS = 30
PASSWORD = "correct horse"


def draw_faces(folder: Path, count: int, seed: int = 5) -> Path:
    """Draw `count` different faces as PNG files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        render(seed, index).image.save(folder / f"{index:04d}.png", compress_level=1)
    return folder


def make_workspace(root: Path, faces: Path, **settings: object) -> Workspace:
    """Make a workspace that holds the faces of a folder, in their order, without labels."""
    workspace = Workspace.create(root, taxonomy.FERPLUS, **{"name": "expressions-2026", **settings})
    new = []
    for path in sorted(faces.glob("*.png")):
        data = path.read_bytes()
        stat = path.stat()
        new.append(
            NewImage(
                path=path.name,
                split="pool",
                state="active",
                content_hash=hashlib.sha256(data).hexdigest(),
                file_bytes=stat.st_size,
                file_stamp=stat.st_mtime_ns,
                width=112,
                height=112,
                media_type="image/png",
            )
        )
    with LabelStore.open(workspace) as store:
        source = store.images.register_source(str(faces), "folder", "folder")
        store.images.add(source, new, "none")
    return workspace


def add_user(workspace: Workspace, name: str, role: str = "annotator") -> None:
    """Make an account with the tests' password."""
    with LabelStore.open(workspace) as store:
        store.accounts.add(name, role, hash_password(PASSWORD))  # type: ignore[arg-type]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """One server in a thread: it can be stopped and started again on the same port."""

    def __init__(self, workspace: Workspace, port: int | None = None) -> None:
        self.workspace = workspace
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        self.store = LabelStore.open(self.workspace)
        config = uvicorn.Config(
            build_app(self.workspace, self.store),
            port=self.port,
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        give_up = time.monotonic() + READY_SECONDS
        while not self._server.started:
            if time.monotonic() > give_up or not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop in order."""
        self._server.should_exit = True
        self._thread.join(READY_SECONDS)
        self.store.close()


@contextmanager
def serving(workspace: Workspace) -> Iterator[Site]:
    """Serve `workspace` while the block runs."""
    site = Site(workspace)
    site.start()
    try:
        yield site
    finally:
        site.stop()
