"""A training step never waits for the device: no operation in it brings a number back to the host."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from learner.methods import available
from learner.round import RunFiles
from learner.snapshot import assemble, begin
from learner.trainer import Trainer
from tests.learner.runs import first_labels, small_config, write_run

# What a GPU would have to be waited for. On a CPU the optimiser's step counters and the range check of one-hot classes
# are read too; on a GPU neither is.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "bincount"}
ONLY_ON_A_CPU = ("F.one_hot(", "self.optimizer.step()")


class Waits(TorchDispatchMode):
    """Counts operations that wait, by the line of the learner that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            lines = [f for f in traceback.extract_stack() if "learner" in Path(f.filename).parts and f.line]
            ours = [f for f in lines if "tests" not in Path(f.filename).parts]
            where = f"{Path(ours[-1].filename).name}: {ours[-1].line}" if ours else "elsewhere"
            if not any(known in where for known in ONLY_ON_A_CPU):
                self.found[where] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", available())
def test_a_step_waits_for_nothing(tmp_path: Path, method: str) -> None:
    config = small_config(method=method, steps=8, log_every=8)
    files = RunFiles.read(write_run(tmp_path / "run", config, first_labels(3), num=40, held=8))
    made = assemble(config, 4)
    trainer = Trainer(config, made.recipe, made.network, files.data)
    begin(trainer)
    steps = trainer.steps()
    for _ in range(3):  # surveys, and the views of the coming steps
        next(steps)
    with Waits() as waits:
        next(steps)
    assert waits.found == Counter()
