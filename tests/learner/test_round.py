"""Rounds: killed, stopped, continued by the next one. Real child processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError, safe_open

from learner import checkpoint, snapshot
from learner.config import RunConfig
from learner.errors import CheckpointError, DivergedError, InputError
from learner.keepers.prototypes import Prototypes
from learner.parts import Event
from learner.round import RunFiles, run_round
from learner.trainer import Trainer
from tests.learner.runs import CLASSES, first_labels, small_config, view_of, write_run

METHODS = {
    "supervised": {},
    "fixmatch": {"threshold": 0.3},
    "lion": {
        "reliable": 0.3,
        "warmup_steps": 5,
        "labels": {"min_visits": 1},
        "bank": {"delta": 0.24, "release_above": 0.5},
    },
}


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in ("model", "state"):
        with safe_open(out / f"{name}.safetensors", framework="pt") as file:
            tensors |= {f"{name}/{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = tensors_of(one), tensors_of(other)
    assert mine.keys() == theirs.keys()
    different = [k for k in mine if not torch.equal(mine[k], theirs[k])]
    assert different == []
    for name in ("probs", "features", "rows"):
        assert (np.load(one / f"{name}.npy") == np.load(other / f"{name}.npy")).all()
    assert (one / "signals.parquet").read_bytes() == (other / "signals.parquet").read_bytes()


def saved_step(run: Path) -> int:
    path = run / "checkpoint" / "state.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["meta"])["step"])
    except (OSError, RuntimeError, SafetensorError):  # replaced between two looks at it
        return -1


def child_until(run: Path, step: int, how: signal.Signals) -> int:
    """Start the round as a process, send a signal once `step` steps are saved, return the exit code."""
    child = subprocess.Popen(
        [sys.executable, "-m", "learner", "round", str(run)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while saved_step(run) < step and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(how)
        return child.wait(60)
    finally:
        child.kill()


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_kill_and_resume_equal_forty(tmp_path: Path, method: str) -> None:
    config = small_config(method=method, options=METHODS[method], steps=40, checkpoint_every=5)
    straight = write_run(tmp_path / "straight", config, first_labels())
    killed = write_run(tmp_path / "killed", config, first_labels())
    assert child_until(killed, 20, signal.SIGKILL) == -signal.SIGKILL
    assert 20 <= saved_step(killed) < 40
    assert not (killed / "out").exists()
    run_round(killed)
    run_round(straight)
    assert_same(killed / "out", straight / "out")
    state = tensors_of(straight / "out")
    if method == "lion":
        assert (state["state/keeper/prototypes/counts:class0"] > 0).any(), "the keepers must have had something to keep"


def test_a_request_to_stop_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    config = small_config(method="fixmatch", options=METHODS["fixmatch"], steps=400, checkpoint_every=10)
    run = write_run(tmp_path / "run", config, first_labels())
    assert child_until(run, 20, signal.SIGTERM) == 0
    stopped = saved_step(run)
    assert 20 <= stopped < 400
    assert not (run / "out").exists()
    assert json.loads((run / "progress.json").read_text())["state"] == "training"
    files = RunFiles.read(run)
    made = snapshot.assemble(files.config, len(CLASSES))
    trainer = Trainer(files.config, made.recipe, made.network, files.data)
    trainer.load(*checkpoint.load(run / "checkpoint" / "state.safetensors"))
    assert trainer.step == stopped


def test_the_result_holds_everything_that_was_agreed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_config(method="lion", steps=6), first_labels())
    out = run_round(run)
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "state.safetensors",
        "state.json",
        "config.json",
        "metrics.json",
        "signals.parquet",
        "rows.npy",
        "features.npy",
        "probs.npy",
    }
    probs, features = np.load(out / "probs.npy"), np.load(out / "features.npy")
    assert probs.shape == (120, len(CLASSES))
    assert probs.dtype == np.float32
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert features.shape == (120, 256)
    assert features.dtype == np.float16
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["val"]["num"] == 40
    assert metrics["counts"] == {
        "labeled": 20,
        "single_label": 20,
        "unlabeled": 60,
        "predicted": 120,
        "per_class": dict.fromkeys(CLASSES, 5),
    }
    assert metrics["steps_per_second"] > 0
    progress = json.loads((run / "progress.json").read_text())
    assert (progress["state"], progress["step"], progress["progress"]) == ("done", 6, 1.0)
    table = pq.read_table(out / "signals.parquet")
    assert {"row", "p", "pred", "conf", "margin", "entropy", "view_disagree", "view_js"} <= set(table.column_names)
    assert any(name.startswith("lion_") for name in table.column_names)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run_round(run) == out
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before, "a finished round is not run again"


def next_trainer(run: Path) -> Trainer:
    files = RunFiles.read(run)
    made = snapshot.assemble(files.config, len(files.data.view.classes))
    return Trainer(files.config, made.recipe, made.network, files.data)


class Listener:
    """A keeper that only writes down what it is told."""

    name = "listener"

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.heard.append(event)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass


def test_a_warm_start_continues_the_model_and_tells_what_people_did(tmp_path: Path) -> None:
    first = write_run(
        tmp_path / "first", small_config(steps=8), view_of([0, 1, 2, 3, 4], [0, 1, 2, 3, 0], stamps=[1, 2, 3, 4, 5])
    )
    out = run_round(first)
    # 0 stands; 1 is corrected; 2 is confirmed by a new answer; 3 is undone; 9 is new; 5 leaves the pool, 90 joins it.
    later = view_of([0, 1, 2, 4, 9], [0, 2, 2, 0, 1], stamps=[1, 7, 8, 5, 9])
    pool = [row for row in range(80) if row != 5] + [90]
    second = write_run(tmp_path / "second", small_config(steps=8), later, previous=out, pool=pool)
    trainer = next_trainer(second)
    listener = Listener()
    object.__setattr__(trainer.recipe, "keepers", [listener])
    tensors = tensors_of(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_keepers", lambda state: None)
        snapshot.warm_start(trainer, out)
    assert listener.heard == [
        Event("sample_added", 90),
        Event("sample_removed", 5),
        Event("label_changed", 1, old=1, new=2),
        Event("label_changed", 2, old=2, new=2),
        Event("label_removed", 3, old=3),
        Event("labelled", 9, new=1),
        Event("round_started", new=1),
    ]
    assert (trainer.round, trainer.lifetime_start) == (1, 8)
    for key, value in trainer.raw.state_dict().items():
        assert torch.equal(value, tensors[f"state/student/{key}"])
    for key, value in trainer.ema.network.state_dict().items():
        assert torch.equal(value, tensors[f"model/{key}"])


def visits_of(state: dict[str, torch.Tensor], prefix: str = "") -> dict[int, int]:
    base = f"{prefix}keeper/disambiguator"
    return dict(zip(state[f"{base}/rows"].tolist(), state[f"{base}/visits"].tolist(), strict=True))


def test_events_reach_the_learned_state_once_even_when_killed_after_the_first_checkpoint(tmp_path: Path) -> None:
    config = small_config(method="lion", options=METHODS["lion"], steps=20)
    out = run_round(write_run(tmp_path / "first", config, first_labels()))
    before = visits_of(tensors_of(out), "state/")
    assert before == dict.fromkeys(range(20), 8)  # 20 steps of 8 over 20 labels
    later = view_of(list(range(20)), [1, *[row % 4 for row in range(1, 20)]], stamps=[50, *range(2, 21)])
    config = config.replace(steps=20, checkpoint_every=4)
    straight = write_run(tmp_path / "straight", config, later, previous=out)
    killed = write_run(tmp_path / "killed", config, later, previous=out)
    assert child_until(killed, 0, signal.SIGKILL) == -signal.SIGKILL
    run_round(killed)
    run_round(straight)
    assert_same(killed / "out", straight / "out")
    after = visits_of(tensors_of(killed / "out"), "state/")
    assert after == {0: 8, **dict.fromkeys(range(1, 20), 16)}, "a correction starts the count anew, once"
    assert json.loads((killed / "out" / "state.json").read_text())["lifetime_step"] == 40


def test_another_class_order_moves_heads_and_keepers_by_name(tmp_path: Path) -> None:
    config = small_config(method="lion", options=METHODS["lion"], steps=20)
    out = run_round(write_run(tmp_path / "first", config, first_labels()))
    order = (CLASSES[2], "new", CLASSES[0], CLASSES[1], CLASSES[3])
    given = [order.index(CLASSES[row % 4]) for row in range(20)]
    second = write_run(tmp_path / "second", config, view_of(list(range(20)), given, order), previous=out)
    trainer = next_trainer(second)
    snapshot.warm_start(trainer, out)
    old = tensors_of(out)
    place = [order.index(name) for name in CLASSES]
    assert torch.equal(trainer.raw.head.weight[place], old["state/student/head.weight"])
    assert torch.equal(trainer.ema.network.head.bias[place], old["model/head.bias"])
    assert trainer.raw.head.weight[1].abs().max() < 0.1
    state = trainer.keeper_state()
    assert torch.equal(state["keeper/prototypes/vectors:class0"][place], old["state/keeper/prototypes/vectors:class0"])
    run_round(second)


@pytest.mark.parametrize("method", ["loop", "leaf_official", "remop_official"])
def test_another_class_order_changes_no_reading(tmp_path: Path, method: str) -> None:
    """Experts on logits and class centres have class axes of their own; the new order must reach them all."""
    config = small_config(method=method, steps=12)
    out = run_round(write_run(tmp_path / "first", config, first_labels()))
    order = (CLASSES[2], CLASSES[0], CLASSES[1], CLASSES[3])
    given = [order.index(CLASSES[row % 4]) for row in range(20)]
    second = write_run(tmp_path / "second", config, view_of(list(range(20)), given, order), previous=out)
    trainer = next_trainer(second)
    snapshot.warm_start(trainer, out)
    *_, p = trainer._read_rows(np.arange(30), "x")
    place = [order.index(name) for name in CLASSES]
    before = torch.from_numpy(np.load(out / "probs.npy")[:30])
    torch.testing.assert_close(p[:, place], before, atol=1e-5, rtol=1e-4)
    assert (before - before[:, place]).abs().max() > 1e-3, "the classes must not read alike"


@pytest.mark.parametrize(("first", "then"), [("loop", "fixmatch"), ("fixmatch", "loop")])
def test_another_method_keeps_backbone_and_head(tmp_path: Path, first: str, then: str) -> None:
    out = run_round(write_run(tmp_path / "first", small_config(method=first, steps=4), first_labels()))
    second = write_run(tmp_path / "second", small_config(method=then, steps=4), first_labels(), previous=out)
    config = RunFiles.read(second).config
    assert snapshot.assemble(config, 4).recipe.feature_norm == "l2"
    trainer = next_trainer(second)
    snapshot.warm_start(trainer, out)
    old = tensors_of(out)
    mine = trainer.raw.state_dict()
    assert all(torch.equal(mine[k], old[f"state/student/{k}"]) for k in mine if k.startswith(("backbone.", "head.")))
    assert (trainer.round, trainer.lifetime_step) == (1, 4)
    run_round(second)


def test_other_feature_adapters_start_prototypes_and_centers_again_from_labels(tmp_path: Path) -> None:
    labels = {"labels": {"clear": 0.01}}
    first = small_config(method="loop", steps=4, options=labels)
    out = run_round(write_run(tmp_path / "first", first, first_labels()))
    saved = tensors_of(out)
    for name, options, kept in (("same", labels, True), ("other", labels | {"eaf": {"semantic": False}}, False)):
        config = small_config(method="loop", steps=4, options=options)
        trainer = next_trainer(write_run(tmp_path / name, config, first_labels(), previous=out))
        snapshot.warm_start(trainer, out)
        prototypes = next(keeper for keeper in trainer.recipe.keepers if isinstance(keeper, Prototypes))
        assert bool(prototypes.is_set.any()) == kept
        for network in (trainer.raw, trainer.ema.network):
            assert bool(network.state_dict()["parts.centers.is_set"].any()) == kept
        trainer._surveys()
        assert trainer.raw.state_dict()["parts.centers.is_set"].all()
        same = torch.equal(
            trainer.raw.state_dict()["parts.centers.vectors"], saved["state/student/parts.centers.vectors"]
        )
        assert same == kept


def test_a_keeper_that_other_options_bring_starts_with_this_round(tmp_path: Path) -> None:
    first = small_config(method="softmatch", steps=4, options={"align": False})
    out = run_round(write_run(tmp_path / "first", first, first_labels()))
    run = write_run(tmp_path / "second", small_config(method="softmatch", steps=4), first_labels(), previous=out)
    trainer = next_trainer(run)
    snapshot.warm_start(trainer, out)
    state = trainer.keeper_state()
    assert torch.equal(state["keeper/alignment/model:class0"], torch.full((4,), 0.25))
    assert torch.equal(state["keeper/confidence_moments/mean"], tensors_of(out)["state/keeper/confidence_moments/mean"])
    run_round(run)


def test_another_backbone_starts_anew(tmp_path: Path) -> None:
    out = run_round(write_run(tmp_path / "first", small_config(steps=3), first_labels()))
    config = small_config(steps=3, backbone={"name": "resnet10t"})
    done = run_round(write_run(tmp_path / "second", config, first_labels(), previous=out))
    meta = json.loads((done / "state.json").read_text())
    assert (meta["round"], meta["lifetime_step"]) == (0, 3)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_config(steps=5), first_labels())
    trainer = next_trainer(run)
    tensors, meta = trainer.state()
    with pytest.raises(CheckpointError, match="another classes"):
        trainer.load(tensors, {**meta, "classes": ["x"]})
    with pytest.raises(CheckpointError, match="another config"):
        trainer.load(tensors, {**meta, "config": {}})


def test_a_diverging_run_stops_and_names_the_loss(tmp_path: Path) -> None:
    config = small_config(steps=40, optimizer={"name": "sgd", "lr": 1e30})
    run = write_run(tmp_path / "run", config, first_labels())
    with pytest.raises(DivergedError, match=r"supervised.*not finite"):
        run_round(run)
    assert json.loads((run / "progress.json").read_text())["state"] == "failed"
    assert not (run / "out").exists()


def test_a_broken_run_folder_is_an_input_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_config(), first_labels())
    (run / "unlabeled.npy").unlink()
    with pytest.raises(InputError, match="no complete run folder"):
        run_round(run)
    np.save(run / "unlabeled.npy", np.array([0, 50]))
    with pytest.raises(InputError, match=r"labeled and unlabeled at once, first \[0\]"):
        run_round(run)


def test_with_every_face_labeled_training_goes_on(tmp_path: Path) -> None:
    view = view_of(list(range(12)), [row % 4 for row in range(12)])
    run = write_run(tmp_path / "run", small_config(method="lion", steps=4), view, pool=list(range(12)))
    assert (run_round(run) / "metrics.json").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_twenty_steps_and_another_seed_others(tmp_path: Path, method: str) -> None:
    def losses(name: str, **changes: object) -> tuple[list[dict[str, float]], Trainer]:
        config: RunConfig = small_config(method=method, options=METHODS[method], log_every=1, **changes)
        trainer = next_trainer(write_run(tmp_path / name, config, first_labels()))
        return [trainer.logs for _ in trainer.steps()], trainer

    one, trainer = losses("one")
    again, other = losses("again")
    assert len(one) == 20
    assert one == again
    assert all(torch.equal(a, b) for a, b in zip(trainer.raw.parameters(), other.raw.parameters(), strict=True))
    assert losses("seeded", seed=1)[0] != one
    # The head starts near zero, so that the first loss is that of knowing nothing, ln 4.
    assert one[0]["supervised"] == pytest.approx(np.log(4), abs=0.25)


def test_weight_decay_never_touches_buffers(tmp_path: Path) -> None:
    config = small_config(optimizer={"lr": 1e-12, "weight_decay": 1.0})
    trainer = next_trainer(write_run(tmp_path / "run", config, first_labels()))
    buffers = {id(b) for b in trainer.raw.buffers()}
    optimised = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert not buffers & {id(p) for p in optimised}
    assert {id(p) for p in optimised} == {id(p) for p in trainer.raw.parameters()}
