"""The server as a process: one per workspace, an address that is free, an orderly end, a refusal that explains."""

import json
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from annotator import auth, taxonomy
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ui.conftest import fill
from tests.zygote import Zygote


class ServerProcess:
    """`annotator serve` on a workspace."""

    def __init__(self, zygote: Zygote, workspace: Workspace, *options: str) -> None:
        self.marker = workspace.root / "server.json"
        self.process = zygote.popen(["annotator", "serve", str(workspace.root), *options])

    def url(self) -> str:
        """Wait until it serves, and return its address."""
        give_up = time.monotonic() + 90
        while not (self.marker.is_file() and json.loads(self.marker.read_text())["pid"] == self.process.pid):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        return f"http://127.0.0.1:{json.loads(self.marker.read_text())['port']}"

    def refusal(self) -> str:
        """Wait until it has refused to run, and return what it said."""
        _, error = self.process.communicate(timeout=90)
        assert self.process.returncode == 2, error
        return error


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    workspace = Workspace.create(tmp_path / "ws", taxonomy.FERPLUS)
    with LabelStore.open(workspace) as store:
        fill(store, tmp_path / "pictures", 5)
    return workspace


def test_one_server_per_workspace_and_an_orderly_end(zygote: Zygote, place: Workspace) -> None:
    first = ServerProcess(zygote, place, "--port", "0")
    try:
        url = first.url()
        second = ServerProcess(zygote, place, "--port", "0")
        told = " ".join(second.refusal().split())
        assert "another server runs on" in told
        assert str(first.process.pid) in told
        assert "Traceback" not in told
        assert httpx.get(f"{url}/api/v1/me").status_code == 200
        item = httpx.get(f"{url}/api/v1/next").json()["items"][0]
        body = {"client_id": "last words", "image_id": item["image_id"], "kind": "label", "classes": ["fear"]}
        assert httpx.post(f"{url}/api/v1/annotations", json=body).status_code == 201
    finally:
        first.process.send_signal(signal.SIGTERM)
        _, error = first.process.communicate(timeout=30)
    assert first.process.returncode == 0, error
    assert "Traceback" not in error
    assert not first.marker.exists()
    with LabelStore.open(place) as store:
        assert [a.client_id for a in store.decisions.list()] == ["last words"]


def test_a_busy_port_is_named(zygote: Zygote, place: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = " ".join(ServerProcess(zygote, place, "--port", str(port)).refusal().split())
    assert f"port {port} on 127.0.0.1 is in use" in told
    assert "--port" in told


def test_a_host_that_is_open_to_everyone_needs_accounts(zygote: Zygote, place: Workspace) -> None:
    told = " ".join(ServerProcess(zygote, place, "--host", "0.0.0.0", "--port", "0").refusal().split())
    assert "0.0.0.0" in told
    assert "annotator users add" in told
    with LabelStore.open(place) as store:
        store.accounts.add("alice", "admin", auth.hash_password("secret"))
    server = ServerProcess(zygote, place, "--host", "0.0.0.0", "--port", "0")
    try:
        assert httpx.get(f"{server.url()}/api/v1/me").status_code == 401
    finally:
        server.process.terminate()
        server.process.communicate(timeout=30)


def test_a_host_that_is_not_ours_is_named(zygote: Zygote, place: Workspace) -> None:
    told = " ".join(ServerProcess(zygote, place, "--host", "no such host", "--port", "0").refusal().split())
    assert "no such host" in told
