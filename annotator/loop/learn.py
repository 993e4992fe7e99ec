"""`annotator learn`: after every answer a new order, after enough of them a training round (DESIGN 4)."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from threadpoolctl import threadpool_limits

from annotator.chains import current
from annotator.encoders import RUN_PREFIX
from annotator.errors import AnnotatorError
from annotator.features import FeatureShards
from annotator.locks import only_one
from annotator.loop import publish, scores, signals
from annotator.loop.contest import Contest
from annotator.loop.embed_network import NetworkFeatures
from annotator.loop.pool import PoolFollower
from annotator.loop.refresh import Refresher
from annotator.loop.report import LOCK, LearnerState, Report
from annotator.loop.rotation import Rotation
from annotator.loop.rounds import RoundRequest
from annotator.loop.serving import START_NAMES, chosen_snapshot
from annotator.loop.start import StartEncoder
from annotator.loop.training import Outcome, RoundRunner
from annotator.records import Annotation, Generation, Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
JOBS_SECONDS = 1.0
GROWTH_SECONDS = 4.0
"""While faces are imported, the order is made anew this often; an answer does so at once."""
QUIET_SECONDS = 2.5
RETRY_SECONDS = 5.0


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
        generation = store.learning.current_generation()
        self.base = StartEncoder(workspace, generation.encoder if generation is not None else "")
        self._refresher = Refresher(workspace.settings)
        self._rotation = Rotation(self._settings)
        self._contest = Contest(workspace)
        self._signals = signals.Board()
        self._encoder: NetworkFeatures | None = None
        self._stale = True
        self._grown = True
        self._refreshed_at = float("-inf")
        self._refresh_seconds = 0.0
        self._jobs_at = float("-inf")
        self._choice: str | None = None
        self._looked_at = float("-inf")

    def start(self) -> None:
        """Pick up where the last learner was stopped: its round, its snapshot, its encoder."""
        self.runner.resume()
        serving = self.store.learning.serving()
        publish.drop_encoders(self.workspace, {serving.id} if serving is not None else set())
        if serving is not None:
            with contextlib.suppress(AnnotatorError, OSError, ValueError):
                self._use(serving.id)
        self.pool.catch_up()
        self._take_snapshots()

    @property
    def shards(self) -> FeatureShards | None:
        """The features that serve."""
        return self._encoder.shards if self._encoder is not None else self.base.shards

    def tick(self) -> bool:
        """Follow answers and faces, refresh the order when it is due, move training on."""
        change = self.pool.catch_up()
        self._stale = self._stale or change.urgent
        self._grown = self._grown or change.any
        self._hear(change.answers)
        quiet = time.monotonic() - self.pool.grew_at > QUIET_SECONDS
        before = self.shards
        embedded = self.base.step(quiet=quiet)
        embedded += self._encoder.step() if self._encoder is not None else 0
        if self.shards is not before:
            self._stale = True  # the first features, or better ones
            if before is not None:
                self._contend(self.store.learning.snapshots())
        self._grown = self._grown or bool(embedded)
        worked = bool(embedded) | self._refresh_when_due()
        self._train()
        self._look_for_a_choice()
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
        self._encoder = NetworkFeatures(self.workspace, shards)

    def _hear(self, new: Sequence[Annotation]) -> None:
        best = self._contest.hear(new, lambda seq: self.store.decisions.list(after_seq=seq), self.pool.group_of)
        if best is not None and self._choice is None:
            self._serve(best.snapshot_id, best.summary())

    def _serve(self, snapshot_id: str, why: str) -> None:
        log.info("the features of %s serve from now on (%s)", snapshot_id, why)
        self._use(snapshot_id)
        self.store.learning.serve(snapshot_id)
        publish.drop_encoders(self.workspace, {snapshot_id})
        self._stale = True
        self._contend(self.store.learning.snapshots())

    def _serve_start(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = None
        self.store.learning.serve(None)
        publish.drop_encoders(self.workspace, set())
        self._stale = True
        self._contend(self.store.learning.snapshots())

    def _take_snapshots(self) -> None:
        """Use the signals of each method's newest snapshot, and let their features stand against those that serve."""
        snapshots = self.store.learning.snapshots()
        self._rotation.know(snapshots)
        self._signals = signals.read(
            self.workspace.folder("snapshots"),
            current(snapshots, self._settings.methods),
            self.workspace.settings.taxonomy.slugs,
        )
        self._stale = True
        self._obey(snapshots)
        self._contend(snapshots)

    def _look_for_a_choice(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < JOBS_SECONDS:
            return
        self._looked_at = now
        if self.store.learning.chosen() != self._choice:
            self._obey(self.store.learning.snapshots())

    def _obey(self, snapshots: Sequence[Snapshot]) -> None:
        """Serve what a person has chosen, where it can be had."""
        self._choice = self.store.learning.chosen()
        serving = next((s.id for s in snapshots if s.serving), None)
        if self._choice in START_NAMES and serving is not None and self.base.shards is not None:
            self._serve_start()
        elif self._choice not in (None, *START_NAMES):
            wanted = chosen_snapshot(self.workspace, snapshots, str(self._choice))
            if wanted is not None and wanted.id != serving:
                self._serve(wanted.id, f"{self._choice} was chosen")

    def _contend(self, snapshots: Sequence[Snapshot]) -> None:
        newest = current(snapshots, self._settings.methods)
        if self.shards is not None:
            self._contest.enter(newest, self.shards)
            return
        whole = [s for s in newest if (self.workspace.folder("snapshots") / s.id / "rows.npy").is_file()]
        if whole:
            self._serve(whole[-1].id, "there are no other features")

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
            self._begin(self._rotation.next(now), None)
            return
        labels = self.pool.labels()
        usable = labels.take(labels.trainable & ~self.pool.reserved(labels.rows))
        due = self._rotation.due(usable, now)
        if due is not None:
            self._begin(*due)

    def _begin(self, method: str, trigger: str | None) -> None:
        """Begin a round of `method`, or with no trigger the one that somebody has filed."""
        try:
            self.runner.begin(RoundRequest(method), trigger)
            self.report.message = None
        except AnnotatorError as error:
            self._tell_failure(str(error), method if trigger is not None else None)

    def _conclude(self, outcome: Outcome) -> None:
        method = outcome.run.rsplit("-", 1)[0]
        if outcome.encoder is not None:
            self.report.message = f"{outcome.encoder} is adapted to these faces; it serves as soon as it has read them"
            self.base.aim()
            return
        if outcome.run.startswith(RUN_PREFIX):
            self._tell_failure(outcome.error or "pre-training failed", None)
            return
        if outcome.snapshot is None:
            self._tell_failure(outcome.error or "training failed", method)
            return
        self._rotation.succeeded(method)
        self.report.message = f"published {outcome.snapshot.id}"
        publish.prune(self.workspace, self.store, self._settings.keep_snapshots)
        self._take_snapshots()

    def _tell_failure(self, message: str, method: str | None) -> None:
        pause = self._rotation.failed(method, time.monotonic()) if method is not None else 0.0
        log.warning("training failed, next try of %s in %.0f s: %s", method or "it", pause, message)
        self.report.message = f"training failed: {message}"

    def _say(self) -> None:
        if not self.runner.busy:
            self.report.say("idle", trouble=self.base.trouble)
            return
        told = self.runner.progress()
        work: LearnerState = "pretraining" if self.runner.pretraining else "training"
        self.report.say(
            "publishing" if self.runner.publishing else work,
            trouble=self.base.trouble,
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
        self.base.close()
        self._contest.close()
        self.report.say("off")


@contextlib.contextmanager
def opened(workspace: Workspace) -> Iterator[Learner]:
    """Hold the learner lock and the store; start a learner and close it whatever happens.

    Raises:
        WorkspaceBusyError: another learner runs on this workspace.
    """
    # More BLAS threads than cores that are free spin against the page: a refresh then takes ten times as long.
    threads = threadpool_limits(workspace.settings.learner.threads)
    with only_one(workspace.root / LOCK, "learner"), threads, LabelStore.open(workspace) as store:
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
