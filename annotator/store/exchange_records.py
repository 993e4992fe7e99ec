"""Frozen records of the link to a project in another labeling tool."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from annotator.records import Answer, User

TaskState = Literal["open", "answered", "withdrawn", "gone", "erase"]
TASK_STATES: tuple[TaskState, ...] = ("open", "answered", "withdrawn", "gone", "erase")
"""Of a task: to be answered there, answered there, taken back by us, deleted there, to be deleted with everything."""
AnswerState = Literal["linked", "quarantined", "deleted", "conflict"]
ANSWER_STATES: tuple[AnswerState, ...] = ("linked", "quarantined", "deleted", "conflict")
OutboxState = Literal["waiting", "dead"]
OUTBOX_STATES: tuple[OutboxState, ...] = ("waiting", "dead")


@dataclass(frozen=True, slots=True)
class Link:
    """A linked project.

    cursor: time up to which the project's changes are in. sent_seq: our annotations up to here are planned outwards.
    model_version: what the project's version was last moved to. secret_digest: SHA-256 of the webhook's secret.
    """

    id: int
    url: str
    project_id: int
    title: str
    settings: dict[str, Any]
    cursor: str | None
    sent_seq: int
    model_version: str | None
    webhook_id: int | None
    backend_id: int | None
    secret_digest: str | None
    active: bool
    linked_at: datetime


@dataclass(frozen=True, slots=True)
class Shown:
    """What the annotator of a task sees: what a lease would say about it here."""

    arm: str | None = None
    model_version: str | None = None
    blind: bool = False
    candidates: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class LinkedTask:
    """A face that is, or was, a task of the linked project.

    model_version: of the last prediction that the project confirmed. since_seq: our answers above it belong to this
    asking. picture: what is to be removed with the task, "upload:ID" or "local:NAME".
    """

    task_id: int
    row: int
    state: TaskState = "open"
    shown: Shown | None = None
    model_version: str | None = None
    since_seq: int = 0
    picture: str | None = None


@dataclass(frozen=True, slots=True)
class LinkedAnswer:
    """An annotation of the linked project. `annotation_id` is the one of ours that says the same now.

    user: who gave it there (an email address). content: what it says, as canonical text, for comparing.
    """

    ls_id: int
    task_id: int
    user: str
    ls_updated_at: str
    content: str
    annotation_id: int | None = None
    state: AnswerState = "linked"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """Something to be done in the linked project; `error` is what the last attempt said."""

    id: int
    kind: str
    key: str
    payload: dict[str, Any]
    attempts: int
    not_before: datetime
    state: OutboxState
    error: str | None


@dataclass(frozen=True, slots=True)
class ForeignAnswer:
    """An answer given in the linked project, to be stored as `user`'s.

    `answer.client_id` begins with `foreign_prefix(link_id)`. at: when it was given. beside: it does not replace the
    same person's other answer. `linked.annotation_id` is filled in when it is stored.
    """

    user: User
    answer: Answer
    shown: Shown | None
    at: datetime
    beside: bool
    linked: LinkedAnswer


@dataclass(frozen=True, slots=True)
class ForeignRetraction:
    """An answer that was deleted in the linked project: `annotation_id` and all that it corrected is undone."""

    user: User
    annotation_id: int
    client_id: str
    at: datetime
    linked: LinkedAnswer


Incoming = ForeignAnswer | ForeignRetraction


def foreign_prefix(link_id: int) -> str:
    """Return what the client_ids of a link's answers begin with; no other answer may use it."""
    return f"ls:{link_id}:"
