"""A real HTTP proxy between our client and the server that loses, delays and spoils requests on demand."""

import contextlib
import http.client
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_NOT_FORWARDED = ("connection", "keep-alive", "transfer-encoding", "host", "accept-encoding")


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of a plain answer."""

    kind: str
    status: int = 0
    seconds: float = 0.0


def answers(status: int) -> Fault:
    """The proxy answers this status itself; the server never sees the request."""
    return Fault("answers", status=status)


def hangs() -> Fault:
    """Nothing is forwarded and nothing answered until the client gives up."""
    return Fault("hangs", seconds=60.0)


def loses_answer() -> Fault:
    """The server carries the request out, and the connection breaks before its answer arrives."""
    return Fault("loses answer")


def hangs_after() -> Fault:
    """The server carries the request out, and its answer does not arrive before the client gives up."""
    return Fault("hangs after", seconds=60.0)


def spoils_answer(status: int) -> Fault:
    """The server carries the request out, and a gateway before it says this status."""
    return Fault("spoils answer", status=status)


def delays(seconds: float) -> Fault:
    """The request is forwarded this much later."""
    return Fault("delays", seconds=seconds)


@dataclass
class _Plan:
    fault: Fault
    method: str
    path: re.Pattern[str]
    times: int
    skip: int


class Proxy:
    """Forwards to `upstream` whatever comes to `url`; planned faults strike the requests that they match."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._plans: list[_Plan] = []
        self._storm: tuple[random.Random, float, tuple[Fault, ...]] | None = None
        self._guard = threading.Lock()
        self._over = threading.Event()
        self.seen: list[tuple[str, str, str]] = []
        """Method, path with query, and the fault's kind or "" of every request so far."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def plan(self, fault: Fault, *, method: str = "", path: str = "", times: int = 1, skip: int = 0) -> None:
        """Let `fault` strike the next `times` requests that match (all methods, any path), after `skip` of them."""
        with self._guard:
            self._plans.append(_Plan(fault, method, re.compile(path), times, skip))

    def storm(self, seed: int, rate: float, *faults: Fault) -> None:
        """Let one of `faults` strike each request with probability `rate`; `rate` 0 ends it."""
        with self._guard:
            self._storm = (random.Random(seed), rate, faults) if rate else None

    def calm(self) -> None:
        """Forget all plans and the storm, and let hanging requests go."""
        with self._guard:
            self._plans.clear()
            self._storm = None
            self._over.set()
            self._over = threading.Event()

    def count(self, method: str = "", path: str = "", struck: bool | None = None) -> int:
        """Count the requests so far that match, only those with (or without) a fault if `struck` says so."""
        with self._guard:
            return sum(
                method in ("", seen_method)
                and re.search(path, seen_path) is not None
                and (struck is None or struck == bool(fault))
                for seen_method, seen_path, fault in self.seen
            )

    def take(self, method: str, path: str) -> tuple[Fault | None, threading.Event]:
        """Note a request and return what strikes it, with the event that ends a hang."""
        with self._guard:
            fault = self._next_fault(method, path)
            self.seen.append((method, path, fault.kind if fault else ""))
            return fault, self._over

    def _next_fault(self, method: str, path: str) -> Fault | None:
        for plan in self._plans:
            if plan.times and plan.method in ("", method) and plan.path.search(path):
                if plan.skip:
                    plan.skip -= 1
                    continue
                plan.times -= 1
                return plan.fault
        if self._storm is not None:
            rng, rate, faults = self._storm
            if rng.random() < rate:
                return rng.choice(faults)
        return None

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request on and return status, headers and content of the answer."""
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body=body or None, headers=headers | {"Host": self._upstream.netloc})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, dict(answer.getheaders()), content


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
        fault, over = self.owner.take(self.command, self.path)
        kind = fault.kind if fault else ""
        if fault and kind == "answers":
            return self._reply(fault.status, {}, b"")
        if fault and kind == "hangs":
            over.wait(fault.seconds)
            return self._break()
        if fault and kind == "delays":
            time.sleep(fault.seconds)
        try:
            status, received, content = self.owner.forward(self.command, self.path, headers, body)
        except (OSError, http.client.HTTPException):  # the server is down: the connection breaks here, too
            return self._break()
        if fault and kind == "hangs after":
            over.wait(fault.seconds)
        if kind in ("loses answer", "hangs after"):
            return self._break()
        if fault and kind == "spoils answer":
            return self._reply(fault.status, {}, b"<html>Bad gateway</html>")
        return self._reply(status, received, content)

    def _reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has given up
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in (*_NOT_FORWARDED, "content-length", "date", "server"):
                    self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if status not in (204, 304):
                self.wfile.write(content)

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def before(upstream: str) -> Iterator[Proxy]:
    """Run a proxy for the time of the block."""
    with Proxy(upstream) as proxy:
        yield proxy
