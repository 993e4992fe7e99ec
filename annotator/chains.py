"""The chain of snapshots that each method has: which is its newest, which may go, whose turn it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from annotator.records import Snapshot


def chains(snapshots: Sequence[Snapshot]) -> dict[str, list[Snapshot]]:
    """Return the snapshots of each method, oldest first; methods in the order of their first one."""
    found: dict[str, list[Snapshot]] = {}
    for snapshot in snapshots:
        found.setdefault(snapshot.method, []).append(snapshot)
    return found


def current(snapshots: Sequence[Snapshot], methods: Sequence[str]) -> list[Snapshot]:
    """Return the newest snapshot of each of `methods`, oldest first.

    The newest of all is among them even when its method is not: somebody has asked for that round.
    """
    if not snapshots:
        return []
    heard = {*methods, snapshots[-1].method}
    newest = {chain[-1].id for method, chain in chains(snapshots).items() if method in heard}
    return [s for s in snapshots if s.id in newest]


def kept(snapshots: Sequence[Snapshot], keep: int) -> tuple[set[str], set[str]]:
    """Return the ids whose folders stay, and among them those that keep their readings of the whole pool.

    The last `keep` of each method stay; the newest of each and the serving one keep everything.
    """
    whole = {s.id for s in snapshots if s.serving} | {chain[-1].id for chain in chains(snapshots).values()}
    return whole | {s.id for chain in chains(snapshots).values() for s in chain[-keep:]}, whole


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a method is. `serving` is the id of its snapshot that serves, `trained` whether it still takes turns."""

    method: str
    newest: Snapshot | None
    rounds: int
    serving: str | None
    trained: bool


def standings(snapshots: Sequence[Snapshot], methods: Sequence[str]) -> list[Standing]:
    """Return a line per method: those that take turns, in their order, then others that have snapshots."""
    found = chains(snapshots)
    lines = []
    for method in [*methods, *(m for m in found if m not in methods)]:
        chain = found.get(method, [])
        serving = next((s.id for s in chain if s.serving), None)
        lines.append(Standing(method, chain[-1] if chain else None, len(chain), serving, method in methods))
    return lines


def longest_waiting(snapshots: Sequence[Snapshot], methods: Sequence[str]) -> str:
    """Return the one of `methods` (at least one) whose last round is longest ago; one without any comes first."""
    last = {snapshot.method: place for place, snapshot in enumerate(snapshots)}
    return min(methods, key=lambda method: last.get(method, -1))
