"""A small workspace of drawn faces whose rounds take seconds."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from annotator import taxonomy
from annotator.ingest.importer import run_import
from annotator.loop.learn import Learner, opened
from annotator.records import Answer
from annotator.scores import Scores, ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.zygote import Zygote

QUICK = {
    "image_size": 32,
    "round_minutes": 0.02,
    "new_labels": 1000,
    "min_labels": 4,
    "threads": 1,
    "device": "cpu",
    "start": "random",
}


def make_workspace(folder: Path, faces: Path, **learner: object) -> Workspace:
    workspace = Workspace.create(folder, taxonomy.FERPLUS, learner=QUICK | learner)
    with LabelStore.open(workspace) as store:
        run_import(workspace, store, faces / "manifest.csv", "manifest", given_as="truth")
    return workspace


@pytest.fixture(autouse=True)
def _warm_children(monkeypatch: pytest.MonkeyPatch, zygote: Zygote) -> None:
    """Let rounds and embeddings of learners in this process start at once, as real processes all the same."""
    monkeypatch.setattr("annotator.loop.training.start_child", zygote.start)
    monkeypatch.setattr("annotator.loop.embed_network.start_child", zygote.start)


@pytest.fixture
def small(tmp_path: Path, faces: Path) -> Workspace:
    """Import 64 drawn faces; rounds start only on request."""
    return make_workspace(tmp_path / "ws", faces)


@pytest.fixture
def learner(small: Workspace) -> Iterator[Learner]:
    """Start a learner in this process and tick it by hand."""
    with opened(small) as started:
        yield started


def current(workspace: Workspace, store: LabelStore) -> Scores:
    generation = store.learning.current_generation()
    assert generation is not None
    return ScoresReader.load(workspace.root / "scores" / str(generation.id))


def tick_until(learner: Learner, done: Callable[[], bool], seconds: float = 200) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up, "the learner did not get there"
        if not learner.tick():
            time.sleep(0.02)


def first_order(learner: Learner) -> Scores:
    """Tick until every face is embedded and ordered."""

    def ready() -> bool:
        generation = learner.store.learning.current_generation()
        return generation is not None and generation.mode != "import order" and not learner._grown

    tick_until(learner, ready)
    return current(learner.workspace, learner.store)


_COUNTER = iter(range(10**9))


def answer(store: LabelStore, row: int, *classes: str, kind: str = "label") -> int:
    """Answer one face as the local user; return the seq."""
    image = store.images.by_rows([row])[0]
    given = Answer(f"test-client-{next(_COUNTER):06d}", image.image_id, kind, classes)  # type: ignore[arg-type]
    return store.decisions.submit(store.accounts.local_user(), given).annotation.seq


def answer_truth(store: LabelStore, count: int, start: int = 0) -> list[int]:
    """Answer pool faces number `start` to `count` by their given labels, classes in turn; return their rows."""
    table = store.images.table()
    represents = set(table.rows[(table.rows == table.group) & (table.state == 0)].tolist())
    by_class: dict[str, list[int]] = {}
    for t in store.images.truth("pool"):
        if t.row in represents and t.truth != "unusable":
            by_class.setdefault(t.truth, []).append(t.row)
    rows: list[int] = []
    depth = 0
    while len(rows) < count:
        layer = [(slug, found[depth]) for slug, found in sorted(by_class.items()) if depth < len(found)]
        assert layer, "not that many faces"
        for slug, row in layer[: count - len(rows)]:
            if len(rows) >= start:
                answer(store, row, slug)
            rows.append(row)
        depth += 1
    return rows[start:]


def assert_consistent(workspace: Workspace, store: LabelStore) -> None:
    """Every generation and snapshot that is there is whole, and what the database names is there."""
    generation = store.learning.current_generation()
    assert generation is not None
    recorded = generation.id
    for path in (workspace.root / "scores").iterdir():
        if path.name.isdigit() and int(path.name) <= recorded:
            scores = ScoresReader.load(path)
            assert len(np.unique(scores.order)) == len(scores.order)
            np.testing.assert_allclose(scores.probs.sum(axis=1), 1, atol=1e-4)
    assert (workspace.root / "scores" / str(recorded)).is_dir()
