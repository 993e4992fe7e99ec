"""How long after an answer the queue is in its new order, at 32,000 faces, idle and while a round trains.

    python tests/benchmarks/bench_reorder.py [--faces 32000] [--answers 10] [--labels 400]

Beside it the naive way: fit scikit-learn's regression anew, read the pool, and rebuild coverage over all faces. The
pixels are random, which costs the same as real ones; no picture of a person is needed.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from annotator import taxonomy
from annotator.acquisition.herding import build
from annotator.features import unit
from annotator.loop.learn import Learner, opened
from annotator.loop.training import JOB
from annotator.records import Answer, NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from learner.data import write_shards

SIZE, CLASSES = 48, taxonomy.FERPLUS.slugs


def make(root: Path, faces: int) -> Workspace:
    """Make a workspace with `faces` images, their pixels and their features."""
    learner = {"new_labels": 10**6, "max_wait_minutes": 10**6, "round_minutes": 30.0}
    workspace = Workspace.create(root, taxonomy.FERPLUS, learner=learner)
    draw = np.random.default_rng(0)
    with LabelStore.open(workspace) as store:
        source = store.images.register_source("bench", "folder", "folder")
        for start in range(0, faces, 500):
            store.images.add(source, [_image(i) for i in range(start, min(start + 500, faces))], "none")
        first = int(store.images.table().rows[0])
    for start in range(0, faces, 4000):
        pixels = draw.integers(0, 256, (min(4000, faces - start), SIZE, SIZE, 3), dtype=np.uint8)
        write_shards(workspace.folder("cache") / str(SIZE), pixels, first + start)
    return workspace


def _image(i: int) -> NewImage:
    return NewImage(f"{i}.png", "pool", "active", f"hash-{i}", 1, 1, SIZE, SIZE, "image/png")


def ordered_after(learner: Learner, answers: int, names: dict[int, str]) -> list[float]:
    """Give answers one at a time while the learner runs; return the seconds until each is in the order."""
    store = learner.store
    user = store.accounts.local_user()
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            if not learner.tick():
                stopping.wait(0.1)

    thread = threading.Thread(target=run)
    thread.start()
    seconds = []
    try:
        for _ in range(answers):
            row = names.popitem()
            began = time.monotonic()
            given = Answer(f"bench-{row[0]:09d}", row[1], "label", (CLASSES[row[0] % 8],))
            seq = store.decisions.submit(user, given).annotation.seq
            while (g := store.learning.current_generation()) is None or g.label_seq < seq:
                time.sleep(0.01)
            seconds.append(time.monotonic() - began)
            time.sleep(0.3)
    finally:
        stopping.set()
        thread.join()
    return seconds


def naive(learner: Learner) -> float:
    """Return the seconds of fitting and sorting everything anew, features already in memory."""
    labels = learner.pool.labels()
    assert learner.shards is not None
    features = unit(learner.shards.read(learner.pool.rows))
    at = np.searchsorted(learner.pool.rows, labels.rows)
    began = time.monotonic()
    model = LogisticRegression(max_iter=300).fit(features[at], labels.given)
    probs = np.sort(model.predict_proba(features), axis=1)
    np.argsort(probs[:, -1] - probs[:, -2])
    open_ = np.ones(len(features), dtype=bool)
    open_[at] = False
    build(learner.pool.rows, features, open_, 0, num_candidates=len(features)).cover(features[at]).pick(
        open_[open_], 384
    )
    return time.monotonic() - began


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faces", type=int, default=32_000)
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--idle-only", action="store_true", help="leave out the measurement beside a training round")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = make(Path(folder) / "ws", chosen.faces)
        with opened(workspace) as learner:
            while learner.tick() or learner.shards is None or learner._grown:
                time.sleep(0.01)
            table = learner.store.images.table()
            rows = np.random.default_rng(1).permutation(table.rows)[: chosen.labels + 4 * chosen.answers].tolist()
            images = learner.store.images.by_rows(rows)
            names = {image.row: image.image_id for image in images}
            user = learner.store.accounts.local_user()
            for _ in range(chosen.labels):
                row, name = names.popitem()
                learner.store.decisions.submit(user, Answer(f"bench-{row:09d}", name, "label", (CLASSES[row % 8],)))
            learner.tick()
            idle = ordered_after(learner, chosen.answers, names)
            training: list[float] = []
            if not chosen.idle_only:
                learner.store.learning.file_job(JOB, {"trigger": "bench"})
                while learner.runner.progress().get("step", 0) < 1:
                    learner.tick()
                    time.sleep(0.05)
                training = ordered_after(learner, chosen.answers, names)
            print(
                json.dumps(
                    {
                        "faces": chosen.faces,
                        "labels": chosen.labels,
                        "idle_seconds": _spread(idle),
                        "while_training_seconds": _spread(training) if training else None,
                        "naive_seconds": round(naive(learner), 3),
                    }
                )
            )


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


if __name__ == "__main__":
    main()
