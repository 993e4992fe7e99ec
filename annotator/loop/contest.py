"""Which snapshot's features serve: each method's newest stands against those that do, and people's answers decide."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from zipfile import BadZipFile

from annotator.errors import AnnotatorError
from annotator.features import FeatureShards
from annotator.loop.referee import Case, Tally
from annotator.records import Annotation, Snapshot
from annotator.settings import Workspace

log = logging.getLogger(__name__)

Answers = Callable[[int], Sequence[Annotation]]
"""Returns all annotations after a seq."""


@dataclass(frozen=True, slots=True)
class _Opening:
    """A case that is being fitted."""

    snapshot_id: str
    serving_id: str
    earlier: Tally
    heard_seq: int
    case: Future[Case]


class Contest:
    """The open cases, one per method at most.

    They are opened in a thread: fitting takes seconds with thousands of labels, and the order must not wait for that.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.folder("snapshots")
        self._classes = workspace.settings.taxonomy.slugs
        self._cases: dict[str, Case] = {}
        self._opening: dict[str, _Opening] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="referee")

    def enter(self, newest: Sequence[Snapshot], serving: FeatureShards) -> None:
        """Let each method's newest snapshot stand against `serving`.

        What earlier snapshots of a method have shown against the same features goes on counting.
        """
        cases, opening = self._cases, self._opening
        self._cases, self._opening = {}, {}
        for snapshot in newest:
            method = snapshot.method
            if snapshot.id == serving.info.id or not (self._folder / snapshot.id / "rows.npy").is_file():
                continue
            now, soon = cases.get(method), opening.get(method)
            now = now if now is not None and now.serving_id == serving.info.id else None
            soon = soon if soon is not None and soon.serving_id == serving.info.id else None
            if now is not None and now.snapshot_id == snapshot.id:
                self._cases[method] = now
            elif soon is not None and soon.snapshot_id == snapshot.id:
                self._opening[method] = soon
            elif now is not None:
                self._open(snapshot, serving, now.tally, now.heard_seq)
            elif soon is not None:
                self._open(snapshot, serving, soon.earlier, soon.heard_seq)
            else:
                self._open(snapshot, serving, Tally(), 0)

    def _open(self, snapshot: Snapshot, serving: FeatureShards, earlier: Tally, heard_seq: int) -> None:
        # The learner may add rows to its own shards while the thread reads.
        own = FeatureShards(serving.folder)
        case = self._threads.submit(Case, self._folder / snapshot.id, own, self._classes, earlier, heard_seq)
        self._opening[snapshot.method] = _Opening(snapshot.id, serving.info.id, earlier, heard_seq, case)

    def hear(self, new: Sequence[Annotation], answers: Answers, group_of: dict[int, int]) -> Case | None:
        """Count new answers in every case; return the best one whose challenger is better than what serves, if any.

        A case that was opened meanwhile asks `answers` for what it has missed. `group_of` maps rows to representatives.
        """
        for case in self._cases.values():
            case.hear(new, group_of)
        for method, opening in list(self._opening.items()):
            if not opening.case.done():
                continue
            del self._opening[method]
            try:
                opened = opening.case.result()
            except (AnnotatorError, OSError, ValueError, KeyError, BadZipFile) as error:
                log.warning("%s cannot stand against %s: %s", opening.snapshot_id, opening.serving_id, error)
                continue
            opened.hear(answers(opened.heard_seq), group_of)
            self._cases[method] = opened
        better = [case for case in self._cases.values() if case.tally.better]
        return max(better, key=lambda case: case.tally.mean, default=None)

    def close(self) -> None:
        """Wait for what is being opened."""
        self._threads.shutdown(wait=True)
