"""Frozen records that cross a boundary between the store, the queue, the web and the loop."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntFlag
from typing import Literal

AnswerKind = Literal["label", "candidates", "not", "unusable", "skip", "flag", "undo"]
ANSWER_KINDS: tuple[AnswerKind, ...] = ("label", "candidates", "not", "unusable", "skip", "flag", "undo")
LabelState = Literal["unlabeled", "labeled", "partial", "disputed", "unusable"]
LABEL_STATES: tuple[LabelState, ...] = ("unlabeled", "labeled", "partial", "disputed", "unusable")
Split = Literal["pool", "val", "test"]
ImageState = Literal["active", "quarantined", "leak", "erased"]
Role = Literal["annotator", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("annotator", "reviewer", "admin")
Arm = Literal["coverage", "uncertain", "review", "quota", "random"]
ARMS: tuple[Arm, ...] = ("coverage", "uncertain", "review", "quota", "random")
"""Why an item is in the queue. The position in this tuple is the code in `scores/<generation>/`."""


class Sight(IntFlag):
    """What the training methods saw in a face; the bits are kept in `scores/<generation>/`.

    DOUBT: its label lost against another class over many visits (LION). TWO_READINGS: two independent readings of it
    disagree (ReMoP). OUTLIER: it lies far from the other faces of its label (ReMoP). OPEN_SET: several classes stayed
    possible (LEAF).
    """

    DOUBT = 1
    TWO_READINGS = 2
    OUTLIER = 4
    OPEN_SET = 8


@dataclass(frozen=True, slots=True)
class Face:
    """A face in an upright image.

    box: left, top, width, height in pixels of the image. score: the detector's own, None for a listed box.
    landmarks: (x, y) of the eye on the left of the picture, the eye on the right, nose tip, mouth corner on the left,
    mouth corner on the right; None when the finder knows none.
    """

    box: tuple[float, float, float, float]
    score: float | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class KnownFace:
    """The face of a sample, who found it (a detector's name, or "given"), and what makes it hard to read.

    small: few pixels in the original. blurred: few edges. turned: away from the camera; None without landmarks.
    """

    face: Face
    found_by: str
    small: bool
    blurred: bool
    turned: bool | None

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of what is wrong with it."""
        return tuple(name for name in FACE_FLAGS if getattr(self, name))


FACE_FLAGS = ("small", "blurred", "turned")
NUM_LANDMARKS = 5


@dataclass(frozen=True, slots=True)
class NewImage:
    """One sample as the importer found it, before it has a row.

    `votes` maps class slugs (and "unusable") to counts; `given` is one class slug or "unusable".
    """

    path: str
    split: Split
    state: ImageState
    content_hash: str | None
    file_bytes: int
    file_stamp: int
    width: int = 0
    height: int = 0
    media_type: str = ""
    crop: str = ""
    quarantine_reason: str | None = None
    subject_id: str | None = None
    given: str | None = None
    votes: dict[str, int] | None = None
    face: KnownFace | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One sample in the store. `group` is the row of its representative (itself when it has no copies)."""

    row: int
    image_id: str
    source_id: int
    path: str
    crop: str
    split: Split
    state: ImageState
    group: int
    content_hash: str | None
    width: int
    height: int
    media_type: str
    subject_id: str | None
    quarantine_reason: str | None


@dataclass(frozen=True, slots=True)
class User:
    """An account. `simulated` users answer by `annotator simulate`."""

    id: int
    name: str
    role: Role
    disabled: bool = False
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said, before the store has accepted it. `classes` are slugs."""

    client_id: str
    image_id: str
    kind: AnswerKind
    classes: tuple[str, ...] = ()
    lease_id: str | None = None
    confidence: float | None = None
    note: str | None = None
    duration_ms: int | None = None
    supersedes: int | None = None
    source: str = "ui"


@dataclass(frozen=True, slots=True)
class Annotation:
    """A person's row as it is stored: never changed, never removed.

    beside: kept beside the same person's other answer, because both were given at once, here and in a linked tool.
    """

    id: int
    seq: int
    client_id: str
    row: int
    image_id: str
    user_id: int | None
    user_name: str
    kind: AnswerKind
    classes: tuple[str, ...]
    confidence: float | None
    note: str | None
    duration_ms: int | None
    supersedes: int | None
    source: str
    lease_id: str | None
    late: bool
    duplicate: bool
    mismatch: bool
    blind: bool
    adjudicates: bool
    model_version: str | None
    arm: str | None
    suggestions: tuple[dict[str, object], ...]
    votes: dict[str, int] | None
    created_at: datetime
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of submitting an answer: `created` is False when its `client_id` was there already."""

    annotation: Annotation
    created: bool


@dataclass(frozen=True, slots=True)
class Label:
    """The consensus on one group, derived from annotations alone (DESIGN 5.1).

    `classes`: one slug when labeled, the remaining candidates when partial, every claimed class when disputed.
    `soft`: class slug to share, summing to one, only when disputed. `seq` is that of the last annotation that counted.
    """

    state: LabelState
    classes: tuple[str, ...] = ()
    soft: dict[str, float] = field(default_factory=dict)
    locked: bool = False
    num_annotators: int = 0
    imported: bool = False
    seq: int = 0


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of the label view: the label of group representative `row`, and the rows it propagates to."""

    row: int
    label: Label
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one user to answer one face until `expires_at`, and what was shown with it."""

    id: str
    row: int
    user_id: int
    expires_at: datetime
    arm: Arm
    model_version: str | None
    reason: str
    blind: bool
    candidates: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One published state of the learner."""

    id: str
    method: str
    label_seq: int
    metrics: dict[str, float]
    published_at: datetime
    serving: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """One complete reading of the pool by the fast learner; `model_version` is `<snapshot or encoder>.<id>`."""

    id: int
    model_version: str
    mode: str
    label_seq: int
    encoder: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A request for training, filed by the UI or a command and leased by one learner."""

    id: int
    kind: str
    payload: dict[str, object]
    state: Literal["filed", "running", "done", "failed"]
    filed_at: datetime
    message: str | None
