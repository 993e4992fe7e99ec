"""LEAF in whole rounds: resuming, columns in files, joining a trained host, following the class list."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from learner import snapshot
from learner.models import run
from learner.round import RunFiles, run_round
from learner.trainer import Trainer
from tests.learner.runs import CLASSES, first_labels, small_config, view_of, write_run

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "leaf": ("leaf", {}),
    "strong_to_weak": ("leaf", {"ambiguity": {"direction": "strong_to_weak"}, "forward_mode": "separate"}),
    "category": ("eaf+fixmatch", {"threshold": 0.3, "eaf": {"category": True}}),
}


def small_run(folder: Path, variant: str) -> Path:
    method, options = VARIANTS[variant]
    config = small_config(method=method, options=options, steps=6, predict_views="strong")
    return write_run(folder, config, first_labels(), num=40, held=8)


def trainer_of(run_folder: Path) -> Trainer:
    files = RunFiles.read(run_folder)
    made = snapshot.assemble(files.config, 4)
    trainer = Trainer(files.config, made.recipe, made.network, files.data)
    snapshot.begin(trainer)
    return trainer


@pytest.mark.parametrize("variant", ["strong_to_weak", "category"])
def test_half_and_half_is_the_whole_bit_for_bit(tmp_path: Path, variant: str) -> None:
    folder = small_run(tmp_path / "run", variant)
    whole, first, second = (trainer_of(folder) for _ in range(3))
    list(whole.steps())
    for done in first.steps():
        if done == 3:
            break
    second.load(*first.state())
    list(second.steps())
    mine, theirs = whole.state()[0], second.state()[0]
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert math.isfinite(whole.logs["ambiguous"])
    assert whole.logs["ambiguous/classes"] >= 1
    for level in ("semantic", "instance"):
        assert sum(whole.logs[f"gate_{level}/{j}"] for j in range(4)) == pytest.approx(1, abs=1e-4)


def test_a_round_writes_the_columns_and_its_snapshot_reads_back(tmp_path: Path) -> None:
    out = run_round(small_run(tmp_path / "run", "leaf"))
    table = pq.read_table(out / "signals.parquet")
    names = {name for name in table.column_names if name.startswith("leaf_")}
    assert names == {
        "leaf_m",
        "leaf_set",
        "leaf_coverage",
        "leaf_loss",
        "leaf_top_expert",
        "leaf_gate_entropy_sem",
        "leaf_gate_entropy_inst",
    }
    assert str(table.schema.field("leaf_set").type) == "int64"
    assert str(table.schema.field("leaf_m").type) == "uint8"
    assert snapshot.load(out).network.logit_adapters[0].experts.width == 4  # type: ignore[union-attr]
    assert json.loads((out / "state.json").read_text())["method"] == "leaf"


def test_experts_join_a_trained_host_without_changing_what_it_says(tmp_path: Path) -> None:
    config = small_config(method="fixmatch", steps=3)
    out = run_round(write_run(tmp_path / "host", config, first_labels(), num=40, held=8))
    trainer = trainer_of(small_run(tmp_path / "next", "category"))
    snapshot.warm_start(trainer, out)
    x = torch.randn(4, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(run(trainer.ema.network, x).z, run(snapshot.load(out).network.eval(), x).z)


@pytest.mark.parametrize("kind", ["residual", "linear"])
def test_experts_on_logits_follow_the_class_list(tmp_path: Path, kind: str) -> None:
    options = {"experts": {"kind": kind, "zero_init": False}}
    config = small_config(method="leaf", options=options, steps=2)
    out = run_round(write_run(tmp_path / "first", config, first_labels(), num=40, held=8))
    old = snapshot.load(out)
    x = torch.randn(4, 3, 24, 24)
    for number, classes in enumerate((CLASSES[::-1], ("novel", *CLASSES[::-1]))):
        labels = view_of(list(range(8)), [classes.index(CLASSES[row % 4]) for row in range(8)], classes)
        folder = write_run(tmp_path / f"next{number}", config, labels, num=40, held=8)
        files = RunFiles.read(folder)
        made = snapshot.assemble(files.config, len(classes))
        trainer = Trainer(files.config, made.recipe, made.network, files.data)
        snapshot.warm_start(trainer, out)
        with torch.no_grad():
            now, before = run(trainer.ema.network, x), run(old.network.eval(), x)
        if len(classes) == 4:
            torch.testing.assert_close(now.z, before.z.flip(1))
        else:
            gate = trainer.ema.network.logit_adapters[0].experts.gate
            torch.testing.assert_close(gate[1:], old.network.logit_adapters[0].experts.gate.flip(0))  # type: ignore[union-attr, operator, index]
        torch.testing.assert_close(now.f, before.f)
