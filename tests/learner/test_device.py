"""Where and how precisely a run computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from learner.device import fitting_precision, make_fabric
from learner.errors import InputError
from learner.round import RunFiles, run_round
from learner.snapshot import assemble, begin
from learner.trainer import Trainer
from tests.learner.runs import first_labels, small_config, write_run


def test_precision_is_what_was_asked_for_or_what_fits() -> None:
    asked = {name: make_fabric(small_config(precision=name)) for name in ("auto", "32-true", "bf16-mixed")}
    with asked["bf16-mixed"].autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with asked["32-true"].autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    fits = asked[fitting_precision(torch.device("cpu"))]
    with asked["auto"].autocast(), fits.autocast():
        assert type(asked["auto"]._precision) is type(fits._precision)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="'tpu'"):
        make_fabric(small_config(device="tpu"))


def test_bfloat16_resumes_bit_for_bit_and_publishes_float32(tmp_path: Path) -> None:
    config = small_config(method="fixmatch", options={"threshold": 0.3}, precision="bf16-mixed", steps=12)
    files = RunFiles.read(write_run(tmp_path / "run", config, first_labels(3), num=40, held=8))

    def fresh() -> Trainer:
        made = assemble(config, 4)
        return Trainer(config, made.recipe, made.network, files.data)

    straight, first, second = fresh(), fresh(), fresh()
    for trainer in (straight, first):
        begin(trainer)
    list(straight.steps())
    for done in first.steps():
        if done == 6:
            break
    second.load(*first.state())
    list(second.steps())
    one, other = straight.raw.state_dict(), second.raw.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(value.dtype == torch.float32 for value in one.values() if value.is_floating_point())
    probs = np.load(run_round(tmp_path / "run") / "probs.npy")
    assert np.isfinite(probs).all()
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_threads_bound_those_of_numpy_too():
    with threadpool_limits():  # what was before comes again
        make_fabric(small_config(threads=1))
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
