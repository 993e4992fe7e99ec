"""What `annotator sync WS labelstudio status` costs with a hundred thousand linked tasks, and what an idle watch does.

    python -m tests.benchmarks.bench_labelstudio_status [--tasks 100000]

Prints one JSON object. `python` is the interpreter alone, `help` the command line's own start: what no status can be
faster than. `watch` looks once a second here; it comes every five by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from annotator import taxonomy
from annotator.labelstudio.linking.link import link as make_link
from annotator.labelstudio.report import sync_state
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import LinkedTask, Shown
from tests.conftest import new_image
from tests.labelstudio.studio import Studio, running

SHOWN = Shown("uncertain", "shipped.1", False, ({"class": "anger", "prob": 0.41}, {"class": "disgust", "prob": 0.33}))
BATCH = 2_000
REPEATS = 5
MEASURE = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
# A small process in between: a child's peak counts what its parent held when it was forked.
IDLE_SECONDS = 20.0


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "studio") as studio:
        workspace = Workspace.create(Path(folder) / "ws", taxonomy.FERPLUS)
        _fill(workspace, studio, options.tasks)
        print(json.dumps(run(workspace, studio), indent=2))


def run(workspace: Workspace, studio: Studio) -> dict[str, Any]:
    """Run the commands as a person does, each in a process of its own."""
    root, environment = str(workspace.root), {**os.environ, "LABEL_STUDIO_API_KEY": studio.admin.token}
    sync = ["-m", "annotator", "sync", root, "labelstudio"]
    return {
        "python": _repeated(["-c", ""], environment),
        "help": _repeated(["-m", "annotator", "--help"], environment),
        "status": _repeated([*sync, "status"], environment),
        "status_json": _repeated([*sync, "status", "--json"], environment),
        "status_check": _repeated([*sync, "status", "--check"], environment),
        "watch": _watch([*sync, "watch", "--every", "1"], environment, workspace),
    }


def _fill(workspace: Workspace, studio: Studio, tasks: int) -> None:
    """Make a project of `tasks` and link it, a tenth of it answered; `top_k` is small, so that nothing is pushed."""
    with LabelStore.open(workspace) as store, studio.server() as server:
        source = store.images.register_source("nowhere", "folder", "folder")
        link = make_link(workspace, store, server, title="many tasks", top_k=1).link
        for start in range(0, tasks, BATCH):
            numbers = range(start, min(start + BATCH, tasks))
            images = store.images.add(source, [new_image(str(number)) for number in numbers], "none")
            told = [{"data": {"image": "/nowhere", "image_id": image.image_id, "reason": ""}} for image in images]
            ids = server.import_tasks(link.project_id, told)
            states = ("answered", *["open"] * 9)
            rows = [image.row for image in images]
            made = [LinkedTask(i, row, states[i % 10], SHOWN, "shipped.1") for i, row in zip(ids, rows, strict=True)]
            store.exchange.put_tasks(link.id, made)


def _repeated(words: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a command, warm, several times: median seconds and the most memory that it held."""
    seconds, memory = [], []
    for _ in range(REPEATS + 1):
        process = subprocess.run(
            [sys.executable, "-c", MEASURE, *words], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        took, kilobytes = process.stdout.split()[-2:]
        seconds.append(float(took))
        memory.append(float(kilobytes) / 1e3)
    return {"median_s": round(statistics.median(seconds[1:]), 2), "peak_mb": round(max(memory))}


def _watch(words: list[str], environment: dict[str, str], workspace: Workspace) -> dict[str, float]:
    """Let a watch idle and return its memory and its share of a core."""
    process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)
    try:
        while sync_state(workspace)["state"] != "watching":
            assert process.poll() is None, "the watch ended"
            time.sleep(0.1)
        time.sleep(2)
        watched = psutil.Process(process.pid)
        before = sum(watched.cpu_times()[:2])
        time.sleep(IDLE_SECONDS)
        spent = sum(watched.cpu_times()[:2]) - before
        return {"resident_mb": round(watched.memory_info().rss / 1e6), "core_share": round(spent / IDLE_SECONDS, 3)}
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
