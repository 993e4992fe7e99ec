"""What people said in Label Studio comes in: every annotation once, whatever fails in between.

One pass reads the tasks that changed since the cursor and stores what is different, in commits that are short enough
for an answer on our page to slip in between. The cursor moves to the end of a page only after everything on it is
durable; a pass that is cut off is begun again at the cursor and finds what it stored already. Once all pages are in,
the cursor is the server's own time at which the pass began, so that the next one has nothing to read again.

Some changes leave no trace in `updated_at`: a deleted task, a server that was killed between two of its own commits. A
`full` pass compares the ids of all tasks and annotations and reads again what does not match.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from annotator.errors import AnnotatorError
from annotator.ingest.cache import Progress
from annotator.labelstudio.answers.changes import OVERLAP, Task, ahead, changed_tasks, moment, named_tasks
from annotator.labelstudio.answers.comparison import compare_ids
from annotator.labelstudio.answers.doubles import find_doubles
from annotator.labelstudio.answers.incoming import NO_FACE, Face, Finding, differs, judge, quarantined
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.planned import Planned, in_words
from annotator.labelstudio.api.filters import stamp
from annotator.labelstudio.api.server import Server
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import ForeignAnswer, Link, LinkedAnswer, LinkedTask

FULL_OVERLAP = timedelta(minutes=2)
_STEP = timedelta(seconds=10)
"""The cursor of a quiet project is written no oftener than it moves by this."""
_ASIDE = 10_000


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pass did: tasks read, annotations by what became of them, tasks that are gone.

    same: known already here, by us or by the same person on both sides.
    """

    tasks: int = 0
    new: int = 0
    edited: int = 0
    deleted: int = 0
    same: int = 0
    conflict: int = 0
    quarantined: int = 0
    gone: int = 0
    seconds: float = 0.0

    @property
    def stored(self) -> int:
        """How many annotations came in, changed or went."""
        return self.new + self.edited + self.deleted + self.conflict

    def summary(self) -> str:
        """Return it as a few words."""
        counts = {
            "new": self.new,
            "changed": self.edited,
            "deleted": self.deleted,
            "in conflict": self.conflict,
            "quarantined": self.quarantined,
            "tasks gone": self.gone,
        }
        return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "nothing new"


def pull(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    link: Link,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> PullReport:
    """Store what changed in the project since the last pass; one request when nothing did.

    Args:
        workspace: the workspace.
        store: its open store.
        server: the linked server.
        link: the active link.
        full: compare all ids as well.
        progress: called with the number of tasks read so far, 0 for a total that is not known, and what they are.

    Raises:
        UnreachableError: the server does not answer; what was read until then is stored.
        RefusedError: it refuses.
        InputError: the link is not active any more.
    """
    return _Pass(Linked.of(workspace, store, server, link), progress).run(full=full)


def plan_pull(
    workspace: Workspace, store: LabelStore, server: Server, link: Link, *, full: bool = False
) -> list[Planned]:
    """Return what a pass would store, and store nothing."""
    dry = _Pass(Linked.of(workspace, store, server, link), dry=True)
    found = [finding for page in dry.pages(full=full) for batch in dry.judged(page) for finding in batch]
    # The comparison of ids reads again what was not stored.
    planned = [_planned(finding) for finding in {f.linked.ls_id: f for f in found}.values()]
    return planned + [Planned("in", "task gone", task_id, "", "", "") for task_id in dry.gone]


class _Pass:
    """One pass over the project."""

    def __init__(self, linked: Linked, progress: Progress | None = None, *, dry: bool = False) -> None:
        self._linked = linked
        self._exchange = linked.store.exchange
        self._link_id = linked.link.id
        self._progress, self._dry = progress, dry
        self._cursor = moment(linked.link.cursor) if linked.link.cursor else None
        # Before the first answer comes in: one that comes in with this pass is no reason to compare.
        self._seen_before = self._cursor is None and any(self._exchange.counts(self._link_id)["answers"].values())
        self._counts: Counter[str] = Counter()
        self._began_at: datetime | None = None
        self.gone: list[int] = []

    def run(self, *, full: bool) -> PullReport:
        began = time.monotonic()
        first = self._cursor is None
        newest: datetime | None = None
        for page in self._linked_late():
            self._take(page)
        for page in self._changed(full=full):
            self._take(page)
            newest = moment(page[-1]["updated_at"]) if page else newest
            if newest and not first:  # all annotated tasks, whatever their time, are one step
                self._move(newest)
        for page in self._unlike(full=full):
            self._take(page)
        self._exchange.set_task_state(self._link_id, self.gone, "gone")
        if covered := self._began_at or newest:
            self._move(covered)
        return PullReport(**self._counts, gone=len(self.gone), seconds=time.monotonic() - began)

    def pages(self, *, full: bool) -> Iterator[list[Task]]:
        """Yield every task that a pass looks at."""
        yield from self._linked_late()
        yield from self._changed(full=full)
        yield from self._unlike(full=full)

    def _changed(self, *, full: bool) -> Iterator[list[Task]]:
        """Yield what changed since the cursor, and note when that was asked, by the server's clock."""
        overlap = FULL_OVERLAP if full else OVERLAP
        since = None if self._cursor is None else self._cursor - overlap
        asked = time.monotonic()
        pages = changed_tasks(self._linked.server, self._linked.link.project_id, since)
        for number, page in enumerate(ahead(pages)):
            clock = self._linked.server.clock
            if number == 0 and clock is not None:
                # Whole seconds, rounded down, less the time that the answer took: never later than it was.
                self._began_at = clock - timedelta(seconds=time.monotonic() - asked)
            yield page

    def judged(self, page: Sequence[Task]) -> Iterator[list[Finding]]:
        """Yield what is different about a page, as much at a time as goes into one commit."""
        ids = [task["id"] for task in page]
        seen = self._exchange.answers_of_tasks(self._link_id, ids)
        changed = [task for task in page if differs(task, seen.get(task["id"], ()))]
        tasks = self._exchange.tasks_by_id(self._link_id, [task["id"] for task in changed])
        if strangers := [task["id"] for task in changed if task["id"] not in tasks and task["annotations"]]:
            doubles = find_doubles(self._linked, strangers)
            if not self._dry:
                self._exchange.put_tasks(self._link_id, list(doubles.values()))
            tasks |= doubles
        start = 0
        while start < len(changed):
            batch = changed[start : start + self._exchange.batch_size]
            start += len(batch)
            faces = self._faces([tasks[task["id"]] for task in batch if task["id"] in tasks])
            yield [
                finding
                for task in batch
                if (face := faces.get(task["id"])) is None or not face.erased
                for finding in judge(self._linked, task, seen.get(task["id"], ()), face)
            ]

    def _linked_late(self) -> Iterator[list[Task]]:
        """Yield the tasks whose annotations were put aside because nobody knew their face, which is linked now."""
        waiting = [a for a in self._exchange.quarantined(self._link_id, _ASIDE) if (a.reason or "").endswith(NO_FACE)]
        if waiting:
            linked = self._exchange.tasks_by_id(self._link_id, {a.task_id for a in waiting})
            yield from named_tasks(self._linked.server, self._linked.link.project_id, sorted(linked))

    def _unlike(self, *, full: bool) -> Iterator[list[Task]]:
        """Yield the tasks whose ids do not match what was seen; what is gone altogether is noted.

        A pass without a cursor looks at annotated tasks only: what was deleted since then shows in the ids.
        """
        if not full and (self._cursor is not None or not self._seen_before):
            return
        found = compare_ids(self._linked)
        self._counts["tasks"] += found.tasks
        self.gone = found.gone
        yield from named_tasks(self._linked.server, self._linked.link.project_id, sorted({*found.again, *found.back}))

    def _faces(self, tasks: Sequence[LinkedTask]) -> dict[int, Face]:
        rows = [task.row for task in tasks]
        store = self._linked.store
        images = {image.row: image for image in store.images.by_rows(rows)}
        standing = self._exchange.standing(rows)
        said = {a.id for answers in standing.values() for a in answers}
        links = self._exchange.answers_of_annotations(self._link_id, said)
        sent = {ours for ours, theirs in links.items() if any(a.state != "deleted" for a in theirs)}
        return {t.task_id: Face(t, images[t.row], standing.get(t.row, ()), sent) for t in tasks}

    def _take(self, page: Sequence[Task]) -> None:
        """Store what is different about a page."""
        self._counts["tasks"] += len(page)
        if self._progress is not None and page:
            self._progress(self._counts["tasks"], 0, "tasks")
        for batch in self.judged(page):
            self._store(batch)
        self._set_states(page)

    def _store(self, batch: Sequence[Finding]) -> None:
        """Make a batch durable, in the order in which it was said."""
        storing = sorted(((f.incoming, f) for f in batch if f.incoming is not None), key=lambda pair: pair[0].at)
        kept: list[LinkedAnswer] = [f.linked for f in batch if f.incoming is None]
        self._counts.update(f.what for f in batch if f.incoming is None)
        start = 0
        while start < len(storing):
            part = storing[start : start + self._exchange.batch_size]
            start += len(part)
            outcomes = self._exchange.record(self._link_id, [incoming for incoming, _ in part])
            for (_, finding), outcome in zip(part, outcomes, strict=True):
                wrong = quarantined(finding.linked, str(outcome)) if isinstance(outcome, AnnotatorError) else None
                self._counts[finding.what if wrong is None else wrong.what] += 1
                kept += [wrong.linked] if wrong is not None else []
        self._exchange.put_answers(self._link_id, kept)

    def _set_states(self, page: Sequence[Task]) -> None:
        """Note which tasks have an answer there (a skip is none); what we took back or erase stays so."""
        tasks = self._exchange.tasks_by_id(self._link_id, [task["id"] for task in page])
        changed: dict[str, list[int]] = {"open": [], "answered": []}
        for task in page:
            state = "answered" if any(not a["was_cancelled"] for a in task["annotations"]) else "open"
            known = tasks.get(task["id"])
            if known is not None and known.state in ("open", "answered", "gone") and known.state != state:
                changed[state].append(task["id"])
        self._exchange.set_task_state(self._link_id, changed["open"], "open")
        self._exchange.set_task_state(self._link_id, changed["answered"], "answered")

    def _move(self, to: datetime) -> None:
        if self._cursor is None or to - self._cursor >= _STEP:
            self._exchange.update_link(self._link_id, cursor=stamp(to))
            self._cursor = to


def _planned(finding: Finding) -> Planned:
    linked, incoming = finding.linked, finding.incoming
    says = ""
    if isinstance(incoming, ForeignAnswer):
        says = in_words(incoming.answer.kind, incoming.answer.classes)
    return Planned("in", finding.what, linked.task_id, linked.user, says, str(linked.ls_id), linked.reason)
