"""Leases: who may answer which face until when. Written without waiting for the disk: losing one costs nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from annotator.records import Lease
from annotator.store.database import Database
from annotator.store.tables import leases

KEEP = timedelta(days=7)
"""How long a finished lease is kept, so that a late answer still learns what was shown."""


class Leases:
    """The leases of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, new: Sequence[Lease]) -> None:
        """Record new leases in one transaction."""
        if not new:
            return
        values = [
            {
                "id": lease.id,
                "row": lease.row,
                "user_id": lease.user_id,
                "expires_at": lease.expires_at,
                "closed": False,
                "arm": lease.arm,
                "model_version": lease.model_version,
                "reason": lease.reason,
                "blind": lease.blind,
                "candidates": list(lease.candidates),
            }
            for lease in new
        ]
        with self._database.write_volatile() as connection:
            connection.execute(insert(leases), values)

    def active(self, now: datetime | None = None) -> list[Lease]:
        """Return the leases that are neither closed nor expired."""
        query = select(leases).where(~leases.c.closed, leases.c.expires_at > (now or datetime.now(UTC)))
        with self._database.read() as connection:
            return [_lease(row) for row in connection.execute(query.order_by(leases.c.expires_at))]

    def get(self, lease_id: str) -> Lease | None:
        """Return a lease, also a closed or expired one, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(leases).where(leases.c.id == lease_id)).one_or_none()
        return None if row is None else _lease(row)

    def renew(self, lease_id: str, user_id: int, until: datetime, *, now: datetime | None = None) -> bool:
        """Let one's own open lease run until `until`; return False when it is closed, expired or another person's."""
        query = update(leases).where(
            leases.c.id == lease_id,
            leases.c.user_id == user_id,
            ~leases.c.closed,
            leases.c.expires_at > (now or datetime.now(UTC)),
        )
        with self._database.write_volatile() as connection:
            return bool(connection.execute(query.values(expires_at=until)).rowcount)

    def close(self, lease_id: str) -> None:
        """End a lease; one that is closed or unknown stays so."""
        with self._database.write_volatile() as connection:
            connection.execute(update(leases).where(leases.c.id == lease_id).values(closed=True))

    def sweep(self, now: datetime | None = None) -> int:
        """Delete leases that ended more than `KEEP` ago and return how many."""
        before = (now or datetime.now(UTC)) - KEEP
        with self._database.write_volatile() as connection:
            return int(connection.execute(delete(leases).where(leases.c.expires_at < before)).rowcount)


def _lease(row: Any) -> Lease:
    return Lease(
        row.id,
        row.row,
        row.user_id,
        row.expires_at,
        row.arm,
        row.model_version,
        row.reason,
        row.blind,
        tuple(row.candidates),
    )
