"""What the annotations of a task mean here: new, changed, deleted, the same as ours, contradicting, or not to be read.

Nothing is written in here. An annotation is compared with what it last said (`LinkedAnswer.content`) and with the
answer of ours that said the same (`annotation_id`). Where one side has moved, the other follows. Where both have:

    there       here        outcome
    changed     corrected   equal: linked; else the change is stored `beside` the correction, which goes out as a second
                            annotation: a conflict, shown as a disputed label
    changed     taken back  the change stands on both sides; told as a conflict
    deleted     corrected   the correction stands and goes out as a new annotation
    deleted     taken back  equal
    new         answered    as changed and corrected: neither side knew of the other's answer
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from annotator.consensus import COUNTING
from annotator.errors import InputError, NotFoundError
from annotator.labelstudio.answers.changes import Task, moment
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.config.results import Said
from annotator.records import Annotation, Answer, ImageRecord, User
from annotator.store.exchange_records import (
    ForeignAnswer,
    ForeignRetraction,
    Incoming,
    LinkedAnswer,
    LinkedTask,
    foreign_prefix,
)

What = Literal["new", "edited", "deleted", "same", "conflict", "quarantined"]
BOTH_CHANGED = "changed here and there at once: both answers are kept, the person's next one settles it"
BOTH_ANSWERED = "answered here and there at once: both answers are kept, the person's next one settles it"
UNDONE_HERE = "taken back here while it was changed there: the change stands"
CORRECTED_HERE = "deleted there while it was corrected here: the correction stands and goes out again"
NO_FACE = "shows no face of this workspace"
_LONGEST_MS = 86_400_000 - 1


@dataclass(frozen=True, slots=True)
class Face:
    """What is known here of the face of a task. `standing` are people's answers on it and its copies.

    sent: ids of annotations of ours that an annotation there says.
    """

    task: LinkedTask
    image: ImageRecord
    standing: Sequence[Annotation]
    sent: Collection[int]

    @property
    def erased(self) -> bool:
        """Whether the person on the picture is forgotten here: nothing more is taken in about it."""
        return self.task.state == "erase" or self.image.state == "erased"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: `incoming` is to be stored, or with None `linked` alone is to be kept."""

    what: What
    linked: LinkedAnswer
    incoming: Incoming | None = None


def differs(task: Task, known: Sequence[LinkedAnswer]) -> bool:
    """Tell whether a task's annotations are not as they were seen last; what is quarantined is looked at each time."""
    seen = {answer.ls_id: answer for answer in known}
    for annotation in task["annotations"]:
        if not _as_before(annotation, seen.pop(annotation["id"], None)):
            return True
    return any(answer.state != "deleted" for answer in seen.values())


def judge(linked: Linked, task: Task, known: Sequence[LinkedAnswer], face: Face | None) -> list[Finding]:
    """Return what is different about one task; `face` is None for a task that shows none of ours."""
    seen = {answer.ls_id: answer for answer in known}
    findings = []
    for annotation in task["annotations"]:
        last = seen.pop(annotation["id"], None)
        if not _as_before(annotation, last):
            findings.append(_heard(linked, annotation, task["id"], last, face))
    for last in seen.values():
        if last.state != "deleted":
            findings.append(_gone(linked, task, last, face))
    return [finding for finding in findings if finding is not None]


def _as_before(annotation: dict[str, Any], last: LinkedAnswer | None) -> bool:
    """Tell whether an annotation is as it was seen; one that could not be stored is looked at each time."""
    stored = last is not None and last.state in ("linked", "conflict")
    return stored and last is not None and last.ls_updated_at == annotation["updated_at"]


def _heard(
    linked: Linked, annotation: dict[str, Any], task_id: int, last: LinkedAnswer | None, face: Face | None
) -> Finding | None:
    email = linked.people.email(annotation["completed_by"])
    base = last or LinkedAnswer(annotation["id"], task_id, email, annotation["updated_at"], "")
    base = replace(base, ls_updated_at=annotation["updated_at"])
    try:
        if face is None:
            raise InputError(f"task {task_id} {NO_FACE}")
        user = linked.people.user(email)
        said, content = linked.heard(annotation)
    except InputError as error:
        return quarantined(base, str(error), last)
    return _Voice(linked, annotation, face, user, said, content, base).finding(last)


def quarantined(base: LinkedAnswer, reason: str, last: LinkedAnswer | None = None) -> Finding | None:
    """Return that an annotation cannot be stored, None if that is known already."""
    found = replace(base, state="quarantined", reason=reason)
    return None if found == last else Finding("quarantined", found)


@dataclass(frozen=True, slots=True)
class _Voice:
    """An annotation there that can be read, with all that is known here about it."""

    linked: Linked
    annotation: dict[str, Any]
    face: Face
    user: User
    said: Said
    content: str
    base: LinkedAnswer

    def finding(self, last: LinkedAnswer | None) -> Finding:
        if last is None or last.annotation_id is None or last.state == "deleted":
            echo = self._echo() if last is None else None
            if echo is None:
                return self._new(last)
            last = replace(self.base, annotation_id=echo.id, content=self.linked.content(echo) or "")
        if last.content == self.content:
            # A quarantine has ended, or it was saved again as it was.
            again = replace(last, ls_updated_at=self.base.ls_updated_at)
            readable = last.state == "quarantined"
            return Finding("same", replace(again, state="linked", reason=None) if readable else again)
        return self._edited(last)

    def _echo(self) -> Annotation | None:
        """Return our own answer that this annotation was made from, when we never heard that it had arrived."""
        number = self.annotation.get("import_id")
        if not isinstance(number, int) or number in self.face.sent:
            return None
        try:
            ours = self.linked.store.decisions.get(number)
            (image,) = self.linked.store.images.by_rows([ours.row])
        except NotFoundError:
            return None
        same = ours.user_id == self.user.id and image.group == self.face.image.group and ours.kind in COUNTING
        return ours if same else None

    def _new(self, last: LinkedAnswer | None) -> Finding:
        ours = self._unsent()
        if not ours or self.said.kind not in COUNTING:
            return self._store("new", None, beside=False)
        if last is None and self.linked.content(ours[-1]) == self.content:
            return self._same_as(ours[-1])
        return self._store("conflict", None, beside=True, reason=BOTH_ANSWERED)

    def _edited(self, last: LinkedAnswer) -> Finding:
        standing = self._standing()
        before = standing.get(last.annotation_id or 0)
        ours = [a for a in self._unsent() if before is None or a.id > before.id]
        if ours:
            if self.linked.content(ours[-1]) == self.content:
                return self._same_as(ours[-1])
            return self._store("conflict", before, beside=True, reason=BOTH_CHANGED)
        if before is None:
            return self._store("conflict", None, beside=False, reason=UNDONE_HERE)
        # One of two voices of the same person: the other keeps its say.
        others = [a for a in standing.values() if a.id != before.id and a.kind in COUNTING]
        pair = any(other.beside or before.beside for other in others)
        return self._store("edited", before, beside=pair, reason=BOTH_CHANGED if pair else None)

    def _standing(self) -> dict[int, Annotation]:
        return {a.id: a for a in self.face.standing if a.user_id == self.user.id}

    def _unsent(self) -> list[Annotation]:
        return unsent(self.face.standing, self.user, self.face.task.since_seq, self.face.sent)

    def _same_as(self, ours: Annotation) -> Finding:
        linked = replace(self.base, content=self.content, annotation_id=ours.id, state="linked", reason=None)
        return Finding("same", linked)

    def _store(self, what: What, supersedes: Annotation | None, *, beside: bool, reason: str | None = None) -> Finding:
        state: Literal["linked", "conflict"] = "conflict" if reason else "linked"
        linked = replace(self.base, content=self.content, state=state, reason=reason)
        given = self.annotation["updated_at" if what != "new" else "created_at"]
        answer = Answer(
            client_id=self._client_id(),
            image_id=self.face.image.image_id,
            kind=self.said.kind,
            classes=self.said.classes,
            confidence=self.said.confidence,
            note=self.said.note,
            duration_ms=_duration(self.annotation.get("lead_time")),
            supersedes=supersedes.id if supersedes else None,
        )
        shown = self.face.task.shown
        return Finding(what, linked, ForeignAnswer(self.user, answer, shown, moment(given), beside, linked))

    def _client_id(self) -> str:
        """Name this saying of it: the same time of change is the same answer, unless it was deleted in between."""
        micros = int(moment(self.base.ls_updated_at).timestamp() * 1_000_000)
        again = f":{self.base.annotation_id}" if self.base.state == "deleted" else ""
        return f"{foreign_prefix(self.linked.link.id)}{self.base.ls_id}:{micros}{again}"


def _gone(linked: Linked, task: Task, last: LinkedAnswer, face: Face | None) -> Finding | None:
    """Judge an annotation that was deleted there."""
    gone = replace(last, state="deleted", reason=None)
    if face is None or last.annotation_id is None:
        return Finding("deleted", gone)
    ours = next((a for a in face.standing if a.id == last.annotation_id), None)
    if ours is None:
        try:
            user_id = linked.store.decisions.get(last.annotation_id).user_id
        except NotFoundError:
            return Finding("deleted", gone)
        said = [a for a in face.standing if a.user_id == user_id and a.kind in COUNTING and a.id not in face.sent]
        corrected = any(a.seq > face.task.since_seq for a in said)
        return Finding("deleted", replace(gone, reason=CORRECTED_HERE if corrected else None))
    user = linked.store.accounts.by_id(ours.user_id or 0)
    client_id = f"{foreign_prefix(linked.link.id)}{last.ls_id}:gone:{ours.id}"
    at = moment(task["updated_at"])
    return Finding("deleted", gone, ForeignRetraction(user, ours.id, client_id, at, gone))


def unsent(standing: Iterable[Annotation], user: User, since_seq: int, sent: Collection[int]) -> list[Annotation]:
    """Return a person's answers since a face was asked there that no annotation there says, oldest first."""
    return [
        a for a in standing if a.user_id == user.id and a.kind in COUNTING and a.seq > since_seq and a.id not in sent
    ]


def _duration(lead_time: object) -> int | None:
    if not isinstance(lead_time, int | float) or not 0 <= lead_time * 1000 <= _LONGEST_MS:
        return None
    return int(lead_time * 1000)
