"""The counters of a store: the next row and the last seq, taken inside the caller's write transaction.

Both are rows of `meta`, not database sequences: a rolled-back transaction gives its numbers back, so `seq` has no gaps
but those of erased answers, and a number is never given twice, also not after its row was erased.
"""

from sqlalchemy import Connection, Integer, cast, select, update

from annotator.store.tables import meta


def take_rows(connection: Connection, count: int) -> int:
    """Reserve `count` image rows and return the first."""
    return _advance(connection, "next_row", count) - count


def take_seqs(connection: Connection, count: int) -> int:
    """Reserve `count` annotation seqs and return the first; the first ever is 1."""
    return _advance(connection, "seq", count) - count + 1


def last_seq(connection: Connection) -> int:
    """Return the highest seq given so far, 0 when there is none."""
    return int(connection.execute(_LAST_SEQ).scalar_one())


_LAST_SEQ = select(meta.c.value).where(meta.c.key == "seq")


def _advance(connection: Connection, key: str, count: int) -> int:
    number = cast(meta.c.value, Integer) + count
    query = update(meta).where(meta.c.key == key).values(value=cast(number, meta.c.value.type)).returning(meta.c.value)
    return int(connection.execute(query).scalar_one())
