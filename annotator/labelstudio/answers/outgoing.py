"""What people said on our page goes out: what each of them says now, against what their annotations there say.

The difference is taken from the state of both sides, never from the events between: a correction that was taken back
before it went out is nothing. Only opinions of people who answered since a face was asked there are sent (`since_seq`),
and of them only what was said here. Planning reads the answers since `sent_seq` and writes the outbox and `sent_seq` in
one commit; what is sent is decided anew from the state when its turn comes.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from annotator.consensus import COUNTING, voices
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.planned import Planned, in_words
from annotator.labelstudio.api.server import Server
from annotator.records import Annotation
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.decisions import FOREIGN
from annotator.store.exchange_records import Link, LinkedAnswer, LinkedTask

_ROWS, _MANY_ROWS = 200, 2_000
Kind = Literal["annotate", "edit", "retract"]
KINDS: tuple[Kind, ...] = ("annotate", "edit", "retract")


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing to do there.

    annotate: make an annotation of `said` on the task. edit: let `there` say it. retract: delete `there`, whose answer
    here was taken back.
    """

    kind: Kind
    row: int
    task: LinkedTask
    user: str
    said: Annotation | None
    there: LinkedAnswer | None

    @property
    def key(self) -> str:
        """What names it in the outbox: the same intent is there once."""
        ours = self.said.id if self.said is not None else self.there.annotation_id if self.there is not None else 0
        return f"{self.kind}:{self.there.ls_id}:{ours}" if self.there is not None else f"{self.kind}:{ours}"

    @property
    def item(self) -> tuple[str, str, dict[str, Any]]:
        """Return it for the outbox: which face, and nothing of what was said."""
        return self.kind, self.key, {"row": self.row, "task_id": self.task.task_id, "user": self.user}


@dataclass(slots=True)
class Faces:
    """What is to be done about some faces. `same` says there already what is said here now, under another answer."""

    intents: list[Intent]
    same: list[LinkedAnswer]


def plan_outgoing(workspace: Workspace, store: LabelStore, server: Server, link: Link) -> list[Planned]:
    """Return what would be sent, and send and write nothing; what waits in the outbox already is among it."""
    linked = Linked.of(workspace, store, server, link)
    rows = {row for batch, _ in _touched(linked, linked.link.sent_seq, store.last_seq()) for row in batch}
    rows |= {int(item.payload["row"]) for item in store.exchange.waiting(link.id, KINDS)}
    return [_planned(intent) for intent in intents_of(linked, rows).intents]


def enqueue_outgoing(linked: Linked, *, everything: bool = False) -> int:
    """Put into the outbox what people said since the last time; return how many intents are new there.

    A crash in between leaves `sent_seq` where it was or finds the items there already. With `everything` all answered
    faces are gone through: an answer that came while the push of its task was under way is found so.
    """
    exchange, link_id = linked.store.exchange, linked.link.id
    upto, planned = linked.store.last_seq(), linked.link.sent_seq
    after, added = 0 if everything else planned, 0
    for rows, covered in _touched(linked, after, upto, _MANY_ROWS if everything else _ROWS):
        found = intents_of(linked, rows)
        exchange.put_answers(link_id, found.same)
        if found.intents or covered > planned:
            items = [intent.item for intent in found.intents]
            added += exchange.enqueue(link_id, items, sent_seq=max(covered, planned))
    return added


def intents_of(linked: Linked, rows: Collection[int]) -> Faces:
    """Return what has to be done there about faces, from what both sides say now."""
    exchange, link_id = linked.store.exchange, linked.link.id
    tasks = exchange.tasks_of_rows(link_id, rows)
    standing = exchange.standing(tasks)
    there = exchange.answers_of_tasks(link_id, [task.task_id for of_row in tasks.values() for task in of_row])
    said = exchange.answers_of_annotations(link_id, {a.id for of_row in standing.values() for a in of_row})
    sent = {ours for ours, theirs in said.items() if any(a.state != "deleted" for a in theirs)}
    found = Faces([], [])
    for row, of_row in tasks.items():
        usable = {task.task_id: task for task in of_row if task.state in ("open", "answered")}
        answers = [a for task_id in usable for a in there.get(task_id, ()) if a.state in ("linked", "conflict")]
        _face(linked, row, usable, answers, standing.get(row, ()), sent, found)
    return found


def _face(
    linked: Linked,
    row: int,
    tasks: dict[int, LinkedTask],
    answers: Sequence[LinkedAnswer],
    standing: Sequence[Annotation],
    sent: Collection[int],
    found: Faces,
) -> None:
    """Add what has to be done about one face, person by person."""
    counting = [a for a in standing if a.kind in COUNTING]
    spoken = voices(counting)
    names = {a.user_id: a.user_name for a in counting}
    theirs: dict[str, list[LinkedAnswer]] = {name: [] for name in names.values()}
    for answer in answers:
        name = linked.people.name(answer.user)
        if name is not None:
            theirs.setdefault(name, []).append(answer)
    for name, own in theirs.items():
        user_id = next((u for u, n in names.items() if n == name), None)
        said = spoken.get(user_id, []) if user_id is not None else []
        # A later answer silences what was said here and both halves of a conflict: their annotations there say nothing
        # that is said here. An answer that was given there twice is left as its owner left it.
        mine = {a.id for a in counting if a.user_id == user_id and (a.beside or a.source != FOREIGN)}
        silenced = mine - {a.id for a in said}
        stands = {a.id: a for a in standing if a.id not in silenced}
        _person(linked, row, name, tasks, own, said, stands, sent, found)


def _person(
    linked: Linked,
    row: int,
    name: str,
    tasks: dict[int, LinkedTask],
    own: Sequence[LinkedAnswer],
    said: Sequence[Annotation],
    stands: dict[int, Annotation],
    sent: Collection[int],
    found: Faces,
) -> None:
    """Add what has to be done about one person's annotations on one face.

    own: those there. said: what the person says here now, the main answer first.
    """
    stale = [a for a in own if a.annotation_id not in stands]
    want = _unsent(said, sent)
    if want is not None:
        content = linked.content(want)
        older = [a for a in own if a not in stale and _may_change(a, stands, want)]
        usable = [a for a in (*older, *stale) if want.seq > tasks[a.task_id].since_seq]
        same = next((a for a in reversed(usable) if content is not None and a.content == content), None)
        target = same or _corrected(want, usable)
        if same is not None:
            found.same.append(replace(same, annotation_id=want.id, state="linked", reason=None))
        elif target is not None:
            found.intents.append(Intent("edit", row, tasks[target.task_id], name, want, target))
        elif want.source != FOREIGN:
            asked = [task for task in tasks.values() if want.seq > task.since_seq]
            found.intents += [Intent("annotate", row, asked[-1], name, want, None)] if asked else []
        stale = [a for a in stale if a is not target]
    found.intents += [Intent("retract", row, tasks[a.task_id], name, None, a) for a in stale]


def _unsent(said: Sequence[Annotation], sent: Collection[int]) -> Annotation | None:
    """Return the main answer if no annotation there says it."""
    main = [a for a in said if not a.beside]
    return main[-1] if main and main[-1].id not in sent else None


def _corrected(want: Annotation, usable: Sequence[LinkedAnswer]) -> LinkedAnswer | None:
    """Return the annotation that an answer corrects: the one that it names, else the latest."""
    named = [a for a in usable if a.annotation_id == want.supersedes]
    return (named or usable)[-1] if usable else None


def _may_change(answer: LinkedAnswer, stands: dict[int, Annotation], want: Annotation) -> bool:
    """Tell whether a later answer here corrects an annotation that still says what stands here."""
    before = stands[answer.annotation_id or 0]
    return answer.state == "linked" and before.kind in COUNTING and before.id < want.id


def _touched(linked: Linked, after: int, upto: int, limit: int = _ROWS) -> Iterator[tuple[list[int], int]]:
    """Yield rows that were answered, and the seq up to which they are all."""
    while after < upto:
        rows = linked.store.exchange.touched_rows(linked.link.id, after, upto, limit)
        # Copies of one face share the seq that touched them: the last one may go on behind the limit.
        covered = upto if len(rows) < limit else max(after + 1, max(rows.values()) - 1)
        yield list(rows), covered
        after = covered


def _planned(intent: Intent) -> Planned:
    says = in_words(intent.said.kind, intent.said.classes) if intent.said is not None else ""
    annotation = str(intent.there.ls_id) if intent.there is not None else ""
    return Planned("out", intent.kind, intent.task.task_id, intent.user, says, annotation)
