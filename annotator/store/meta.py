"""The counters of a store: the next row and the last seq, taken inside the caller's write transaction.

Both are rows of `meta`, not database sequences: a rolled-back transaction gives its numbers back, so `seq` has no gaps
but those of erased answers, and a number is never given twice, also not after its row was erased.
"""

from sqlalchemy import Connection, Integer, Text, bindparam, cast, select, update

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
_ADVANCE = (
    update(meta)
    .where(meta.c.key == bindparam("_key"))
    .values(value=cast(cast(meta.c.value, Integer) + bindparam("_count", type_=Integer), Text))
    .returning(meta.c.value)
)


def _advance(connection: Connection, key: str, count: int) -> int:
    return int(connection.execute(_ADVANCE, {"_key": key, "_count": count}).scalar_one())


def count_erased(connection: Connection, count: int) -> None:
    """Add to the number of annotations that were erased: the only gaps that `seq` may have."""
    connection.execute(_ADVANCE, {"_key": "erased_annotations", "_count": count}).scalar_one()
