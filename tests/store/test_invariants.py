"""Whatever people do, in any order: labels equal a rebuild, nothing changes afterwards, repeating does nothing."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator import taxonomy
from annotator.errors import InputError, NotFoundError
from annotator.records import Answer, AnswerKind, User
from annotator.settings import Workspace
from annotator.store import LabelStore, health
from tests.conftest import new_image

CLASSES = ("anger", "fear", "sadness")
FACES = 3  # 0 and 1 are copies of each other


@dataclass(frozen=True)
class Step:
    """One thing that one of three people does; `target` chooses what an undo or a correction is about."""

    user: int
    face: int
    kind: AnswerKind
    classes: tuple[str, ...]
    corrects: bool
    target: int


def steps() -> st.SearchStrategy[list[Step]]:
    subsets = {
        "label": st.sampled_from([(c,) for c in CLASSES]),
        "candidates": st.sampled_from([CLASSES[:2], CLASSES[1:], (CLASSES[0], CLASSES[2])]),
        "not": st.sampled_from([(CLASSES[0],), CLASSES[1:]]),
        "unusable": st.just(()),
        "skip": st.just(()),
        "undo": st.just(()),
    }
    one = st.sampled_from(sorted(subsets)).flatmap(
        lambda kind: st.builds(
            Step,
            st.integers(0, 2),
            st.integers(0, FACES - 1),
            st.just(kind),
            subsets[kind],
            st.booleans(),
            st.integers(0, 20),
        )
    )
    return st.lists(one, max_size=14)


@contextmanager
def fresh_store() -> Iterator[LabelStore]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.create(Path(folder) / "ws", taxonomy.custom("three", list(CLASSES)))
        with LabelStore.open(workspace) as store:
            yield store


def act(store: LabelStore, step: Step, number: int, images: list[str], people: list[User]) -> None:
    """Do one step; corrections and undos of what cannot be corrected are refused, which is part of the game."""
    user = people[step.user]
    mine = store.decisions.list(user_id=user.id)
    target = mine[step.target % len(mine)].id if mine else 999
    try:
        if step.kind == "undo":
            store.decisions.undo(user, f"c{number}", target)
        else:
            supersedes = target if step.corrects and mine else None
            answer = Answer(f"c{number}", images[step.face], step.kind, step.classes, supersedes=supersedes)
            store.decisions.submit(user, answer)
    except InputError:
        assert step.corrects or step.kind == "undo"
    except NotFoundError:
        assert not mine


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps())
def test_any_sequence_of_answers_and_undos(done: list[Step]) -> None:
    with fresh_store() as store:
        source = store.images.register_source("/faces", "folder", "folder")
        new = [
            new_image(str(i), content_hash=f"h{max(i, 1)}", votes={"anger": 3, "fear": 2} if i == 2 else None)
            for i in range(FACES)
        ]
        images = [r.image_id for r in store.images.add(source, new, "annotations")]
        people = [store.accounts.add(name, "annotator", None) for name in "abc"]
        for number, step in enumerate(done):
            before = store.decisions.list()
            act(store, step, number, images, people)
            after = store.decisions.list()
            assert after[: len(before)] == before, "no earlier row ever changes"
            assert len(after) - len(before) <= 1
            assert store.decisions.differing() == [], "labels equal a rebuild from scratch"
        settled, everything = store.decisions.labels(), store.decisions.list()
        for row in everything:
            if row.user_id is None:
                continue
            user = next(u for u in people if u.id == row.user_id)
            again = Answer(row.client_id, row.image_id, "label", ("anger",))
            assert not store.decisions.submit(user, again).created
        assert store.decisions.list() == everything, "repeating a client_id changes nothing"
        assert store.decisions.labels() == settled
        assert [a.seq for a in everything] == list(range(1, len(everything) + 1))
        assert health.problems(store.database) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_people_does_not_matter(sqlite_store: LabelStore, order: tuple[int, ...]) -> None:
    store = sqlite_store
    source = store.images.register_source("/faces", "folder", "folder")
    image = store.images.add(source, [new_image("a")], "none")[0].image_id
    answers: list[tuple[AnswerKind, tuple[str, ...]]] = [
        ("candidates", ("anger", "fear", "sadness")),
        ("not", ("sadness",)),
        ("candidates", ("fear", "sadness", "surprise")),
    ]
    for number in order:
        kind, classes = answers[number]
        user = store.accounts.add(f"p{number}", "annotator", None)
        store.decisions.submit(user, Answer(f"c{number}", image, kind, classes))
    label = store.decisions.label(0)
    assert (label.state, label.classes) == ("labeled", ("fear",))
