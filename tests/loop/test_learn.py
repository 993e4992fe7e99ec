"""The learner on real faces: orders after answers, rounds in a child process, faults."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from annotator.errors import LearnerError, WorkspaceBusyError
from annotator.ingest.demo_faces import generate
from annotator.ingest.importer import run_import
from annotator.locks import only_one
from annotator.loop import publish
from annotator.loop.evaluate import evaluate_split
from annotator.loop.learn import Learner, opened
from annotator.loop.retrain import retrain_once
from annotator.loop.signals import Board
from annotator.loop.training import JOB
from annotator.records import ARMS
from annotator.settings import DEFAULT_METHODS, Workspace
from annotator.store import LabelStore
from tests.loop.conftest import answer, answer_truth, assert_consistent, current, first_order, tick_until


def test_before_labels_the_whole_pool_is_ordered_by_coverage(learner: Learner) -> None:
    scores = first_order(learner)
    assert scores.mode == "coverage"
    assert sorted(scores.order) == scores.rows.tolist() == learner.pool.rows.tolist()
    assert {scores.arm(i) for i in range(len(scores.order))} == {"coverage"}
    assert not scores.candidates.any()
    assert scores.model_version == f"hog-1.{scores.id}"


def test_one_answer_is_enough_for_a_model(learner: Learner) -> None:
    before = first_order(learner)
    row = int(before.order[0])
    seq = answer(learner.store, row, "happiness")
    tick_until(learner, lambda: current(learner.workspace, learner.store).meta["label_seq"] >= seq, 10)
    after = current(learner.workspace, learner.store)
    assert after.mode == "fast"
    assert row not in after.order
    assert after.probs.argmax(axis=1).tolist() == [1] * len(after.rows)
    assert len({after.arm(i) for i in range(len(after.order))}) > 2


def test_candidate_sets_nots_and_disputes_reach_the_order(learner: Learner) -> None:
    order = first_order(learner).order
    store = learner.store
    answer(store, int(order[0]), "fear", "surprise", kind="candidates")
    answer(store, int(order[1]), "anger", kind="not")
    answer(store, int(order[2]), "anger")
    other = store.accounts.add("second", "annotator", None)
    image = store.images.by_rows([int(order[2])])[0]
    from annotator.records import Answer

    seq = store.decisions.submit(other, Answer("second-client-1", image.image_id, "label", ("disgust",))).annotation.seq
    answer(store, int(order[3]), kind="unusable")
    tick_until(learner, lambda: current(learner.workspace, store).meta["label_seq"] > seq, 10)
    after = current(learner.workspace, store)
    assert not np.isin(order[[0, 1, 3]], after.order).any()
    at = after.order.tolist().index(int(order[2]))
    assert after.arm(at) == "review"  # people disagree: ask again, with what they said
    assert set(after.candidate_slugs(at)) == {"anger", "disgust"}
    assert after.given[at] == -1


def test_an_undone_answer_puts_the_face_back(learner: Learner) -> None:
    row = int(first_order(learner).order[0])
    answer(learner.store, row, "fear")
    annotation = learner.store.decisions.list()[-1]
    learner.tick()
    seq = learner.store.decisions.undo(learner.store.accounts.local_user(), "undo-client-1", annotation.id)
    tick_until(learner, lambda: current(learner.workspace, learner.store).meta["label_seq"] >= seq.annotation.seq, 10)
    assert row in current(learner.workspace, learner.store).order


def test_reserved_answers_are_never_trained_on(learner: Learner) -> None:
    order = first_order(learner).order
    for row, slug in zip(order[:4].tolist(), ("fear", "anger", "fear", "anger"), strict=True):
        answer(learner.store, row, slug)
    learner.pool.catch_up()
    learner.pool._reserved.update(order[:2].tolist())
    contents = learner._refresher.read(learner.pool, learner.shards, Board(), "hog-1")
    assert contents.meta["num_labels"] == 4
    model = learner._refresher._fit(learner.pool, learner.pool.labels(), learner.shards)  # type: ignore[arg-type]
    assert model is not None
    assert np.exp(model.log_prior).round(2).max() == pytest.approx(0.38, abs=0.02)  # (1 + 1/8) / 3: one of each


def test_a_round_is_published_and_its_doubts_are_read(learner: Learner) -> None:
    first_order(learner)
    answer_truth(learner.store, 12)
    job = learner.store.learning.file_job(JOB, {"trigger": "test"})
    states = set()

    def published() -> bool:
        path = learner.workspace.root / "learner.json"
        states.add(json.loads(path.read_text())["state"] if path.exists() else "")
        return bool(learner.store.learning.snapshots()) and not learner.runner.busy

    tick_until(learner, published)
    snapshot = learner.store.learning.snapshots()[0]
    folder = learner.workspace.root / "snapshots" / snapshot.id
    assert "training" in states
    publish.verify(folder, 8)
    assert snapshot.id == f"{DEFAULT_METHODS[0]}-0001"
    assert snapshot.label_seq == learner.store.last_seq()
    assert {"steps_per_second", "labeled", "unlabeled"} <= snapshot.metrics.keys()
    assert snapshot.metrics["labeled"] == 12
    assert not list((learner.workspace.root / "runs").iterdir())
    done = next(j for j in learner.store.learning.jobs() if j.id == job.id)
    assert (done.state, done.message) == ("done", f"snapshot {snapshot.id}")
    tick_until(learner, lambda: current(learner.workspace, learner.store).meta["signals"] == [snapshot.id], 20)


def test_enough_new_labels_start_a_round_by_themselves(tmp_path: Path, faces: Path) -> None:
    from tests.loop.conftest import make_workspace

    workspace = make_workspace(tmp_path / "auto", faces, new_labels=6, method="supervised")
    with opened(workspace) as learner:
        first_order(learner)
        answer_truth(learner.store, 5)
        for _ in range(5):
            learner.tick()
        assert not learner.runner.busy
        learner._jobs_at = float("-inf")
        answer_truth(learner.store, 6)
        tick_until(learner, lambda: learner.runner.busy, 10)
        assert learner.store.learning.jobs()[0].state == "running"


def test_a_failing_round_is_told_and_labeling_goes_on(learner: Learner, tmp_path: Path) -> None:
    order = first_order(learner).order
    answer_truth(learner.store, 6)
    config = tmp_path / "wrong.yaml"
    config.write_text("options: {no_such_option: 1}\n")
    learner.store.learning.file_job(JOB, {"config": str(config)})
    tick_until(learner, lambda: learner.store.learning.jobs()[0].state == "failed")
    learner.tick()
    told = json.loads((learner.workspace.root / "learner.json").read_text())
    assert told["state"] == "idle"
    assert "no_such_option" in told["message"]
    assert not learner.store.learning.snapshots()
    seq = answer(learner.store, int(order[-1]), "fear")
    tick_until(learner, lambda: current(learner.workspace, learner.store).meta["label_seq"] >= seq, 10)
    usable = learner.pool.labels()
    assert learner._rotation.due(usable, time.monotonic()) is None  # it rests


def test_a_second_learner_is_refused(small: Workspace) -> None:
    with (
        only_one(small.root / "learner.lock", "learner"),
        pytest.raises(WorkspaceBusyError, match="another learner"),
        opened(small),
    ):
        pass
    with opened(small):  # the lock goes with its holder
        pass


def test_retrain_once_publishes_and_orders(small: Workspace) -> None:
    with LabelStore.open(small) as store:
        answer_truth(store, 10)
    told: list[tuple[int, int, str]] = []
    result = retrain_once(small, method="supervised", progress=lambda *said: told.append(said))
    assert result.snapshot == "supervised-0001"
    assert result.new_labels == 10
    assert told
    with LabelStore.open(small) as store:
        assert current(small, store).meta["signals"] == []  # supervised has no doubts
        assert current(small, store).mode == "fast"
        assert_consistent(small, store)
        report = evaluate_split(small, store, "val") if store.images.truth("val") else None
    if report is not None:
        assert set(report.models) == {"fast learner on hog-1", "snapshot supervised-0001"}
    again = retrain_once(small, method="supervised", if_new_labels=1)
    assert again.snapshot is None
    assert "nothing to do" in again.summary()


def test_retrain_without_labels_says_so(small: Workspace) -> None:
    with pytest.raises(LearnerError, match="label some first"):
        retrain_once(small)


def test_faces_imported_after_a_serving_snapshot_get_its_features(learner: Learner, tmp_path: Path) -> None:
    first_order(learner)
    answer_truth(learner.store, 8)
    learner.store.learning.file_job(JOB, {"method": "supervised"})
    tick_until(learner, lambda: bool(learner.store.learning.snapshots()) and not learner.runner.busy)
    snapshot = learner.store.learning.snapshots()[0]
    learner._serve(snapshot.id, "the test says so")
    assert learner.store.learning.serving() is not None
    tick_until(learner, lambda: current(learner.workspace, learner.store).meta["encoder"] == snapshot.id, 20)
    more = generate(tmp_path / "more", 12, seed=99)
    run_import(learner.workspace, learner.store, more, "manifest", given_as="none")
    last = int(learner.store.images.table().rows[-1])
    tick_until(learner, lambda: learner.shards is not None and learner.shards.stop > last)
    new = learner.shards.read(np.array([last], dtype=np.int64))  # type: ignore[union-attr]
    assert new.any()
    # the network reads a face alike whenever it comes: compare with the snapshot's own reading of an old one
    rows, features, _ = publish.features_of(learner.workspace.root / "snapshots" / snapshot.id)
    np.testing.assert_allclose(learner.shards.read(rows[:3]), features[:3], atol=2e-3)  # type: ignore[union-attr]
    tick_until(learner, lambda: last in current(learner.workspace, learner.store).rows, 20)
    assert ARMS[current(learner.workspace, learner.store).arms[0]] in ARMS
