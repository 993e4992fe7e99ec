"""The top of our queue as tasks in the linked project, with predictions, pictures and reasons; each face once.

A push first finds what an earlier one has left behind, takes back what needs no answer any more, brings the predictions
of all open tasks to the current generation if there is something new, and fills up to `top_k` open tasks. Killed at any
point, the next one completes it.
"""

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from annotator.face_pictures import FacePictures
from annotator.ingest.cache import Progress
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.tasks.due import PushMemory, top_k
from annotator.labelstudio.tasks.inflight import Flight, Flights
from annotator.labelstudio.tasks.pictures import task_pictures
from annotator.labelstudio.tasks.predicting import Predictor
from annotator.labelstudio.tasks.push_report import PushPlan, PushReport
from annotator.labelstudio.tasks.refresh import Renewal, Renewing, base, version_due
from annotator.labelstudio.tasks.sending import in_batches, patiently, send
from annotator.labelstudio.tasks.wanted import QueueView, Wanted
from annotator.labelstudio.tasks.withdraw import plan_withdraw, withdraw
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

log = logging.getLogger(__name__)

BATCH = 2_000
"""Tasks in one request: the server takes larger ones faster, and shuts out annotators for as long."""
FIRST_BATCH = 250
MANY_TASKS = 100_000
"""Above this many tasks Label Studio itself becomes slow to answer what comes next."""
_SHOWN = 20


def push(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    link: Link,
    *,
    progress: Progress | None = None,
    limit: int | None = None,
    memory: PushMemory | None = None,
) -> PushReport:
    """Fill the project up to `top_k` open tasks, at most `limit` new ones; `memory` learns what was found.

    Raises:
        UnreachableError: the server does not answer; what is done stays done, and the next push goes on.
        RefusedError: it refuses the key or the project.
        InputError: the link's settings do not fit.
    """
    running = _Push(workspace, store, server, link, progress)
    try:
        return running.run(limit, memory)
    finally:
        running.close()


def plan_push(
    workspace: Workspace, store: LabelStore, server: Server, link: Link, *, limit: int | None = None
) -> PushPlan:
    """Return what `push` would do; nothing is changed on either side."""
    running = _Push(workspace, store, server, link, None)
    try:
        return running.plan(limit)
    finally:
        running.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A face ready to be sent."""

    item: Wanted
    flight: Flight
    task: dict[str, Any]


class _Push:
    """One push under way."""

    def __init__(
        self, workspace: Workspace, store: LabelStore, server: Server, link: Link, progress: Progress | None
    ) -> None:
        active = store.exchange.link()
        self._link = active if active is not None and active.id == link.id else link
        self._workspace, self._store, self._server, self._progress = workspace, store, server, progress
        self._faces = FacePictures(workspace, store)
        self._pictures = task_pictures(self._link, server, self._faces)
        self._predictor = Predictor(workspace, self._link)
        self._flights = Flights(store, server, self._link)
        self._report = PushReport()
        self._guard = threading.Lock()
        self._total = 0
        self._unsure = False
        self._search = False
        self._after = 0
        self._stand_ins = 0
        self._again: dict[int, int] = {}
        self._keeper: ThreadPoolExecutor
        self._keeping: Future[None] | None = None

    def close(self) -> None:
        self._faces.close()

    def run(self, limit: int | None, memory: PushMemory | None) -> PushReport:
        self._recover()
        view = QueueView.read(self._workspace, self._store)
        back = withdraw(self._workspace, self._store, self._server, self._link, view=view, progress=self._progress)
        self._tell(withdrawn=back.withdrawn, erased=back.erased)
        wanted, dry = self._wanted(view, limit)
        if wanted or version_due(self._store, self._link):
            renewed = self._renew(view)
            version = renewed.version or self._renewing(view).new_version(None)
            self._tell(renewed=renewed.renewed, version=version)
            self._fill(view, wanted, version)
        self._flights.settled(self._again.values())
        self._flights.looked(unsure=self._unsure)
        for warning in self._warnings(0):
            self._warn(warning)
        if memory is not None:
            scores = view.order.scores
            memory.note(view.book.seq, scores.id if scores else None, view.size, dry=dry)
        return self._report

    def plan(self, limit: int | None) -> PushPlan:
        view = QueueView.read(self._workspace, self._store)
        back = tuple(plan_withdraw(self._store, self._link, view))
        wanted, _ = self._wanted(view, limit, [item.row for item in back if item.reason != "erased"])
        open_tasks = self._open()
        now = self._link.model_version
        renewed = (wanted or version_due(self._store, self._link)) and (now is None or base(now) != view.version)
        return PushPlan(
            open_tasks=open_tasks,
            top_k=top_k(self._link),
            version_now=now,
            version=view.version,
            to_push=len(wanted),
            to_renew=open_tasks if renewed else 0,
            first=tuple(view.tell(wanted[:_SHOWN])),
            withdraw=back,
            unfinished=len(self._flights.looks()),
            given_up=len(self._flights.given_up()),
            warnings=self._warnings(len(wanted)),
        )

    def _recover(self) -> None:
        """Settle what earlier pushes have left."""
        looks = self._flights.looks()
        self._search = bool(looks)
        if looks:
            after = min(int(item.payload["after"]) for item in looks)
            self._tell(recovered=patiently(lambda: self._flights.find(after)))

    def _wanted(self, view: QueueView, limit: int | None, freed: Collection[int] = ()) -> tuple[list[int], bool]:
        """Return the rows of the faces to push, and whether the queue has no more."""
        room = max(top_k(self._link) - self._open() + len(freed), 0)
        count = room if limit is None else min(room, limit)
        exchange = self._store.exchange
        self._again, waiting = self._flights.put_off_until_now()
        out = {*exchange.open_rows(self._link.id).tolist(), *self._flights.given_up(), *waiting}
        names = {str(name).casefold() for name in self._link.settings.get("users", {}).values()}
        people = [user.id for user in self._store.accounts.list() if user.name.casefold() in names]
        found: list[int] = []
        while len(found) < count:
            top = view.top(count - len(found), np.fromiter(out, dtype=np.int64, count=len(out)), people)
            if not top:
                return found, True
            out |= set(top)
            found += self._not_asked(view, top)
        return found, False

    def _not_asked(self, view: QueueView, rows: Sequence[int]) -> list[int]:
        """Leave out what was answered there and is open here: it is in quarantine, or was a skip.

        A second task would say no more about it, unless it is to review a label.
        """
        there = self._store.exchange.tasks_of_rows(self._link.id, rows)
        self._search |= any(task.picture is not None for of_row in there.values() for task in of_row)
        answered = [row for row, of_row in there.items() if any(task.state == "answered" for task in of_row)]
        known = {item.row for item in view.tell(answered) if item.arm != "review"}
        return [row for row in rows if row not in known]

    def _renewing(self, view: QueueView) -> Renewing:
        return Renewing(self._workspace, self._store, self._server, self._link, view, self._progress)

    def _renew(self, view: QueueView) -> Renewal:
        renewed = self._renewing(view).run()
        self._link = replace(self._link, model_version=renewed.version)
        if renewed.left:
            self._warn(f"old predictions are left in the project: {', '.join(renewed.left)}")
        return renewed

    def _fill(self, view: QueueView, wanted: Sequence[int], version: str) -> None:
        if not wanted:
            return
        self._total = len(wanted)
        self._after = self._flights.look_above()
        with ThreadPoolExecutor(1, "push-keep") as self._keeper:
            outcome = send(self._prepared(view, wanted, version), self._import, self._missing)
            self._kept()
        for sent, reason in outcome.refused:
            self._give_up(sent.item.image, reason)
        for sent, reason in outcome.later:
            self._put_off(sent.item.image, reason)
        self._unsure |= outcome.unsure
        patiently(lambda: self._show(version))

    def _prepared(self, view: QueueView, wanted: Sequence[int], version: str) -> Iterator[list[_Prepared]]:
        """Yield batches, first a small one; the next is made while the server works, unless that has to help."""

        def prepare(part: Sequence[int]) -> list[_Prepared]:
            return self._prepare(view.tell(part), version)

        first = min(FIRST_BATCH, BATCH)
        parts = iter([list(wanted[:first]), *in_batches(wanted[first:], BATCH)])
        if not self._pictures.by_themselves:
            yield from map(prepare, parts)
            return
        with ThreadPoolExecutor(1, "push-ahead") as ahead:
            coming = ahead.submit(prepare, next(parts))
            for part in parts:
                ready, coming = coming.result(), ahead.submit(prepare, part)
                yield ready
            yield coming.result()

    def _prepare(self, part: list[Wanted], version: str) -> list[_Prepared]:
        placing = self._pictures.place([item.image for item in part], search=self._search)
        self._unsure |= placing.unsure
        self._stand_ins += placing.stand_ins
        made = []
        for item in part:
            image = item.image
            placed = placing.placed.get(image.image_id)
            if placed is not None:
                flight = Flight(image.image_id, item.row, item.asked_at, version, item.shown, placed.picture)
                task = {
                    "data": self._predictor.data(item, placed.url),
                    "meta": flight.meta(),
                    "predictions": [self._predictor.say(item.shown, self._predictor.score(item), version)],
                }
                made.append(_Prepared(item, flight, task))
            elif image.image_id in placing.gone:
                self._give_up(image, placing.gone[image.image_id])
            else:
                self._put_off(image, placing.later.get(image.image_id, "its picture was not taken"))
        return made

    def _import(self, part: list[_Prepared]) -> None:
        if not part:
            return
        ids = self._server.import_tasks(self._link.project_id, [item.task for item in part])
        self._kept()
        # Written while the server works on the next batch; a crash before that is one before the answer came.
        self._keeping = self._keeper.submit(self._flights.landed, [item.flight for item in part], ids)
        self._arrived(len(part))

    def _kept(self) -> None:
        """Wait until the tasks of the batch before are kept."""
        if self._keeping is not None:
            self._keeping.result()
            self._keeping = None

    def _missing(self, part: list[_Prepared]) -> list[_Prepared]:
        self._kept()
        self._flights.find(self._after)
        there = self._flights.arrived(self._after, [item.item.row for item in part])
        self._arrived(len(there))
        return [item for item in part if item.item.row not in there]

    def _arrived(self, count: int) -> None:
        self._tell(pushed=count)
        if self._progress is not None:
            self._progress(self._report.pushed, self._total, "tasks")

    def _show(self, version: str) -> None:
        """Let the project show the version of its first tasks; one that shows none has taken it with them already."""
        if self._link.model_version == version or not self._open():
            return
        if self._server.project(self._link.project_id).get("model_version") != version:
            self._server.update_project(self._link.project_id, model_version=version)
        self._store.exchange.update_link(self._link.id, model_version=version)
        self._link = replace(self._link, model_version=version)

    def _warnings(self, coming: int) -> tuple[str, ...]:
        said = []
        number = int(self._server.project(self._link.project_id).get("task_number") or 0) + coming
        if number > MANY_TASKS:
            said.append(
                f"the project has {number:,} tasks; above {MANY_TASKS:,} Label Studio takes a second and more to find "
                "the next one: export and delete answered tasks, or link a new project"
            )
        if self._stand_ins:
            said.append(
                f"{self._stand_ins} of the pictures are the small cached copies: the originals are not where they were "
                "imported from"
            )
        return tuple(said)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        with self._guard:
            self._report = replace(self._report, warnings=(*self._report.warnings, text))

    def _tell(self, *, version: str | None = None, **more: int) -> None:
        with self._guard:
            counts = {name: getattr(self._report, name) + number for name, number in more.items()}
            self._report = replace(self._report, version=version or self._report.version, **counts)

    def _give_up(self, image: ImageRecord, reason: str) -> None:
        self._again.pop(image.row, None)
        self._flights.give_up(image, reason)
        self._tell(given_up=1)

    def _put_off(self, image: ImageRecord, reason: str) -> None:
        self._again.pop(image.row, None)
        self._flights.put_off(image, reason)
        self._tell(later=1)

    def _open(self) -> int:
        return self._store.exchange.open_mark(self._link.id)[0]
