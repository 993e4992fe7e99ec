"""How long `next` takes inside the server, and how long a server takes to know a large workspace.

    python -m tests.benchmarks.bench_queue [--faces 200000] [--answers 20000] [--calls 2000]

Prints one JSON object: seconds to start, milliseconds of a new order, and milliseconds of `next` (leases included).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from annotator import taxonomy
from annotator.follow import QueueFollower
from annotator.queue import FaceQueue
from annotator.records import Answer, NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.writer import DecisionWriter
from tests.scores import write_generation


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=200_000)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=2_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.create(Path(folder) / "ws", taxonomy.FERPLUS)
        with LabelStore.open(workspace) as store:
            print(json.dumps(run(workspace, store, options.faces, options.answers, options.calls), indent=2))


def run(workspace: Workspace, store: LabelStore, faces: int, answers: int, calls: int) -> dict[str, float]:
    """Fill a workspace, start a queue on it, swap in an order, ask for faces."""
    source = store.images.register_source("/faces", "folder", "folder")
    for start in range(0, faces, 5_000):
        names = range(start, min(start + 5_000, faces))
        new = [NewImage(f"{n}.png", "pool", "active", f"{n:064x}", 1, 0, 48, 48, "image/png") for n in names]
        store.images.add(source, new, "none")
    rows = store.images.table().rows.tolist()
    users = [store.accounts.add(f"person {n}", "annotator", None) for n in range(20)]
    for start in range(0, answers, 500):
        records = store.images.by_rows(rows[start : start + 500])
        said = [
            (users[r.row % 20], Answer(f"c{r.row}", r.image_id, "skip" if r.row % 10 == 0 else "unusable"))
            for r in records
        ]
        store.decisions.submit_many(said)
    writer = DecisionWriter(store)
    queue = FaceQueue(store, workspace, writer)
    follower = QueueFollower(store, workspace, queue, writer)
    began = time.perf_counter()
    writer.start()
    follower.start()
    started = time.perf_counter() - began
    write_generation(workspace, store, rows, np.random.default_rng(0).permutation(rows).tolist(), candidates=("fear",))
    began = time.perf_counter()
    follower.poll()
    swapped = time.perf_counter() - began
    times = []
    for call in range(calls):
        began = time.perf_counter()
        items = queue.next(users[call % 20], 1, []).items
        times.append((time.perf_counter() - began) * 1000)
        assert len(items) == 1
    follower.close()
    writer.close()
    figures = {f"next_p{q}_ms": round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)}
    return {"start_seconds": round(started, 2), "swap_ms": round(swapped * 1000, 1), **figures}


if __name__ == "__main__":
    main()
