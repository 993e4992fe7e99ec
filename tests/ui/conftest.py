"""A real server on a real store: uvicorn in a thread, spoken to over HTTP."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from annotator import auth, taxonomy
from annotator.records import Role
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.conftest import new_image
from ui.app import build_app
from ui.services import Services

PASSWORD = "correct horse"


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    workspace: Workspace
    store: LabelStore
    services: Services

    def client(self, token: str | None = None) -> httpx.Client:
        """Return a client, signed in with a Bearer token when one is given."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def account(self, name: str, role: Role = "annotator") -> httpx.Client:
        """Make an account and return a client that has signed in to it."""
        self.store.accounts.add(name, role, auth.hash_password(PASSWORD))
        with self.client() as anonymous:
            reply = anonymous.post("/api/v1/login", json={"username": name, "password": PASSWORD})
        assert reply.status_code == 200, reply.text
        return self.client(reply.json()["token"])


@contextmanager
def running(workspace: Workspace, store: LabelStore) -> Iterator[Running]:
    """Serve a workspace from a thread of this process."""
    app = build_app(workspace, store)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < give_up, "the server took too long"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", workspace, store, app.state.services)
    finally:
        server.should_exit = True
        thread.join()


def fill(store: LabelStore, folder: Path, count: int, prefix: str = "face") -> list[str]:
    """Import `count` small pictures that differ; return their image ids in order of row."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{prefix}-{number}" for number in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    source = store.images.register_source(str(folder), "folder", "folder")
    return [record.image_id for record in store.images.add(source, [new_image(name) for name in names], "none")]


@pytest.fixture
def served(workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Running]:
    """Serve 30 faces without accounts."""
    fill(sqlite_store, tmp_path / "pictures", 30)
    with running(workspace, sqlite_store) as server:
        yield server


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve 30 faces, without accounts, to tests that store nothing."""
    folder = tmp_path_factory.mktemp("untouched")
    workspace = Workspace.create(folder / "ws", taxonomy.FERPLUS)
    with LabelStore.open(workspace) as store:
        fill(store, folder / "pictures", 30)
        with running(workspace, store) as server:
            yield server
        assert store.decisions.count() == 0
        assert not store.accounts.has_people()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits until a condition holds, at most ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < give_up, "the condition did not come to hold"
            time.sleep(0.02)

    return wait
