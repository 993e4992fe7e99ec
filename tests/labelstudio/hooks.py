"""A receiver for what Label Studio sends: webhooks, and the requests to an ML backend."""

import base64
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Post:
    """One request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def action(self) -> str:
        """The webhook's action, empty for other requests."""
        try:
            return str(json.loads(self.body).get("action", ""))
        except ValueError:
            return ""

    @property
    def basic(self) -> tuple[str, str] | None:
        """User and password of the basic authentication, None without."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password


class Receiver:
    """Keeps every POST; answers as a minimal ML backend does."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply({"status": "UP"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                receiver.posts.append(Post(self.path, dict(self.headers.items()), body))
                self._reply({"model_version": "receiver"})

            def _reply(self, value: dict[str, str]) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def wait_for(self, action: str, seconds: float = 10.0) -> list[Post]:
        """Return the posts of this webhook action, waiting for the first."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            found = [post for post in list(self.posts) if post.action == action]
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"no {action} within {seconds} seconds, only {[post.action for post in self.posts]}")
