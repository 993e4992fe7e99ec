"""What to show next: the order in memory, leases, skips, and the swap to newer scores.

Every face is out with one person at most. An order is replaced as a whole; until a newer one is complete the last good
one serves, and `behind` says how many annotations it does not know yet. `annotator.follow` keeps all of it current.
"""

import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from annotator.errors import NotFoundError
from annotator.queue_state import QueueState
from annotator.records import ARMS, Annotation, ImageRecord, Lease, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.writer import DecisionWriter

WRITE_SECONDS = 30.0
LEASE_SECONDS = 0.02
_CHUNK = 2_048
_LOCAL = "local"
_PLAIN = "Which expression?"
_PUT_OFF = "Only faces that you put off are left."
_ELSEWHERE = "Only faces that are also open in Label Studio are left."


@dataclass(frozen=True, slots=True)
class Item:
    """One face handed to one person. `given` is the label under review, when the person may see it."""

    lease: Lease
    image: ImageRecord
    question: str
    given: str | None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Handout:
    """What `next` returns; `message` says why there is nothing, or what is special about it."""

    items: tuple[Item, ...]
    message: str | None


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How the faces are ordered, by which model, how many annotations behind, and how many are left to ask."""

    mode: str
    model: str | None
    behind: int
    remaining: int


@dataclass(frozen=True, slots=True)
class _Offer:
    """A lease about to be given, with what only the person on screen needs."""

    lease: Lease
    question: str
    given: str | None
    again: bool = False


class FaceQueue(QueueState):
    """Hand out the faces of one workspace; thread-safe.

    Args:
        store: the open store.
        workspace: its settings.
        writer: persists the leases.
        clock: the time, UTC.
    """

    def __init__(
        self,
        store: LabelStore,
        workspace: Workspace,
        writer: DecisionWriter,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(store, workspace, clock)
        self._writer = writer

    def next(self, user: User, count: int, have: Iterable[str] | None = None) -> Handout:
        """Lease up to `count` faces to a user.

        The leases are written before the answers that name them, and normally before this returns; behind a slow commit
        this does not wait for more than `LEASE_SECONDS`, because losing a lease in a crash costs nothing.

        Args:
            user: who asks.
            count: at least 1.
            have: image ids that the caller still shows or keeps. None says nothing about it; otherwise, when nothing
                else is left, the caller's own faces that are not among them (a reloaded page lost them) come again.

        Raises:
            OverloadedError: too many writes wait.
        """
        kept = None if have is None else frozenset(have)
        items: list[Item] = []
        note: str | None = None
        # Every round either fills the wish, empties the queue, or drops at least one unusable face for good.
        while len(items) < count:
            with self._lock:
                offers, said = self._offers(user, count - len(items), kept, fallback=not items)
            if not offers:
                break
            note = said
            items += self._with_images(offers)
        self._persist(items)
        return Handout(tuple(items), self._message(bool(items), note))

    def _persist(self, items: list[Item]) -> None:
        """Write the leases; one that the user held already and gets again is only prolonged."""
        fresh = [item.lease for item in items if not item.again]
        waiting: list[Future[Any]] = [self._writer.open_leases(fresh)] if fresh else []
        waiting += [self._prolong(item.lease) for item in items if item.again]
        wait(waiting, LEASE_SECONDS)
        for future in waiting:
            if future.done():
                future.result()

    def _prolong(self, lease: Lease) -> "Future[None]":
        return self._writer.call(lambda: self._store.leases.renew(lease.id, lease.user_id, lease.expires_at))

    def renew(self, user: User, lease_id: str) -> Lease:
        """Keep a face that is still on screen.

        Raises:
            NotFoundError: the lease has expired, was answered or taken over, or is another user's.
        """
        with self._lock:
            self._holdings.expire(self._clock())
            lease = self._holdings.get(lease_id)
            if lease is None or lease.user_id != user.id:
                raise NotFoundError(f"lease {lease_id[:60]!r} is not open any more; an answer is stored all the same")
            lease = replace(lease, expires_at=self._expiry())
            self._holdings.open(lease)
        self._prolong(lease)
        return lease

    def take_back(self, user: User, undone: Annotation) -> Item | None:
        """Lease the face of an undone answer to the same person, as it was shown; None when someone else has it."""
        with self._lock:
            group = self._pool.group(undone.row)
            if self._holdings.held[group] or self._pool.gone[group]:
                return None
            lease = Lease(
                id=_new_id(),
                row=group,
                user_id=user.id,
                expires_at=self._expiry(),
                arm=next((arm for arm in ARMS if arm == undone.arm), "coverage"),
                model_version=undone.model_version,
                reason="You took your answer back.",
                blind=undone.blind,
                candidates=() if undone.blind else undone.suggestions,
            )
            self._holdings.open(lease)
        self._writer.open_leases([lease]).result(WRITE_SECONDS)
        return Item(lease, self._store.images.by_id(undone.image_id), _PLAIN, None)

    def is_blind(self, user: User, group: int) -> bool:
        """Tell whether the user holds this face blind: then nothing may hint at an answer, its neighbours neither."""
        with self._lock:
            return any(lease.blind and lease.row == group for lease in self._holdings.of_user(user.id))

    def status(self) -> QueueStatus:
        """Return how the faces are ordered now."""
        order = self._order
        behind = max(0, self._last_seq - order.label_seq)
        return QueueStatus(order.mode, order.model_version, behind, self._remaining)

    # How the next face is chosen. Everything below runs under the lock.

    def _offers(
        self, user: User, count: int, kept: frozenset[str] | None, *, fallback: bool
    ) -> tuple[list[_Offer], str | None]:
        """Choose and hold faces; say what is special about them when nothing better was left."""
        now = self._clock()
        self._active_at[user.id] = now
        self._holdings.expire(now)
        self._make_room(user, count, kept)
        offers = [self._offer(user, position) for position in self._free(user, count)]
        if offers or not fallback:
            return offers, None
        offers = self._own_again(user, count, kept) or self._from_idle(user, count)
        if offers:
            return offers, None
        for elsewhere, note in ((False, _PUT_OFF), (True, _ELSEWHERE)):
            left = self._free(user, count, elsewhere=True) if elsewhere else []
            left = left or self._put_off(user, count, elsewhere=elsewhere)
            if left:
                return [self._offer(user, position) for position in left], note
        return [], None

    def _free(self, user: User, count: int, *, elsewhere: bool = False) -> list[int]:
        """Return the first positions of the order that are free and may go to this user.

        Of faces that are asked in a linked labeling tool (`elsewhere`), or of the others.
        """
        order, positions = self._order, list[int]()
        own = self.book.own(user.id) if self._someone_else(user) else None
        skipped, held = self.book.skipped(user.id), self._holdings.held
        start = self._head
        while start < len(order.rows) and len(positions) < count:
            stop = min(start + _CHUNK, len(order.rows))
            rows, review = order.rows[start:stop], order.review[start:stop]
            over = self._over(rows, review)
            if start == self._head and over.all():
                self._head = stop
            free = ~(over | held[rows] | skipped[rows]) & (self._pool.elsewhere[rows] == elsewhere)
            if own is not None:
                free &= ~(review & own[rows])
            positions += (np.flatnonzero(free)[: count - len(positions)] + start).tolist()
            start = stop
        return positions

    def _own_again(self, user: User, count: int, kept: frozenset[str] | None) -> list[_Offer]:
        """Give a user the faces again that a reloaded page has lost."""
        mine = self._holdings.of_user(user.id) if kept is not None else []
        image_ids = self._image_ids(mine)
        lost = [lease for lease in mine if kept is not None and image_ids[lease.row] not in kept][:count]
        offers = []
        for lease in lost:
            lease = replace(lease, expires_at=self._expiry())
            self._holdings.open(lease)
            position = self._order.position(lease.row)
            question, given = self._ask(user, position, lease.row) if position is not None else (_PLAIN, None)
            offers.append(_Offer(lease, question, given, again=True))
        return offers

    def _from_idle(self, user: User, count: int) -> list[_Offer]:
        """Take faces over from people who hold them without answering. Renewing alone does not count as working."""
        idle_since = self._clock() - timedelta(seconds=self._settings.lease_seconds)
        own, skipped = self.book.own(user.id), self.book.skipped(user.id)
        positions: list[int] = []
        for holder in self._holdings.users():
            if holder == user.id or self._active_at.get(holder, idle_since) > idle_since:
                continue
            for lease in self._holdings.of_user(holder):
                position = self._order.position(lease.row)
                if position is not None and len(positions) < count and not (own[lease.row] or skipped[lease.row]):
                    self._release(lease)
                    positions.append(position)
        return [self._offer(user, position) for position in positions]

    def _put_off(self, user: User, count: int, *, elsewhere: bool) -> list[int]:
        """Return the positions of faces that the user skipped, the one longest ago first."""
        order, positions = self._order, list[int]()
        for group in self.book.put_off(user.id):
            position = order.position(group)
            if len(positions) == count or position is None:
                continue
            if not self._holdings.held[group] and self._pool.elsewhere[group] == elsewhere:
                here = slice(position, position + 1)
                if not self._over(order.rows[here], order.review[here])[0]:
                    positions.append(position)
        return positions

    def _offer(self, user: User, position: int) -> _Offer:
        """Hold the face at a position of the order."""
        order = self._order
        row = int(order.rows[position])
        reason = order.explain(position, self._taxonomy, show_given=self._may_see(user, row))
        lease = Lease(
            id=_new_id(),
            row=row,
            user_id=user.id,
            expires_at=self._expiry(),
            arm=order.arm(position),
            model_version=order.model_version_of(position),
            reason=reason.sentence,
            blind=order.blind(position),
            candidates=order.candidates(position),
        )
        self._holdings.open(lease)
        return _Offer(lease, *self._ask(user, position, row))

    def _ask(self, user: User, position: int, row: int) -> tuple[str, str | None]:
        show = self._may_see(user, row)
        question = self._order.explain(position, self._taxonomy, show_given=show).question
        return question, self._order.given(position) if show else None

    def _may_see(self, user: User, row: int) -> bool:
        """Tell whether the label under review may be shown: what colleagues said is for reviewers alone."""
        return not self.book.answered_seq[row] or user.role in ("reviewer", "admin")

    def _someone_else(self, user: User) -> bool:
        """Tell whether anyone else could review this user's labels."""
        return any(
            p.id != user.id and not p.disabled and p.simulated == user.simulated and p.name != _LOCAL
            for p in self._people
        )

    def _make_room(self, user: User, count: int, kept: frozenset[str] | None) -> None:
        """Let a user's oldest faces go when the leases of lost pages add up."""
        mine = self._holdings.of_user(user.id)
        surplus = len(mine) + count - self._settings.max_leases_per_user
        if surplus > 0:
            image_ids = self._image_ids(mine)
            for lease in [m for m in mine if kept is None or image_ids[m.row] not in kept][:surplus]:
                self._release(lease)

    def _release(self, lease: Lease) -> None:
        self._holdings.close(lease.id)
        self._writer.call(lambda: self._store.leases.close(lease.id))

    def _with_images(self, offers: list[_Offer]) -> list[Item]:
        """Join the image records; a face that was erased or quarantined meanwhile leaves the queue."""
        items = []
        records = self._store.images.by_rows([offer.lease.row for offer in offers]) if offers else []
        for offer, image in zip(offers, records, strict=True):
            if image.state == "active":
                items.append(Item(offer.lease, image, offer.question, offer.given, offer.again))
                continue
            with self._lock:
                self._pool.gone[offer.lease.row] = True
                self._holdings.close(offer.lease.id)
            self.states_stale = True
        return items

    def _message(self, some: bool, note: str | None) -> str | None:
        if some:
            return note
        if not self._pool.num_representatives:
            return "There are no faces yet: add some with `annotator import`."
        if len(self._holdings):
            return "Every open face is with someone right now; faces come back when their time is over."
        return "Every face has been answered."

    def _image_ids(self, leases: list[Lease]) -> dict[int, str]:
        records = self._store.images.by_rows([lease.row for lease in leases]) if leases else []
        return {record.row: record.image_id for record in records}

    def _expiry(self) -> datetime:
        return self._clock() + timedelta(seconds=self._settings.lease_seconds)


def _new_id() -> str:
    return secrets.token_urlsafe(12)
