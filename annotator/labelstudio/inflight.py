"""Tasks on their way: noted before they are sent, found again after a crash or a lost answer.

Before a face is sent an outbox item says so, with all that its `LinkedTask` will hold; it is dropped once the task is
known. Around all of a push stands another item, a look: new tasks of the project above its id may be ours. Tasks are
found by their image id. Of a face that arrived twice (one answer was lost, and the request was carried out after it was
looked for) the copy that nobody has answered is deleted.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from annotator.errors import NotFoundError
from annotator.labelstudio.sending import patiently
from annotator.labelstudio.server import Server, among
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, OutboxItem, Shown

FACE, LOOK = "push", "look"
IMAGE_ID = "image_id"
LATE_SECONDS = 60.0
"""How long after a lost answer its request may still be carried out."""
TRIES = 5
"""Pushes that may fail on a face before it is given up."""
_FIRST_WAIT = timedelta(minutes=1)
_ENQUEUED = 200  # a commit of that many stays short
_ALL = 1_000_000
_CHECKED = 100
_ANNOTATED = ("total_annotations", "cancelled_annotations")


@dataclass(frozen=True, slots=True)
class Flight:
    """A face on its way to become a task. `tries`: pushes that failed on it."""

    image_id: str
    row: int
    since_seq: int
    version: str
    shown: Shown
    picture: str | None
    tries: int = 0

    @property
    def key(self) -> str:
        """Its key in the outbox."""
        return face_key(self.image_id)

    def payload(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, item: OutboxItem) -> "Flight | None":
        """Read it from the outbox; None for a face that never got as far as being sent."""
        values = dict(item.payload)
        if "shown" not in values:
            return None
        shown = values.pop("shown")
        values["tries"] += item.attempts
        return cls(**values, shown=Shown(**(shown | {"candidates": tuple(shown["candidates"])})))

    def task(self, task_id: int) -> LinkedTask:
        """Return what is kept of the task that it became."""
        return LinkedTask(task_id, self.row, "open", self.shown, self.version, self.since_seq, self.picture)


def face_key(image_id: str) -> str:
    """Return the outbox key of a face to be sent."""
    return f"{FACE}:{image_id}"


class Flights:
    """The faces of a link that are on their way."""

    def __init__(self, store: LabelStore, server: Server, link: Link) -> None:
        self._images, self._exchange = store.images, store.exchange
        self._server, self._link = server, link

    def waiting(self) -> dict[str, OutboxItem]:
        """Return the items of faces that an earlier push has left behind, by key."""
        return {item.key: item for item in self._due([FACE], datetime.max.replace(tzinfo=UTC))}

    def begin(self, flights: Sequence[Flight]) -> None:
        """Note faces before they are sent."""
        for start in range(0, len(flights), _ENQUEUED):
            part = flights[start : start + _ENQUEUED]
            self._exchange.enqueue(self._link.id, [(FACE, flight.key, flight.payload()) for flight in part])

    def landed(self, flights: Sequence[Flight], task_ids: Sequence[int]) -> None:
        """Keep the tasks that faces became, and drop their items."""
        pairs = zip(flights, task_ids, strict=True)
        self._exchange.put_tasks(self._link.id, [flight.task(task_id) for flight, task_id in pairs])
        self.forget(flight.key for flight in flights)

    def forget(self, keys: "Collection[str] | Any") -> None:
        """Drop the items of faces."""
        wanted = set(keys)
        self._exchange.done([item.id for key, item in self.waiting().items() if key in wanted])

    def give_up(self, image_id: str, row: int, reason: str) -> None:
        """Put a face on the list of the dead."""
        self._fail(image_id, row, lambda item: self._exchange.bury(item.id, reason))

    def put_off(self, image_id: str, row: int, reason: str) -> None:
        """Leave a face out for a while, longer every time; after `TRIES` times it is given up."""

        def fail(item: OutboxItem) -> None:
            tries = item.attempts + int(item.payload.get("tries", 0)) + 1
            if tries >= TRIES:
                self._exchange.bury(item.id, reason)
            else:
                self._exchange.retry_later(item.id, reason, datetime.now(UTC) + _FIRST_WAIT * 2 ** (tries - 1))

        self._fail(image_id, row, fail)

    def given_up(self) -> list[int]:
        """Return the rows of the faces on the list of the dead."""
        return [int(item.payload["row"]) for item in self._exchange.dead(self._link.id, _ALL) if item.kind == FACE]

    def _fail(self, image_id: str, row: int, fail: Any) -> None:
        key = face_key(image_id)
        self._exchange.enqueue(self._link.id, [(FACE, key, {"row": row, "image_id": image_id})])
        item = self.waiting().get(key)
        if item is not None:
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
        return self._due([LOOK], datetime.max.replace(tzinfo=UTC))

    def looked(self, *, unsure: bool) -> None:
        """End the looks; where an answer was missed, keep them until nothing can arrive late any more."""
        now = datetime.now(UTC)
        for item in self.looks():
            if unsure:
                late = now + timedelta(seconds=LATE_SECONDS)
                self._exchange.retry_later(item.id, "an answer was missed: what arrived late is looked for", late)
            elif item.not_before <= now:
                self._exchange.done([item.id])

    def find(self, after: int, flights: Collection[Flight]) -> set[str]:
        """Look for faces among the project's unknown tasks above `after`, link them and return their keys.

        What arrived twice is settled: the copy that nobody has answered goes, another one is linked to its face.
        """
        by_image = {flight.image_id: flight for flight in flights}
        new = self._unknown(after)
        found = self._landed(after, flights)
        copies: list[int] = []
        for task in sorted(new, key=lambda t: (-_answers(t), int(t["id"]))):
            image_id, task_id = task["data"].get(IMAGE_ID), int(task["id"])
            flight = by_image.get(image_id) if isinstance(image_id, str) else None
            if flight is not None and flight.key not in found:
                self._exchange.put_tasks(self._link.id, [flight.task(task_id)])
                found.add(flight.key)
            elif isinstance(image_id, str):
                copies += self._copy(task_id, image_id, _answers(task), after)
        delete_unanswered(self._server, self._link, copies)
        return found

    def _landed(self, after: int, flights: Collection[Flight]) -> set[str]:
        """Return the keys of faces whose task above `after` is known already: the crash came right behind it."""
        tasks = self._exchange.tasks_of_rows(self._link.id, [flight.row for flight in flights])
        return {flight.key for flight in flights if any(t.task_id > after for t in tasks.get(flight.row, ()))}

    def _unknown(self, after: int) -> list[dict[str, Any]]:
        include = ("id", "data", *_ANNOTATED)
        tasks = list(self._server.iter_tasks(self._link.project_id, include=include, after=after))
        known = self._exchange.tasks_by_id(self._link.id, [int(task["id"]) for task in tasks])
        return [task for task in tasks if int(task["id"]) not in known]

    def _copy(self, task_id: int, image_id: str, answers: int, after: int) -> list[int]:
        """Deal with a task of one of our images that is not on its way; return it when it may be deleted."""
        try:
            image = self._images.by_id(image_id)
        except NotFoundError:
            return []
        if image.state == "erased":
            self._exchange.put_tasks(self._link.id, [LinkedTask(task_id, image.row, "erase")])
            return []
        linked = self._exchange.tasks_of_rows(self._link.id, [image.row]).get(image.row, [])
        first = next((t for t in linked if t.task_id > after and t.state in ("open", "answered")), None)
        if first is None:
            return []
        if not answers:
            return [task_id]
        copy = LinkedTask(task_id, image.row, "open", first.shown, first.model_version, first.since_seq)
        self._exchange.put_tasks(self._link.id, [copy])
        return []

    def _due(self, kinds: Sequence[str], now: datetime) -> list[OutboxItem]:
        return self._exchange.due(self._link.id, kinds, now, _ALL)


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
