"""What can be wrong inside a database, found by reading it."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, text

from annotator.store import exchange_health, triggers
from annotator.store.database import Database
from annotator.store.tables import annotations, erasures, images, meta


def missing_triggers(database: Database) -> list[str]:
    """Return the append-only triggers that are not there. Ask before `LabelStore.open`, which restores them."""
    with database.read() as connection:
        return triggers.missing(connection)


def problems(database: Database) -> list[str]:
    """Return one sentence for everything that contradicts the store's own rules; an empty list is health."""
    with database.read() as connection:
        found = _integrity(connection)
        numbers = {key: int(value) for key, value in connection.execute(_COUNTERS)}
        found += _sequence(connection, numbers)
        found += _rows(connection, numbers)
        found += _groups(connection)
        found += _erased(connection)
        found += exchange_health.problems(connection)
    return found


_COUNTERS = select(meta.c.key, meta.c.value).where(meta.c.key.in_(("next_row", "seq", "erased_annotations")))


def _integrity(connection: Connection) -> list[str]:
    if connection.dialect.name != "sqlite":
        return []
    said = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check(10)"))]
    found = [] if said == ["ok"] else [f"SQLite integrity check: {line}" for line in said]
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    return found + [f"table {row[0]} row {row[1]} points to a missing {row[2]}" for row in broken[:10]]


def _sequence(connection: Connection, numbers: dict[str, int]) -> list[str]:
    count, unique, highest = connection.execute(
        select(
            func.count(), func.count(func.distinct(annotations.c.seq)), func.coalesce(func.max(annotations.c.seq), 0)
        ).select_from(annotations)
    ).one()
    found = []
    if unique != count:
        found.append(f"{count - unique} annotations share a seq")
    if highest > numbers["seq"]:
        found.append(f"annotation seq {highest} is above the counter {numbers['seq']}")
    missing = numbers["seq"] - count - numbers["erased_annotations"]
    if missing:
        found.append(f"{missing} annotations are missing from the sequence (counter {numbers['seq']}, stored {count})")
    return found


def _rows(connection: Connection, numbers: dict[str, int]) -> list[str]:
    count, highest = connection.execute(
        select(func.count(), func.coalesce(func.max(images.c.row), -1)).select_from(images)
    ).one()
    if count == numbers["next_row"] and highest == count - 1:
        return []
    return [f"image rows are not 0 to {numbers['next_row'] - 1} (there are {count}, the highest is {highest})"]


def _groups(connection: Connection) -> list[str]:
    head = images.alias("head")
    query = (
        select(images.c.row)
        .join(head, head.c.row == images.c.group_row, isouter=True)
        .where(
            head.c.row.is_(None)
            | (head.c.group_row != head.c.row)
            | ((images.c.state == "active") & (head.c.split != images.c.split))
            | (images.c.content_hash != head.c.content_hash)
        )
    )
    return _named(connection.execute(query.limit(10)).scalars().all(), "in a group that contradicts itself")


def _erased(connection: Connection) -> list[str]:
    said = select(annotations.c.row).join(erasures, erasures.c.row == annotations.c.row).distinct()
    found = _named(connection.execute(said.limit(10)).scalars().all(), "erased but still have answers")
    unmarked = (
        select(images.c.row)
        .join(erasures, erasures.c.row == images.c.row, isouter=True)
        .where((images.c.state == "erased") != erasures.c.row.is_not(None))
    )
    return found + _named(connection.execute(unmarked.limit(10)).scalars().all(), "erased without a tombstone")


def _named(rows: Sequence[int], what: str) -> list[str]:
    return [f"rows {', '.join(map(str, rows))} are {what}"] if rows else []
