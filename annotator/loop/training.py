"""Training rounds and pre-training as child processes: begun, watched, resumed, published; never two at a time."""

import json
import logging
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from annotator.encoders import RUN_PREFIX
from annotator.errors import AnnotatorError, LearnerError
from annotator.loop import pretraining, publish
from annotator.loop.pretraining import PretrainRequest, make_pretraining, publish_pretraining
from annotator.loop.processes import start_child, stop_child
from annotator.loop.rounds import RoundRequest, make_round, unfinished
from annotator.records import Job, Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.learning import RETRAIN

log = logging.getLogger(__name__)

JOB = RETRAIN
HEARTBEAT_SECONDS = 10.0
GRACE_SECONDS = 10.0
MAX_DEATHS = 3
"""A round whose process is killed is gone on with this often before it counts as failed."""
LOG_LINES = 12
NICE = 19
"""Of the training process: whatever the page and the order need comes first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: a round in a snapshot, a pre-training in the id of an encoder, either in an error."""

    run: str
    snapshot: Snapshot | None
    error: str | None
    encoder: str | None = None


class RoundRunner:
    """At most one round at a time. `poll` moves it on and returns its outcome once."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._workspace = workspace
        self._store = store
        self.worker = f"{socket.gethostname()}:{workspace.root}"
        self._child: Popen[bytes] | None = None
        self._run: Path | None = None
        self._job: Job | None = None
        self._deaths = 0
        self._beat = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[Snapshot | str] | None = None

    @property
    def busy(self) -> bool:
        """Whether a round is being trained or published."""
        return self._run is not None

    @property
    def publishing(self) -> bool:
        """Whether training is over and the result is being published."""
        return self._publishing is not None

    @property
    def pretraining(self) -> bool:
        """Whether the run at work adapts the encoder."""
        return self._run is not None and _pretrains(self._run)

    @property
    def name(self) -> str | None:
        """The round at work."""
        return self._run.name if self._run is not None else None

    def resume(self) -> bool:
        """Go on with the round that a killed learner left, if there is one; and with its job."""
        publish.recover(self._workspace, self._store)
        run = unfinished(self._workspace)
        mine = next((j for j in self._store.learning.jobs() if j.state == "running"), None)
        if mine is not None:
            self._job = self._store.learning.lease_job(self.worker)
        if run is None:
            if self._job is not None:  # killed between the lease and the run folder, or after publishing
                self._store.learning.finish_job(self._job.id, failed=True, message="the learner was stopped")
                self._job = None
            return False
        if self._job is None:
            kind = pretraining.JOB if _pretrains(run) else JOB
            self._store.learning.file_job(kind, {"trigger": "resumed"})
            self._job = self._store.learning.lease_job(self.worker)
        self._launch(run)
        return True

    def waiting(self) -> bool:
        """Tell whether somebody has filed a job."""
        return any(j.state == "filed" for j in self._store.learning.jobs(limit=20))

    def begin(self, request: RoundRequest, trigger: str | None = None) -> None:
        """Lease the oldest job (`request` is filed for a `trigger`) and start its round or its pre-training.

        A round without wishes of its own gets those of `request`.

        Raises:
            AnnotatorError: the round cannot be made; the job is marked as failed.
        """
        if self.busy:
            raise LearnerError(f"round {self.name} is still at work")
        if trigger is not None:
            self._store.learning.file_job(JOB, {"trigger": trigger, "method": request.method})
        self._job = self._store.learning.lease_job(self.worker)
        if self._job is None:
            return
        try:
            if self._job.kind == pretraining.JOB:
                run = make_pretraining(self._workspace, self._store, PretrainRequest.of(self._job.payload))
            else:
                run = make_round(self._workspace, self._store, _wishes(self._job, request))
        except AnnotatorError as error:
            self._finish(error=str(error))
            raise
        self._launch(run)

    def _launch(self, run: Path) -> None:
        self._run = run
        self._deaths = 0
        self._spawn()

    def _spawn(self) -> None:
        assert self._run is not None
        self._child = start_child(
            ["-m", "learner", "pretrain" if self.pretraining else "round", str(self._run)],
            nice=NICE,
            threads=self._workspace.settings.learner.threads,
            log=self._run / "log.txt",
        )

    def poll(self) -> Outcome | None:
        """Look after the child; return the outcome when the round has ended."""
        if self._run is None:
            return None
        self._heartbeat()
        if self._publishing is not None:
            return self._published() if self._publishing.done() else None
        code = self._child.poll() if self._child is not None else 0
        if code is None:
            return None
        self._child = None
        if (self._run / "out").is_dir():
            if self.pretraining:
                self._publishing = self._pool.submit(publish_pretraining, self._workspace, self._run)
            else:
                self._publishing = self._pool.submit(publish.publish, self._workspace, self._store, self._run)
            return None
        if code < 0 and self._deaths < MAX_DEATHS:
            self._deaths += 1
            log.warning("round %s was killed by signal %s; going on with it", self.name, -code)
            self._spawn()
            return None
        return self._failed(_explain(self._run, code))

    def _published(self) -> Outcome:
        assert self._publishing is not None
        assert self._run is not None
        future, self._publishing = self._publishing, None
        error = future.exception()
        if isinstance(error, (AnnotatorError, OSError)):
            return self._failed(str(error))
        made = future.result()
        if isinstance(made, str):
            outcome = Outcome(self._run.name, None, None, made)
            self._finish(message=f"encoder {made}")
        else:
            outcome = Outcome(self._run.name, made, None)
            self._finish(message=f"snapshot {made.id}")
        return outcome

    def _failed(self, error: str) -> Outcome:
        assert self._run is not None
        outcome = Outcome(self._run.name, None, error)
        if self._run.is_dir():
            (self._run / "failed.json").write_text(json.dumps({"error": error}), encoding="utf-8")
        self._finish(error=error)
        return outcome

    def _finish(self, *, error: str | None = None, message: str | None = None) -> None:
        if self._job is not None:
            self._store.learning.finish_job(self._job.id, failed=error is not None, message=error or message)
        self._job, self._run = None, None

    def _heartbeat(self) -> None:
        if self._job is not None and time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            self._store.learning.heartbeat(self._job.id, self.worker)

    def progress(self) -> dict[str, Any]:
        """Return what the child last reported: state, progress, eta_s; {} before its first report."""
        if self._run is None:
            return {}
        try:
            data = json.loads((self._run / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def stop(self) -> None:
        """Ask the child to save and end; the round goes on at the next start. A publication is waited for."""
        if self._child is not None:
            stop_child(self._child, GRACE_SECONDS)
            self._child = None
        self._pool.shutdown(wait=True)


def _pretrains(run: Path) -> bool:
    return run.name.startswith(RUN_PREFIX)


def _wishes(job: Job, otherwise: RoundRequest) -> RoundRequest:
    method, config = job.payload.get("method"), job.payload.get("config")
    if method is None and config is None:
        return otherwise
    return RoundRequest(str(method) if method else None, Path(str(config)) if config else None)


def _explain(run: Path, code: int) -> str:
    """Return why a round failed: its own message, else the last lines of its log."""
    try:
        report = json.loads((run / "progress.json").read_text(encoding="utf-8"))
        if report.get("state") == "failed" and report.get("message"):
            return str(report["message"])
    except (OSError, ValueError):
        pass
    try:
        lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    ended = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return "\n".join([f"training {ended}{os.linesep if not lines else ''}".strip(), *lines[-LOG_LINES:]])
