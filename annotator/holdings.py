"""Who holds which face: the leases in memory, one per face at most."""

import heapq
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from annotator.records import Lease


class Holdings:
    """The open leases. Not thread-safe: the queue's lock guards it.

    `held` (R,) bool by representative row tells in one look whether a face is out.
    """

    def __init__(self) -> None:
        self.held: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._leases: dict[str, Lease] = {}
        self._of_user: dict[int, dict[str, None]] = {}
        self._expiries: list[tuple[datetime, str]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def grow(self, size: int) -> None:
        """Make room for rows below `size`."""
        missing = size - len(self.held)
        if missing > 0:
            self.held = np.concatenate([self.held, np.zeros(missing, dtype=bool)])

    def get(self, lease_id: str | None) -> Lease | None:
        """Return an open lease."""
        return self._leases.get(lease_id) if lease_id is not None else None

    def of_user(self, user_id: int) -> list[Lease]:
        """Return a user's open leases, oldest first."""
        return [self._leases[key] for key in self._of_user.get(user_id, ())]

    def users(self) -> list[int]:
        """Return who holds anything."""
        return [user for user, leases in self._of_user.items() if leases]

    def open(self, lease: Lease) -> None:
        """Hold a face, or go on holding it until a later time."""
        known = self._leases.get(lease.id)
        self._leases[lease.id] = lease
        if known is None:
            self._of_user.setdefault(lease.user_id, {})[lease.id] = None
            self.held[lease.row] = True
        heapq.heappush(self._expiries, (lease.expires_at, lease.id))

    def close(self, lease_id: str | None) -> Lease | None:
        """Let a face go; return its lease when it was open."""
        lease = self._leases.pop(lease_id, None) if lease_id is not None else None
        if lease is not None:
            self._of_user[lease.user_id].pop(lease.id, None)
            self.held[lease.row] = False
        return lease

    def expire(self, now: datetime) -> None:
        """Let every face go whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            _, lease_id = heapq.heappop(self._expiries)
            lease = self._leases.get(lease_id)
            # A renewed lease has a later entry further down.
            if lease is not None and lease.expires_at <= now:
                self.close(lease_id)
