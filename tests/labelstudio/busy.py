"""People at work on both sides of a linked project, and whether everything that was acknowledged to them is kept.

Ann works in Label Studio, Ben on our page, so each of their answers has one side that decides about it. What a server
that dies under a request has done is not known to Ann: only what it acknowledged counts as said.
"""

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from annotator import auth
from annotator.errors import LabelStudioError
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.tasks.push import push
from annotator.records import Answer, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.pair import Pair, part
from tests.labelstudio.pushing import Bench, linked
from tests.labelstudio.studio import Person, Studio

CLASSES = ("anger", "fear", "disgust", "neutral")
ANN, BEN = "ann", "ben"


@dataclass
class Busy:
    """A linked workspace of drawn faces with two people."""

    bench: Bench
    studio: Studio
    ann: Person
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    said_there: dict[int, tuple[int, str | None]] = field(default_factory=dict)
    """Of Ann's annotations by task: its id, and the class it was last acknowledged to say, None once deleted."""
    unsure: set[int] = field(default_factory=set)
    """Tasks under which the server died."""

    def work(self, acts: int) -> None:
        """Do something on either side, `acts` times."""
        tasks = self._tasks()
        for _ in range(acts):
            if tasks and self.chance.random() < 0.5:
                self._there(self.chance.choice(tasks))
            else:
                self._here(self.chance.choice(self.bench.rows))

    def settle(self, rounds: int = 8) -> None:
        """Sync and push, as a watch would, until neither finds anything to do."""
        for number in range(rounds):
            with suppress(LabelStudioError):
                news = self.pair.sync(full=True)
                report = push(self.bench.workspace, self.bench.store, self.bench.server, self.bench.link)
                if not news and not report.pushed and number:
                    return
        raise AssertionError("the sync does not come to rest")

    @property
    def pair(self) -> Pair:
        """The same as a pair: every face with the task that asks it now, 0 without one."""
        bench = self.bench
        tasks = {task.row: task.task_id for task in bench.store.exchange.tasks(bench.link.id, limit=100_000)}
        faces = [bench.image_id(row) for row in bench.rows]
        in_order = [tasks.get(row, 0) for row in bench.rows]
        return Pair(bench.workspace, bench.store, self.studio, bench.server, bench.link, faces, in_order)

    def wrong(self) -> list[str]:
        """Return every sentence that should not be true once all is settled."""
        there = {a["id"]: a for a in self.studio.annotations(self.bench.project_id)}
        found = self.pair.differences()
        images = Counter(task["data"]["image_id"] for task in self.bench.there())
        found += [f"face {image} is asked in {times} tasks" for image, times in images.items() if times > 1]
        owners = Counter((a["task"], a["completed_by"]) for a in there.values())
        found += [f"{who} has {times} annotations on task {task}" for (task, who), times in owners.items() if times > 1]
        for task_id, (ls_id, said) in self.said_there.items():
            if task_id in self.unsure:
                continue
            now = there.get(ls_id)
            if (now is None) != (said is None):
                found.append(f"annotation {ls_id} of task {task_id} should say {said}")
            elif now is not None and now["result"][0]["value"]["choices"] != [said]:
                found.append(f"annotation {ls_id} of task {task_id} says another thing than {said}")
        return found + self._stored_twice()

    def told(self) -> dict[str, int]:
        """Return what happened, in numbers."""
        there = self.studio.annotations(self.bench.project_id)
        return {
            **self.counts,
            "annotations there at the end": len(there),
            "linked": self.bench.store.exchange.counts(self.bench.link.id)["answers"]["linked"],
            "stored here": self.bench.store.decisions.count(),
            "lost or doubled": len(self.wrong()),
        }

    def _stored_twice(self) -> list[str]:
        """An annotation there may have come in once for every time it was changed, and no oftener."""
        said = [a for a in self.bench.store.decisions.list() if a.user_name == ANN and a.kind != "undo"]
        most = self.counts["answers there"] + self.counts["changes there"] + self.counts["unsure there"]
        return [f"{len(said)} answers of Ann for {most} that she gave"] if len(said) > most else []

    def _tasks(self) -> list[int]:
        with suppress(LabelStudioError):
            found = self.bench.there()
            even = {self.bench.image_id(row) for row in self.bench.rows[::2]}
            return [int(task["id"]) for task in found if task["data"]["image_id"] in even]
        return []

    def _there(self, task_id: int) -> None:
        ls_id, said = self.said_there.get(task_id, (0, None))
        choice = self.chance.choice(CLASSES)
        if task_id in self.unsure:
            return
        try:
            if said is None:
                made = self.studio.annotate(self.ann, task_id, *part(choice))
                self.said_there[task_id] = (int(made["id"]), choice)
                self.counts["answers there"] += 1
            elif self.chance.random() < 0.6:
                self.studio.edit(self.ann, ls_id, *part(choice))
                self.said_there[task_id] = (ls_id, choice)
                self.counts["changes there"] += 1
            else:
                self.studio.delete(self.ann, ls_id)
                self.said_there[task_id] = (ls_id, None)
                self.counts["deletions there"] += 1
        except httpx.HTTPError:
            self.unsure.add(task_id)
            self.counts["unsure there"] += 1

    def _here(self, row: int) -> None:
        """Answer, correct or take back; an open face that Ann may be about to answer is left to her."""
        place = self.bench.rows.index(row)
        tasks = self.bench.store.exchange.tasks_of_rows(self.bench.link.id, [row]).get(row, [])
        if place % 2 == 0 and not any(task.state == "answered" for task in tasks):
            return
        pair = self.pair
        own = [a for a in pair.standing(place) if a.user_name == BEN]
        name = f"{BEN}-{self.bench.store.last_seq()}-{self.chance.random()}"
        if own and self.chance.random() < 0.3:
            self.bench.store.decisions.undo(self._ben, name, own[-1].id)
            self.counts["taken back here"] += 1
            return
        supersedes = own[-1].id if own and self.chance.random() < 0.7 else None
        answer = Answer(name, pair.faces[place], "label", (self.chance.choice(CLASSES),), supersedes=supersedes)
        self.bench.store.decisions.submit(self._ben, answer)
        self.counts["answers here"] += 1

    @property
    def _ben(self) -> User:
        return self.bench.store.accounts.get(BEN)


def make_busy(
    workspace: Workspace, store: LabelStore, studio: Studio, server: Server, folder: Path, faces: int, **people: Person
) -> Busy:
    """Link a workspace of `faces` to a new project that asks for half of them."""
    for name in (ANN, BEN):
        store.accounts.add(name, "annotator", auth.hash_password("correct horse"))
    users = {people[name].email: name for name in (ANN, BEN)}
    bench = linked(workspace, store, server, faces, folder, top_k=faces // 2, users=users)
    bench.publish(bench.rows)
    push(workspace, store, server, bench.link)
    return Busy(bench, studio, people[ANN], random.Random(faces))
