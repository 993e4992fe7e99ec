"""kill -9 of the learner at random moments: no half generation, no half snapshot, no orphan; it goes on by itself."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from annotator.loop import publish
from annotator.loop.learn import opened
from annotator.loop.training import JOB
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.loop.conftest import answer_truth, assert_consistent, current, first_order, make_workspace, tick_until

KILLS = 6


def trainers(workspace: Workspace) -> list[psutil.Process]:
    """Return the processes that train in this workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(workspace.root) in line and "learner" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.slow
def test_kill_dash_nine_at_random_moments(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, method="supervised", new_labels=4, round_minutes=0.05)
    chance = random.Random(5)
    with LabelStore.open(workspace) as store:
        answer_truth(store, 6)
        for kill in range(KILLS):
            process = subprocess.Popen(
                [sys.executable, "-m", "annotator", "learn", str(workspace.root)], stderr=subprocess.PIPE
            )
            time.sleep(chance.uniform(0.8, 6.0))
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            give_up = time.monotonic() + 10
            while trainers(workspace) and time.monotonic() < give_up:
                time.sleep(0.05)
            assert not trainers(workspace), f"a trainer outlived kill {kill}"
            for snapshot in store.learning.snapshots():
                publish.verify(workspace.root / "snapshots" / snapshot.id, 8)
            answer_truth_more = [p for p in (workspace.root / "runs").glob("*/out") if p.is_dir()]
            for out in answer_truth_more:
                publish.verify(out, 8)
    with opened(workspace) as learner:  # and the next start goes on
        tick_until(learner, lambda: bool(learner.store.learning.snapshots()) and not learner.runner.busy)
        first_order(learner)
        assert_consistent(workspace, learner.store)
        assert not [p for p in (workspace.root / "scores").iterdir() if p.name.startswith(".")]
        assert not [j for j in learner.store.learning.jobs() if j.state == "running"]


def test_a_round_goes_on_where_it_was_killed(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, method="supervised")
    with opened(workspace) as learner:
        answer_truth(learner.store, 6)
        learner.store.learning.file_job(JOB, {"trigger": "test"})
        tick_until(learner, lambda: learner.runner.busy)
        name = learner.runner.name
        # as kill -9 does: no chance to save, and the job stays leased
        assert learner.runner._child is not None
        learner.runner._child.kill()
        learner.runner._child.wait()
        learner.runner._child = None
    with opened(workspace) as learner:
        assert learner.runner.name == name
        tick_until(learner, lambda: not learner.runner.busy)
        assert [s.id for s in learner.store.learning.snapshots()] == [name]
        assert learner.store.learning.jobs()[0].state == "done"


def test_a_killed_trainer_is_started_again(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, method="supervised")
    with opened(workspace) as learner:
        answer_truth(learner.store, 6)
        learner.store.learning.file_job(JOB, {"trigger": "test"})
        tick_until(learner, lambda: learner.runner.busy)
        assert learner.runner._child is not None
        learner.runner._child.kill()
        tick_until(learner, lambda: bool(learner.store.learning.snapshots()) and not learner.runner.busy)
        assert learner.runner._deaths == 1


def test_a_snapshot_moved_but_not_recorded_is_recorded_at_the_next_start(tmp_path: Path, faces: Path) -> None:
    workspace = make_workspace(tmp_path / "ws", faces, method="supervised")
    with opened(workspace) as learner:
        answer_truth(learner.store, 6)
        learner.store.learning.file_job(JOB, {"trigger": "test"})
        tick_until(learner, lambda: bool(learner.store.learning.snapshots()) and not learner.runner.busy)
    snapshots = workspace.root / "snapshots"
    (snapshots / "supervised-0001").rename(snapshots / "supervised-0002")  # known to no database
    (snapshots / ".half").mkdir()
    (workspace.root / "scores" / ".99.1").mkdir()
    (workspace.root / "scores" / "998").mkdir()
    with opened(workspace) as learner:
        assert [s.id for s in learner.store.learning.snapshots()][-1] == "supervised-0002"
        assert sorted(p.name for p in snapshots.iterdir()) == ["supervised-0002"]
        assert not (workspace.root / "scores" / ".99.1").exists()
        assert not (workspace.root / "scores" / "998").exists()
        first_order(learner)
        assert current(workspace, learner.store).id < 998
