"""Sending many things so that one that cannot be sent does not hold up the others, and nothing is sent twice."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from annotator.errors import LabelStudioError, RefusedError, UnreachableError

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between the tries while a server does not answer: a restart fits in."""
_NOT_THE_ITEM = (401, 403, 404)
"""Refusals of the key or the project: no other item would fare better."""
_CONFLICT = 409
_ALONE_TRIES = 3


@dataclass(slots=True)
class Sent(Generic[T]):
    """What became of items. `refused`: the server says no to this one; `later`: it fails on this one for now.

    unsure: an answer was missed, so something may still arrive there that was sent a second time.
    """

    refused: list[tuple[T, str]] = field(default_factory=list)
    later: list[tuple[T, str]] = field(default_factory=list)
    unsure: bool = False


def send(
    batches: Iterator[list[T]],
    request: Callable[[list[T]], None],
    missing: Callable[[list[T]], list[T]],
) -> Sent[T]:
    """Send batches one after the other; what fails is looked for there, halved and sent again, down to single items.

    Args:
        batches: what to send, taken as the server takes it.
        request: sends a batch.
        missing: returns those of a batch that have not arrived.

    Raises:
        UnreachableError: the server does not even answer what `missing` asks.
        RefusedError: it refuses the key or the project.
    """
    sent: Sent[T] = Sent()
    for batch in batches:
        waiting = [(batch, 0)]
        while waiting:
            part, tries = waiting.pop()
            try:
                request(part)
            except LabelStudioError as error:
                left = _left(part, error, missing, sent, tries)
                waiting += _next_tries(left, error, sent, tries)
    return sent


def _left(
    part: list[T], error: LabelStudioError, missing: Callable[[list[T]], list[T]], sent: Sent[T], tries: int
) -> list[T]:
    if isinstance(error, RefusedError) and error.status in _NOT_THE_ITEM:
        raise error
    log.info("%d items did not go through: %s", len(part), error)
    if not isinstance(error, RefusedError) or error.status == _CONFLICT:
        sent.unsure = True
        time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
    return patiently(lambda: missing(part))


def _next_tries(left: list[T], error: LabelStudioError, sent: Sent[T], tries: int) -> list[tuple[list[T], int]]:
    if not left:
        return []
    if len(left) > 1:
        middle = len(left) // 2
        return [(left[middle:], tries + 1), (left[:middle], tries + 1)]
    if isinstance(error, RefusedError) and error.status != _CONFLICT:
        sent.refused.append((left[0], str(error)))
        return []
    if tries >= _ALONE_TRIES:
        sent.later.append((left[0], str(error)))
        return []
    return [(left, tries + 1)]


def patiently(ask: Callable[[], T]) -> T:
    """Ask again while the server does not answer, a few seconds long.

    Raises:
        UnreachableError: it never answered.
    """
    for pause in PAUSES:
        try:
            return ask()
        except UnreachableError as error:
            log.info("asking again in %.2f s: %s", pause, error)
            time.sleep(pause)
    return ask()


def in_batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield `items` in lists of `size`."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
