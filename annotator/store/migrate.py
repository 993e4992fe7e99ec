"""Create or upgrade the database of a workspace: under a lock, after a backup, with the triggers restored."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from annotator.errors import WorkspaceError
from annotator.store import triggers
from annotator.store.database import ADVISORY_KEY, Database, translated_errors

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The newest revision in `migrations/versions`. Known here so that opening a current store does not load Alembic."""


def upgrade(database: Database, lock_path: Path, backups: Path, *, revision: str = HEAD) -> None:
    """Bring `database` to `revision`, the newest unless an older one is to be filled from a backup.

    A SQLite file that is behind is copied into `backups` first. The append-only triggers are made again afterwards and
    checked on every call.

    Raises:
        WorkspaceError: the database was written by a newer version, or cannot be written.
    """
    with translated_errors(database.name), exclusive(lock_path):
        with _migration_connection(database) as connection:
            current = _revision(connection)
            missing = triggers.missing(connection) if current == revision else []
        if current == revision and not missing:
            return
        if current is not None and current != revision and database.path is not None:
            back_up_sqlite(database.path, backups, current)
        with _migration_connection(database) as connection:
            if current != revision:
                _run(connection, current, revision, database.name)
            triggers.create(connection)
            still_missing = triggers.missing(connection)
            if still_missing:
                raise WorkspaceError(f"{database.name} refuses the triggers {', '.join(still_missing)}")


@contextmanager
def exclusive(lock_path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `lock_path`; wait for another process that holds it."""
    file = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def back_up_sqlite(path: Path, backups: Path, revision: str) -> Path:
    """Copy a live SQLite database into `backups` with SQLite's own backup and return the copy's path."""
    backups.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = backups / f"{path.stem}-{revision}-{stamp}.db"
    copy_sqlite(path, target)
    return target


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a live SQLite database consistently; `target` appears only when it is complete and on disk."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(temporary)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode=DELETE")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def alembic_config(connection: Connection | None = None) -> "Config":
    """Return Alembic's configuration for the migrations inside this package, bound to `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _run(connection: Connection, current: str | None, revision: str, name: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = {current or revision, revision} - known
    if unknown:
        raise WorkspaceError(
            f"{name} was written by a newer version of annotator (schema {unknown.pop()}, this one knows {HEAD}): "
            "upgrade annotator, or restore a backup made before"
        )
    command.upgrade(config, revision)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


@contextmanager
def _migration_connection(database: Database) -> Iterator[Connection]:
    """Open one transaction that may change the schema, with foreign keys off (batch mode rebuilds tables)."""
    engine = create_engine(database.url, poolclass=NullPool)
    if database.is_sqlite:

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _record: object) -> None:
            connection.isolation_level = None
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise WorkspaceError(f"{database.name} cannot use write-ahead logging (got {mode}): use a local disk")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA busy_timeout=30000")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_KEY})
            yield connection
    finally:
        engine.dispose()
