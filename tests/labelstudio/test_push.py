"""Faces become tasks exactly once, with pictures and predictions, whatever fails in between."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from annotator.labelstudio.push import push
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.pushing import Bench, linked
from tests.labelstudio.studio import Studio


@pytest.fixture
def bench(studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Bench]:
    """Link a workspace of 40 faces to a project."""
    with studio.server() as server:
        yield linked(workspace, sqlite_store, server, 40, tmp_path / "faces", top_k=10)


def test_the_top_of_the_queue_becomes_tasks(bench: Bench, studio: Studio) -> None:
    order = bench.rows[::-1]
    version = bench.publish(order, candidates=("fear", "surprise"))
    report = push(bench.workspace, bench.store, bench.server, bench.link)
    assert (report.pushed, report.version, report.given_up, report.later) == (10, version, 0, 0)
    bench.check(order[:10], version)
    task = bench.there()[0]
    assert task["data"]["reason"].startswith("The model cannot decide: surprise 60 %")
    said = {item["from_name"]: item["value"]["choices"] for item in task["predictions"][0]["result"]}
    assert said == {"expression": ["surprise"], "candidates": ["surprise", "fear"]}
    scores = [task["predictions"][0]["score"] for task in bench.there()]
    assert scores == sorted(scores)
    picture = httpx.get(studio.url + task["data"]["image"], headers={"Authorization": f"Token {studio.admin.token}"})
    assert picture.content == (bench.images / f"{order[0]}.png").read_bytes()
    again = push(bench.workspace, bench.store, bench.server, bench.link)
    assert (again.pushed, again.renewed) == (0, 0)
    bench.check(order[:10], version)
