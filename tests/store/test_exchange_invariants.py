"""Whatever is created, edited and deleted in a linked project, repeated, and answered here in between."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator.records import Answer, User
from annotator.store import LabelStore, health
from annotator.store.exchange_records import ForeignAnswer, ForeignRetraction, Incoming, LinkedAnswer, LinkedTask
from tests.conftest import new_image
from tests.store.test_invariants import CLASSES, FACES, fresh_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS = ("create", "edit", "delete", "repeat", "answer", "correct", "undo")


@dataclass(frozen=True)
class Step:
    """One thing that happens; `target` chooses among what it can happen to."""

    what: str
    user: int
    face: int
    said: str
    target: int


@dataclass
class Sides:
    """The store, and what each side says by a model of its own: by (side, number), the class of what stands."""

    store: LabelStore
    images: list[str]
    people: list[User]
    said: dict[tuple[str, int], str] = field(default_factory=dict)
    owner: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    last: dict[int, Incoming] = field(default_factory=dict)
    ours: dict[int, list[int]] = field(default_factory=dict)
    stored: int = 0

    def living(self, side: str) -> list[int]:
        return [number for place, number in self.said if place == side]

    def record(self, item: Incoming, creates: int) -> None:
        [outcome] = self.store.exchange.record(1, [item])
        assert getattr(outcome, "created", None) == bool(creates), outcome
        self.last[item.linked.ls_id] = item
        self.stored += creates

    def put(self, ls_id: int, step: Step, at: int) -> None:
        """Create an annotation there, or edit it."""
        user, face = self.owner.setdefault(("there", ls_id), (step.user, step.face))
        known = self.store.exchange.answers_by_id(1, [ls_id]).get(ls_id)
        before = known.annotation_id if known is not None else None
        answer = Answer(f"ls:1:{ls_id}:{at}", self.images[face], "label", (step.said,), supersedes=before)
        linked = LinkedAnswer(ls_id, face, "a@lab.org", str(at), step.said)
        given = ForeignAnswer(self.people[user], answer, None, NOW + timedelta(seconds=at), False, linked)
        self.record(given, 1)
        self.said["there", ls_id] = step.said

    def delete(self, ls_id: int, at: int) -> None:
        [known] = self.store.exchange.answers_by_id(1, [ls_id]).values()
        user, _ = self.owner["there", ls_id]
        gone = replace(known, state="deleted", annotation_id=None)
        assert known.annotation_id is not None
        chain = sum(1 for a in self.store.decisions.list() if a.client_id.startswith(f"ls:1:{ls_id}:"))
        self.record(ForeignRetraction(self.people[user], known.annotation_id, f"ls:1:{ls_id}:{at}", NOW, gone), chain)
        del self.said["there", ls_id]

    def answer(self, step: Step, at: int) -> None:
        answer = Answer(f"c-{at}", self.images[step.face], "label", (step.said,))
        self.ours[at] = [self.store.decisions.submit(self.people[step.user], answer).annotation.id]
        self.owner["here", at] = (step.user, step.face)
        self.said["here", at] = step.said
        self.stored += 1

    def correct(self, number: int, step: Step, at: int) -> None:
        user, face = self.owner["here", number]
        before = self.ours[number][-1]
        answer = Answer(f"c-{at}", self.images[face], "label", (step.said,), supersedes=before)
        self.ours[number].append(self.store.decisions.submit(self.people[user], answer).annotation.id)
        self.said["here", number] = step.said
        self.stored += 1

    def undo(self, number: int, at: int) -> None:
        """Take everything back that one of our answers has become."""
        user, _ = self.owner["here", number]
        for turn, annotation_id in enumerate(reversed(self.ours[number])):
            self.store.decisions.undo(self.people[user], f"c-{at}-{turn}", annotation_id)
            self.stored += 1
        del self.said["here", number]

    def act(self, step: Step, at: int) -> None:
        there, here = self.living("there"), self.living("here")
        if step.what == "create":
            self.put(1000 + at, step, at)
        elif step.what == "answer":
            self.answer(step, at)
        elif step.what == "repeat" and self.last:
            self.record(self.last[sorted(self.last)[step.target % len(self.last)]], 0)
        elif step.what in ("edit", "delete") and there:
            ls_id = there[step.target % len(there)]
            self.put(ls_id, step, at) if step.what == "edit" else self.delete(ls_id, at)
        elif step.what in ("correct", "undo") and here:
            number = here[step.target % len(here)]
            self.correct(number, step, at) if step.what == "correct" else self.undo(number, at)

    def check(self) -> None:
        """Compare what stands with the model, and every table with the others."""
        expected = sorted((*self.owner[key], said) for key, said in self.said.items())
        # Faces 0 and 1 are copies: what was said of one stands for both.
        standing = self.store.exchange.standing([0, 2])
        found = [(self.people.index(self._user(a.user_id)), a.row, a.classes[0]) for s in standing.values() for a in s]
        assert sorted(found) == expected
        assert self.store.decisions.count() == self.stored
        assert self.store.decisions.differing() == []
        assert health.problems(self.store.database) == []
        known = self.store.exchange.answers_of_tasks(1, range(FACES))
        alive = {a.ls_id: a for answers in known.values() for a in answers if a.state == "linked"}
        assert sorted(alive) == sorted(self.living("there"))
        for ls_id, answer in alive.items():
            assert answer.annotation_id is not None
            assert self.store.decisions.get(answer.annotation_id).classes == (self.said["there", ls_id],)

    def _user(self, user_id: int | None) -> User:
        return next(user for user in self.people if user.id == user_id)


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(STEPS),
        st.integers(0, 1),
        st.integers(0, FACES - 1),
        st.sampled_from(CLASSES),
        st.integers(0, 20),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_exactly_the_last_state_of_every_answer_stands(done: list[Step]) -> None:
    with fresh_store() as store:
        source = store.images.register_source("/faces", "folder", "folder")
        new = [new_image(str(i), content_hash=f"h{max(i, 1)}") for i in range(FACES)]
        images = [r.image_id for r in store.images.add(source, new, "none")]
        people = [store.accounts.add(name, "annotator", None) for name in "ab"]
        link = store.exchange.add_link("http://studio", 1, "Faces", {})
        assert link.id == 1
        store.exchange.put_tasks(1, [LinkedTask(row, row) for row in range(FACES)])
        sides = Sides(store, images, people)
        for at, step in enumerate(done):
            sides.act(step, at)
        sides.check()
