"""What the learner publishes (snapshots, generations) and the jobs that ask it to train."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from annotator.errors import InputError, NotFoundError
from annotator.records import Generation, Job, Snapshot
from annotator.store.database import Database
from annotator.store.tables import generations, jobs, meta, snapshots

RETRAIN = "retrain"
"""The kind of a job that asks for a training round."""
STALE = timedelta(seconds=60)
"""A running job whose worker has not been heard of for this long may be leased by another."""
_CHOICE = "serve"


class Learning:
    """Snapshots, generations and jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish_snapshot(self, snapshot: Snapshot) -> None:
        """Record a snapshot whose folder is complete. One with `serving` takes over from the one that served.

        Raises:
            InputError: a snapshot of that id is recorded already.
        """
        values = {
            "id": snapshot.id,
            "method": snapshot.method,
            "label_seq": snapshot.label_seq,
            "metrics": dict(snapshot.metrics),
            "published_at": snapshot.published_at,
            "serving": False,
        }
        with self._database.write() as connection:
            if connection.execute(select(snapshots.c.id).where(snapshots.c.id == snapshot.id)).scalar() is not None:
                raise InputError(f"snapshot {snapshot.id!r} is published already")
            connection.execute(insert(snapshots).values(values))
            if snapshot.serving:
                _serve(connection, snapshot.id)

    def snapshots(self) -> list[Snapshot]:
        """Return every snapshot, oldest first."""
        query = select(snapshots).order_by(snapshots.c.published_at, snapshots.c.id)
        with self._database.read() as connection:
            return [_snapshot(row) for row in connection.execute(query)]

    def serving(self) -> Snapshot | None:
        """Return the snapshot whose features are in use, None before the first."""
        with self._database.read() as connection:
            row = connection.execute(select(snapshots).where(snapshots.c.serving)).first()
        return None if row is None else _snapshot(row)

    def serve(self, snapshot_id: str | None) -> None:
        """Make a snapshot the only serving one, None for no snapshot at all.

        Raises:
            NotFoundError: there is no snapshot of that id.
        """
        with self._database.write() as connection:
            _serve(connection, snapshot_id)

    def choose(self, name: str | None) -> None:
        """Keep which method or snapshot a person wants to serve; None leaves it to people's answers again."""
        with self._database.write() as connection:
            connection.execute(delete(meta).where(meta.c.key == _CHOICE))
            if name is not None:
                connection.execute(insert(meta).values(key=_CHOICE, value=name))

    def chosen(self) -> str | None:
        """Return what `choose` has kept."""
        with self._database.read() as connection:
            return connection.execute(select(meta.c.value).where(meta.c.key == _CHOICE)).scalar()

    def next_generation_id(self) -> int:
        """Return the id after the highest published one. One learner at a time publishes."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.coalesce(func.max(generations.c.id), 0))).scalar_one()) + 1

    def publish_generation(self, generation: Generation) -> None:
        """Record a generation whose folder is complete; readers switch to it.

        Raises:
            InputError: its id is not above every published one.
        """
        newest = select(func.coalesce(func.max(generations.c.id), 0))
        with self._database.write() as connection:
            last = connection.execute(newest).scalar_one()
            if generation.id <= last:
                raise InputError(f"generation {generation.id} is not newer than {last}")
            connection.execute(
                insert(generations).values(
                    id=generation.id,
                    model_version=generation.model_version,
                    mode=generation.mode,
                    label_seq=generation.label_seq,
                    encoder=generation.encoder,
                    created_at=generation.created_at,
                )
            )

    def current_generation(self) -> Generation | None:
        """Return the newest generation, None before the first."""
        query = select(generations).order_by(generations.c.id.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Generation(*row)

    def file_job(self, kind: str, payload: dict[str, object]) -> Job:
        """File a request; an equal one that nobody has begun is returned instead of a second."""
        with self._database.write() as connection:
            waiting = connection.execute(select(jobs).where(jobs.c.state == "filed", jobs.c.kind == kind)).all()
            for row in waiting:
                if row.payload == payload:
                    return _job(row)
            values = {"kind": kind, "payload": payload, "state": "filed", "filed_at": datetime.now(UTC)}
            made = connection.execute(insert(jobs).values(values).returning(jobs.c.id)).scalar_one()
            return _get_job(connection, made)

    def lease_job(self, worker: str, *, now: datetime | None = None) -> Job | None:
        """Take the oldest waiting job, or one whose worker fell silent; None when there is none."""
        at = now or datetime.now(UTC)
        open_jobs = (
            select(jobs.c.id)
            .where(
                (jobs.c.state == "filed")
                | ((jobs.c.state == "running") & (jobs.c.heartbeat_at < at - STALE))
                | ((jobs.c.state == "running") & (jobs.c.worker == worker))
            )
            .order_by(jobs.c.id)
            .limit(1)
        )
        with self._database.write() as connection:
            job_id = connection.execute(open_jobs).scalar()
            if job_id is None:
                return None
            taken = {"state": "running", "worker": worker, "heartbeat_at": at}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(taken))
            return _get_job(connection, job_id)

    def heartbeat(self, job_id: int, worker: str, message: str | None = None) -> bool:
        """Say that a job is still being worked on; False when it is not this worker's any more."""
        query = update(jobs).where(jobs.c.id == job_id, jobs.c.worker == worker, jobs.c.state == "running")
        values: dict[str, Any] = {"heartbeat_at": datetime.now(UTC)}
        if message is not None:
            values["message"] = message
        with self._database.write() as connection:
            return bool(connection.execute(query.values(values)).rowcount)

    def finish_job(self, job_id: int, *, failed: bool = False, message: str | None = None) -> Job:
        """Close a job as done or failed; `NotFoundError` when there is none of that id."""
        state = "failed" if failed else "done"
        with self._database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=state, message=message))
            return _get_job(connection, job_id)

    def jobs(self, limit: int = 100) -> list[Job]:
        """Return the newest jobs, newest first."""
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(select(jobs).order_by(jobs.c.id.desc()).limit(limit))]


def _serve(connection: Connection, snapshot_id: str | None) -> None:
    if snapshot_id is not None:
        one = snapshots.c.id == snapshot_id
        if not connection.execute(update(snapshots).where(one).values(serving=True)).rowcount:
            raise NotFoundError(f"no snapshot {snapshot_id!r}")
    others = snapshots.c.serving & (snapshots.c.id != (snapshot_id or ""))
    connection.execute(update(snapshots).where(others).values(serving=False))


def _get_job(connection: Connection, job_id: int) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"no job {job_id}")
    return _job(row)


def _snapshot(row: Any) -> Snapshot:
    return Snapshot(row.id, row.method, row.label_seq, dict(row.metrics), row.published_at, row.serving)


def _job(row: Any) -> Job:
    return Job(row.id, row.kind, dict(row.payload), row.state, row.filed_at, row.message)
