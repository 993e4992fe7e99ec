"""One intent carried out in Label Studio, so that carrying it out twice is carrying it out once.

A new annotation has a `unique_id` made from our answer and the task: a second one is refused with 409, and then the
first is looked for by the number of our answer that it carries (`import_id`). A change or deletion first looks whether
the annotation still says what it was last seen to say; where it does not, nothing is touched: the next pull decides.
Nothing in here reads or writes the store, so that several can be under way at once.
"""

import uuid
from dataclasses import dataclass, replace
from typing import Any, Literal

from annotator.errors import RefusedError
from annotator.labelstudio.answers.changes import FIELDS
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.outgoing import Intent
from annotator.labelstudio.api import filters as where
from annotator.labelstudio.config.results import MalformedResultError
from annotator.records import Annotation
from annotator.store.exchange_records import LinkedAnswer

_NAMESPACE = uuid.UUID("7f8d5a2e-7d0b-4c3e-9f67-3f1f0c9f4d51")
_NOT_FOUND, _REPEATED = 404, 409


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an intent: `linked` is what the annotation there says now, None when there is none to keep.

    moved: the annotation there has changed since it was seen. gone: the task is not there any more.
    """

    what: Literal["done", "moved", "gone"]
    linked: LinkedAnswer | None = None


def send(linked: Linked, intent: Intent) -> Outcome:
    """Carry out an intent.

    Raises:
        UnreachableError: it is unknown whether it was carried out.
        RefusedError: the server will not have it.
        InputError: the project cannot say it, or the person has no account there.
    """
    if intent.kind == "annotate" and intent.said is not None:
        return _annotate(linked, intent, intent.said)
    assert intent.there is not None
    return _change(linked, intent.there, intent.said)


def unique_id(linked: Linked, said: Annotation, task_id: int) -> str:
    """Return the name of an answer of ours on a task: of this link alone, since other workspaces count from 1, too."""
    link = linked.link
    return str(uuid.uuid5(_NAMESPACE, f"{link.id}|{link.linked_at.isoformat()}|{said.id}|{task_id}"))


def _annotate(linked: Linked, intent: Intent, said: Annotation) -> Outcome:
    ls_user, email = linked.people.account(intent.user)
    task_id = intent.task.task_id
    body: dict[str, Any] = {
        "result": linked.result(said),
        "completed_by": ls_user,
        "unique_id": unique_id(linked, said, task_id),
        "import_id": said.id,
        "was_cancelled": False,
    }
    if said.duration_ms is not None:
        body["lead_time"] = said.duration_ms / 1000
    try:
        made = linked.server.create_annotation(task_id, body)
    except RefusedError as error:
        if error.status not in (_NOT_FOUND, _REPEATED):
            raise
        task = _task(linked, task_id)
        if task is None:
            return Outcome("gone")
        same = [a for a in task["annotations"] if a["import_id"] == said.id and a["completed_by"] == ls_user]
        if error.status == _NOT_FOUND or not same:
            raise
        made = same[0]
    return _done(linked, made, task_id, email, said)


def _change(linked: Linked, there: LinkedAnswer, said: Annotation | None) -> Outcome:
    """Let an annotation say what `said` says, or delete it, unless somebody has changed it since it was seen."""
    now = linked.server.annotation(there.ls_id)
    if now is None:
        return Outcome("moved") if said is not None else Outcome("done", replace(there, state="deleted", reason=None))
    content = _content(linked, now)
    if said is not None and content is not None and content == linked.content(said):
        return _done(linked, now, there.task_id, there.user, said)
    if content != there.content:
        return Outcome("moved")
    try:
        if said is None:
            linked.server.delete_annotation(there.ls_id)
            return Outcome("done", replace(there, state="deleted", reason=None))
        changed = linked.server.update_annotation(there.ls_id, {"result": linked.result(said), "was_cancelled": False})
    except RefusedError as error:
        if error.status == _NOT_FOUND:
            return Outcome("moved")
        raise
    return _done(linked, changed, there.task_id, there.user, said)


def _task(linked: Linked, task_id: int) -> dict[str, Any] | None:
    found, _ = linked.server.tasks(
        linked.link.project_id, include=FIELDS, filters=[where.among([task_id])], page_size=1
    )
    return found[0] if found else None


def _content(linked: Linked, annotation: dict[str, Any]) -> str | None:
    try:
        return linked.heard(annotation)[1]
    except MalformedResultError:
        return None


def _done(linked: Linked, annotation: dict[str, Any], task_id: int, email: str, said: Annotation) -> Outcome:
    content = linked.content(said)
    if content is None or _content(linked, annotation) != content:
        # It arrived earlier and was changed there since: the next pull knows it by the number of our answer.
        return Outcome("moved")
    seen = LinkedAnswer(annotation["id"], task_id, email, annotation["updated_at"], content, said.id)
    return Outcome("done", seen)
