"""What goes in and out of the REST routes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from annotator.queue import Item, QueueStatus
from annotator.records import Annotation

Kind = Literal["label", "candidates", "not", "unusable", "skip", "flag"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoginBody(_Body):
    """Name and password."""

    username: str = Field(max_length=200)
    password: str = Field(max_length=2_000)


class TokenBody(_Body):
    """How long a new API token lives."""

    days: float = Field(90, gt=0, le=3_650)


class AnswerBody(_Body):
    """One answer about the face on screen."""

    client_id: str = Field(min_length=1, max_length=80)
    image_id: str = Field(min_length=1, max_length=80)
    kind: Kind
    classes: list[str] = Field(default_factory=list, max_length=64)
    lease_id: str | None = Field(None, max_length=80)
    confidence: float | None = Field(None, ge=0, le=1)
    note: str | None = Field(None, max_length=4_000)
    duration_ms: int | None = Field(None, ge=0)
    supersedes: int | None = Field(None, ge=1)
    source: Literal["ui", "api", "simulate"] | None = None


class UndoBody(_Body):
    """Which answer is taken back."""

    client_id: str = Field(min_length=1, max_length=80)
    annotation_id: int = Field(ge=1)


class RetrainBody(_Body):
    """What to train; everything empty means as the workspace says."""

    method: str | None = Field(None, max_length=64)


class ErrorReply(BaseModel):
    """Every refusal: one sentence that names the value and the remedy."""

    detail: str


class LoginReply(BaseModel):
    """A session: the cookie is set too; `token` is for `Authorization: Bearer`."""

    token: str
    user: str
    role: str
    expires_at: datetime


class MeReply(BaseModel):
    """Who is signed in. `local`: single-user mode, nobody needs to sign in."""

    name: str
    role: str
    local: bool


class Candidate(BaseModel):
    """A class of the candidate set with its probability."""

    model_config = ConfigDict(populate_by_name=True)
    slug: str = Field(alias="class")
    prob: float


class ItemReply(BaseModel):
    """One face to answer."""

    image_id: str
    image_url: str
    lease_id: str
    lease_expires_at: datetime
    classes: list[str]
    candidates: list[Candidate]
    question: str
    reason: str
    arm: str
    given: str | None
    blind: bool
    model_version: str | None
    width: int
    height: int


class QueueReply(BaseModel):
    """How the faces are ordered; `behind`: annotations that the order does not know yet."""

    mode: str
    model: str | None
    behind: int
    remaining: int


class NextReply(BaseModel):
    """The next faces; `message` says why there are none."""

    items: list[ItemReply]
    queue: QueueReply
    message: str | None


class LeaseReply(BaseModel):
    """A renewed lease."""

    lease_id: str
    lease_expires_at: datetime


class AnnotationReply(BaseModel):
    """A stored answer."""

    id: int
    annotation_id: int
    client_id: str
    image_id: str
    kind: str
    classes: list[str]
    confidence: float | None
    note: str | None
    late: bool
    duplicate: bool
    mismatch: bool
    supersedes: int | None
    model_version: str | None
    arm: str | None
    created_at: datetime


class UndoReply(AnnotationReply):
    """The undo as it is stored; `item` is the face again, leased to the same person, unless someone else has it."""

    item: ItemReply | None
    lease_id: str | None


class HistoryItem(AnnotationReply):
    """One of one's own answers."""

    image_url: str


class HistoryReply(BaseModel):
    """One's own latest answers that stand, newest first."""

    items: list[HistoryItem]


class ImageReply(BaseModel):
    """What is known of a face, without anybody's answers but one's own."""

    image_id: str
    image_url: str
    width: int
    height: int
    split: str
    state: str
    answers: list[AnnotationReply]


class Neighbour(BaseModel):
    """A labeled face that looks alike."""

    image_id: str
    image_url: str
    classes: list[str]
    similarity: float


class NeighboursReply(BaseModel):
    """The nearest labeled faces, and of each class the face that stands for it."""

    neighbours: list[Neighbour]
    prototypes: list[Neighbour]


class JobReply(BaseModel):
    """A filed request for training."""

    id: int
    kind: str
    state: str
    filed_at: datetime


class BackendHealth(BaseModel):
    """The ML backend is up."""

    status: str
    model_class: str


class BackendSetup(BaseModel):
    """The model version that predictions bear."""

    model_version: str


class BackendVersions(BaseModel):
    """The model versions that predictions bear."""

    versions: list[str]


class BackendPredictions(BaseModel):
    """For each task asked about its prediction, or an empty list, in the same order."""

    results: list[dict[str, Any] | list[Any]]


class HookReply(BaseModel):
    """What became of a webhook: noted, filed or ignored."""

    status: Literal["noted", "filed", "ignored"]


def image_url(image_id: str) -> str:
    """Return where the pixels of an image are."""
    return f"/api/v1/images/{image_id}/file"


def thumbnail_url(image_id: str) -> str:
    """Return where the pixels of an image are for a place of a few dozen pixels."""
    return f"{image_url(image_id)}?small=true"


def item_json(item: Item, slugs: tuple[str, ...]) -> dict[str, Any]:
    """Return an item as `ItemReply` describes it."""
    lease = item.lease
    return {
        "image_id": item.image.image_id,
        "image_url": image_url(item.image.image_id),
        "lease_id": lease.id,
        "lease_expires_at": lease.expires_at.isoformat(),
        "classes": slugs,
        "candidates": lease.candidates,
        "question": item.question,
        "reason": lease.reason,
        "arm": lease.arm,
        "given": item.given,
        "blind": lease.blind,
        "model_version": lease.model_version,
        "width": item.image.width,
        "height": item.image.height,
    }


def annotation_json(annotation: Annotation) -> dict[str, Any]:
    """Return an annotation as `AnnotationReply` describes it."""
    return {
        "id": annotation.id,
        "annotation_id": annotation.id,
        "client_id": annotation.client_id,
        "image_id": annotation.image_id,
        "kind": annotation.kind,
        "classes": annotation.classes,
        "confidence": annotation.confidence,
        "note": annotation.note,
        "late": annotation.late,
        "duplicate": annotation.duplicate,
        "mismatch": annotation.mismatch,
        "supersedes": annotation.supersedes,
        "model_version": annotation.model_version,
        "arm": annotation.arm,
        "created_at": annotation.created_at.isoformat(),
    }


def queue_json(status: QueueStatus) -> dict[str, Any]:
    """Return the queue's state as `QueueReply` describes it."""
    return {"mode": status.mode, "model": status.model, "behind": status.behind, "remaining": status.remaining}
