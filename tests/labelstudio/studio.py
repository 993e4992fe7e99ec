"""A real Label Studio for the tests: its process, its people, and what they do in it."""

import contextlib
import ctypes
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from annotator.labelstudio.api.server import Server
from tests.labelstudio import install

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Person:
    """An account of the server."""

    id: int
    email: str
    password: str
    token: str


class Studio:
    """A server in a data folder of its own; `kill` and `start` again keep the port, the folder and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = folder / "documents"
        """The server's document root for local files."""
        self.documents.mkdir(parents=True)
        self.port = install.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = Person(1, install.EMAIL, install.PASSWORD, install.TOKEN)
        for name in install.KEPT:
            if install.template().is_dir():
                shutil.copy2(install.template() / name, folder / name)

    @property
    def admin(self) -> Person:
        """The administrator, who owns the projects that the tests make."""
        return self._admin

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("ab") as said:
            process = subprocess.Popen(
                install.command(self.port),
                env=install.variables(self.folder, self.port, self.documents),
                cwd=self.folder,
                stdout=said,
                stderr=said,
                preexec_fn=_die_with_parent,
            )
        self._process = process
        install.wait_until_ready(process, self.port, 180)
        # It moves to the next port when its own is taken: then something else has answered.
        ports = {connection.laddr.port for connection in psutil.Process(process.pid).net_connections("tcp")}
        assert self.port in ports, f"port {self.port} was taken by another process"

    def kill(self) -> None:
        """End the server at once, as a power failure would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server as its operator would (SIGTERM)."""
        self._end(signal.SIGTERM)

    def _end(self, signum: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signum)
            self._process.wait(30)
        self._process = None

    def server(self, person: Person | None = None, *, url: str | None = None, timeout: float = 30.0) -> Server:
        """Return our client for this server (or for a proxy's `url` before it), as the administrator or `person`."""
        return Server(url or self.url, (person or self.admin).token, timeout=timeout)

    def join(self, name: str) -> Person:
        """Make an account by an invitation, as people get theirs, and return it."""
        email, password = f"{name}@example.com", f"secret-{name}-pass"
        invite = self._api("GET", "/api/invite")["invite_url"]
        invited = invite.rsplit("?", 1)[1]
        with httpx.Client(base_url=self.url, follow_redirects=True) as browser:
            browser.get(f"/user/signup/?{invited}")
            form = {
                "email": email,
                "password": password,
                "csrfmiddlewaretoken": browser.cookies["csrftoken"],
                "allow_newsletters": "false",
            }
            browser.post(f"/user/signup/?{invited}", data=form, headers={"Referer": self.url}).raise_for_status()
            token = browser.get("/api/current-user/token").json()["token"]
            user = browser.get("/api/current-user/whoami").json()
        assert user["email"] == email
        return Person(user["id"], email, password, token)

    def personal_token(self, person: Person) -> str:
        """Return a new personal access token of `person`: a signed one that expires, unlike `person.token`."""
        return str(self._api("POST", "/api/token/", person, {})["token"])

    # What people do, by the requests that the labeling page sends

    def annotate(self, person: Person, task_id: int, *result: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Submit an answer to a task as `person` and return the annotation."""
        body = {"result": list(result), "lead_time": 1.5, **more}
        return dict(self._api("POST", f"/api/tasks/{task_id}/annotations/", person, body))

    def edit(self, person: Person, annotation_id: int, *result: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Change an answer as `person` and return the annotation."""
        return dict(self._api("PATCH", f"/api/annotations/{annotation_id}/", person, {"result": list(result), **more}))

    def skip(self, person: Person, task_id: int) -> dict[str, Any]:
        """Press "skip" on a task as `person` and return the cancelled annotation."""
        return self.annotate(person, task_id, was_cancelled=True)

    def delete(self, person: Person, annotation_id: int) -> None:
        """Delete an answer as `person`."""
        self._api("DELETE", f"/api/annotations/{annotation_id}/", person)

    def next_task(self, person: Person, project_id: int) -> dict[str, Any]:
        """Return the task that the labeling page shows to `person` next."""
        return dict(self._api("GET", f"/api/projects/{project_id}/next", person))

    def annotations(self, project_id: int) -> list[dict[str, Any]]:
        """Return all annotations of a project, by id, as the server itself exports them."""
        tasks = self._api("GET", f"/api/projects/{project_id}/export?exportType=JSON&download_all_tasks=true")
        return sorted((item for task in tasks for item in task["annotations"]), key=lambda item: item["id"])

    def _api(self, method: str, path: str, person: Person | None = None, body: Any = None) -> Any:
        headers = {"Authorization": f"Token {(person or self.admin).token}"}
        # Loading the certificates that a local address does not need would take longer than the request.
        answer = httpx.request(method, self.url + path, headers=headers, json=body, timeout=60, verify=False)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else None


def said(from_name: str, *choices: str, to_name: str = "image") -> dict[str, Any]:
    """Return one part of a result: the choices ticked in a `<Choices>` control."""
    return {
        "id": uuid.uuid4().hex[:10],
        "from_name": from_name,
        "to_name": to_name,
        "type": "choices",
        "value": {"choices": list(choices)},
    }


def wrote(from_name: str, text: str, to_name: str = "image") -> dict[str, Any]:
    """Return one part of a result: the text written in a `<TextArea>` control."""
    return {"from_name": from_name, "to_name": to_name, "type": "textarea", "value": {"text": [text]}}


def rated(from_name: str, stars: int, to_name: str = "image") -> dict[str, Any]:
    """Return one part of a result: the stars given in a `<Rating>` control."""
    return {"from_name": from_name, "to_name": to_name, "type": "rating", "value": {"rating": stars}}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Studio]:
    """Run a server in `folder` for the time of the block."""
    studio = Studio(folder)
    try:
        studio.start()
        yield studio
    finally:
        studio.stop()


def secrets_in(texts: Sequence[str], *secrets: str) -> list[str]:
    """Return the texts that hold one of the secrets, or anything that looks like a token of Label Studio."""
    return [text for text in texts if any(s in text for s in secrets) or re.search(r"\b[0-9a-f]{40}\b", text)]


def _die_with_parent() -> None:
    """Ask Linux to kill the server when the tests are killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
