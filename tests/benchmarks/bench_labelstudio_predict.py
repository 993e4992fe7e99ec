"""How long Label Studio waits for the predictions of 100 tasks, idle and while ten people label; and the naive way.

    python -m tests.benchmarks.bench_labelstudio_predict [--faces 32000] [--seconds 20] [--users 10] [--tasks 100]

The server is `annotator serve`, a process of its own; every face is scored, 2,000 of them are tasks, each request names
100 of these as Label Studio writes them, with an annotation and a prediction in each. `confirmed` are tasks whose
prediction is known to be there already. The naive way reads the folder of scores anew for each request; both are timed
without HTTP, too, in turn. Goal: p95 at most 300 ms. Exits with 1 when it is missed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from annotator.auth import token_digest
from annotator.labelstudio.backend import Backend
from annotator.labelstudio.config.generated import own_mapping
from annotator.order import FaceOrder
from annotator.scores import ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown
from tests.benchmarks.bench_http import make_workspace, measure, people, server
from tests.scores import write_generation

GOAL_MS = 300.0
PROJECT, LINKED, WITH_FILES = 1, 2_000, 20_000
SECRET = "benchmark"
_ROUNDS = 60


def main() -> int:
    """Run the benchmark from the command line; return 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=32_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-predict-"))
    try:
        workspace = make_workspace(folder, options.faces)
        tokens = people(workspace, options.users)
        with LabelStore.open(workspace) as store:
            link, version = fill(workspace, store)
            figures = in_process(workspace, store, link, options.tasks)
            with server(workspace) as (port, _):
                figures |= over_http(port, tokens, options.seconds, options.tasks)
                confirm(store, link, version)
                time.sleep(1.5)
                figures["confirmed"] = summary(ask(port, options.seconds / 2, options.tasks))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures, indent=2))
    worst = max(figures[name]["p95"] for name in ("idle", "labeling", "confirmed"))
    print(f"p95 of {options.tasks} tasks at worst {worst:.1f} ms: {'ok' if worst <= GOAL_MS else 'MISSED'}")
    return int(worst > GOAL_MS)


def fill(workspace: Workspace, store: LabelStore) -> tuple[Link, str]:
    """Score every face, and link those that would be asked last, so that people are offered others."""
    rows, rng = store.images.table().rows, np.random.default_rng(0)
    # Only the first pictures are there as files: people are shown those.
    order = [*rng.permutation(rows[:WITH_FILES]).tolist(), *rng.permutation(rows[WITH_FILES:]).tolist()]
    write_generation(workspace, store, rows.tolist(), order, candidates=("surprise", "fear"))
    mapping = own_mapping(workspace.settings.taxonomy).as_dict()
    link = store.exchange.add_link("http://127.0.0.1:8080", PROJECT, "Faces", {"mapping": mapping})
    store.exchange.update_link(link.id, secret_digest=token_digest(SECRET))
    store.exchange.put_tasks(link.id, [LinkedTask(n + 1, row) for n, row in enumerate(order[-LINKED:])])
    return link, "test.1"


def confirm(store: LabelStore, link: Link, version: str) -> None:
    """Note for every task that its prediction is there."""
    shown = Shown("uncertain", version, False, ({"class": "surprise", "prob": 0.6}, {"class": "fear", "prob": 0.3}))
    store.exchange.confirm_predictions(link.id, [(n + 1, shown) for n in range(LINKED)], version)
    store.exchange.update_link(link.id, model_version=version)


def body(chooser: random.Random, tasks: int) -> dict[str, Any]:
    """Return what Label Studio sends: all that it knows of the tasks."""
    result = [
        {"id": "a1b2c3d4e5", "from_name": name, "to_name": "image", "type": "choices", "value": {"choices": ["fear"]}}
        for name in ("expression", "candidates")
    ]
    said = {"id": 1, "completed_by": 1, "was_cancelled": False, "lead_time": 2.5, "result": result, "draft": None}
    predicted = {"id": 1, "model_version": "test.0", "score": 0.5, "result": result, "created_ago": "1 hour"}
    data = {"image": "/data/upload/1/0a1b2c3d-face.png", "image_id": "f" * 32, "reason": "The model is unsure. " * 3}
    return {
        "tasks": [
            {"id": task, "project": PROJECT, "data": data, "annotations": [said], "predictions": [predicted]}
            for task in chooser.sample(range(1, LINKED + 1), tasks)
        ],
        "project": f"{PROJECT}.1763",
        "label_config": "<View>" + " " * 3_000 + "</View>",
        "params": {"login": None, "password": None, "context": None},
    }


def ask(port: int, seconds: float, tasks: int) -> list[float]:
    """Ask for predictions over and over, with a breath between; return milliseconds."""
    chooser, times = random.Random(0), []
    until = time.perf_counter() + seconds
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}/labelstudio/", auth=("annotator", SECRET), timeout=60
    ) as client:
        while time.perf_counter() < until:
            request = json.dumps(body(chooser, tasks))
            began = time.perf_counter()
            reply = client.post("predict", content=request)
            times.append((time.perf_counter() - began) * 1000)
            results = reply.raise_for_status().json()["results"]
            if len(results) != tasks or not all(r["result"] for r in results):
                raise RuntimeError("a task of ours got no prediction")
            time.sleep(0.02)
    return times


def over_http(port: int, tokens: list[str], seconds: float, tasks: int) -> dict[str, Any]:
    """Time requests alone, people alone, and both together."""
    ask(port, 2.0, tasks)
    figures: dict[str, Any] = {
        "idle": summary(ask(port, seconds, tasks)),
        "people alone": measure(port, tokens, seconds),
    }
    times: list[float] = []
    asker = threading.Thread(target=lambda: times.extend(ask(port, seconds, tasks)))
    asker.start()
    figures["people beside it"] = measure(port, tokens, seconds)
    asker.join()
    return figures | {"labeling": summary(times)}


def in_process(workspace: Workspace, store: LabelStore, link: Link, tasks: int) -> dict[str, Any]:
    """Time the answer without HTTP, from memory and with the scores read for each request, in turn."""
    pool = store.images.table().rows

    def read() -> FaceOrder:
        return FaceOrder.build(ScoresReader.load(workspace.folder("scores") / "1"), pool)

    held = read()
    ways: dict[str, Callable[[], FaceOrder]] = {"from memory": lambda: held, "naive": read}
    backends = {name: Backend(store, order) for name, order in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    chooser = random.Random(1)
    for _ in range(_ROUNDS):
        asked = body(chooser, tasks)["tasks"]
        for name, backend in backends.items():
            began = time.perf_counter()
            backend.predict(link, f"{PROJECT}.1", asked)
            times[name].append((time.perf_counter() - began) * 1000)
    return {f"in process, {name}": summary(took) for name, took in times.items()}


def summary(times: list[float]) -> dict[str, float]:
    """Return percentiles of milliseconds."""
    found = {f"p{q}": round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)}
    return {"count": len(times), **found, "max": round(max(times), 2)}


if __name__ == "__main__":
    sys.exit(main())
