"""Generations: whole or not there, pruned, and readable without the loop."""

import os
from pathlib import Path

import numpy as np
import pytest

from annotator.errors import NotFoundError, WorkspaceError
from annotator.features import FeatureShards
from annotator.loop import learn
from annotator.loop.embed import REFIT_GROWTH, HogEncoder
from annotator.loop.learn import Learner
from annotator.loop.scores import Contents, numbers, publish, sweep
from annotator.records import ARMS
from annotator.scores import ScoresReader
from annotator.settings import Workspace
from annotator.store import LabelStore
from learner.data import write_shards
from tests.loop.conftest import answer, current, first_order


def contents(**changes: np.ndarray) -> Contents:
    arrays = {
        "rows": np.array([3, 5, 9]),
        "probs": np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]),
        "order": np.array([9, 3]),
        "arms": np.array([ARMS.index("uncertain"), ARMS.index("review")]),
        "candidates": np.array([0b111, 0b101]),
        "given": np.array([-1, 2]),
        "blind": np.array([False, False]),
        "seen": np.array([0, 2]),
    }
    return Contents(arrays | changes, "fast", 17, "hog-1", "hog-1", {"classes": ["a", "b", "c"]})


def test_what_is_written_is_read(workspace: Workspace, store: LabelStore) -> None:
    folder = workspace.folder("scores")
    generation = publish(store, folder, contents(), keep=3)
    assert store.learning.current_generation() == generation
    scores = ScoresReader.load(folder / str(generation.id))
    assert (scores.model_version, scores.mode, scores.id) == ("hog-1.1", "fast", 1)
    assert scores.candidate_slugs(0) == ("b", "a", "c")  # by probability, ties in taxonomy order
    assert scores.candidate_slugs(1) == ("a", "c")
    assert (scores.arm(0), scores.arm(1)) == ("uncertain", "review")
    assert scores.probs_of(5) is not None
    assert scores.probs_of(4) is None
    assert scores.probs_of(10) is None


def test_old_generations_and_leftovers_go(workspace: Workspace, sqlite_store: LabelStore) -> None:
    folder = workspace.folder("scores")
    for _ in range(5):
        publish(sqlite_store, folder, contents(), keep=3)
    assert numbers(folder) == [3, 4, 5]
    (folder / "6").mkdir()  # renamed, then killed before it was recorded
    (folder / ".7.123").mkdir()
    sweep(sqlite_store, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]
    (folder / "6").mkdir()
    assert publish(sqlite_store, folder, contents(), keep=3).id == 6


def test_a_gone_or_damaged_generation_is_named(workspace: Workspace, sqlite_store: LabelStore) -> None:
    folder = workspace.folder("scores")
    with pytest.raises(NotFoundError, match="current"):
        ScoresReader.load(folder / "1")
    publish(sqlite_store, folder, contents(), keep=3)
    (folder / "1" / "arms.npy").write_bytes(b"no array")
    with pytest.raises(WorkspaceError, match="damaged"):
        ScoresReader.load(folder / "1")
    publish(sqlite_store, folder, contents(arms=np.array([1])), keep=3)
    with pytest.raises(WorkspaceError, match="arms"):
        ScoresReader.load(folder / "2")


def test_the_last_order_serves_while_no_new_one_can_be_written(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "RETRY_SECONDS", 0.0)
    before = first_order(learner)
    obstacle = learner.workspace.root / "scores" / f".{before.id + 1}.{os.getpid()}"
    obstacle.write_text("in the way")
    answer(learner.store, int(before.order[0]), "fear")
    learner._refresh_seconds = 0.0
    learner.tick()
    assert current(learner.workspace, learner.store).id == before.id
    assert "no new order" in (learner.report.message or "")
    obstacle.unlink()
    learner.tick()
    assert current(learner.workspace, learner.store).id == before.id + 1


def test_a_projection_fitted_to_few_faces_is_replaced_once(tmp_path: Path, workspace: Workspace) -> None:
    draw = np.random.default_rng(0)
    cache = workspace.folder("cache") / "48"
    few = 40
    write_shards(cache, draw.integers(0, 256, (few, 48, 48, 3), dtype=np.uint8), 0)
    encoder = HogEncoder(workspace)
    assert encoder.step(quiet=False) == 0  # more may be on their way
    assert encoder.step(quiet=True) == few
    write_shards(cache, draw.integers(0, 256, (few * REFIT_GROWTH, 48, 48, 3), dtype=np.uint8), few)
    while encoder.step(quiet=True):
        assert encoder.shards is not None
        assert encoder.shards.info.id in ("hog-1", "hog-2")
    assert encoder.shards is not None
    assert encoder.shards.info.id == "hog-2"
    assert encoder.shards.stop == few * (1 + REFIT_GROWTH)
    assert encoder.step(quiet=True) == 0
    assert encoder.step(quiet=True) == 0  # and that is that
    again = HogEncoder(workspace)
    assert again.shards is not None
    assert again.shards.info.id == "hog-2"
    assert FeatureShards(workspace.root / "encoders" / "hog-2").read(np.array([5])).any()
