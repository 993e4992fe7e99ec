"""How long people wait over HTTP: 20 simulated users answer once a second each, beside a learner or an import.

    python -m tests.benchmarks.bench_http [--seconds 30] [--users 20] [--faces 5000] [--loads idle,learner,import]

The server is a process of its own. `learner` is two processes that compute without pause at the niceness of the learner
and of its training child; `import` is `annotator import` of noise faces into the same workspace. Goals: p99 of submit
and next at most 50 ms idle, and at most 1.5 times that under load. Exits with 1 when one is missed.
"""

import argparse
import http.client
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from annotator import auth, taxonomy
from annotator.loop.processes import start_child
from annotator.records import NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore

CLASSES = taxonomy.FERPLUS.slugs
GOAL_MS = 50.0
GOAL_RATIO = 1.5
BURN = (
    "import numpy as np\n"
    "a = np.random.rand(400, 400)\n"
    "while True: a = np.tanh(a @ a / 400); sum(i * i for i in range(20_000))\n"
)


class Person(threading.Thread):
    """One simulated user: a face, an answer, the rest of the second."""

    def __init__(self, port: int, token: str, until: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._until = until
        self._random = random.Random(seed)
        self.next_ms: list[float] = []
        self.submit_ms: list[float] = []
        self.image_ms: list[float] = []

    def run(self) -> None:
        """Answer until the time is over."""
        due = time.perf_counter() + self._random.random()
        while due < self._until:
            time.sleep(max(0.0, due - time.perf_counter()))
            handout = self._timed(self.next_ms, "GET", "/api/v1/next?n=1")
            if not handout["items"]:
                raise RuntimeError(f"no face: {handout['message']}")
            item = handout["items"][0]
            self._timed(self.image_ms, "GET", item["image_url"])
            time.sleep(self._random.uniform(0.1, 0.4))
            body = {
                "client_id": str(uuid.uuid4()),
                "image_id": item["image_id"],
                "lease_id": item["lease_id"],
                "kind": "label",
                "classes": [self._random.choice(CLASSES)],
            }
            self._timed(self.submit_ms, "POST", "/api/v1/annotations", body)
            due += self._random.uniform(0.8, 1.2)

    def _timed(
        self, times: list[float], method: str, path: str, body: object = None
    ) -> dict[str, list[dict[str, str]]]:
        payload = None if body is None else json.dumps(body)
        began = time.perf_counter()
        self._connection.request(method, path, payload, self._headers)
        reply = self._connection.getresponse()
        data = reply.read()
        times.append((time.perf_counter() - began) * 1000)
        if reply.status >= 400:
            raise RuntimeError(f"{method} {path}: {reply.status} {data[:200]!r}")
        return json.loads(data) if reply.headers.get_content_type() == "application/json" else {}


def make_workspace(folder: Path, faces: int) -> Workspace:
    """Import `faces` noise images; of more than 20,000 only rows are made, which makes no sense for an import."""
    workspace = Workspace.create(folder / "ws", taxonomy.FERPLUS)
    noise(folder / "pool", min(faces, 20_000))
    if faces <= 20_000:
        subprocess.run(import_command(workspace, folder / "pool"), check=True, stdout=subprocess.DEVNULL)
        return workspace
    with LabelStore.open(workspace) as store:
        source = store.images.register_source(str(folder / "pool"), "folder", "folder")
        for start in range(0, faces, 5_000):
            names = range(start, min(start + 5_000, faces))
            new = [NewImage(f"{n}.png", "pool", "active", f"{n:064x}", 7000, 0, 48, 48, "image/png") for n in names]
            store.images.add(source, new, "none")
    return workspace


def import_command(workspace: Workspace, folder: Path) -> list[str]:
    """Return the command that imports a folder."""
    return [sys.executable, "-m", "annotator", "import", str(workspace.root), str(folder), "--format", "folder"]


def noise(folder: Path, count: int) -> None:
    """Draw `count` noise faces."""
    folder.mkdir()
    rng = np.random.default_rng(list(folder.name.encode()))
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{n}.png")


def people(workspace: Workspace, count: int) -> list[str]:
    """Make accounts and return a token of each."""
    tokens = []
    with LabelStore.open(workspace) as store:
        for number in range(count):
            user = store.accounts.add(f"person-{number}", "annotator", auth.hash_password("a password"))
            tokens.append(uuid.uuid4().hex)
            store.accounts.add_token(auth.token_digest(tokens[-1]), user.id, datetime.now(UTC) + timedelta(days=1))
    return tokens


@contextmanager
def server(workspace: Workspace) -> Iterator[tuple[int, float]]:
    """Run `annotator serve`; yield its port and how long it took to be ready."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "annotator", "serve", str(workspace.root), "--port", "0"])
    marker = workspace.root / "server.json"
    try:
        while not marker.is_file():
            if child.poll() is not None:
                raise RuntimeError(f"the server ended with {child.returncode}")
            time.sleep(0.02)
        yield int(json.loads(marker.read_text())["port"]), time.perf_counter() - began
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


@contextmanager
def no_load(workspace: Workspace) -> Iterator[None]:
    """Nothing competes."""
    yield


@contextmanager
def learner_load(workspace: Workspace) -> Iterator[None]:
    """Two processes that compute as the learner does (niceness 10) and its training child does (19)."""
    children = [start_child(["-c", BURN], nice=nice, threads=1) for nice in (10, 19)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def import_load(workspace: Workspace) -> Iterator[None]:
    """Import folders of faces, one after the other, until told to stop."""
    folder = Path(tempfile.mkdtemp(prefix="bench-import-"))
    noise(folder / "more", 6_000)
    stopping = threading.Event()
    errors: list[str] = []

    def work() -> None:
        round_number = 0
        while not stopping.is_set():
            round_number += 1
            target = folder / f"copy-{round_number}"
            shutil.copytree(folder / "more", target)
            child = subprocess.Popen(
                import_command(workspace, target),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # people import in a terminal of its own
            )
            while child.poll() is None:
                if stopping.wait(0.1):
                    child.kill()
                    child.wait()
                    return
            if child.returncode:
                errors.append((child.stderr.read() if child.stderr else b"").decode()[-300:])
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        shutil.rmtree(folder)
    if errors:
        raise RuntimeError(f"the import failed: {errors[0]}")


LOADS: dict[str, Callable[[Workspace], AbstractContextManager[None]]] = {
    "idle": no_load,
    "learner": learner_load,
    "import": import_load,
}


def measure(port: int, tokens: list[str], seconds: float) -> dict[str, dict[str, float]]:
    """Let everybody answer for a while; return milliseconds by request."""
    until = time.perf_counter() + seconds
    crowd = [Person(port, token, until, seed) for seed, token in enumerate(tokens)]
    for person in crowd:
        person.start()
    for person in crowd:
        person.join()
    figures = {}
    for name in ("submit_ms", "next_ms", "image_ms"):
        times = np.array([t for person in crowd for t in getattr(person, name)])
        figures[name] = {
            "count": len(times),
            **{f"p{q}": round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)},
            "max": round(float(times.max()), 2),
        }
    return figures


def main() -> int:
    """Run the benchmark from the command line; return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--faces", type=int, default=5_000)
    parser.add_argument("--loads", default="idle,learner,import")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-http-"))
    results: dict[str, dict[str, dict[str, float]]] = {}
    try:
        workspace = make_workspace(folder, options.faces)
        tokens = people(workspace, options.users)
        with server(workspace) as (port, ready_seconds):
            print(json.dumps({"ready_seconds": round(ready_seconds, 2)}), flush=True)
            process = psutil.Process(int(json.loads((workspace.root / "server.json").read_text())["pid"]))
            measure(port, tokens, 3.0)
            for name in options.loads.split(","):
                with LOADS[name](workspace):
                    time.sleep(2.0 if name != "idle" else 0.0)
                    before = sum(process.cpu_times()[:2])
                    results[name] = measure(port, tokens, options.seconds)
                    used = (sum(process.cpu_times()[:2]) - before) / options.seconds
                print(json.dumps({name: results[name], "server_cores": round(used, 3)}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return judge(results)


def judge(results: dict[str, dict[str, dict[str, float]]]) -> int:
    """Compare with the goals."""
    missed = 0
    for request in ("submit_ms", "next_ms"):
        idle = results.get("idle", {}).get(request, {}).get("p99")
        for load, figures in results.items():
            p99 = figures[request]["p99"]
            ratio = p99 / idle if idle else None
            good = p99 <= GOAL_MS if load == "idle" or ratio is None else ratio <= GOAL_RATIO
            missed += not good
            shown = f", {ratio:.2f} times idle" if ratio and load != "idle" else ""
            print(f"{request[:-3]:6} {load:8} p99 {p99:7.2f} ms{shown}  {'ok' if good else 'MISSED'}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
