from pathlib import Path

import numpy as np
import pytest
import torch

from learner import snapshot, sources
from learner.augment import Augmenter
from learner.config import AugmentConfig
from learner.data import Balanced, Cycle, PixelCache, Rows, write_shards
from learner.sources import Ahead, PixelSource
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import CLASSES, SIZE, first_labels, patterns, small_config


@pytest.fixture
def source(tmp_path: Path) -> PixelSource:
    write_shards(tmp_path, patterns(40)[0])
    make = Augmenter(AugmentConfig(), SIZE, seed=3, device=torch.device("cpu"))
    return PixelSource(PixelCache(tmp_path, SIZE), make)


def samplers() -> dict[str, Cycle | Balanced]:
    unlabeled = Cycle(np.arange(12, 40), 6, 3, 2)
    labels = np.eye(3, dtype=np.float32)[np.arange(5) % 3]
    labeled = Balanced(np.arange(5), labels, 7, 3, 1)  # more drawn than there are, so that rows repeat in a batch
    return {"l": labeled, "w": unlabeled, "w2": unlabeled, "s": unlabeled}


class Counting:
    """A source that notes what it is asked for: each view is (row, step) itself."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def clean(self, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(rows)

    def boxes(self, name: str, rows: Rows, step: int | Rows) -> None:
        return

    def view(self, name: str, rows: Rows, steps: Rows) -> torch.Tensor:
        self.asked.append((name, sorted(set(steps.tolist()))))
        return torch.from_numpy(np.stack([rows, steps], axis=1))


def test_a_block_of_any_size_gives_the_same_views_bit_for_bit(source: PixelSource) -> None:
    alone = Ahead(source, samplers(), block_steps=1)
    wanted = {step: alone.at(step) for step in range(100, 109)}
    for steps in (2, 5, 32):
        ahead = Ahead(source, samplers(), block_steps=steps)
        for step, views in wanted.items():
            made = ahead.at(step)
            assert made.keys() == views.keys()
            assert all(torch.equal(made[name], views[name]) for name in views)
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x in made.values())
    resumed = Ahead(source, samplers(), block_steps=4).at(106)
    assert all(torch.equal(resumed[name], wanted[106][name]) for name in resumed)


def test_the_views_are_those_of_the_augmenter_for_the_samplers_rows(source: PixelSource) -> None:
    given = samplers()
    views = Ahead(source, given).at(11)
    rows = given["s"].at(11)
    pixels = source.augmenter.upload(source.cache.gather(rows))
    assert torch.equal(views["s"], source.augmenter.strong(pixels, rows, 11))
    assert torch.equal(views["w2"], source.augmenter.weak(pixels, rows, 11, "w2"))


def test_steps_are_made_once_and_none_after_the_end() -> None:
    counting = Counting()
    ahead = Ahead(counting, samplers(), block_steps=4)
    for step in range(20, 30):
        for name, sampler in samplers().items():
            assert ahead.at(step, 30)[name].tolist() == [[row, step] for row in sampler.at(step)]
    assert [steps for name, steps in counting.asked if name == "s"] == [
        [20],
        [21, 22, 23, 24],
        [25, 26, 27, 28],
        [29],
    ]


def test_a_step_back_and_a_jump_are_made_anew() -> None:
    ahead = Ahead(Counting(), samplers(), block_steps=4)
    for step in (5, 6, 3, 900, 7):
        assert ahead.at(step)["l"][:, 1].tolist() == [step] * 7


def test_a_block_keeps_to_its_room_but_makes_at_least_one_step(source: PixelSource) -> None:
    step_bytes = sum(x.numel() * 4 for x in Ahead(source, samplers()).at(0).values())
    ahead = Ahead(source, samplers(), block_bytes=3 * step_bytes + 10)
    for step in range(6):
        ahead.at(step)
    assert [len(ahead._made), ahead._first] == [3, 4]
    small = Ahead(source, samplers(), block_bytes=1)
    for step in range(3):
        small.at(step)
        assert len(small._made) == 1
    assert sources.BLOCK_BYTES <= 64 << 20


def test_what_a_step_takes_away_is_still_there_when_it_asks_again() -> None:
    ahead = Ahead(Counting(), samplers())
    ahead.at(3).pop("l")
    assert "l" in ahead.at(3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_compiled_network_trains_and_keeps_the_names_of_its_weights(
    source: PixelSource, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With compilation's front end alone; the code that it would generate takes minutes on a CPU."""
    whole = torch.nn.Module.compile
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: (compiled.append(m), whole(m, backend="eager")))
    losses = {}
    for wanted in (False, True):
        config = small_config(method="fixmatch", precision=precision, compile=wanted, steps=3)
        made = snapshot.assemble(config, len(CLASSES))
        data = TrainingData(source.cache, first_labels(3), np.arange(12, 40))
        trainer = Trainer(config, made.recipe, made.network, data)
        assert list(trainer.steps()) == [1, 2, 3]
        losses[wanted] = trainer.logs["loss"]
        assert not any("_orig_mod" in name for name in trainer.state()[0])
    assert len(compiled) == 1
    assert losses[True] == pytest.approx(losses[False], rel=1e-4 if precision == "32-true" else 0.05)
