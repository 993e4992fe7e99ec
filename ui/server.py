"""Running the server: one per workspace, an address that is free, and an orderly end."""

import contextlib
import errno
import fcntl
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import uvicorn

from annotator.auth import is_loopback
from annotator.durable import write_atomically
from annotator.errors import InputError, WorkspaceBusyError
from annotator.settings import Workspace
from annotator.store import LabelStore

log = logging.getLogger(__name__)

SERVER_JSON = "server.json"
GRACE_SECONDS = 5


def serve(workspace: Workspace, host: str, port: int) -> None:
    """Serve a workspace until a signal to stop arrives.

    `server.json` in the workspace names the address while it runs.

    Args:
        workspace: the workspace.
        host: address to listen on; other than loopback only when there are accounts.
        port: port to listen on; 0 takes a free one.

    Raises:
        WorkspaceBusyError: another server holds the workspace or the port.
        InputError: the host is not an address of this machine, or would be open to everyone.
    """
    with _held(workspace), _listening(host, port) as listener, LabelStore.open(workspace) as store:
        from ui.app import build_app

        app = build_app(workspace, store, host)
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        actual: int = listener.getsockname()[1]
        marker = workspace.root / SERVER_JSON
        server = _Server(config, lambda: _write_marker(marker, host, actual))
        try:
            server.run(sockets=[listener])
        finally:
            marker.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """A server that says when it is ready, and returns after a signal so that its owner can clean up."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            # The page's quarter of a million objects stay to the end. Left to the collector, they would hold everybody
            # up for a tenth of a second each time it goes through all there is, as it does beside large requests.
            gc.collect()
            gc.freeze()
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in order on SIGTERM and SIGINT."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _held(workspace: Workspace) -> Iterator[None]:
    """Hold `server.lock` for as long as the server runs; the kernel lets go of it whatever happens to us."""
    path = workspace.root / "server.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkspaceBusyError(
                f"another server runs on {workspace.root}{_whereabouts(workspace.root)}; stop it first"
            ) from error
        yield


def _whereabouts(root: Path) -> str:
    try:
        data = json.loads((root / SERVER_JSON).read_text(encoding="utf-8"))
        return f" (process {data['pid']}, http://{data['host']}:{data['port']}/)"
    except (OSError, ValueError, KeyError):
        return ""


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before anything slow happens, so that a busy port is an error at once."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise InputError(f"host {host!r} and port {port} are not an address: {error}") from error
    if is_loopback(host) and not is_loopback(str(address[0])):
        raise InputError(f"host {host!r} resolves to {address[0]}, which is not a loopback address; name 127.0.0.1")
    with contextlib.closing(socket.socket(family, kind, proto)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(512)
        except PermissionError as error:
            raise InputError(f"port {port} needs more rights than this account has; choose one above 1023") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise WorkspaceBusyError(
                    f"port {port} on {host} is in use; choose another with --port, or 0 for a free one"
                ) from error
            raise InputError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listener.setblocking(False)
        yield listener


def _write_marker(path: Path, host: str, port: int) -> None:
    data = {"pid": os.getpid(), "host": host, "port": port, "started_at": datetime.now(UTC).isoformat()}
    write_atomically(path, json.dumps(data).encode())
