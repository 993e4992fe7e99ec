"""EMA-teacher: FixMatch with a teacher of its own, which gets no gradient and moves as eq. 1 says."""

from typing import Any

import numpy as np
import pytest
import torch

from learner import snapshot
from learner.data import PixelCache, write_shards
from learner.methods import build
from learner.parts import StepContext
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import SIZE, first_labels, patterns, small_config

NUM = 40
VIT = {"name": "vit_tiny_patch16_224", "arguments": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> PixelCache:
    folder = tmp_path_factory.mktemp("cache")
    write_shards(folder, patterns(NUM)[0])
    return PixelCache(folder, SIZE)


def make_trainer(faces: PixelCache, method: str, decay: float, **options: Any) -> Trainer:
    view = first_labels()
    ema = {"decay": decay, "warmup": False}
    config = small_config(method=method, options=options, steps=4, backbone=VIT, ema=ema)
    made = snapshot.assemble(config, len(view.classes))
    unlabeled = np.setdiff1d(np.arange(NUM), view.rows.numpy())
    return Trainer(config, made.recipe, made.network, TrainingData(faces, view, unlabeled))


def test_with_momentum_zero_it_equals_fixmatch_with_an_eval_mode_teacher(faces: PixelCache) -> None:
    teacher = make_trainer(faces, "ema_teacher", 0.0, threshold=0.3)
    student = make_trainer(faces, "fixmatch", 0.0, threshold=0.3, lambda_u=5.0, pseudo_source="student_eval")
    used = []
    teacher.observers.append(lambda _, ctx: used.append(float(ctx.logs["consistency/selected"])))
    for trainer in (teacher, student):
        list(trainer.steps())
    assert max(used) > 0, "pseudo-labels took part"
    one, other = teacher.raw.state_dict(), student.raw.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(
        make_trainer(faces, "ema_teacher", 0.0).raw.state_dict()["head.weight"], one["head.weight"]
    ), "they learned"


def test_the_teacher_takes_a_thousandth_of_the_student_each_step_and_no_gradient(faces: PixelCache) -> None:
    trainer = make_trainer(faces, "ema_teacher", 0.999, threshold=0.3)
    names = [name for name, _ in trainer.raw.named_parameters()]
    before = {name: value.clone() for name, value in trainer.ema.network.state_dict().items()}
    seen: list[StepContext] = []
    trainer.observers.append(lambda _, ctx: seen.append(ctx))
    for _ in trainer.steps():
        student, teacher = trainer.raw.state_dict(), trainer.ema.network.state_dict()
        for name in names:
            torch.testing.assert_close(teacher[name], 0.999 * before[name] + 0.001 * student[name])
        before = {name: value.clone() for name, value in teacher.items()}
        assert not trainer.ema.network.training
        assert all(p.grad is None and not p.requires_grad for p in trainer.ema.network.parameters())
    assert not any(ctx.scores["w"].p.requires_grad or ctx.outs["w"].z.requires_grad for ctx in seen)


def test_the_codes_numbers_are_the_defaults_and_the_teacher_cannot_be_swapped() -> None:
    recipe = build("ema_teacher", 7, 8)
    assert [weight for _, weight in recipe.losses] == [1.0, 5.0]
    assert recipe.targeter is not None
    assert recipe.targeter.threshold == 0.7  # type: ignore[attr-defined]
    assert recipe.pseudo_source == "ema_eval"
    with pytest.raises(ValueError, match="pseudo_source"):
        build("ema_teacher", 7, 8, {"pseudo_source": "student_train"})
