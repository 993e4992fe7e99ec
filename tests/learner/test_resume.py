"""Every method: 40 steps equal 20 and a kill and 20 more, bit for bit; and what is loaded reads as what was saved."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner import snapshot
from learner.config import RunConfig
from learner.methods import available
from learner.parts import StepContext
from learner.predict import generic_columns
from learner.round import RunFiles, run_round
from learner.trainer import Trainer
from tests.learner.runs import first_labels, small_config, write_run
from tests.learner.test_round import assert_same, tensors_of

KILLED_AT = 24  # the checkpoint before it holds 20 steps

# Low bars, so that unlabeled images take part from the first steps on.
LION: dict[str, Any] = {
    "reliable": 0.3,
    "warmup_steps": 5,
    "labels": {"min_visits": 1},
    "bank": {"delta": 0.24, "release_above": 0.5},
}
PAPER_LION: dict[str, Any] = {"reliable": 0.3, "warmup_steps": 5, "bank": {"delta": 0.24}}
OPTIONS: dict[str, dict[str, Any]] = {
    "fixmatch": {"threshold": 0.3},
    "flexmatch": {"threshold": 0.3},
    "adacm": {"margins": {"update_steps": 15}},
    "remop+adacm": {"margins": {"update_steps": 15}},
    "leaf_official": {"margins": {"update_steps": 15}},
    "lion": LION,
    "lion_annotation": LION,
    "lion_paper": PAPER_LION,
    "lion_official": PAPER_LION,
    "lion+remop": LION,
    "loop": LION,
    "eaf+fixmatch": {"threshold": 0.3},
    "remop": {"threshold": 0.3},
    "remop+fixmatch": {"threshold": 0.3},
}


def configured(method: str) -> RunConfig:
    return small_config(method=method, options=OPTIONS.get(method, {}), steps=40, checkpoint_every=10)


def run_and_die(folder: Path) -> None:
    """Run a round in this process until a step kills it."""
    torch.set_num_threads(1)

    def die(trainer: Trainer, _: StepContext) -> None:
        if trainer.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    run_round(folder, observers=[die])


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that start with the learner loaded; none shares memory with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.learner.test_resume"])
    return context


@pytest.mark.parametrize("method", available())
def test_a_killed_round_ends_like_an_undisturbed_one(tmp_path: Path, processes: Any, method: str) -> None:
    config = configured(method)
    straight, killed = (
        write_run(tmp_path / name, config, first_labels(3), num=40, held=8) for name in ("straight", "killed")
    )
    child = processes.Process(target=run_and_die, args=(killed,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not (killed / "out").exists()
    resumed, out = run_round(killed), run_round(straight)
    assert_same(resumed, out)
    assert_reads_the_same(out)
    assert all(torch.isfinite(t).all() for t in tensors_of(out).values() if t.is_floating_point())


def assert_reads_the_same(out: Path) -> None:
    """A network rebuilt from its files gives the published numbers again: nothing that reading needs is missing."""
    files = RunFiles.read(out.parent)
    model = snapshot.load(out)
    again = model.predictor(files.data.faces).predict(files.everything, files.config.predict_views)
    assert np.array_equal(again.probs, np.load(out / "probs.npy"))
    assert np.array_equal(again.features, np.load(out / "features.npy"))
    assert (generic_columns(again)["conf"] == np.load(out / "probs.npy").max(axis=1)).all()
