"""How fast faces become tasks of a real Label Studio, beside the server's own rate for the same JSON without our code.

    python -m tests.benchmarks.bench_labelstudio_push [--tasks 10000] [--rounds 3] [--renew 2000] [--uploads 1000]

Every round pushes all faces with predictions into a new project, pictures as local files that are written meanwhile;
into another with the pictures there already; and sends the very same tasks to a third in one plain request: in turn, so
that what else the machine does meets all. Goal: at least 0.8 of the server's own rate, which has no pictures to write,
by the median of the rounds. Then predictions are renewed, and pictures
uploaded. Exits with 1 when the goal is missed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from annotator import taxonomy
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.config.generated import generate
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.tasks.refresh import refresh
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.pushing import Bench, make_link, with_faces
from tests.labelstudio.studio import Studio, running

GOAL = 0.8


class Noting(Server):
    """Notes the tasks that are sent, and how long the server takes for what it is asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sent: list[dict[str, Any]] = []
        self.deleting = 0.0

    def import_tasks(self, project_id: int, tasks: Sequence[dict[str, Any]]) -> list[int]:
        self.sent += tasks
        return super().import_tasks(project_id, tasks)

    def delete_model_version(self, project_id: int, model_version: str) -> None:
        self.deleting += seconds(lambda: super(Noting, self).delete_model_version(project_id, model_version))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def relink(bench: Bench, studio: Studio, number: int, top_k: int, pictures: str = "local") -> None:
    """Link the workspace to a new project."""
    old = bench.store.exchange.link()
    if old is not None:
        bench.store.exchange.close_link(old.id)
    folder = studio.documents / f"round{number}"
    folder.mkdir(exist_ok=True)
    local = {"local_folder": str(folder), "document_root": str(studio.documents)} if pictures == "local" else {}
    make_link(
        bench.workspace,
        bench.store,
        bench.server,
        title=f"round {number}",
        anew=True,
        top_k=top_k,
        pictures=pictures,
        **local,
    )


def plain_import(studio: Studio, tasks: list[dict[str, Any]]) -> float:
    """Send tasks in one request, without anything of ours but the configuration; return the seconds."""
    head = {"Authorization": f"Token {studio.admin.token}", "Content-Type": "application/json"}
    with httpx.Client(base_url=studio.url, headers=head, timeout=600) as client:
        values = {"title": "plain", "label_config": generate(taxonomy.FERPLUS)}
        project = client.post("/api/projects", json=values).raise_for_status().json()["id"]
        body = json.dumps(tasks).encode()
        path = f"/api/projects/{project}/import?return_task_ids=true"
        return seconds(lambda: client.post(path, content=body).raise_for_status())


def side_by_side(bench: Bench, studio: Studio, server: Noting, tasks: int, rounds: int) -> float:
    """Print both rates of every round and return the median of ours / theirs."""
    ratios = []
    print(
        f"tasks/s, {tasks} tasks with predictions; ratio: of ours with the pictures there already to the plain import"
    )
    print(f"{'round':>6} {'pictures written':>17} {'pictures there':>15} {'plain':>8} {'ratio':>7}")
    for number in range(rounds + 1):
        written = timed_push(bench, studio, server, number, tasks)
        ours = timed_push(bench, studio, server, number, tasks)
        plain = plain_import(studio, server.sent)
        rates = f"{tasks / written:>17.0f} {tasks / ours:>15.0f} {tasks / plain:>8.0f} {plain / ours:>7.2f}"
        print(f"{number:>6} {rates}{'   (warming up)' if number == 0 else ''}", flush=True)
        if number:
            ratios.append(plain / ours)
    return statistics.median(ratios)


def timed_push(bench: Bench, studio: Studio, server: Noting, number: int, tasks: int) -> float:
    """Push everything into a new project; return the seconds."""
    relink(bench, studio, number, tasks)
    server.sent.clear()
    took = seconds(lambda: push(bench.workspace, bench.store, server, bench.link))
    assert len(server.sent) == tasks
    return took


def renewing(bench: Bench, studio: Studio, server: Noting, tasks: int) -> None:
    """Print how fast predictions are renewed, with and without the server's deleting of the old ones."""
    relink(bench, studio, 100, tasks)
    push(bench.workspace, bench.store, server, bench.link)
    bench.publish(bench.rows[::-1], candidates=("fear", "surprise"))
    server.deleting = 0.0
    took = seconds(lambda: refresh(bench.workspace, bench.store, server, bench.link))
    bare = took - server.deleting
    print(
        f"refresh of {tasks} predictions: {tasks / bare:.0f}/s until the project shows them; the server then deletes "
        f"the old ones at {tasks / server.deleting:.0f}/s"
    )


def uploading(bench: Bench, studio: Studio, server: Noting, files: int) -> None:
    """Print how fast pictures are uploaded, beside a plain upload of the same files in the same requests."""
    relink(bench, studio, 200, files, pictures="upload")
    made: list[Sequence[tuple[str, bytes, str]]] = []
    inside = 0.0
    upload = server.upload

    def noting(project_id: int, batch: Sequence[tuple[str, bytes, str]]) -> list[tuple[int, str]]:
        nonlocal inside
        made.append(batch)
        found: list[tuple[int, str]] = []
        inside += seconds(lambda: found.extend(upload(project_id, batch)))
        return found

    server.upload = noting  # type: ignore[method-assign]
    took = seconds(lambda: push(bench.workspace, bench.store, server, bench.link))
    head = {"Authorization": f"Token {studio.admin.token}"}
    path = f"{studio.url}/api/projects/{bench.project_id}/import?commit_to_project=false"

    def plain() -> None:
        with httpx.Client(headers=head, timeout=600) as client:
            for batch in made:
                client.post(path, files=[(f"f{n}", file) for n, file in enumerate(batch)]).raise_for_status()

    print(
        f"upload of {files} pictures: {files / inside:.0f}/s, "
        f"a plain upload of the same {files / seconds(plain):.0f}/s; the push with them {files / took:.0f} tasks/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--renew", type=int, default=2_000)
    parser.add_argument("--uploads", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "studio") as studio:
        workspace = Workspace.create(Path(name) / "ws", taxonomy.FERPLUS)
        with (
            LabelStore.open(workspace) as store,
            Noting(studio.url, studio.admin.token, timeout=120) as server,
        ):
            rows = with_faces(workspace, store, Path(name) / "faces", options.tasks)
            bench = Bench(workspace, store, server, rows, Path(name) / "faces")
            bench.publish(rows, candidates=("fear", "surprise"))
            ratio = side_by_side(bench, studio, server, options.tasks, options.rounds)
            renewing(bench, studio, server, options.renew)
            uploading(bench, studio, server, options.uploads)
    print(f"median of ours / plain: {ratio:.2f} (goal {GOAL})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
