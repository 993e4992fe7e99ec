"""Tasks on their way: found again after a crash or a lost answer, and faces on which the server fails.

Every task carries in its `meta` what our link keeps of it. Before the first one is sent an outbox item, a look, notes
the highest task id of the project: after a crash or a lost answer the unknown tasks above it are found and linked. Of a
face that arrived twice (an answer was lost, and the request was carried out after it was looked for) the copy that
nobody has answered is deleted. Faces that the server refuses, or fails on, have outbox items of their own.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from annotator.errors import NotFoundError
from annotator.labelstudio.api.server import Server, among
from annotator.labelstudio.tasks.sending import patiently
from annotator.records import ImageRecord
from annotator.store import LabelStore
from annotator.store.exchange_outbox import LOOK
from annotator.store.exchange_records import Link, LinkedTask, OutboxItem, Shown

FACE = "push"
IMAGE_ID, OURS = "image_id", "annotator"
LATE_SECONDS = 60.0
"""How long after a lost answer its request may still be carried out."""
TRIES = 5
"""Pushes that may fail on a face before it is given up."""
_FIRST_WAIT = timedelta(minutes=1)
_ALL = 1_000_000
_CHECKED = 100
_ANNOTATED = ("total_annotations", "cancelled_annotations")


@dataclass(frozen=True, slots=True)
class Flight:
    """A face on its way to become a task, with what its `LinkedTask` will hold."""

    image_id: str
    row: int
    since_seq: int
    version: str
    shown: Shown
    picture: str

    def meta(self) -> dict[str, Any]:
        """Return what its task carries, as plain JSON values."""
        kept = {"since_seq": self.since_seq, "version": self.version, "picture": self.picture}
        return {OURS: kept | {"shown": asdict(self.shown)}}

    @classmethod
    def read(cls, meta: object, image: ImageRecord) -> "Flight | None":
        """Read it from a task; None where the task is not one that we have sent."""
        kept = meta.get(OURS) if isinstance(meta, dict) else None
        try:
            shown = Shown(**(kept["shown"] | {"candidates": tuple(kept["shown"]["candidates"])}))  # type: ignore[index]
            return cls(image.image_id, image.row, int(kept["since_seq"]), kept["version"], shown, kept["picture"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return None

    def task(self, task_id: int) -> LinkedTask:
        """Return what is kept of the task that it became."""
        return LinkedTask(task_id, self.row, "open", self.shown, self.version, self.since_seq, self.picture)


class Flights:
    """The faces of a link that are on their way, and those that do not get there."""

    def __init__(self, store: LabelStore, server: Server, link: Link) -> None:
        self._images, self._exchange = store.images, store.exchange
        self._server, self._link = server, link

    def landed(self, flights: Sequence[Flight], task_ids: Sequence[int]) -> None:
        """Keep the tasks that faces became."""
        pairs = zip(flights, task_ids, strict=True)
        self._exchange.put_tasks(self._link.id, [flight.task(task_id) for flight, task_id in pairs])

    def put_off_until_now(self) -> tuple[dict[int, int], set[int]]:
        """Return the outbox items of faces that may be tried again by row, and the rows that must wait."""
        items = self._exchange.waiting(self._link.id, [FACE])
        now = datetime.now(UTC)
        again = {int(item.payload["row"]): item.id for item in items if item.not_before <= now}
        return again, {int(item.payload["row"]) for item in items} - again.keys()

    def settled(self, items: Iterable[int]) -> None:
        """Drop the items of faces that got there, or that are not wanted any more."""
        self._exchange.done(list(items))

    def give_up(self, image: ImageRecord, reason: str) -> None:
        """Put a face on the list of the dead."""
        self._fail(image, lambda item: self._exchange.bury(item.id, reason))

    def put_off(self, image: ImageRecord, reason: str) -> None:
        """Leave a face out for a while, longer every time; after `TRIES` times it is given up."""

        def fail(item: OutboxItem) -> None:
            if item.attempts + 1 >= TRIES:
                self._exchange.bury(item.id, reason)
            else:
                self._exchange.retry_later(item.id, reason, datetime.now(UTC) + _FIRST_WAIT * 2**item.attempts)

        self._fail(image, fail)

    def given_up(self) -> list[int]:
        """Return the rows of the faces on the list of the dead."""
        return [int(item.payload["row"]) for item in self._exchange.dead(self._link.id, _ALL) if item.kind == FACE]

    def _fail(self, image: ImageRecord, fail: Callable[[OutboxItem], None]) -> None:
        key = f"{FACE}:{image.image_id}"
        self._exchange.enqueue(self._link.id, [(FACE, key, {"row": image.row, IMAGE_ID: image.image_id})])
        for item in self._exchange.waiting(self._link.id, [FACE], key):
            fail(item)

    def look_above(self) -> int:
        """Note that tasks above the project's highest id may be ours from now on; return that id."""
        newest, _ = patiently(
            lambda: self._server.tasks(self._link.project_id, include=("id",), ordering=("-tasks:id",), page_size=1)
        )
        after = int(newest[0]["id"]) if newest else 0
        self._exchange.enqueue(self._link.id, [(LOOK, f"{LOOK}:{after}", {"after": after})])
        return after

    def looks(self) -> list[OutboxItem]:
        """Return the looks that are not over."""
        return self._exchange.waiting(self._link.id, [LOOK])

    def looked(self, *, unsure: bool) -> None:
        """End the looks; where an answer was missed, keep them until nothing can arrive late any more."""
        now = datetime.now(UTC)
        for item in self.looks():
            if unsure:
                late = now + timedelta(seconds=LATE_SECONDS)
                self._exchange.retry_later(item.id, "an answer was missed: what arrived late is looked for", late)
            elif item.not_before <= now:
                self._exchange.done([item.id])

    def find(self, after: int) -> int:
        """Link what we have sent and do not know yet among the project's tasks above `after`; return how many.

        Of what arrived twice the copy that nobody has answered goes; one with an answer is linked to its face, too.
        """
        include = ("id", "data", "meta", *_ANNOTATED)
        tasks = list(self._server.iter_tasks(self._link.project_id, include=include, after=after))
        known = self._exchange.tasks_by_id(self._link.id, [int(task["id"]) for task in tasks])
        ours = [(task, image) for task in tasks if int(task["id"]) not in known and (image := self._image(task))]
        there = self._exchange.tasks_of_rows(self._link.id, [image.row for _, image in ours])
        landed = {row for row, of_row in there.items() if any(t.task_id > after for t in of_row)}
        found: list[LinkedTask] = []
        copies: list[int] = []
        for task, image in sorted(ours, key=lambda pair: (-_answers(pair[0]), int(pair[0]["id"]))):
            flight = Flight.read(task["meta"], image)
            if image.state == "erased":
                found.append(LinkedTask(int(task["id"]), image.row, "erase"))
            elif flight is not None and (image.row not in landed or _answers(task)):
                found.append(flight.task(int(task["id"])))
                landed.add(image.row)
            elif flight is not None:
                copies.append(int(task["id"]))
        self._exchange.put_tasks(self._link.id, found)
        delete_unanswered(self._server, self._link, copies)
        return len(found)

    def arrived(self, after: int, rows: Collection[int]) -> set[int]:
        """Return those of `rows` that have a task above `after`."""
        tasks = self._exchange.tasks_of_rows(self._link.id, rows)
        return {row for row, of_row in tasks.items() if any(task.task_id > after for task in of_row)}

    def _image(self, task: dict[str, Any]) -> ImageRecord | None:
        image_id = task["data"].get(IMAGE_ID)
        if not isinstance(task.get("meta"), dict) or OURS not in task["meta"] or not isinstance(image_id, str):
            return None
        try:
            return self._images.by_id(image_id)
        except NotFoundError:
            return None


def delete_unanswered(server: Server, link: Link, task_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Delete tasks that nobody has answered or skipped there; return those that are gone now, and those kept.

    They are looked at immediately before, a few at a time: an answer given in between would go with its task.
    """
    gone: list[int] = []
    kept: list[int] = []
    for start in range(0, len(task_ids), _CHECKED):
        part = list(task_ids[start : start + _CHECKED])
        found, _ = server.tasks(
            link.project_id, include=("id", *_ANNOTATED), filters=[among(part)], page_size=len(part)
        )
        answered = {int(task["id"]) for task in found if _answers(task)}
        free = [int(task["id"]) for task in found if not _answers(task)]
        server.delete_tasks(link.project_id, free)
        gone += [task_id for task_id in part if task_id not in answered]
        kept += sorted(answered)
    return gone, kept


def _answers(task: dict[str, Any]) -> int:
    return int(task["total_annotations"]) + int(task["cancelled_annotations"])
