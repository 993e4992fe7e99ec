"""How fast the store takes images and answers.

    python -m tests.benchmarks.bench_store [--images 100000] [--answers 2000] [--url postgresql+psycopg://…]

Prints one JSON object. `batch_ms` is the length of an import transaction, which is how long an answer may wait for it.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from annotator import taxonomy
from annotator.records import Answer, NewImage, User
from annotator.settings import Workspace
from annotator.store import LabelStore

CLASSES = taxonomy.FERPLUS.slugs


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--url", default=None, help="an empty PostgreSQL database; SQLite when left out")
    parser.add_argument("--folder", default=None, help="where the workspace goes; a temporary folder when left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        workspace = Workspace.create(Path(folder) / "ws", taxonomy.FERPLUS, database=options.url)
        with LabelStore.open(workspace) as store:
            print(json.dumps(run(store, options.images, options.answers, options.batch), indent=2))


def run(store: LabelStore, images: int, answers: int, batch: int) -> dict[str, object]:
    """Fill the store, then answer with one thread, with eight, in groups, and beside an import."""
    rng = np.random.default_rng(0)
    figures: dict[str, object] = {"import": fill(store, images, batch, rng)}
    user = store.accounts.local_user()
    ids = [r.image_id for r in store.images.by_rows(range(min(images, 8 * answers)))]
    for name, threads in (("one_thread", 1), ("eight_threads", 8)):
        figures[name] = answer(store, [user] * threads, ids, answers, name)
    began = time.perf_counter()
    for start in range(0, answers, 16):
        group = [
            (user, Answer(f"g{start + i}", ids[(start + i) % len(ids)], "label", (CLASSES[i % 8],))) for i in range(16)
        ]
        store.decisions.submit_many(group)
    figures["groups_of_16_per_s"] = round(answers / (time.perf_counter() - began))
    stop = threading.Event()
    importer = threading.Thread(target=_import_slowly, args=(store, stop, batch))
    importer.start()
    figures["beside_import"] = answer(store, [user], ids, answers, "beside")
    stop.set()
    importer.join()
    for name, call in (
        ("table_s", store.images.table),
        ("label_view_s", store.decisions.label_view),
        ("last_seq_s", store.last_seq),
        ("differing_s", store.decisions.differing),
    ):
        began = time.perf_counter()
        call()
        figures[name] = round(time.perf_counter() - began, 4)
    return figures


def fill(store: LabelStore, images: int, batch: int, rng: np.random.Generator) -> dict[str, float]:
    """Add images with ten votes each and return rows per second and the length of a transaction."""
    source = store.images.register_source("/bench", "folder", "ferplus")
    times = []
    began = time.perf_counter()
    for start in range(0, images, batch):
        new = [made(start + i, rng) for i in range(min(batch, images - start))]
        at = time.perf_counter()
        store.images.add(source, new, "annotations")
        times.append(time.perf_counter() - at)
    return {"rows_per_s": round(images / (time.perf_counter() - began)), **spread(times, "batch")}


def made(index: int, rng: np.random.Generator) -> NewImage:
    """Return an image whose ten votes fall on three classes."""
    votes = dict(zip(rng.choice(CLASSES, 3, replace=False).tolist(), (6, 3, 1), strict=True))
    return NewImage(f"f/{index}.png", "pool", "active", f"{index:064x}", 1000, index, 48, 48, "image/png", votes=votes)


def answer(store: LabelStore, users: Sequence[User], ids: Sequence[str], answers: int, tag: str) -> dict[str, float]:
    """Submit `answers` answers from as many threads as users; return the rate and latencies in milliseconds."""
    times: list[list[float]] = [[] for _ in users]

    def work(number: int) -> None:
        for i in range(answers // len(users)):
            said = Answer(f"{tag}-{number}-{i}", ids[(i * len(users) + number) % len(ids)], "label", (CLASSES[i % 8],))
            at = time.perf_counter()
            store.decisions.submit(users[number], said)
            times[number].append(time.perf_counter() - at)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(users))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    every = [t for own in times for t in own]
    return {"per_s": round(len(every) / took), **spread(every, "submit")}


def spread(times: Sequence[float], name: str) -> dict[str, float]:
    """Return median, 99th percentile and maximum in milliseconds."""
    values = np.array(times) * 1000
    return {
        f"{name}_p50_ms": round(float(np.percentile(values, 50)), 2),
        f"{name}_p99_ms": round(float(np.percentile(values, 99)), 2),
        f"{name}_max_ms": round(float(values.max()), 2),
    }


def _import_slowly(store: LabelStore, stop: threading.Event, batch: int) -> None:
    """Import at about 1,000 images a second until told to stop."""
    source = store.images.register_source("/bench-beside", "folder", "ferplus")
    rng = np.random.default_rng(1)
    start = 10_000_000
    while not stop.is_set():
        began = time.perf_counter()
        store.images.add(source, [made(start + i, rng) for i in range(batch)], "annotations")
        start += batch
        stop.wait(max(0.0, batch / 1000 - (time.perf_counter() - began)))


if __name__ == "__main__":
    main()
