"""The tables of the link to a project in another labeling tool: what is out there, and what came back."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from annotator.store.schema import Base, BigKey

NULLABLE_JSON = JSON(none_as_null=True)


class ExchangeLinkRow(Base):
    """A project that this workspace is linked to. At most one is active."""

    __tablename__ = "exchange_links"
    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    project_id: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    cursor: Mapped[str | None] = mapped_column(String(40))
    sent_seq: Mapped[int] = mapped_column(BigKey, default=0)
    model_version: Mapped[str | None] = mapped_column(String(80))
    webhook_id: Mapped[int | None]
    backend_id: Mapped[int | None]
    secret_digest: Mapped[str | None] = mapped_column(String(64))
    active: Mapped[bool] = mapped_column(default=True)
    linked_at: Mapped[datetime]


class ExchangeTaskRow(Base):
    """A face that is, or was, a task of the linked project."""

    __tablename__ = "exchange_tasks"
    __table_args__ = (
        Index("ix_exchange_tasks_state", "link_id", "state", "task_id"),
        Index("ix_exchange_tasks_row", "row"),
    )
    link_id: Mapped[int] = mapped_column(ForeignKey("exchange_links.id"), primary_key=True)
    task_id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    row: Mapped[int] = mapped_column(ForeignKey("images.row"))
    state: Mapped[str] = mapped_column(String(16))  # open | answered | withdrawn | gone | erase
    shown: Mapped[dict[str, Any] | None] = mapped_column(NULLABLE_JSON)
    model_version: Mapped[str | None] = mapped_column(String(80))  # of the last prediction that was confirmed
    since_seq: Mapped[int] = mapped_column(BigKey, default=0)
    picture: Mapped[str | None] = mapped_column(Text)  # "upload:ID" or "local:NAME", what goes with the task


class ExchangeAnswerRow(Base):
    """An annotation of the linked project, and the one of ours that says the same."""

    __tablename__ = "exchange_answers"
    __table_args__ = (
        Index("ix_exchange_answers_task", "link_id", "task_id"),
        Index("ix_exchange_answers_annotation", "annotation_id"),
        Index("ix_exchange_answers_state", "link_id", "state"),
    )
    link_id: Mapped[int] = mapped_column(ForeignKey("exchange_links.id"), primary_key=True)
    ls_id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(BigKey)
    user: Mapped[str] = mapped_column(Text)
    ls_updated_at: Mapped[str] = mapped_column(String(40))
    content: Mapped[str] = mapped_column(Text)
    annotation_id: Mapped[int | None] = mapped_column(BigKey)
    state: Mapped[str] = mapped_column(String(16))  # linked | quarantined | deleted | conflict
    reason: Mapped[str | None] = mapped_column(Text)


class ExchangeOutboxRow(Base):
    """Something to be done in the linked project. Done items are deleted."""

    __tablename__ = "exchange_outbox"
    __table_args__ = (
        Index("ix_exchange_outbox_key", "link_id", "key", unique=True),
        Index("ix_exchange_outbox_due", "link_id", "state", "kind", "not_before"),
    )
    id: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    link_id: Mapped[int] = mapped_column(ForeignKey("exchange_links.id"))
    kind: Mapped[str] = mapped_column(String(32))
    key: Mapped[str] = mapped_column(String(120))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    row: Mapped[int | None] = mapped_column(BigKey)  # the payload's own, so that an erasure finds it
    task_id: Mapped[int | None] = mapped_column(BigKey)
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(16), default="waiting")  # waiting | dead
    error: Mapped[str | None] = mapped_column(Text)
