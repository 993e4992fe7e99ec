"""A workspace and a project of a real Label Studio, linked: what people do on either side, and whether both agree."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from annotator import auth, taxonomy
from annotator.consensus import COUNTING, voices
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.sync import News, sync_once
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.config.generated import generate, own_mapping
from annotator.records import Annotation, Answer, AnswerKind, Label
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link, LinkedTask, Shown
from tests.labelstudio.studio import Person, Studio, said
from tests.ui.conftest import fill

CLASSES = taxonomy.FERPLUS.slugs


@dataclass
class Pair:
    """A workspace with `faces` (image ids) and the tasks that show them, in the same order."""

    workspace: Workspace
    store: LabelStore
    studio: Studio
    server: Server
    link: Link
    faces: list[str]
    tasks: list[int]
    _emails: dict[int, str] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def sync(self, **more: Any) -> News:
        """Bring both sides together once."""
        return sync_once(self.workspace, self.store, self.server, self.link, **more)

    @property
    def linked(self) -> Linked:
        """The parts, as the sync sees them."""
        return Linked.of(self.workspace, self.store, self.server, self.link)

    def row(self, face: int) -> int:
        """Return the row of a face."""
        return self.store.images.by_id(self.faces[face]).row

    # Here

    def answer(
        self, name: str, face: int, *classes: str, kind: AnswerKind = "label", supersedes: int | None = None
    ) -> int:
        """Answer on our page and return the annotation's id."""
        user = self.store.accounts.get(name)
        answer = Answer(
            f"here-{next(self._numbers)}", self.faces[face], kind, classes, duration_ms=900, supersedes=supersedes
        )
        return self.store.decisions.submit(user, answer).annotation.id

    def undo(self, name: str, annotation_id: int) -> None:
        """Take an answer back on our page."""
        user = self.store.accounts.get(name)
        self.store.decisions.undo(user, f"undo-{next(self._numbers)}", annotation_id)

    def standing(self, face: int) -> list[Annotation]:
        """Return what stands of a face here, skips and flags too."""
        return self.store.exchange.standing([self.row(face)]).get(self.row(face), [])

    def says(self, face: int) -> list[tuple[str, str]]:
        """Return who says what about a face here, as counts for the label."""
        counting = [a for a in self.standing(face) if a.kind in COUNTING]
        return sorted((a.user_name, _words(a.kind, a.classes)) for own in voices(counting).values() for a in own)

    def label(self, face: int) -> Label:
        """Return the label of a face."""
        return self.store.decisions.label(self.row(face))

    # There

    def annotate(self, person: Person, face: int, *classes: str, **more: Any) -> int:
        """Submit a class (or a candidate set) in Label Studio and return the annotation's id."""
        return int(self.studio.annotate(person, self.tasks[face], *part(*classes), **more)["id"])

    def edit(self, person: Person, annotation_id: int, *classes: str) -> None:
        """Change an annotation in Label Studio."""
        self.studio.edit(person, annotation_id, *part(*classes))

    def there(self, face: int) -> list[tuple[str, str]]:
        """Return who says what about a face in Label Studio, skips left out."""
        return self.all_there().get(face, [])

    def all_there(self) -> dict[int, list[tuple[str, str]]]:
        """Return who says what about each answered face in Label Studio, skips left out."""
        faces = {task_id: face for face, task_id in enumerate(self.tasks)}
        found: dict[int, list[tuple[str, str]]] = {}
        for a in self.studio.annotations(self.link.project_id):
            if a["task"] in faces and not a["was_cancelled"]:
                said = (self.name_of(a["completed_by"]), _words(*self._read(a)))
                found[faces[a["task"]]] = sorted([*found.get(faces[a["task"]], []), said])
        return found

    def name_of(self, ls_user: int) -> str:
        """Return our name of an account there."""
        if ls_user not in self._emails:
            self._emails.update({user["id"]: user["email"] for user in self.server.users()})
        return str(self.link.settings["users"].get(self._emails[ls_user], self._emails[ls_user]))

    def _read(self, annotation: dict[str, Any]) -> tuple[str, Sequence[str]]:
        heard, _ = self.linked.heard(annotation)
        return heard.kind, heard.classes

    # Both

    def differences(self) -> list[str]:
        """Return every sentence that holds of one side alone; none when both agree, annotation by annotation."""
        linked, exchange = self.linked, self.store.exchange
        there = {a["id"]: a for a in self.studio.annotations(self.link.project_id)}
        known = {
            a.ls_id: a for of_task in exchange.answers_of_tasks(self.link.id, self.tasks).values() for a in of_task
        }
        wrong = []
        standing = {a.id: a for row in range(len(self.faces)) for a in self.standing(row)}
        for ls_id, annotation in there.items():
            seen = known.get(ls_id)
            if seen is None or seen.state not in ("linked", "conflict"):
                wrong.append(f"{ls_id} there is {seen.state if seen else 'unknown'} here")
                continue
            ours = standing.get(seen.annotation_id or 0)
            if ours is None:
                wrong.append(f"{ls_id} there says what does not stand here")
            elif ours.user_name != self.name_of(annotation["completed_by"]):
                wrong.append(f"{ls_id} there is another person's here")
            elif linked.content(ours) != linked.heard(annotation)[1]:
                wrong.append(f"{ls_id} there says {linked.heard(annotation)[1]}, here {linked.content(ours)}")
        wrong += [
            f"{a.ls_id} is linked but not there" for a in known.values() if _live(a.state) and a.ls_id not in there
        ]
        doubled = Counter(a.annotation_id for a in known.values() if _live(a.state))
        wrong += [f"annotation {ours} is there {times} times" for ours, times in doubled.items() if times > 1]
        return wrong + self._missing({a.annotation_id for a in known.values() if _live(a.state)})

    def _missing(self, sent: set[int | None]) -> list[str]:
        """Name what was said here since the asking and is not there; unasked faces are nobody's business."""
        named = {name.casefold() for name in self.link.settings["users"].values()}
        tasks = self.store.exchange.tasks_by_id(self.link.id, self.tasks)
        asked = {i: tasks[t] for i, t in enumerate(self.tasks) if t in tasks and tasks[t].state in ("open", "answered")}
        wrong = []
        for face, task in asked.items():
            for own in voices([a for a in self.standing(face) if a.kind in COUNTING]).values():
                due = [a for a in own if a.user_name in named and a.seq > task.since_seq]
                wrong += [f"{a.id} here is not there" for a in due if a.id not in sent]
        return wrong


def link_pair(
    workspace: Workspace, store: LabelStore, studio: Studio, folder: Path, faces: int, **users: Person
) -> Pair:
    """Fill the workspace, make accounts of `users` (name here, account there) and a project that shows every face."""
    server = studio.server()
    for name in users:
        store.accounts.add(name, "annotator", auth.hash_password("correct horse"))
    image_ids = fill(store, folder, faces)
    project_id = int(server.create_project("pair", generate(workspace.settings.taxonomy))["id"])
    settings = {
        "mapping": own_mapping(workspace.settings.taxonomy).as_dict(),
        "users": {person.email: name for name, person in users.items()},
    }
    link = store.exchange.add_link(studio.url, project_id, "pair", settings)
    tasks = server.import_tasks(project_id, [_task(image_id) for image_id in image_ids])
    rows = [store.images.by_id(image_id).row for image_id in image_ids]
    shown = Shown("uncertain", "none.1", False, ({"class": "anger", "prob": 0.5}, {"class": "fear", "prob": 0.4}))
    put = [LinkedTask(task_id, row, "open", shown, "none.1") for task_id, row in zip(tasks, rows, strict=True)]
    store.exchange.put_tasks(link.id, put)
    return Pair(workspace, store, studio, server, link, image_ids, tasks)


def part(*classes: str) -> list[dict[str, Any]]:
    """Return the result that ticks one class, or a candidate set of several."""
    return [said("expression" if len(classes) == 1 else "candidates", *classes)] if classes else []


def _task(image_id: str) -> dict[str, Any]:
    return {"data": {"image": "data:image/png;base64,AAAA", "image_id": image_id, "reason": "test"}}


def _words(kind: str, classes: Sequence[str]) -> str:
    return "+".join(classes) if kind in ("label", "candidates") else kind


def _live(state: str) -> bool:
    return state in ("linked", "conflict")


def report_line(title: str, numbers: object) -> None:
    """Print what a fault run counted, for whoever runs it with -s."""
    told = numbers if isinstance(numbers, dict) else asdict(numbers)  # type: ignore[call-overload]
    print(f"\n{title}: " + ", ".join(f"{name} {number}" for name, number in told.items()))
