"""The referee: sums by hand, and a real contest between two feature sets."""

import math
import shutil
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from annotator import taxonomy
from annotator.features import EncoderInfo, FeatureShards
from annotator.loop.contest import Contest
from annotator.loop.referee import MIN_ANSWERS, Case, Tally, standing
from annotator.records import Annotation, Snapshot
from annotator.settings import Workspace

CLASSES = ("a", "b", "c")
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def test_mean_and_standard_error_by_hand() -> None:
    tally = Tally()
    tally.add(np.array([1.0, 2.0]))
    tally.add(np.array([3.0]))
    assert tally.mean == 2.0
    assert tally.standard_error == pytest.approx(math.sqrt(1.0 / 3))
    assert not tally.better  # three answers are not enough
    assert math.isinf(Tally(1, 1.0, 1.0).standard_error)


def test_better_means_by_more_than_one_standard_error() -> None:
    draw = np.random.default_rng(0)
    clear, unclear = Tally(), Tally()
    clear.add(draw.normal(0.5, 1.0, 100))
    unclear.add(np.tile([1.0, -0.98], 50))
    assert clear.better
    assert unclear.mean > 0
    assert not unclear.better


def annotation(seq: int, row: int, *classes: str, arm: str | None = "random", kind: str = "label") -> Annotation:
    return Annotation(
        id=seq,
        seq=seq,
        client_id=f"client-{seq}",
        row=row,
        image_id=str(row),
        user_id=1,
        user_name="u",
        kind=kind,  # type: ignore[arg-type]
        classes=classes,
        confidence=None,
        note=None,
        duration_ms=None,
        supersedes=None,
        source="ui",
        lease_id=None,
        late=False,
        duplicate=False,
        mismatch=False,
        blind=False,
        adjudicates=False,
        model_version=None,
        arm=arm,
        suggestions=(),
        votes=None,
        created_at=datetime.now(UTC),
    )


@pytest.fixture
def contest(tmp_path: Path) -> tuple[Path, FeatureShards, np.ndarray]:
    """A snapshot whose features tell three classes apart, served features that are noise."""
    draw = np.random.default_rng(0)
    truth = np.arange(200) % 3
    shards = FeatureShards.create(tmp_path / "hog-1", EncoderInfo("hog-1", "hog", 6, 48))
    shards.append(0, draw.normal(size=(200, 6)).astype(np.float16))
    folder = tmp_path / "lion-0001"
    folder.mkdir()
    np.save(folder / "rows.npy", np.arange(200))
    np.save(folder / "features.npy", (np.eye(3, 6)[truth] + draw.normal(scale=0.2, size=(200, 6))).astype(np.float16))
    allowed = np.eye(3, dtype=bool)[truth[:60]]
    np.savez(
        folder / "view.npz",
        label_seq=60,
        rows=np.arange(60),
        allowed=allowed,
        target=allowed.astype(np.float32),
        given=truth[:60],
    )
    return folder, shards, truth


def test_better_features_win_on_answers_given_afterwards(contest: tuple[Path, FeatureShards, np.ndarray]) -> None:
    folder, shards, truth = contest
    case = Case(folder, shards, CLASSES)
    later = [annotation(61 + i, 60 + i, CLASSES[truth[60 + i]]) for i in range(MIN_ANSWERS)]
    case.hear(later[:-1], {})
    assert not case.tally.better  # one answer short
    case.hear(later, {})
    assert case.tally.count == MIN_ANSWERS  # answers heard twice count once
    assert case.tally.better
    again = Case(folder, shards, CLASSES)
    assert (again.tally.count, again.heard_seq) == (MIN_ANSWERS, 60 + MIN_ANSWERS)


def test_every_method_stands_and_the_best_wins(contest: tuple[Path, FeatureShards, np.ndarray], tmp_path: Path) -> None:
    folder, shards, truth = contest
    workspace = Workspace.create(tmp_path / "ws", taxonomy.custom("mine", list(CLASSES)))
    for name in ("lion-0001", "leaf-0002", "lion-0003"):
        shutil.copytree(folder, workspace.folder("snapshots") / name)
    draw = np.random.default_rng(1)
    noisy = np.eye(3, 6)[truth] + draw.normal(scale=0.8, size=(200, 6))
    np.save(workspace.root / "snapshots" / "leaf-0002" / "features.npy", noisy.astype(np.float16))
    lion, leaf, newer = (Snapshot(n, n[:4], 60, {}, NOW, False) for n in ("lion-0001", "leaf-0002", "lion-0003"))
    said = [annotation(61 + i, 60 + i, CLASSES[truth[60 + i]]) for i in range(60)]
    arena = Contest(workspace)

    def hear(upto: int) -> Case | None:
        """Hear answers up to this number, those missed while a case was opened included."""
        for opening in arena._opening.values():
            wait([opening.case])
        return arena.hear(said[:upto], lambda seq: [a for a in said[:upto] if a.seq > seq], {})

    arena.enter([lion, leaf], shards)
    assert hear(MIN_ANSWERS - 10) is None
    arena.enter([leaf, newer], shards)  # a second round of lion: what the first has shown still counts, once
    assert hear(MIN_ANSWERS - 10) is None
    assert {m: c.tally.count for m, c in arena._cases.items()} == {"lion": 20, "leaf": 20}
    best = hear(MIN_ANSWERS + 10)
    assert best is not None
    assert best.snapshot_id == "lion-0003"
    assert all(case.tally.better for case in arena._cases.values())  # leaf beats noise too, by less
    assert best.tally.count == MIN_ANSWERS + 10
    told = standing(workspace.root / "snapshots" / "lion-0003", "hog-1")
    assert told is not None
    assert told.summary() == best.tally.summary()
    assert standing(workspace.root / "snapshots" / "lion-0003", "hog-2") is None
    arena.enter([leaf], FeatureShards(shards.folder))  # lion is out
    assert list(arena._cases) == ["leaf"]
    (workspace.root / "snapshots" / "lion-0003" / "view.npz").write_bytes(b"damaged")
    (workspace.root / "snapshots" / "lion-0003" / "referee.json").unlink()
    arena.enter([leaf, newer], shards)
    hear(60)
    assert list(arena._cases) == ["leaf"]  # a damaged snapshot cannot stand, and the others go on
    arena.close()


def test_only_fair_answers_on_unseen_faces_count(contest: tuple[Path, FeatureShards, np.ndarray]) -> None:
    folder, shards, _ = contest
    case = Case(folder, shards, CLASSES)
    case.hear(
        [
            annotation(50, 70, "a"),  # before the labels were frozen
            annotation(61, 10, "a"),  # a face it was trained on
            annotation(62, 71, "a", arm="uncertain"),  # picked because the serving model was unsure
            annotation(63, 72, kind="unusable"),
            annotation(64, 73, "a", "b", "c", kind="candidates"),  # says nothing
            annotation(65, 74, "a", "b", kind="candidates"),
            annotation(66, 74, "a"),  # the same face again
            annotation(67, 199, "c"),  # a copy of the face on row 75
        ],
        {199: 75},
    )
    assert case.tally.count == 2
    assert case.heard_seq == 67
