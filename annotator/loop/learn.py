"""`annotator learn`: after every answer a new order, after enough of them a training round (DESIGN 4)."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

import numpy as np
from threadpoolctl import threadpool_limits

from annotator.errors import AnnotatorError
from annotator.features import FeatureShards
from annotator.loop import publish, scores, signals
from annotator.loop.embed import HogEncoder
from annotator.loop.embed_snapshot import SnapshotEncoder
from annotator.loop.pool import PoolFollower
from annotator.loop.referee import Case, Tally
from annotator.loop.refresh import Refresher
from annotator.loop.report import Report, learner_lock
from annotator.loop.rounds import RoundRequest
from annotator.loop.training import Outcome, RoundRunner
from annotator.records import Annotation, Generation
from annotator.settings import Workspace
from annotator.store import LabelStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
JOBS_SECONDS = 1.0
GROWTH_SECONDS = 4.0
"""While faces are imported, the order is made anew this often; an answer does so at once."""
QUIET_SECONDS = 2.5
RETRY_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 1800.0


class Learner:
    """Everything that one learner holds. `tick` does what is due and says whether anything was."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self.workspace, self.store = workspace, store
        self._settings = workspace.settings.learner
        self._scores = workspace.folder("scores")
        scores.sweep(store, self._scores)
        self.runner = RoundRunner(workspace, store)
        self.pool = PoolFollower(store, workspace.settings.taxonomy.slugs)
        self.report = Report(workspace.root / "learner.json")
        self._hog = HogEncoder(workspace)
        self._refresher = Refresher(workspace.settings)
        self._signals: signals.Signals | None = None
        self._encoder: SnapshotEncoder | None = None
        self._case: Case | None = None
        self._opening: Future[Case] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="referee")
        self._stale = True
        self._grown = True
        self._refreshed_at = float("-inf")
        self._refresh_seconds = 0.0
        self._jobs_at = float("-inf")
        self._failures = 0
        self._not_before = float("-inf")
        self._unlearned_since: float | None = None
        self._learned_seq = 0

    def start(self) -> None:
        """Pick up where the last learner was stopped: its round, its snapshot, its encoder."""
        self.runner.resume()
        serving = self.store.learning.serving()
        publish.drop_encoders(self.workspace, {serving.id} if serving is not None else set())
        if serving is not None:
            with contextlib.suppress(AnnotatorError, OSError, ValueError):
                self._use(serving.id)
        self.pool.catch_up()
        self._take_newest_snapshot()

    @property
    def shards(self) -> FeatureShards | None:
        """The features that serve."""
        return self._encoder.shards if self._encoder is not None else self._hog.shards

    def tick(self) -> bool:
        """Follow answers and faces, refresh the order when it is due, move training on."""
        change = self.pool.catch_up()
        self._stale = self._stale or change.urgent
        self._grown = self._grown or change.any
        self._hear(change.answers)
        quiet = time.monotonic() - self.pool.grew_at > QUIET_SECONDS
        before = self.shards
        embedded = self._hog.step(quiet=quiet)
        embedded += self._encoder.step() if self._encoder is not None else 0
        if self.shards is not before:
            self._stale = True  # the first features, or better ones
        self._grown = self._grown or bool(embedded)
        worked = bool(embedded) | self._refresh_when_due()
        self._train()
        self._say()
        return worked

    def _refresh_when_due(self) -> bool:
        since = time.monotonic() - self._refreshed_at
        # Half of the time at most: the other half belongs to the page and to training.
        due = (self._stale and since > self._refresh_seconds) or (self._grown and since > GROWTH_SECONDS)
        if not due or not len(self.pool.rows):
            return False
        try:
            self.refresh()
        except (OSError, AnnotatorError) as error:
            # A full disk, say: the last order goes on serving.
            log.warning("no new order: %s", error)
            self.report.message = f"no new order: {error}"
            self._stale, self._refreshed_at, self._refresh_seconds = True, time.monotonic(), RETRY_SECONDS
            return False
        return True

    def refresh(self) -> Generation:
        """Read the pool with what is known now and publish the generation."""
        began = time.monotonic()
        self._stale = self._grown = False
        shards = self.shards
        contents = self._refresher.read(
            self.pool, shards, self._signals, shards.info.id if shards is not None else "none"
        )
        generation = scores.publish(self.store, self._scores, contents, self._settings.keep_generations)
        self._refreshed_at = time.monotonic()
        self._refresh_seconds = self._refreshed_at - began
        return generation

    def _use(self, snapshot_id: str) -> None:
        shards = publish.build_encoder(self.workspace, snapshot_id)
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = SnapshotEncoder(self.workspace, shards)

    def _hear(self, new: Sequence[Annotation]) -> None:
        if self._opening is not None and self._opening.done():
            self._case, self._opening = self._opening.result(), None
            new = self.store.decisions.list(after_seq=self._case.heard_seq)
        if self._case is None or not new:
            return
        self._case.hear(new, self.pool.group_of)
        if self._case.tally.better:
            self._promote(self._case.snapshot_id, self._case.summary())

    def _promote(self, snapshot_id: str, why: str) -> None:
        log.info("the features of %s serve from now on (%s)", snapshot_id, why)
        self._use(snapshot_id)
        self.store.learning.serve(snapshot_id)
        publish.drop_encoders(self.workspace, {snapshot_id})
        self._case = None
        self._stale = True

    def _take_newest_snapshot(self) -> None:
        """Use the doubts of the newest snapshot, and let its features stand against those that serve."""
        snapshots = self.store.learning.snapshots()
        if not snapshots:
            return
        newest = snapshots[-1]
        self._learned_seq = max(s.label_seq for s in snapshots)
        folder = self.workspace.folder("snapshots") / newest.id
        if not folder.is_dir():
            return
        self._signals = signals.load(folder, newest.id, newest.label_seq)
        self._stale = True
        earlier, self._case, self._opening = self._case, None, None
        if newest.serving or not (folder / "rows.npy").is_file():
            return
        if self.shards is None:
            self._promote(newest.id, "there are no other features")
            return
        same = earlier is not None and earlier.serving_id == self.shards.info.id
        # Fitting two learners takes seconds with thousands of labels; the order must not wait for that.
        self._opening = self._threads.submit(
            Case,
            folder,
            FeatureShards(self.shards.folder),
            self.workspace.settings.taxonomy.slugs,
            earlier.tally if earlier is not None and same else Tally(),
        )

    def _train(self) -> None:
        outcome = self.runner.poll()
        if outcome is not None:
            self._conclude(outcome)
        if self.runner.busy:
            return
        now = time.monotonic()
        if now - self._jobs_at < JOBS_SECONDS:
            return
        self._jobs_at = now
        if self.runner.waiting():
            self._begin(None)
        elif now >= self._not_before:
            trigger = self._trigger(now)
            if trigger is not None:
                self._begin(trigger)

    def _trigger(self, now: float) -> str | None:
        """Return why a round is due, None when it is not."""
        labels = self.pool.labels()
        usable = labels.take(labels.trainable & ~self.pool.reserved(labels.rows))
        new = int((usable.stamp > self._learned_seq).sum())
        if new == 0:
            self._unlearned_since = None
            return None
        if self._unlearned_since is None:
            self._unlearned_since = now
        if len(usable) < self._settings.min_labels or len(np.unique(usable.given[usable.given >= 0])) < 2:
            return None
        if new >= self._settings.new_labels:
            return f"{new} new labels"
        waited = now - self._unlearned_since
        return (
            f"{new} new labels for {waited / 60:.0f} minutes"
            if waited >= self._settings.max_wait_minutes * 60
            else None
        )

    def _begin(self, trigger: str | None) -> None:
        try:
            self.runner.begin(RoundRequest(), trigger)
            self.report.message = None
        except AnnotatorError as error:
            self._back_off(str(error))

    def _conclude(self, outcome: Outcome) -> None:
        if outcome.snapshot is None:
            self._back_off(outcome.error or "training failed")
            return
        self._failures = 0
        self._not_before = float("-inf")
        self._unlearned_since = None
        self.report.message = f"published {outcome.snapshot.id}"
        publish.prune(self.workspace, self.store, self._settings.keep_snapshots)
        self._take_newest_snapshot()

    def _back_off(self, message: str) -> None:
        pause = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        log.warning("training failed, next try in %.0f s: %s", pause, message)
        self.report.message = f"training failed: {message}"

    def _say(self) -> None:
        if not self.runner.busy:
            self.report.say("idle")
            return
        told = self.runner.progress()
        self.report.say(
            "publishing" if self.runner.publishing else "training",
            progress=told.get("progress", 0.0),
            eta_s=told.get("eta_s"),
            method=self.runner.name.rsplit("-", 1)[0] if self.runner.name else None,
            round_=self.runner.name,
        )

    def close(self) -> None:
        """Let the child save and stop."""
        self.runner.stop()
        if self._encoder is not None:
            self._encoder.close()
        self._threads.shutdown(wait=True)
        self.report.say("off")


@contextlib.contextmanager
def opened(workspace: Workspace) -> Iterator[Learner]:
    """Hold the learner lock and the store; start a learner and close it whatever happens.

    Raises:
        WorkspaceBusyError: another learner runs on this workspace.
    """
    # More BLAS threads than cores that are free spin against the page: a refresh then takes ten times as long.
    threads = threadpool_limits(workspace.settings.learner.threads)
    with learner_lock(workspace), threads, LabelStore.open(workspace) as store:
        learner = Learner(workspace, store)
        try:
            learner.start()
            yield learner
        finally:
            learner.close()


class LearnerProcess:
    """The learner as a process of its own."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`.

        Raises:
            WorkspaceBusyError: another learner runs on this workspace.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stop()

        main = threading.current_thread() is threading.main_thread()
        previous = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)} if main else {}
        try:
            with opened(self._workspace) as learner:
                while not self._stopping.is_set():
                    worked = learner.tick()
                    self._stopping.wait(0.0 if worked else POLL_SECONDS)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
