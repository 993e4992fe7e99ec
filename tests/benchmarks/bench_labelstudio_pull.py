"""How fast answers come in from a real Label Studio, beside a bare download of the same.

    python -m tests.benchmarks.bench_labelstudio_pull [--annotations 10000]

Prints one JSON object. `download_per_s` reads the same pages and drops them: what the server delivers. `commit_ms` is
how long an answer on our page may have to wait for the pull; it includes waiting for the disk. `idle` is a look at a
project where nothing has happened; its requests are counted by a proxy. `full_s` is a sync of the same quiet project
that compares all ids on both sides.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from annotator import auth, taxonomy
from annotator.labelstudio.answers.changes import changed_tasks
from annotator.labelstudio.answers.pull import FULL_OVERLAP, PullReport, pull
from annotator.labelstudio.answers.sync import sync_once
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.config.generated import generate, own_mapping
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.database import Database
from annotator.store.exchange_records import Link, LinkedTask, Shown
from tests.conftest import new_image
from tests.labelstudio.pair import part
from tests.labelstudio.proxy import Proxy
from tests.labelstudio.studio import Studio, running

IMPORTED = 2_000
SLUGS = taxonomy.FERPLUS.slugs


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "studio") as studio:
        workspace = Workspace.create(Path(folder) / "ws", taxonomy.FERPLUS)
        with LabelStore.open(workspace) as store, studio.server() as server:
            link = _fill(workspace, store, server, studio, options.annotations)
            print(json.dumps(run(workspace, store, server, studio, link), indent=2))


def run(workspace: Workspace, store: LabelStore, server: Server, studio: Studio, link: Link) -> dict[str, Any]:
    """Download, pull and look once more; return the numbers."""
    began = time.perf_counter()
    downloaded = sum(len(page) for page in changed_tasks(server, link.project_id, None))
    download = time.perf_counter() - began
    before = _peak_mb()
    commits: list[float] = []
    began = time.perf_counter()
    with _timed_commits(store.database, commits):
        report = pull(workspace, store, server, link)
    took = time.perf_counter() - began
    after = _peak_mb()
    _wait_until_quiet(workspace, store, server, link)
    time.sleep(FULL_OVERLAP.total_seconds())
    pull(workspace, store, server, link)
    full = _timed(lambda: sync_once(workspace, store, server, link, full=True))
    return {
        "annotations": report.new,
        "download_per_s": downloaded / download,
        "pull_per_s": report.new / took,
        "share_of_download": (report.new / took) / (downloaded / download),
        "commits": len(commits),
        "commit_ms": _quantiles(commits),
        "peak_mb_before": before,
        "peak_mb_after": after,
        "full_s": full,
        "idle": _idle(workspace, store, studio, link),
    }


def _idle(workspace: Workspace, store: LabelStore, studio: Studio, link: Link) -> dict[str, Any]:
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url) as counted:
        assert not sync_once(workspace, store, counted, link)
        requests = proxy.count()
    with studio.server() as server:
        sync_once(workspace, store, server, link)
        times = [_timed(lambda: sync_once(workspace, store, server, link)) for _ in range(20)]
        bare = [_timed(lambda: _bare(server, link)) for _ in range(20)]
    return {
        "requests": requests,
        "cycle_ms": 1000 * statistics.median(times),
        "bare_request_ms": 1000 * statistics.median(bare),
    }


def _bare(server: Server, link: Link) -> object:
    return server.tasks(link.project_id, include=("id",), page_size=1)


def _wait_until_quiet(workspace: Workspace, store: LabelStore, server: Server, link: Link) -> PullReport:
    """Wait until what was imported lies behind the overlap of the cursor."""
    give_up = time.monotonic() + 120
    while (report := pull(workspace, store, server, link)).tasks:
        assert time.monotonic() < give_up
        time.sleep(5)
    return report


def _fill(workspace: Workspace, store: LabelStore, server: Server, studio: Studio, count: int) -> Link:
    """Make `count` faces and as many tasks with one annotation each."""
    ann = studio.join("ann")
    store.accounts.add("ann", "annotator", auth.hash_password("correct horse"))
    source = store.images.register_source("/faces", "folder", "folder")
    images = []
    for start in range(0, count, 500):
        new = [new_image(f"face-{number}") for number in range(start, min(start + 500, count))]
        images += store.images.add(source, new, "none")
    project_id = int(server.create_project("pull", generate(taxonomy.FERPLUS))["id"])
    settings = {"mapping": own_mapping(taxonomy.FERPLUS).as_dict(), "users": {ann.email: "ann"}}
    link = store.exchange.add_link(studio.url, project_id, "pull", settings)
    shown = Shown("uncertain", "none.1", False, ({"class": "anger", "prob": 0.5}, {"class": "fear", "prob": 0.4}))
    for start in range(0, count, IMPORTED):
        batch = images[start : start + IMPORTED]
        tasks = [_task(image.image_id, image.row, ann.id) for image in batch]
        ids = server.import_tasks(project_id, tasks)
        put = [LinkedTask(t, image.row, "open", shown, "none.1") for t, image in zip(ids, batch, strict=True)]
        store.exchange.put_tasks(link.id, put)
    return link


def _task(image_id: str, row: int, ann: int) -> dict[str, Any]:
    data = {"image": f"/data/upload/1/{image_id}.png", "image_id": image_id, "reason": "The model cannot decide"}
    said = {"result": part(SLUGS[row % len(SLUGS)]), "completed_by": ann, "lead_time": 1.25}
    return {"data": data, "annotations": [said]}


@contextmanager
def _timed_commits(database: Database, times: list[float]) -> Iterator[None]:
    """Note how long each write transaction holds the store."""
    write = database.write

    @contextmanager
    def timed() -> Iterator[Any]:
        with write() as connection:
            began = time.perf_counter()
            yield connection
        times.append(time.perf_counter() - began)

    database.write = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del database.write


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    shown = {name: 1000 * ordered[int(share * (len(ordered) - 1))] for name, share in at.items()}
    return shown | {"max": 1000 * ordered[-1]}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
