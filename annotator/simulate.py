"""Simulated annotators: they sign in and answer over the HTTP API like people.

Each answer is one draw from the image's crowd votes, without replacement per image, so that two simulated people never
repeat one voter. They stand in for people in benchmarks and fault tests, so they behave as the page does: an answer
keeps its `client_id` until the server has acknowledged it, whatever happens to the connection in between.
"""

import json
import random
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import numpy as np

from annotator import auth
from annotator.errors import AnnotatorError, NotFoundError, WorkspaceError
from annotator.records import User
from annotator.settings import Workspace
from annotator.store import LabelStore

PATIENCE_SECONDS = 120.0
"""How long a simulated annotator waits for a server that is away, e.g. being restarted."""


@dataclass(slots=True)
class SimulationReport:
    """What was acknowledged, how long it took (milliseconds), and why the faces were asked for."""

    annotators: int
    answers: int
    kinds: dict[str, int]
    arms: dict[str, int]
    late: int
    duplicates: int
    retries: int
    without_votes: int
    seconds: float
    submit_ms: dict[str, float]
    next_ms: dict[str, float]
    reasons: list[dict[str, Any]]
    client_ids: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for `--json`."""
        return asdict(self)

    def summary(self) -> str:
        """Return the report in words."""
        lines = [
            f"{self.answers} answers acknowledged from {self.annotators} annotators in {self.seconds:.1f} s "
            f"({self.retries} retries, {self.late} late, {self.duplicates} duplicates)",
            "submit ms: " + ", ".join(f"{k} {v:.1f}" for k, v in self.submit_ms.items()),
            "next ms:   " + ", ".join(f"{k} {v:.1f}" for k, v in self.next_ms.items()),
            "asked for: " + ", ".join(f"{k} {v}" for k, v in self.arms.items()),
        ]
        lines += [f"  [{r['arm']}] {r['reason']} (model {r['model_version']})" for r in self.reasons]
        return "\n".join(lines)


class VoteUrn:
    """The crowd's votes per image, drawn without replacement by several threads."""

    def __init__(self, votes: dict[str, dict[str, int]], seed: int) -> None:
        self._votes = {image: [v for v in sorted(counts) for _ in range(counts[v])] for image, counts in votes.items()}
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self, image_id: str) -> str | None:
        """Return one vote, a class slug or "unusable", or None when the image has none left."""
        with self._lock:
            left = self._votes.get(image_id)
            if not left:
                return None
            return left.pop(self._random.randrange(len(left)))


@dataclass(slots=True)
class _Tally:
    """What all simulated annotators share."""

    target: int
    progress: Callable[[int, int, str], None]
    lock: threading.Lock = field(default_factory=threading.Lock)
    claimed: int = 0
    done: int = 0
    retries: int = 0
    without_votes: int = 0
    submit_ms: list[float] = field(default_factory=list)
    next_ms: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    late: int = 0
    duplicates: int = 0
    client_ids: list[str] = field(default_factory=list)
    reasons: list[dict[str, Any]] = field(default_factory=list)
    error: AnnotatorError | None = None

    def claim(self) -> bool:
        """Take one of the answers still to be given."""
        with self.lock:
            if self.claimed >= self.target or self.error is not None:
                return False
            self.claimed += 1
            return True

    def unclaim(self) -> None:
        """Give a claimed answer back: the face had no vote left."""
        with self.lock:
            self.claimed -= 1
            self.without_votes += 1


class SimulatedAnnotator:
    """One person: signs in, asks for faces, answers each by a vote."""

    def __init__(self, url: str, name: str, password: str, urn: VoteUrn, tally: _Tally, rate: float | None) -> None:
        self._client = httpx.Client(base_url=url, timeout=30.0)
        self._name, self._password = name, password
        self._urn, self._tally = urn, tally
        self._pause = 1.0 / rate if rate else 0.0
        self._random = random.Random(name)

    def run(self) -> None:
        """Answer until the target is reached, the queue is empty or the server stays away."""
        try:
            self._sign_in()
            # People do not all press a key at the same moment.
            time.sleep(self._random.random() * self._pause)
            while self._answer_some():
                pass
        except AnnotatorError as error:
            self._tally.error = error
        finally:
            self._client.close()

    def _sign_in(self) -> None:
        reply = self._patiently("POST", "/api/v1/login", {"username": self._name, "password": self._password})
        self._client.headers["Authorization"] = f"Bearer {reply['token']}"

    def _answer_some(self) -> bool:
        started = time.perf_counter()
        reply = self._patiently("GET", "/api/v1/next?n=1", None)
        with self._tally.lock:
            self._tally.next_ms.append((time.perf_counter() - started) * 1000)
        if not reply["items"]:
            return False
        for item in reply["items"]:
            if not self._tally.claim():
                return False
            due = time.perf_counter() + self._pause
            vote = self._urn.draw(item["image_id"])
            if vote is None:
                self._tally.unclaim()
                self._submit(item, "skip", [], counted=False)
            else:
                kind = "unusable" if vote == "unusable" else "label"
                self._submit(item, kind, [] if kind == "unusable" else [vote], counted=True)
            time.sleep(max(0.0, due - time.perf_counter()))
        return True

    def _submit(self, item: dict[str, Any], kind: str, classes: list[str], *, counted: bool) -> None:
        body = {
            "client_id": str(uuid.uuid4()),
            "image_id": item["image_id"],
            "lease_id": item["lease_id"],
            "kind": kind,
            "classes": classes,
            "duration_ms": int(self._pause * 1000),
        }
        started = time.perf_counter()
        stored = self._patiently("POST", "/api/v1/annotations", body)
        elapsed = (time.perf_counter() - started) * 1000
        tally = self._tally
        with tally.lock:
            tally.submit_ms.append(elapsed)
            tally.late += bool(stored.get("late"))
            tally.duplicates += bool(stored.get("duplicate"))
            tally.client_ids.append(body["client_id"])
            if counted:
                tally.done += 1
                tally.kinds[kind] += 1
                tally.arms[item["arm"]] += 1
                shown = {key: item.get(key) for key in ("arm", "reason", "question", "model_version", "candidates")}
                tally.reasons = [*tally.reasons[-9:], shown]
            tally.progress(tally.done, tally.target, item["arm"])

    def _patiently(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request; retry with the same body while the server is away or asks to wait."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        wait = 0.05
        while True:
            try:
                reply = self._client.request(method, path, json=body)
                if reply.status_code < 400:
                    data: dict[str, Any] = reply.json()
                    return data
                problem = f"{reply.status_code} {reply.text[:200]}"
                if reply.status_code not in (429, 503):
                    raise WorkspaceError(f"the server refused {method} {path}: {problem}")
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() > give_up:
                raise WorkspaceError(f"no answer from the server for {PATIENCE_SECONDS:.0f} s: {problem}")
            with self._tally.lock:
                self._tally.retries += 1
            time.sleep(wait)
            wait = min(1.0, wait * 2)


def server_url(workspace: Workspace) -> str:
    """Return the URL of the workspace's running server.

    Raises:
        WorkspaceError: no server is running.
    """
    path = workspace.root / "server.json"
    if not path.is_file():
        raise WorkspaceError(f"no server runs on {workspace.root}; start one with: annotator up {workspace.root}")
    data = json.loads(path.read_text(encoding="utf-8"))
    host = "127.0.0.1" if data["host"] in ("0.0.0.0", "::") else data["host"]
    return f"http://[{host}]:{data['port']}" if ":" in host else f"http://{host}:{data['port']}"


def crowd_votes(store: LabelStore) -> dict[str, dict[str, int]]:
    """Return the crowd's votes per image of the pool; a single given label counts as one vote.

    Raises:
        WorkspaceError: no image has any.
    """
    votes = {
        t.image_id: dict(t.votes) if t.votes else {str(t.truth): 1}
        for t in store.images.truth("pool")
        if t.votes or t.truth
    }
    if not votes:
        raise WorkspaceError("no image of the pool has crowd votes or a label; import with --labels-as truth first")
    return votes


def register(store: LabelStore, count: int) -> list[tuple[User, str]]:
    """Make (or reuse) `count` simulated accounts, each with a fresh random password."""
    accounts = []
    for number in range(1, count + 1):
        name, password = f"simulated-{number}", secrets.token_urlsafe(18)
        digest = auth.hash_password(password)
        try:
            user = store.accounts.get(name)
            store.accounts.set_password_hash(name, digest)
        except NotFoundError:
            user = store.accounts.add(name, "annotator", digest, simulated=True)
        accounts.append((user, password))
    return accounts


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(values)}


def run(
    workspace: Workspace,
    store: LabelStore,
    annotators: int,
    answers: int,
    *,
    rate: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None],
) -> SimulationReport:
    """Let `annotators` simulated people give `answers` answers together.

    Args:
        workspace: a workspace whose server is running.
        store: its store, used for the accounts and the crowd's votes only.
        annotators: number of people, at least 1.
        answers: answers of all of them together.
        rate: answers per second and person; None is as fast as the server allows.
        seed: of the draws.
        progress: called with the answers given, the answers wanted and the arm of the last face.

    Raises:
        WorkspaceError: no server runs, it stays away, or no image has votes.
    """
    url = server_url(workspace)
    urn = VoteUrn(crowd_votes(store), seed)
    tally = _Tally(answers, progress)
    people = [
        SimulatedAnnotator(url, user.name, password, urn, tally, rate) for user, password in register(store, annotators)
    ]
    started = time.perf_counter()
    threads = [threading.Thread(target=person.run, name=f"simulated-{i}") for i, person in enumerate(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if tally.error is not None:
        raise tally.error
    return SimulationReport(
        annotators=annotators,
        answers=tally.done,
        kinds=dict(tally.kinds),
        arms=dict(tally.arms),
        late=tally.late,
        duplicates=tally.duplicates,
        retries=tally.retries,
        without_votes=tally.without_votes,
        seconds=time.perf_counter() - started,
        submit_ms=_percentiles(tally.submit_ms),
        next_ms=_percentiles(tally.next_ms),
        reasons=tally.reasons,
        client_ids=tally.client_ids,
    )
