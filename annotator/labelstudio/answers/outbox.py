"""The outbox is emptied: what cannot be sent now is sent later, what can never be sent is put aside with the reason.

An item names a face; what is done about it is decided from the state of both sides when its turn comes, so an item that
time has overtaken does nothing. A crash after the server has done it and before that is noted is harmless: the next
pull finds the annotation and knows it by the number of our answer, or the next attempt finds it done.
"""

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from annotator.errors import InputError, LabelStudioError, RefusedError, UnreachableError
from annotator.labelstudio.answers.delivery import Outcome, send
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.outgoing import KINDS, Intent, intents_of
from annotator.store.exchange_records import OutboxItem

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Requests under way together: the server takes 8 to 14 annotations a second one after the other, 25 at most."""
_BATCH = 64
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 900.0
MAX_ATTEMPTS = 12
"""About an hour and a half of a server that answers others but not this."""
_PULLS = 3
_REPEATED = 409
_LOCKED_OUT = (401, 403)


@dataclass(frozen=True, slots=True)
class SentReport:
    """What was sent. moved: left to the next pull. later: to be tried again. dead: put aside, with the reason."""

    annotate: int = 0
    edit: int = 0
    retract: int = 0
    overtaken: int = 0
    moved: int = 0
    gone: int = 0
    later: int = 0
    dead: int = 0

    @property
    def sent(self) -> int:
        """How many annotations were made, changed or deleted there."""
        return self.annotate + self.edit + self.retract


def deliver(linked: Linked, *, seconds: float = math.inf) -> SentReport:
    """Send everything whose time has come; after `seconds` the rest is left to the next time.

    Raises:
        RefusedError: the key is not accepted: nothing can be sent, and nothing is put aside for it.
    """
    counts: Counter[str] = Counter()
    began = datetime.now(UTC)  # what is put off from now on is left to the next delivery
    until = time.monotonic() + seconds
    while items := linked.store.exchange.due(linked.link.id, KINDS, began, _BATCH):
        before = counts["later"]
        _deliver(linked, items, counts)
        if counts["later"] - before == len(items) or time.monotonic() > until:
            break  # nobody answers: the rest need not try
    return SentReport(**counts)


def _deliver(linked: Linked, items: Sequence[OutboxItem], counts: Counter[str]) -> None:
    exchange, link_id = linked.store.exchange, linked.link.id
    faces = intents_of(linked, {int(item.payload["row"]) for item in items})
    exchange.put_answers(link_id, faces.same)
    wanted = {intent.key: intent for intent in faces.intents}
    exchange.enqueue(link_id, [intent.item for intent in faces.intents])
    current = [(item, wanted[item.key]) for item in items if item.key in wanted]
    overtaken = [item.id for item in items if item.key not in wanted]
    exchange.done(overtaken)
    counts["overtaken"] += len(overtaken)
    with ThreadPoolExecutor(AT_ONCE, "labelstudio") as pool:
        tried = list(pool.map(lambda pair: _try(linked, pair[1]), current))
    refused = [t for t in tried if isinstance(t, RefusedError) and t.status in _LOCKED_OUT]
    for (item, intent), outcome in zip(current, tried, strict=True):
        if isinstance(outcome, Outcome):
            counts[_settle(linked, item, intent, outcome)] += 1
        elif not refused:
            counts[_put_off(linked, item, outcome)] += 1
    if refused:
        raise refused[0]


def _try(linked: Linked, intent: Intent) -> Outcome | LabelStudioError | InputError:
    try:
        return send(linked, intent)
    except (LabelStudioError, InputError) as error:
        return error


def _settle(linked: Linked, item: OutboxItem, intent: Intent, outcome: Outcome) -> str:
    """Note what became of an intent and return what to count it as."""
    exchange, link_id = linked.store.exchange, linked.link.id
    if outcome.what == "moved":
        at_once = item.attempts < _PULLS  # the next pull should settle it
        pause = timedelta() if at_once else _pause(item.attempts)
        exchange.retry_later(item.id, "it has changed there since it was last seen", datetime.now(UTC) + pause)
        return "moved"
    if outcome.what == "gone":
        exchange.set_task_state(link_id, [intent.task.task_id], "gone")
    if outcome.linked is not None:
        exchange.put_answers(link_id, [outcome.linked])
        if intent.kind == "annotate":
            exchange.set_task_state(link_id, [intent.task.task_id], "answered")
    exchange.done([item.id])
    return outcome.what if outcome.what == "gone" else intent.kind


def _put_off(linked: Linked, item: OutboxItem, error: LabelStudioError | InputError) -> str:
    exchange = linked.store.exchange
    # A 409 whose annotation was not found is as unclear as no answer.
    unclear = isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.status == _REPEATED)
    if unclear and (item.attempts + 1 < MAX_ATTEMPTS or not _answers(linked)):
        exchange.retry_later(item.id, str(error), datetime.now(UTC) + _pause(item.attempts))
        return "later"
    log.warning("%s is put aside: %s", item.key, error)
    exchange.bury(item.id, str(error))
    return "dead"


def _answers(linked: Linked) -> bool:
    """Tell whether the server answers others: only then is it the item that it does not take."""
    try:
        linked.server.project(linked.link.project_id)
    except LabelStudioError:
        return False
    return True


def _pause(attempts: int) -> timedelta:
    """Return a wait that doubles with every attempt, a little more or less by chance."""
    seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**attempts)
    return timedelta(seconds=seconds * random.uniform(0.5, 1.5))
