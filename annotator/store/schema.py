"""The tables, as SQLAlchemy models. Migrations in `migrations/` build the same schema, triggers included."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time that is always UTC and always aware, on SQLite too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Store as UTC."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Read as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all models."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime(), dict[str, Any]: JSON, list[Any]: JSON}


BigKey = BigInteger().with_variant(Integer, "sqlite")


class SourceRow(Base):
    """Where images came from: a registered folder or zip. Image paths are relative to `root`."""

    __tablename__ = "sources"
    id: Mapped[int] = mapped_column(primary_key=True)
    root: Mapped[str] = mapped_column(Text, unique=True)
    kind: Mapped[str] = mapped_column(String(16))  # folder | zip
    format: Mapped[str] = mapped_column(String(32))
    registered_at: Mapped[datetime]


class ImageRow(Base):
    """One sample. `row` is assigned once and never reused; `group_row` is the row of the group's representative."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("source_id", "path", "crop", "content_hash"),
        Index("ix_images_group", "group_row"),
        Index("ix_images_content", "content_hash"),
        Index("ix_images_state", "state", "split"),
    )
    row: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    image_id: Mapped[str] = mapped_column(String(40), unique=True)
    source_id: Mapped[int] = mapped_column(ForeignKey("sources.id"))
    path: Mapped[str] = mapped_column(Text)
    crop: Mapped[str] = mapped_column(String(64), default="")
    content_hash: Mapped[str | None] = mapped_column(String(64))
    group_row: Mapped[int] = mapped_column(BigKey)
    split: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(16))
    quarantine_reason: Mapped[str | None] = mapped_column(Text)
    subject_id: Mapped[str | None] = mapped_column(Text)
    width: Mapped[int] = mapped_column(default=0)
    height: Mapped[int] = mapped_column(default=0)
    media_type: Mapped[str] = mapped_column(String(32), default="")
    file_bytes: Mapped[int] = mapped_column(BigKey, default=0)
    file_stamp: Mapped[int] = mapped_column(BigKey, default=0)
    truth: Mapped[str | None] = mapped_column(String(40))  # class slug or "unusable"; for reporting, never trained on
    truth_votes: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    reserved: Mapped[bool] = mapped_column(default=False)  # random-arm face kept for validation: never trained on


class FaceRow(Base):
    """Where the face of a sample is in its upright image, in pixels, and what makes it hard to read."""

    __tablename__ = "faces"
    row: Mapped[int] = mapped_column(ForeignKey("images.row"), primary_key=True, autoincrement=False)
    x: Mapped[float] = mapped_column(Float)
    y: Mapped[float] = mapped_column(Float)
    width: Mapped[float] = mapped_column(Float)
    height: Mapped[float] = mapped_column(Float)
    score: Mapped[float | None] = mapped_column(Float)
    landmarks: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # five points [x, y]
    found_by: Mapped[str] = mapped_column(String(32))
    small: Mapped[bool]
    blurred: Mapped[bool]
    turned: Mapped[bool | None]  # null without landmarks


class UserRow(Base):
    """An account."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(120), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str | None] = mapped_column(Text)
    disabled: Mapped[bool] = mapped_column(default=False)
    simulated: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]


class TokenRow(Base):
    """A session or API token, stored as its SHA-256."""

    __tablename__ = "tokens"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AnnotationRow(Base):
    """A person's answer (or, with `user_id` null, an imported one). Append-only by trigger."""

    __tablename__ = "annotations"
    __table_args__ = (Index("ix_annotations_row", "row"), Index("ix_annotations_user", "user_id", "id"))
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    seq: Mapped[int] = mapped_column(BigKey, unique=True)  # follows commit order
    client_id: Mapped[str] = mapped_column(String(80), unique=True)
    row: Mapped[int] = mapped_column(ForeignKey("images.row"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    kind: Mapped[str] = mapped_column(String(16))
    classes: Mapped[list[Any]] = mapped_column(JSON)
    taxonomy_version: Mapped[int] = mapped_column(default=1)
    confidence: Mapped[float | None] = mapped_column(Float)
    note: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[int | None]
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("annotations.id"))
    source: Mapped[str] = mapped_column(String(32))  # ui | api | import | simulate | labelstudio
    lease_id: Mapped[str | None] = mapped_column(String(40))
    late: Mapped[bool] = mapped_column(default=False)  # its lease had expired
    duplicate: Mapped[bool] = mapped_column(default=False)  # someone else had answered first, no overlap asked for
    mismatch: Mapped[bool] = mapped_column(default=False)  # the lease was for another image
    blind: Mapped[bool] = mapped_column(default=False)  # nothing was suggested
    adjudicates: Mapped[bool] = mapped_column(default=False)
    model_version: Mapped[str | None] = mapped_column(String(80))
    arm: Mapped[str | None] = mapped_column(String(16))
    suggestions: Mapped[list[Any]] = mapped_column(JSON, default=list)
    votes: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime]
    # Kept beside the same person's other answer: both were given at once, here and in a linked tool.
    beside: Mapped[bool] = mapped_column(default=False, server_default=false())


class LabelRowModel(Base):
    """The consensus per group, derived from `annotations` in the same transaction; `annotator rebuild` renews it."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_state", "state"),)
    row: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)  # the group's representative
    state: Mapped[str] = mapped_column(String(16))
    classes: Mapped[list[Any]] = mapped_column(JSON)
    soft: Mapped[dict[str, Any]] = mapped_column(JSON)
    locked: Mapped[bool] = mapped_column(default=False)
    num_annotators: Mapped[int] = mapped_column(default=0)
    imported: Mapped[bool] = mapped_column(default=False)
    seq: Mapped[int] = mapped_column(BigKey, default=0)


class LeaseRow(Base):
    """Who may answer which face until when, and what was shown. Written without fsync: losing one costs nothing."""

    __tablename__ = "leases"
    __table_args__ = (Index("ix_leases_row", "row"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    row: Mapped[int] = mapped_column(BigKey)
    user_id: Mapped[int]
    expires_at: Mapped[datetime]
    closed: Mapped[bool] = mapped_column(default=False)
    arm: Mapped[str] = mapped_column(String(16))
    model_version: Mapped[str | None] = mapped_column(String(80))
    reason: Mapped[str] = mapped_column(Text)
    blind: Mapped[bool] = mapped_column(default=False)
    candidates: Mapped[list[Any]] = mapped_column(JSON, default=list)


class SnapshotRow(Base):
    """A published state of the learner; its files are in `snapshots/<id>/`."""

    __tablename__ = "snapshots"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    method: Mapped[str] = mapped_column(String(40))
    label_seq: Mapped[int] = mapped_column(BigKey)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    published_at: Mapped[datetime]
    serving: Mapped[bool] = mapped_column(default=False)


class GenerationRow(Base):
    """A complete reading of the pool; its files are in `scores/<id>/`."""

    __tablename__ = "generations"
    id: Mapped[int] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(String(80))
    mode: Mapped[str] = mapped_column(String(32))
    label_seq: Mapped[int] = mapped_column(BigKey)
    encoder: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime]


class JobRow(Base):
    """A request for training."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    filed_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime | None]
    worker: Mapped[str | None] = mapped_column(String(120))
    message: Mapped[str | None] = mapped_column(Text)


class ErasureRow(Base):
    """The tombstone of an erased image: the one audited path past the append-only triggers."""

    __tablename__ = "erasures"
    row: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    image_id: Mapped[str] = mapped_column(String(40))
    reason: Mapped[str] = mapped_column(Text)
    erased_at: Mapped[datetime]


class MetaRow(Base):
    """Small facts about the store: the next row, when labels were last rebuilt."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
