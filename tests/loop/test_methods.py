"""Several methods in one workspace: real rounds in turn, chains of their own, what serves, what is told of them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotator.errors import InputError, NotFoundError
from annotator.loop import signals
from annotator.loop.evaluate import evaluate_split
from annotator.loop.learn import Learner, opened
from annotator.loop.retrain import retrain_once
from annotator.loop.serving import choose
from annotator.records import Sight
from annotator.settings import Workspace
from annotator.status import workspace_status
from annotator.store import LabelStore
from tests.loop.conftest import answer_truth, current, make_workspace, tick_until
from tests.loop.test_signals import lists
from tests.zygote import Zygote

METHODS = ["supervised", "leaf", "remop+fixmatch"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, faces: Path, zygote: Zygote) -> Iterator[Workspace]:
    """A workspace after four rounds that a learner began by itself: one of each method, then the first again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotator.loop.training.start_child", zygote.start)
        patch.setattr("annotator.loop.learn.JOBS_SECONDS", 0.0)
        workspace = make_workspace(tmp_path_factory.mktemp("methods") / "ws", faces, methods=METHODS, new_labels=8)
        with opened(workspace) as learner:
            answer_truth(learner.store, 12)
            tick_until(learner, lambda: published(learner, 3) and not learner.runner.busy)
            for _ in range(5):
                learner.tick()
            assert not learner.runner.busy  # nobody has anything new to learn
            answer_truth(learner.store, 21, start=12)
            tick_until(learner, lambda: learner.runner.busy)
            patch.setattr(learner._rotation, "due", lambda *given: None)  # the others would follow
            tick_until(learner, lambda: published(learner, 4) and not learner.runner.busy)
        yield workspace


def published(learner: Learner, count: int) -> bool:
    return len(learner.store.learning.snapshots()) == count


def serving(store: LabelStore) -> list[str]:
    return [s.id for s in store.learning.snapshots() if s.serving]


def test_methods_take_turns_and_go_on_from_their_own_snapshots(trained: Workspace) -> None:
    with LabelStore.open(trained) as store:
        snapshots = store.learning.snapshots()
    names = ["supervised-0001", "leaf-0002", "remop+fixmatch-0003", "supervised-0004"]
    assert [s.id for s in snapshots] == names
    assert len({s.label_seq for s in snapshots[:3]}) == 1
    assert snapshots[3].label_seq > snapshots[2].label_seq
    states = [json.loads((trained.root / "snapshots" / n / "state.json").read_text()) for n in names]
    assert [s["round"] for s in states] == [0, 0, 0, 1]
    # three other steps than its own lie between, and none of them counts
    assert states[3]["lifetime_step"] == states[0]["lifetime_step"] + int(snapshots[3].metrics["steps"])
    # each keeps the newest reading of the pool
    whole = [n for n in names if (trained.root / "snapshots" / n / "features.npy").exists()]
    assert whole == names[1:]


def test_status_and_commands_name_every_chain(trained: Workspace) -> None:
    with LabelStore.open(trained) as store:
        told = workspace_status(trained, store)
        assert told["serving"] == {"snapshot": None, "chosen": None}
        assert {m: (t["snapshot"], t["rounds"]) for m, t in told["methods"].items()} == {
            "supervised": ("supervised-0004", 2),
            "leaf": ("leaf-0002", 1),
            "remop+fixmatch": ("remop+fixmatch-0003", 1),
        }
        assert all("val_overall" in t["metrics"] for t in told["methods"].values())
        report = evaluate_split(trained, store, "val")
    assert set(report.models) >= {f"snapshot {t['snapshot']}" for t in told["methods"].values()}
    models = subprocess.run(
        [sys.executable, "-m", "annotator", "models", str(trained.root)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert models[0] == "hog-1 serves (by people's answers)"
    assert models[1].startswith("supervised: supervised-0004, 2 rounds, overall 0.")


def test_what_a_person_chooses_serves_alone(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotator.loop.learn.JOBS_SECONDS", 0.0)
    monkeypatch.setattr("annotator.loop.rotation.Rotation.due", lambda *given: None)
    with opened(trained) as learner:
        store = learner.store

        def serves(name: str, encoder: str) -> None:
            choose(trained, store, name)
            tick_until(learner, lambda: current(trained, store).meta["encoder"] == encoder, 20)

        serves("leaf", "leaf-0002")
        assert serving(store) == ["leaf-0002"]
        assert current(trained, store).model_version.startswith("leaf-0002.")
        serves("remop+fixmatch-0003", "remop+fixmatch-0003")
        assert serving(store) == ["remop+fixmatch-0003"]
        monkeypatch.setattr(learner._contest, "hear", lambda *given: _Winner())
        learner.tick()
        assert serving(store) == ["remop+fixmatch-0003"]  # answers do not overrule a person
        serves("auto", "leaf-0002")  # and now they do
        serves("hog", "hog-1")
        assert serving(store) == []
        choose(trained, store, "auto")
        with pytest.raises(NotFoundError, match="lion"):
            choose(trained, store, "lion")
        with pytest.raises(InputError, match="pruned"):
            choose(trained, store, "supervised-0001")


class _Winner:
    """A case that its challenger has won."""

    snapshot_id = "leaf-0002"

    def summary(self) -> str:
        return "the test says so"


def test_columns_of_the_learner_are_those_that_are_read(trained: Workspace) -> None:
    folder, classes = trained.root / "snapshots", trained.settings.taxonomy.slugs
    leaf = pq.read_table(folder / "leaf-0002" / "signals.parquet").to_pydict()
    found = signals.load(folder / "leaf-0002", "leaf-0002", 99, classes)
    useful = {r: s for r, m, s in zip(leaf["row"], leaf["leaf_m"], leaf["leaf_set"], strict=True) if 2 <= m <= 4}
    assert found is not None
    assert dict(zip(found.open_rows.tolist(), found.open_sets.tolist(), strict=True)) == useful
    assert all(bin(s).count("1") == m for m, s in zip(leaf["leaf_m"], leaf["leaf_set"], strict=True))

    remop = pq.read_table(folder / "remop+fixmatch-0003" / "signals.parquet").to_pydict()
    with np.load(folder / "remop+fixmatch-0003" / "view.npz") as view:
        given = {r: y for r, y in zip(view["rows"].tolist(), view["given"].tolist(), strict=True) if y >= 0}
    lines = [i for i, row in enumerate(remop["row"]) if row in given]
    right = np.mean([int(np.argmax(remop["p"][i])) == given[remop["row"][i]] for i in lines])
    found = signals.load(folder / "remop+fixmatch-0003", "remop+fixmatch-0003", 99, classes)
    if right < signals.MIN_AGREEMENT:
        assert found is None
        return
    assert found is not None
    margins = {remop["row"][i]: max(remop["p"][i]) - remop["p"][i][given[remop["row"][i]]] for i in lines}
    apart = {remop["row"][i] for i in lines if remop["remop_disagree"][i]}
    far = {remop["row"][i] for i in lines if remop["remop_own_z"][i] > 3 and margins[remop["row"][i]] > 0}
    assert set(found.doubts[0].rows.tolist()) == apart | far


def test_doubts_and_open_sets_reach_the_queue(trained: Workspace) -> None:
    """Every method's word in one order: real snapshots whose columns are set to what the test knows."""
    with LabelStore.open(trained) as store:
        given = {r.row: trained.settings.taxonomy.index(r.label.classes[0]) for r in store.decisions.labels()}
    folder = trained.root / "snapshots"
    with np.load(folder / "remop+fixmatch-0003" / "view.npz") as view:
        weak, strong = view["rows"][:2].tolist()
    set_columns(folder / "remop+fixmatch-0003", remop_columns({weak: 0.2, strong: 0.6}, given))
    set_columns(folder / "leaf-0002", lambda rows: {"leaf_m": [2] * len(rows), "leaf_set": [0b11] * len(rows)})
    with opened(trained) as learner:
        learner.refresh()
        scores = current(trained, learner.store)
    assert scores.meta["signals"] == ["leaf-0002", "remop+fixmatch-0003"]
    reviews = [i for i in range(len(scores.order)) if scores.arm(i) == "review"]
    assert [int(scores.order[i]) for i in reviews] == [strong, weak]
    for i in reviews:
        row = int(scores.order[i])
        assert scores.seen[i] & Sight.TWO_READINGS
        assert int(scores.given[i]) == given[row]
        assert {trained.settings.classes[given[row]], trained.settings.classes[other(given[row])]} <= set(
            scores.candidate_slugs(i)
        )
    others = [i for i in range(len(scores.order)) if i not in reviews and not scores.blind[i]]
    assert others
    assert all(scores.seen[i] == Sight.OPEN_SET and scores.candidates[i] & 0b11 == 0b11 for i in others)
    assert not any(scores.seen[i] or scores.candidates[i] for i in range(len(scores.order)) if scores.blind[i])


def other(label: int) -> int:
    return (label + 1) % 8


def remop_columns(doubted: dict[int, float], given: dict[int, int]):  # type: ignore[no-untyped-def]
    """Columns of a model that reads every label as people did, but the doubted ones by these margins otherwise."""

    def columns(rows: list[int]) -> dict[str, object]:
        p = np.full((len(rows), 8), 0.02, np.float32)
        for i, row in enumerate(rows):
            label = given.get(row, 0)
            p[i, label] = 0.86
            if row in doubted:
                p[i, label], p[i, other(label)] = 0.44 - doubted[row] / 2, 0.44 + doubted[row] / 2
        read = p.argmax(axis=1).astype(np.uint8)
        apart = [row in doubted for row in rows]
        return {"p": lists(p.tolist()), "remop_disagree": apart, "remop_linear": read, "remop_feature": read}

    return columns


def set_columns(folder: Path, make) -> None:  # type: ignore[no-untyped-def]
    """Replace columns of a snapshot's signals."""
    table = pq.read_table(folder / "signals.parquet")
    for name, values in make(table["row"].to_pylist()).items():
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, folder / "signals.parquet")


def test_retraining_by_hand_goes_on_with_the_method_named(trained: Workspace) -> None:
    result = retrain_once(trained, method="leaf")
    assert (result.snapshot, result.new_labels) == ("leaf-0005", 9)
    state = json.loads((trained.root / "snapshots" / "leaf-0005" / "state.json").read_text())
    assert state["round"] == 1
    assert retrain_once(trained, if_new_labels=100).new_labels == 9  # remop+fixmatch has waited longest
