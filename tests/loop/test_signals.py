"""What methods say of single faces, from tables as the learner writes them to keys and sentences."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.errors import WorkspaceError
from annotator.loop import signals
from annotator.loop.signals import Board
from annotator.records import Sight, Snapshot
from tests.loop.test_rotation import NOW, labels

CLASSES = ("a", "b", "c", "d")
BOTH = int(Sight.TWO_READINGS | Sight.OUTLIER)


def snapshot_folder(root: Path, columns: dict[str, object], given: dict[int, int], name: str = "x-0001") -> Path:
    """A snapshot folder with a signals table of these columns and the labels that it was trained on."""
    folder = root / name
    folder.mkdir(parents=True)
    table = pa.table({k: v if isinstance(v, pa.Array) else pa.array(v) for k, v in columns.items()})
    pq.write_table(table.replace_schema_metadata({"classes": ",".join(CLASSES)}), folder / "signals.parquet")
    np.savez(folder / "view.npz", rows=np.array(list(given), np.int64), given=np.array(list(given.values()), np.int64))
    return folder


def lists(p: list[list[float]]) -> pa.Array:
    flat = np.asarray(p, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


REMOP = {
    "row": [3, 1, 0, 2, 4],
    "p": lists(
        [
            [0.1, 0.1, 0.1, 0.7],  # row 3, labeled d
            [0.2, 0.5, 0.2, 0.1],  # row 1, labeled b
            [0.7, 0.1, 0.1, 0.1],  # row 0, labeled a
            [0.5, 0.3, 0.1, 0.1],  # row 2, labeled c
            [0.4, 0.3, 0.2, 0.1],  # row 4, unlabeled
        ]
    ),
    "remop_disagree": [False, True, False, True, True],
    "remop_linear": np.array([3, 1, 0, 1, 0], np.uint8),
    "remop_feature": np.array([3, 2, -1, 0, 1], np.int8),
    "remop_own_z": np.array([9.0, 0.0, 0.5, 3.5, np.nan], np.float32),
}
GIVEN = {0: 0, 1: 1, 2: 2, 3: 3}


def test_two_readings_that_disagree_put_a_label_up_by_its_margin(tmp_path: Path) -> None:
    found = signals.load(snapshot_folder(tmp_path, REMOP, GIVEN), "x-0001", 9, CLASSES)
    assert found is not None
    (doubts,) = found.doubts
    assert doubts.rows.tolist() == [1, 2]  # 3 lies far out but is read as its label says; nobody has labeled 4
    np.testing.assert_allclose(doubts.margin, [0.0, 0.4], atol=1e-6)
    assert doubts.sets.tolist() == [0b0110, 0b0011]  # what was read: linear, feature, and mixed
    assert doubts.seen.tolist() == [int(Sight.TWO_READINGS), BOTH]
    said = Board((found,)).doubted(labels(1, 2, 3, 4))
    assert np.isnan(said.margin).tolist() == [True, False, True, True]  # the others' labels have changed since


def test_an_outlier_that_is_read_otherwise_is_doubted_without_disagreement(tmp_path: Path) -> None:
    apart = REMOP | {"remop_disagree": [False] * 5}
    found = signals.load(snapshot_folder(tmp_path, apart, GIVEN), "x-0001", 9, CLASSES)
    assert found is not None
    (doubts,) = found.doubts
    assert doubts.rows.tolist() == [2]
    assert doubts.seen.tolist() == [int(Sight.OUTLIER)]


def test_a_model_that_cannot_read_its_own_labels_doubts_none(tmp_path: Path) -> None:
    wrong = {0: 1, 1: 3, 2: 2, 3: 3}  # one of four is read as labeled
    assert signals.load(snapshot_folder(tmp_path, REMOP, wrong), "x-0001", 9, CLASSES) is None


def test_lion_offers_its_ambiguous_labels_and_their_sets(tmp_path: Path) -> None:
    columns = {
        "row": [0, 1, 2, 3],
        "lion_ambiguous_margin": [True, False, True, True],
        "lion_label_margin": np.array([0.3, 0.9, np.nan, 0.2], np.float32),
        "lion_candidates": pa.array([0b0011, 0b0001, 0b0001, None], pa.int64()),
    }
    found = signals.load(snapshot_folder(tmp_path, columns, GIVEN), "x-0001", 9, CLASSES)
    assert found is not None
    (doubts,) = found.doubts
    assert doubts.rows.tolist() == [0, 3]
    assert doubts.sets.tolist() == [0b0011, 0]
    assert doubts.seen.tolist() == [int(Sight.DOUBT)] * 2


def test_leaf_offers_sets_that_narrow_something_down(tmp_path: Path) -> None:
    columns = {
        "row": [2, 0, 1],
        "leaf_m": np.array([2, 1, 3], np.uint8),
        "leaf_set": np.array([0b0101, 0b0001, 0b0111], np.int64),
    }
    found = signals.load(snapshot_folder(tmp_path, columns, {}), "x-0001", 9, CLASSES)
    assert found is not None
    assert found.doubts == ()
    # one class is no choice, and three of four say little
    assert Board((found,)).open_sets(np.array([0, 1, 2, 3])).tolist() == [0, 0, 0b0101, 0]


def test_the_board_joins_methods_and_drops_what_people_have_answered_since(tmp_path: Path) -> None:
    lion = {
        "row": [0, 1, 2],
        "lion_ambiguous_margin": [True, True, True],
        "lion_label_margin": [0.3, 0.1, 0.2],
        "lion_candidates": [0b0001, 0b0010, 0b0100],
    }
    given = {0: 0, 1: 1, 2: 0}
    remop = REMOP | {"remop_disagree": [False, False, False, True, False]}
    snapshot_folder(tmp_path, lion, given, "lion-0001")
    snapshot_folder(tmp_path, remop, given, "remop+fixmatch-0002")
    (tmp_path / "leaf-0003").mkdir()  # says nothing
    newest = [
        Snapshot(n, n[:-5], 3, {}, NOW, False) for n in ("lion-0001", "remop+fixmatch-0002", "leaf-0003", "gone-1")
    ]
    board = signals.read(tmp_path, newest, CLASSES)
    assert board.snapshots == ["lion-0001", "remop+fixmatch-0002"]
    said = board.doubted(labels(1, 4, 3))  # 1 was answered after both snapshots
    np.testing.assert_allclose(said.margin, [0.3, np.nan, 0.2])  # the larger margin: remop reads 2 as labeled
    assert said.sets.tolist() == [0b0001, 0, 0b0111]
    assert said.seen.tolist() == [int(Sight.DOUBT), 0, int(Sight.DOUBT | BOTH)]


def test_signals_of_another_class_list_are_left_alone(tmp_path: Path) -> None:
    assert signals.load(snapshot_folder(tmp_path, REMOP, GIVEN), "x-0001", 9, ("b", "a", "c", "d")) is None


def test_a_damaged_table_is_named_and_the_others_speak(tmp_path: Path) -> None:
    folder = snapshot_folder(tmp_path, REMOP, GIVEN)
    (folder / "signals.parquet").write_bytes(b"no table")
    with pytest.raises(WorkspaceError, match="damaged"):
        signals.load(folder, "x-0001", 9, CLASSES)
    assert signals.read(tmp_path, [Snapshot("x-0001", "x", 9, {}, NOW, False)], CLASSES).snapshots == []


def test_random_tables_against_a_plain_loop(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(40):
        count, k = 30, len(CLASSES)
        rows = draw.permutation(100)[:count]
        p = draw.dirichlet(np.ones(k), count).astype(np.float32)
        given = {int(r): int(p[i].argmax() if draw.random() < 0.7 else draw.integers(k)) for i, r in enumerate(rows)}
        given = {r: y for r, y in given.items() if draw.random() < 0.6}
        apart, z = draw.random(count) < 0.3, draw.normal(2, 2, count).astype(np.float32)
        linear, feature = (draw.integers(0, k, count).astype(np.int8) for _ in range(2))
        columns = {"row": rows, "p": lists(p.tolist()), "remop_disagree": apart, "remop_own_z": z}
        columns |= {"remop_linear": linear, "remop_feature": feature}
        folder = snapshot_folder(tmp_path, columns, given, f"x-{number:04d}")
        expected = {}
        for i, row in enumerate(rows.tolist()):
            if row in given:
                margin = float(p[i].max() - p[i][given[row]])
                if apart[i] or (z[i] > 3 and margin > 0):
                    expected[row] = (margin, 1 << int(linear[i]) | 1 << int(feature[i]) | 1 << int(p[i].argmax()))
        found = signals.load(folder, "x", 9, CLASSES)
        assert found is not None
        (doubts,) = found.doubts
        assert doubts.rows.tolist() == sorted(expected)
        np.testing.assert_allclose(doubts.margin, [expected[r][0] for r in sorted(expected)], rtol=1e-6)
        assert doubts.sets.tolist() == [expected[r][1] for r in sorted(expected)]
