"""What is still to be done in a linked project: kept until it is done, tried again later, or given up."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from annotator.store.exchange_records import OutboxItem
from annotator.store.pacing import Paced
from annotator.store.tables import exchange_links as links
from annotator.store.tables import exchange_outbox as outbox

LOOK, VERSION = "look", "version"
NOTES = (LOOK, VERSION)
"""Kinds that remember something for the next sync and wait for nothing."""
_CHUNK = 500
_COLUMNS = (
    outbox.c.id,
    outbox.c.kind,
    outbox.c.key,
    outbox.c.payload,
    outbox.c.attempts,
    outbox.c.not_before,
    outbox.c.state,
    outbox.c.error,
)


class Outbox(Paced):
    """The outbox of a linked project."""

    def enqueue(
        self, link_id: int, items: Sequence[tuple[str, str, dict[str, Any]]], *, sent_seq: int | None = None
    ) -> int:
        """Add (kind, key, payload) items and return how many are new; one whose key waits or is dead is left alone.

        A payload about a face names its `row`, or a `task_id` of it, so that erasing the face finds it. All of it is
        one transaction, with the link's `sent_seq` when that is given.
        """
        now = datetime.now(UTC)
        values = [
            {
                "link_id": link_id,
                "kind": kind,
                "key": key,
                "payload": payload,
                "row": payload.get("row"),
                "task_id": payload.get("task_id"),
                "attempts": 0,
                "not_before": now,
                "state": "waiting",
                "error": None,
            }
            for kind, key, payload in items
        ]
        added = 0
        with self._database.write() as connection:
            for value in values:
                added += connection.execute(_insert(self._database.is_sqlite), value).scalar() is not None
            if sent_seq is not None:
                connection.execute(update(links).where(links.c.id == link_id).values(sent_seq=sent_seq))
        return added

    def due(self, link_id: int, kinds: Collection[str], now: datetime, limit: int) -> list[OutboxItem]:
        """Return waiting items of these kinds whose time has come, oldest first."""
        query = select(*_COLUMNS).where(
            outbox.c.link_id == link_id,
            outbox.c.state == "waiting",
            outbox.c.kind.in_(tuple(kinds)),
            outbox.c.not_before <= now,
        )
        return self._read_items(query.order_by(outbox.c.id).limit(limit))

    def waiting(self, link_id: int, kinds: Collection[str], key: str | None = None) -> list[OutboxItem]:
        """Return waiting items of these kinds, due or not, oldest first; with `key`, that one alone."""
        query = select(*_COLUMNS).where(
            outbox.c.link_id == link_id, outbox.c.state == "waiting", outbox.c.kind.in_(tuple(kinds))
        )
        if key is not None:
            query = query.where(outbox.c.key == key)
        return self._read_items(query.order_by(outbox.c.id))

    def done(self, ids: Collection[int]) -> None:
        """Drop items that were done."""

        def write(connection: Connection, batch: Sequence[int]) -> None:
            for start in range(0, len(batch), _CHUNK):
                connection.execute(delete(outbox).where(outbox.c.id.in_(batch[start : start + _CHUNK])))

        self._in_short_commits("done", sorted(ids), write)

    def retry_later(self, item_id: int, error: str, not_before: datetime) -> None:
        """Count an attempt that failed and wait until `not_before`."""
        self._set(item_id, error=error, not_before=not_before, attempts=outbox.c.attempts + 1)

    def bury(self, item_id: int, error: str) -> None:
        """Give an item up; it stays on the list of the dead until it is revived."""
        self._set(item_id, error=error, state="dead", attempts=outbox.c.attempts + 1)

    def dead(self, link_id: int, limit: int = 100) -> list[OutboxItem]:
        """Return the items that were given up, oldest first."""
        query = select(*_COLUMNS).where(outbox.c.link_id == link_id, outbox.c.state == "dead")
        return self._read_items(query.order_by(outbox.c.id).limit(limit))

    def revive(self, link_id: int) -> int:
        """Let everything that was given up be tried again from the start; return how many items that are."""
        dead = update(outbox).where(outbox.c.link_id == link_id, outbox.c.state == "dead")
        with self._database.write() as connection:
            again = dead.values(state="waiting", attempts=0, not_before=datetime.now(UTC))
            return int(connection.execute(again).rowcount)

    def _set(self, item_id: int, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(outbox).where(outbox.c.id == item_id).values(**values))

    def _read_items(self, query: Any) -> list[OutboxItem]:
        with self._database.read() as connection:
            return [OutboxItem(*row) for row in connection.execute(query)]


@cache
def _insert(is_sqlite: bool) -> Any:
    query = sqlite.insert(outbox) if is_sqlite else postgresql.insert(outbox)
    return query.on_conflict_do_nothing(index_elements=["link_id", "key"]).returning(outbox.c.id)
