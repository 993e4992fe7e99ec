"""Connections: how a transaction begins, how durable it is, and what a failing disk or server is called.

SQLite: readers and writers use separate connections. Writers of all threads and processes queue at a file lock before
`BEGIN IMMEDIATE`, because SQLite's own busy handler sleeps in growing steps and starves a short transaction.
PostgreSQL: decisions take an advisory lock, so that `seq` follows commit order.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import QueuePool

from annotator.errors import InputError, WorkspaceBusyError, WorkspaceError

ADVISORY_KEY = 0x616E6E6F  # "anno": the lock under which PostgreSQL hands out seq and row numbers
BUSY_SECONDS = 30
CHECKPOINT_SECONDS = 1.0
LONG_LOG_PAGES = 2_000
LARGEST_LOG_PAGES = 16_384
"""A log of 64 MB is checkpointed in the commit that fills it: writers never pause long enough for the thread then."""
log = logging.getLogger(__name__)
_NETWORK_TYPES = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "glusterfs",
    "gpfs",
    "beegfs",
    "fuse.sshfs",
    "ncpfs",
)


class Database:
    """The engines of one store."""

    def __init__(self, url: str, lock_path: Path) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path = Path(self.url.database) if self.is_sqlite and self.url.database else None
        self._gate = _Gate(lock_path) if self.is_sqlite else None
        self._checkpoints = _Checkpoints(self.path, self._gate) if self.path is not None and self._gate else None
        if self.is_sqlite:
            self._reader = _sqlite_engine(self.url, "BEGIN", "FULL", query_only=True, pool_size=8)
            self._writer = _sqlite_engine(self.url, "BEGIN IMMEDIATE", "FULL", query_only=False, pool_size=2)
            self._volatile = _sqlite_engine(self.url, "BEGIN IMMEDIATE", "NORMAL", query_only=False, pool_size=2)
        else:
            reader = create_engine(self.url, pool_size=8, max_overflow=32, pool_pre_ping=True)
            self._reader = reader.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            # Every statement of a writer looks rows up by index. Right after an import the planner has no statistics
            # yet and would read whole tables instead: 5 ms an answer at 10,000 images, and growing.
            given = str(self.url.query.get("options", ""))
            by_index = {"options": f"{given} -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"}
            self._writer = create_engine(
                self.url, pool_size=4, max_overflow=32, pool_pre_ping=True, connect_args=by_index
            )
            self._volatile = self._writer

    @property
    def name(self) -> str:
        """What error messages call this database: a path, or a URL without its password."""
        return str(self.path) if self.path is not None else self.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: everything in it sees one state of the store. Never blocks and is never blocked."""
        with translated_errors(self.name), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a durable write transaction: alone in the store, committed at exit, rolled back on any error."""
        with translated_errors(self.name), self._held_gate(), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_KEY})
            yield connection
        if self._checkpoints is not None:
            self._checkpoints.after_commit()

    @contextmanager
    def write_volatile(self) -> Iterator[Connection]:
        """Open a write transaction that a power cut may lose (leases): committed without waiting for the disk."""
        with translated_errors(self.name), self._held_gate(), self._volatile.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            yield connection

    def close(self) -> None:
        """Close every connection; closing again does nothing."""
        if self._checkpoints is not None:
            self._checkpoints.wait()
        for engine in (self._reader, self._writer, self._volatile):
            engine.dispose()
        if self._gate is not None:
            self._gate.close()

    @contextmanager
    def _held_gate(self) -> Iterator[None]:
        if self._gate is None:
            yield
            return
        with self._gate:
            yield


class _Gate:
    """A queue of writers over threads and processes; the kernel wakes the next one at once."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._file < 0:
            self._lock.release()
            raise WorkspaceError("the store is closed")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._lock.release()

    def close(self) -> None:
        with self._lock:
            # A second close must not hit a descriptor that was given to somebody else meanwhile.
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class _Checkpoints:
    """Copies the write-ahead log into the database in a thread of its own, at most once a second.

    SQLite would do it inside whichever commit fills the log: that answer, and all that wait for it, would pay for the
    disk writes of hundreds before.
    """

    def __init__(self, path: Path, gate: "_Gate") -> None:
        self._path, self._gate = path, gate
        self._running = threading.Lock()
        self._last = time.monotonic()

    def after_commit(self) -> None:
        """Begin a checkpoint when the last one is a while ago and none is running."""
        if time.monotonic() - self._last < CHECKPOINT_SECONDS or not self._running.acquire(blocking=False):
            return
        self._last = time.monotonic()
        threading.Thread(target=self._checkpoint, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until no checkpoint is running."""
        with self._running:
            self._last = time.monotonic()

    def _checkpoint(self) -> None:
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > LONG_LOG_PAGES:
                    # Only a log that was copied to its very end starts anew: copy the rest while no writer adds to it.
                    with self._gate:
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            # Nothing is lost: the log keeps what was committed, and a full disk shows at the next commit.
            log.warning("the write-ahead log of %s was not checkpointed: %s", self._path, error)
        finally:
            self._running.release()


def parse_url(url: str) -> URL:
    """Return the parsed URL of a SQLite file or a PostgreSQL database.

    Raises:
        InputError: another database, a SQLite database in memory, or no URL at all.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(
            f"database {url!r} is not a database URL: use sqlite:///PATH or postgresql+psycopg://…"
        ) from error
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise InputError(f"database {backend!r} is not supported: use sqlite:///PATH or postgresql+psycopg://…")
    if not parsed.database or parsed.database == ":memory:":
        raise InputError("a SQLite database in memory would lose every answer: name a file, sqlite:///PATH")
    return parsed


def _sqlite_engine(url: URL, begin: str, synchronous: str, *, query_only: bool, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=32,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = (
            None  # sqlite3 would begin a deferred transaction of its own, and only before writes
        )
        for pragma in (
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_SECONDS * 1000}",
            "temp_store=MEMORY",
            "cache_size=-32768",
            f"wal_autocheckpoint={LARGEST_LOG_PAGES}",
            f"query_only={'ON' if query_only else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@contextmanager
def translated_errors(name: str) -> Iterator[None]:
    """Turn what a full disk, a busy file or a lost server raises into a `WorkspaceError` that names the remedy."""
    try:
        yield
    except OperationalError as error:
        cause = str(error.orig)
        lowered = cause.lower()
        if "is full" in lowered or "no space left" in lowered:
            raise WorkspaceError(
                f"the disk of {name} is full; nothing of this was stored: free some space and try again"
            ) from error
        if "locked" in lowered:
            raise WorkspaceBusyError(
                f"{name} was locked by another program for {BUSY_SECONDS} seconds; nothing of this was stored: "
                "close the program that writes to it and try again"
            ) from error
        raise WorkspaceError(f"{name} cannot be used: {cause.strip()}") from error
    except DatabaseError as error:
        if "malformed" in str(error.orig) or "not a database" in str(error.orig):
            raise WorkspaceError(f"{name} is damaged ({error.orig}): restore the last backup") from error
        raise


def refuse_network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """Raise `WorkspaceError` when `path` lies on a network file system, where SQLite's locks cannot be trusted.

    Where the system has no list of mounts the check is left out.
    """
    if not mounts.is_file():
        return
    target = path.resolve()
    best, kind = -1, ""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = Path(fields[1].replace("\\040", " "))
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), fields[2]
    if kind.startswith(_NETWORK_TYPES):
        raise WorkspaceError(
            f"{path} is on a network file system ({kind}), where SQLite loses data: put the workspace on a local disk, "
            "or set `database:` in workspace.yaml to a PostgreSQL URL"
        )
