import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from learner.errors import DivergedError, InputError
from learner.pretrain.encoder import FaceEncoder
from learner.pretrain.loop import ENCODER, Pretraining, rate, run_pretraining
from learner.round import Reporter, StoppedError
from tests.learner.pretrain.faces import SIZE, small_config, write_pretraining
from tests.learner.runs import patterns


class Asked:
    """Says stop at the given step."""

    def __init__(self, run_after: int) -> None:
        self.left = run_after

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def train_until(folder, config, checks: int) -> None:
    run = Pretraining(folder, config, Reporter(folder, config.steps), Asked(checks))
    with pytest.raises(StoppedError):
        run.train()


@pytest.mark.parametrize("terms", [{"hog": 1.0}, {"simclr": 1.0, "maskfeat": 1.0}])
def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(tmp_path, terms):
    config = small_config(terms={"weights": terms, "target_dim": 8})
    straight = run_pretraining(write_pretraining(tmp_path / "straight", config))
    folder = write_pretraining(tmp_path / "stopped", config)
    train_until(folder, config, 2)
    train_until(folder, config, 3)
    resumed = run_pretraining(folder)
    one, other = load_file(straight / ENCODER), load_file(resumed / ENCODER)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[k].numpy(), other[k].numpy()) for k in one)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    config = small_config(steps=4000, checkpoint_every=1)
    folder = write_pretraining(tmp_path / "run", config)
    child = subprocess.Popen(
        [sys.executable, "-m", "learner", "pretrain", str(folder)], stderr=subprocess.PIPE, env=os.environ
    )
    checkpoint = folder / "checkpoint" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    run = Pretraining(folder, config, Reporter(folder, config.steps), Asked(0))
    assert run.step >= 1
    begun = run.step
    with pytest.raises(StoppedError):
        run.train()
    assert run.step == begun + 1


def test_the_curve_has_each_point_once_and_in_order_after_a_stop(tmp_path):
    config = small_config(steps=4, probe_every=1, checkpoint_every=4)
    folder = write_pretraining(tmp_path, config, labels=40)
    run = Pretraining(folder, config, Reporter(folder, config.steps), Asked(99))
    for _ in range(2):  # two points beyond the last checkpoint, which is none
        run._train_step()
        run.step += 1
        run._probe()
    run_pretraining(folder)
    points = [json.loads(line) for line in (folder / "probe.jsonl").read_text().splitlines()]
    assert [p["step"] for p in points] == [1, 2, 3, 4]
    assert all(0 <= p["balanced_accuracy"] <= 1 and p["labels"] == 40 for p in points)


def test_pretraining_learns_the_descriptor_of_patterns_and_beats_random_weights(tmp_path):
    config = small_config(steps=60, lr=3e-3, probe_every=60)
    out = run_pretraining(write_pretraining(tmp_path / "run", config, num=64))
    described = json.loads((out / "metrics.json").read_text())
    assert described["logs"]["hog"] < 0.9  # 1 is what a constant prediction costs
    assert FaceEncoder.load(out / ENCODER)(patterns(5, seed=3, size=SIZE)[0]).shape == (5, 16)
    assert run_pretraining(tmp_path / "run") == out


def test_the_rate_rises_and_then_falls_to_nothing():
    config = small_config(steps=100, warmup_steps=10, lr=1.0)
    rates = [rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[-1] < 0.01


def test_an_unfinished_folder_or_an_exploding_loss_is_named(tmp_path):
    config = small_config()
    config.save(tmp_path / "config.json")
    with pytest.raises(InputError, match="no complete"):
        run_pretraining(tmp_path)
    folder = write_pretraining(tmp_path / "run", small_config(lr=1e12, warmup_steps=0, log_every=1, steps=30))
    with pytest.raises(DivergedError, match="lower lr"):
        run_pretraining(folder)
