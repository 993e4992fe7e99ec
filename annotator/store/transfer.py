"""Every table as JSON lines, in and out of either database: what backups are made of and compared by."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Inspector, MetaData, Table, func, insert, inspect, select, text
from sqlalchemy.exc import OperationalError, StatementError

from annotator.errors import WorkspaceError
from annotator.store import tables
from annotator.store.database import Database
from annotator.store.schema import UtcDateTime

# Parents before children. Leases and sessions are of the running server and stay behind.
TABLES: tuple[Table, ...] = (
    tables.meta,
    tables.sources,
    tables.users,
    tables.erasures,
    tables.images,
    tables.faces,
    tables.annotations,
    tables.labels,
    tables.snapshots,
    tables.generations,
    tables.jobs,
    tables.exchange_links,
    tables.exchange_tasks,
    tables.exchange_answers,
    tables.exchange_outbox,
)
_DECISIVE = frozenset({"users", "images", "faces", "annotations", "labels", "erasures"})
_NUMBERED = ("sources", "users", "generations", "jobs", "exchange_links", "exchange_outbox")
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows each table holds, and a digest over images, people, annotations and labels."""

    rows: dict[str, int]
    digest: str


def dump(database: Database, folder: Path) -> Contents:
    """Write `<table>.jsonl` for every table into `folder`, all of one moment, and return what they hold."""
    with database.read() as connection:
        return _walk(connection, folder)


def contents(database: Database) -> Contents:
    """Return what `dump` would, without writing anything."""
    with database.read() as connection:
        return _walk(connection, None)


def load(database: Database, folder: Path) -> Contents:
    """Fill the empty `database` with the tables that `dump` wrote, in one transaction.

    Raises:
        WorkspaceError: the database holds something already, or a file does not fit the tables.
    """
    with database.write() as connection:
        for table in (tables.images, tables.annotations, tables.users):
            if connection.execute(select(func.count()).select_from(table)).scalar_one():
                raise WorkspaceError(f"{database.name} is not empty (table {table.name}); name a new, empty database")
        connection.execute(tables.meta.delete())
        for table in _present(connection):
            rows = _read(folder / f"{table.name}.jsonl", table)
            while batch := list(islice(rows, _BATCH)):
                _insert(connection, table, batch)
            if not database.is_sqlite and table.name in _NUMBERED:
                _advance_sequence(connection, table.name)
        return _walk(connection, None)


def _present(connection: Connection) -> list[Table]:
    """Return the tables as the database has them: an older backup is loaded at its own revision."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    return [_as_stored(inspector, table) for table in TABLES if table.name in there]


def _as_stored(inspector: Inspector, table: Table) -> Table:
    """Return `table` without the columns that the database does not have yet."""
    names = {column["name"] for column in inspector.get_columns(table.name)}
    if names >= set(table.columns.keys()):
        return table
    columns = [Column(c.name, c.type, primary_key=c.primary_key) for c in table.columns if c.name in names]
    return Table(table.name, MetaData(), *columns)


def _insert(connection: Connection, table: Table, batch: list[dict[str, Any]]) -> None:
    try:
        connection.execute(insert(table), batch)
    except OperationalError:
        raise
    except StatementError as error:
        raise WorkspaceError(f"{table.name}.jsonl does not fit the tables: {error.orig}") from error


def _walk(connection: Connection, folder: Path | None) -> Contents:
    rows: dict[str, int] = {}
    decisive = hashlib.sha256()
    for table in _present(connection):
        rows[table.name] = 0
        with ExitStack() as stack:
            file = stack.enter_context(open(folder / f"{table.name}.jsonl", "wb")) if folder is not None else None
            for line in _lines(connection, table):
                rows[table.name] += 1
                if file is not None:
                    file.write(line)
                if table.name in _DECISIVE:
                    decisive.update(line)
    return Contents(rows, decisive.hexdigest())


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    # By primary key: the same order in every database, and for annotations the order in which `supersedes` points back.
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
    for row in connection.execute(query).mappings():
        yield json.dumps(dict(row), default=_plain, ensure_ascii=False, sort_keys=True).encode("utf-8") + b"\n"


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a backup")


def _read(path: Path, table: Table) -> Iterator[dict[str, Any]]:
    times = [c.name for c in table.columns if isinstance(c.type, UtcDateTime)]
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                unknown = row.keys() - table.columns.keys()
                for name in times:
                    if row.get(name) is not None:
                        row[name] = datetime.fromisoformat(row[name])
            except (ValueError, AttributeError, TypeError) as error:
                raise WorkspaceError(f"{path.name}, line {number}: not a row of {table.name}: {error}") from error
            if unknown:
                raise WorkspaceError(f"{path.name}, line {number}: unknown columns {', '.join(sorted(unknown))}")
            yield row


def _advance_sequence(connection: Connection, table: str) -> None:
    """Let PostgreSQL continue after the ids that were loaded."""
    connection.execute(
        text(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), "
            f"COALESCE((SELECT max(id) FROM {table}), 1), EXISTS (SELECT 1 FROM {table}))"
        )
    )
