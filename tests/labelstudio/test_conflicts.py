"""Both sides change the same answer: every combination, with real requests there and real answers here."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from annotator.labelstudio.answers.incoming import BOTH_CHANGED, UNDONE_HERE
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.conftest import People
from tests.labelstudio.pair import Pair, link_pair
from tests.labelstudio.studio import Studio


@pytest.fixture
def pair(workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path) -> Pair:
    return link_pair(workspace, sqlite_store, studio, tmp_path / "pictures", 2, ann=people.ann, ben=people.ben)


def _shared(pair: Pair, people: People, origin: str) -> tuple[int, int]:
    """Return an annotation there and the one here that says the same, "anger", first said `origin`."""
    if origin == "there":
        pair.annotate(people.ann, 0, "anger")
    else:
        pair.answer("ann", 0, "anger")
    pair.sync()
    assert pair.differences() == []
    (seen,) = pair.store.exchange.answers_of_tasks(pair.link.id, [pair.tasks[0]])[pair.tasks[0]]
    assert seen.annotation_id is not None
    return seen.ls_id, seen.annotation_id


both_origins = pytest.mark.parametrize("origin", ["there", "here"])


@dataclass(frozen=True)
class Case:
    """What happens there and here to an answer, "anger", that both sides know, and what both say afterwards.

    there: a class, "delete", "skip" or nothing. here: a class, "undo", "correct and undo" or nothing.
    """

    there: str
    here: str
    says: tuple[str, ...]
    state: str
    conflict: str = ""
    names: bool = True
    """Whether the answer here names what it corrects."""


CASES = (
    Case("fear", "disgust", ("disgust", "fear"), "disputed", BOTH_CHANGED),
    Case("fear", "disgust", ("disgust", "fear"), "disputed", BOTH_CHANGED, names=False),
    Case("fear", "fear", ("fear",), "labeled"),
    Case("fear", "fear", ("fear",), "labeled", names=False),
    Case("fear", "undo", ("fear",), "labeled", UNDONE_HERE),
    Case("fear", "correct and undo", ("fear",), "labeled"),
    Case("fear", "", ("fear",), "labeled"),
    Case("delete", "disgust", ("disgust",), "labeled"),
    Case("delete", "disgust", ("disgust",), "labeled", names=False),
    Case("delete", "undo", (), "unlabeled"),
    Case("delete", "correct and undo", (), "unlabeled"),
    Case("delete", "", (), "unlabeled"),
    Case("skip", "disgust", ("disgust",), "labeled", BOTH_CHANGED),
    Case("skip", "undo", (), "unlabeled", UNDONE_HERE),
    Case("skip", "", (), "unlabeled"),
    Case("", "disgust", ("disgust",), "labeled"),
    Case("", "disgust", ("disgust",), "labeled", names=False),
    Case("", "undo", (), "unlabeled"),
    Case("", "correct and undo", ("anger",), "labeled"),
)


def _there(pair: Pair, people: People, case: Case, annotation_id: int) -> None:
    if case.there == "delete":
        pair.studio.delete(people.ann, annotation_id)
    elif case.there == "skip":
        pair.studio.edit(people.ann, annotation_id, was_cancelled=True)
    elif case.there:
        pair.edit(people.ann, annotation_id, case.there)


def _here(pair: Pair, case: Case, face: int, annotation_id: int) -> None:
    supersedes = annotation_id if case.names else None
    if case.here == "undo":
        pair.undo("ann", annotation_id)
    elif case.here == "correct and undo":
        pair.undo("ann", pair.answer("ann", face, "disgust", supersedes=supersedes))
    elif case.here:
        pair.answer("ann", face, case.here, supersedes=supersedes)


@pytest.mark.parametrize("origin", ["there", "here"])
def test_every_combination(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path, origin: str
) -> None:
    """Each on a face of its own, all in one sync."""
    pair = link_pair(workspace, sqlite_store, studio, tmp_path / "pictures", len(CASES), ann=people.ann)
    for face in range(len(CASES)):
        if origin == "there":
            pair.annotate(people.ann, face, "anger")
        else:
            pair.answer("ann", face, "anger")
    pair.sync()
    assert pair.differences() == []
    seen = pair.store.exchange.answers_of_tasks(pair.link.id, pair.tasks)
    for face, case in enumerate(CASES):
        (shared,) = seen[pair.tasks[face]]
        _there(pair, people, case, shared.ls_id)
        _here(pair, case, face, shared.annotation_id or 0)
    pair.sync()
    assert pair.differences() == []
    there = pair.all_there()
    conflicts = {a.task_id: a.reason for a in pair.store.exchange.conflicts(pair.link.id)}
    for face, case in enumerate(CASES):
        wanted = [("ann", said) for said in case.says]
        assert (there.get(face, []), pair.says(face)) == (wanted, wanted), case
        assert pair.label(face).state == case.state, case
        assert conflicts.get(pair.tasks[face], "") == case.conflict, case
    assert not pair.sync()


@both_origins
def test_edited_there_and_taken_back_here(pair: Pair, people: People, origin: str) -> None:
    theirs, ours = _shared(pair, people, origin)
    pair.edit(people.ann, theirs, "fear")
    pair.undo("ann", ours)
    pair.sync()
    assert pair.there(0) == pair.says(0) == [("ann", "fear")]
    assert "the change stands" in (pair.store.exchange.conflicts(pair.link.id)[0].reason or "")
    assert pair.differences() == []
    # The next word on it is an ordinary one.
    pair.edit(people.ann, theirs, "neutral")
    pair.sync()
    assert pair.there(0) == pair.says(0) == [("ann", "neutral")]
    assert pair.store.exchange.conflicts(pair.link.id) == []


@both_origins
def test_deleted_there_alone_takes_the_whole_chain_back(pair: Pair, people: People, origin: str) -> None:
    theirs, _ = _shared(pair, people, origin)
    pair.edit(people.ann, theirs, "fear")
    pair.sync()
    pair.studio.delete(people.ann, theirs)
    pair.sync()
    assert pair.there(0) == pair.says(0) == []
    assert pair.label(0).state == "unlabeled"
    assert pair.differences() == []


@both_origins
def test_corrected_and_taken_back_here_alone(pair: Pair, people: People, origin: str) -> None:
    theirs, ours = _shared(pair, people, origin)
    corrected = pair.answer("ann", 0, "fear", supersedes=ours)
    pair.sync()
    assert pair.there(0) == [("ann", "fear")]
    pair.undo("ann", corrected)
    pair.sync()
    assert pair.there(0) == pair.says(0) == [("ann", "anger")]
    pair.undo("ann", ours)
    pair.sync()
    assert pair.there(0) == pair.says(0) == []
    assert pair.differences() == []
    assert [a["id"] for a in pair.studio.annotations(pair.link.project_id)] == []
    assert theirs > 0


def test_answered_on_both_sides_at_once(pair: Pair, people: People) -> None:
    pair.answer("ann", 0, "anger")
    pair.annotate(people.ann, 0, "fear")
    pair.answer("ann", 1, "anger")
    pair.annotate(people.ann, 1, "anger")
    pair.sync()
    assert pair.says(0) == pair.there(0) == [("ann", "anger"), ("ann", "fear")]
    assert pair.label(0).state == "disputed"
    assert pair.says(1) == pair.there(1) == [("ann", "anger")]
    assert pair.label(1).state == "labeled"
    assert pair.differences() == []


@pytest.mark.parametrize("names", [None, "fear", "disgust"])
def test_the_next_answer_here_settles_a_conflict(pair: Pair, people: People, names: str | None) -> None:
    theirs, ours = _shared(pair, people, "there")
    pair.edit(people.ann, theirs, "fear")
    pair.answer("ann", 0, "disgust", supersedes=ours)
    pair.sync()
    named = {a.classes[0]: a.id for a in pair.standing(0)}
    pair.answer("ann", 0, "neutral", supersedes=named.get(names or ""))
    pair.sync()
    assert pair.says(0) == pair.there(0) == [("ann", "neutral")]
    assert pair.label(0).state == "labeled"
    assert pair.store.exchange.conflicts(pair.link.id) == []
    assert pair.differences() == []


@pytest.mark.parametrize("which", ["fear", "disgust"])
def test_an_edit_there_of_one_voice_leaves_the_other(pair: Pair, people: People, which: str) -> None:
    theirs, ours = _shared(pair, people, "there")
    pair.edit(people.ann, theirs, "fear")
    pair.answer("ann", 0, "disgust", supersedes=ours)
    pair.sync()
    ids = [a["id"] for a in pair.studio.annotations(pair.link.project_id)]
    edited, kept = (ids[0], "disgust") if which == "fear" else (ids[1], "fear")
    pair.edit(people.ann, edited, "neutral")
    pair.sync()
    assert pair.says(0) == pair.there(0) == sorted([("ann", "neutral"), ("ann", kept)])
    assert pair.differences() == []
    pair.edit(people.ann, edited, kept)
    pair.sync()
    assert pair.label(0).state == "labeled"
    pair.studio.delete(people.ann, edited)
    pair.sync()
    assert pair.says(0) == pair.there(0) == [("ann", kept)]
    assert pair.differences() == []


def test_others_answers_are_none_of_a_conflict(pair: Pair, people: People) -> None:
    theirs, ours = _shared(pair, people, "there")
    pair.edit(people.ann, theirs, "fear")
    pair.answer("ben", 0, "disgust")
    pair.sync()
    assert pair.says(0) == pair.there(0) == [("ann", "fear"), ("ben", "disgust")]
    assert pair.store.exchange.conflicts(pair.link.id) == []
    assert pair.label(0).state == "disputed"
    assert pair.differences() == []
    assert ours > 0
