"""Follow a filed job to its end: with the learner that runs, or as the learner where none does. There are never two."""

import time
from collections.abc import Callable
from typing import Any

from annotator.durable import read_object
from annotator.errors import LearnerError, WorkspaceBusyError
from annotator.loop.learn import POLL_SECONDS, Learner, opened
from annotator.records import Job
from annotator.settings import Workspace
from annotator.store import LabelStore

Progress = Callable[[int, int, str], None]
_BAR = 1000


def follow(
    workspace: Workspace,
    job: Job,
    progress: Progress | None,
    settled: Callable[[Learner], bool] = lambda learner: True,
) -> Job:
    """Return the finished job. Where no learner runs, be one until the job is done and `settled` is true.

    Raises:
        LearnerError: it failed; the message carries the last lines of its log.
    """
    try:
        finished = _work(workspace, job, progress, settled)
    except WorkspaceBusyError:
        finished = _wait(workspace, job, progress, settled)
    if finished.state == "failed":
        raise LearnerError(finished.message or "training failed")
    return finished


def _work(workspace: Workspace, job: Job, progress: Progress | None, settled: Callable[[Learner], bool]) -> Job:
    """Be the learner until the job is finished and an order is made with its result."""
    with opened(workspace) as learner:
        while True:
            worked = learner.tick()
            now = _find(learner.store, job)
            if now.state == "failed" or (now.state == "done" and settled(learner)):
                if len(learner.pool.rows):
                    learner.refresh()
                return now
            _tell(workspace, progress)
            time.sleep(0.0 if worked else POLL_SECONDS)


def _wait(workspace: Workspace, job: Job, progress: Progress | None, settled: Callable[[Learner], bool]) -> Job:
    """Follow the running learner until it has finished the job; become the learner if it ends before."""
    with LabelStore.open(workspace) as store:
        while True:
            now = _find(store, job)
            if now.state in ("done", "failed"):
                return now
            _tell(workspace, progress)
            time.sleep(0.5)
            if not _running(workspace):
                break
    try:
        return _work(workspace, job, progress, settled)
    except WorkspaceBusyError:  # another one was faster
        return _wait(workspace, job, progress, settled)


def _find(store: LabelStore, job: Job) -> Job:
    found = next((j for j in store.learning.jobs() if j.id == job.id), None)
    if found is None:
        raise LearnerError(f"job {job.id} is gone")
    return found


def _running(workspace: Workspace) -> bool:
    return bool(_report(workspace).get("state", "off") != "off")


def _report(workspace: Workspace) -> dict[str, Any]:
    return read_object(workspace.root / "learner.json")


def _tell(workspace: Workspace, progress: Progress | None) -> None:
    if progress is not None:
        told = _report(workspace)
        progress(int(_BAR * (told.get("progress") or 0)), _BAR, str(told.get("state", "")))
