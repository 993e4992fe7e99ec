"""Pi-Model, Mean Teacher, Pseudo-Label: a consistency that is not zero, ramps, BatchNorm left alone, resuming."""

from typing import Any

import numpy as np
import pytest
import torch

from learner import snapshot
from learner.consistency import Ramp, SelfTraining, SoftConsistency, SoftTargets
from learner.data import PixelCache, write_shards
from learner.methods import build
from learner.parts import Clock, NetOut, Scores, StepContext
from learner.targeters import ConfidenceTargeter
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import SIZE, first_labels, patterns, small_config
from tests.learner.steps import LATE, unlabeled_step

NUM = 60


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> PixelCache:
    folder = tmp_path_factory.mktemp("cache")
    write_shards(folder, patterns(NUM)[0])
    return PixelCache(folder, SIZE)


def make_trainer(faces: PixelCache, method: str, **options: Any) -> Trainer:
    view = first_labels()
    scope = {"ramp_scope": "run", "steps": 4, "labeled_batch": 4, "unlabeled_batch": 4}
    config = small_config(method=method, options=options, **scope)
    made = snapshot.assemble(config, len(view.classes))
    unlabeled = np.setdiff1d(np.arange(NUM), view.rows.numpy())
    return Trainer(config, made.recipe, made.network, TrainingData(faces, view, unlabeled))


def train(trainer: Trainer, steps: int) -> None:
    for done in trainer.steps():
        if done == steps:
            return


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.state()[0].items()}


def soft_step(weak: torch.Tensor, strong: torch.Tensor) -> StepContext:
    ctx = unlabeled_step(list(range(len(weak))), weak.softmax(dim=1))
    ctx.outs["s"] = NetOut(strong, strong, strong)
    ctx.target = SoftTargets()(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    return ctx


# Consistency.


def test_consistency_of_the_worked_example() -> None:
    ctx = soft_step(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[1.0, 0, 0]]))
    assert SoftConsistency()(ctx).item() == pytest.approx(0.004564, abs=5e-7)


def test_soft_targets_take_every_sample_and_carry_no_gradient() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    ctx = soft_step(z.detach(), torch.randn(3, 4))
    assert ctx.target is not None
    assert ctx.target.soft is ctx.scores["w"].p
    assert ctx.target.weight.tolist() == [1, 1, 1]
    assert not bool(ctx.target.subset.any())
    ctx.target = ConfidenceTargeter()(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    with pytest.raises(ValueError, match="soft targets"):
        SoftConsistency()(ctx)


def disturb(network: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def test_a_student_that_differs_from_its_teacher_pays_for_it_and_learns(faces: PixelCache) -> None:
    """In a widespread public code base this loss is 0 for ever: the student's logits are the teacher's."""
    with_it, without = (make_trainer(faces, "mean_teacher", ramp_share=0.0, lambda_u=w) for w in (50.0, 0.0))
    for trainer in (with_it, without):
        disturb(trainer.raw)
        train(trainer, 1)
        assert trainer.read_logs()["consistency"] > 1e-4
    one, other = with_it.raw.state_dict(), without.raw.state_dict()
    assert any(not torch.equal(one[name], other[name]) for name, _ in with_it.raw.named_parameters())
    assert all(parameter.grad is None for parameter in with_it.ema.network.parameters())


@pytest.mark.parametrize(("method", "averaged"), [("mean_teacher", True), ("pi", False)])
def test_the_teacher_is_the_average_and_pis_teacher_is_the_student(
    faces: PixelCache, method: str, averaged: bool
) -> None:
    trainer = make_trainer(faces, method)
    disturb(trainer.raw)
    with torch.no_grad():
        for parameter in trainer.ema.network.parameters():
            parameter.zero_()  # an average that knows nothing: it says 1/K of everything
    steps: list[StepContext] = []
    trainer.observers.append(lambda _, ctx: steps.append(ctx))
    train(trainer, 1)
    p = steps[0].scores["w"].p
    assert torch.allclose(p, torch.full_like(p, 1 / p.shape[1]), atol=1e-6) == averaged


@pytest.mark.parametrize(("method", "source"), [("pi", "ema_eval"), ("mean_teacher", "student_train")])
def test_a_teacher_that_makes_it_another_method_is_refused(method: str, source: str) -> None:
    with pytest.raises(ValueError, match="pseudo_source"):
        build(method, 4, 8, {"pseudo_source": source})


# Pseudo-Label.


def test_self_training_sharpens_the_confident_and_leaves_the_others() -> None:
    z = torch.tensor([[5.0, 0, 0], [1.0, 0.9, 0]], requires_grad=True)
    ctx = unlabeled_step([1, 2], z.detach().softmax(dim=1))
    ctx.outs["w"] = NetOut(z, z, z)
    ctx.target = ConfidenceTargeter(0.95)(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    loss = SelfTraining()(ctx)
    loss.backward()
    expected = -float(z.detach().log_softmax(dim=1)[0, 0]) / 2  # divided by B_u, both samples
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert ctx.logs["self_training/selected"].item() == 0.5
    assert z.grad is not None
    assert z.grad[0, 0] < 0 < z.grad[0, 1]
    assert z.grad[1].tolist() == [0, 0, 0]
    ctx.target = ConfidenceTargeter(1.0)(Scores.of(torch.full((2, 3), 1 / 3)), ctx.batch.unlabeled_rows, LATE)
    assert SelfTraining()(ctx).item() == 0


def test_pseudo_label_reads_the_weak_view_alone() -> None:
    recipe = build("pseudo_label", 4, 8)
    assert recipe.views == recipe.grad_views == {"w"}
    assert build("pi", 4, 8).views == build("mean_teacher", 4, 8).views == {"w", "s"}
    assert build("pi", 4, 8).grad_views == build("mean_teacher", 4, 8).grad_views == {"s"}


# Ramps.


@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (20, 0.5), (40, 1.0), (90, 1.0)])
def test_a_ramp_rises_over_its_share_of_a_run(step: int, factor: float) -> None:
    assert Ramp(0.4)(Clock(5000, 2, step, 100)) == pytest.approx(factor)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (500, 0.25), (2000, 1.0), (9000, 1.0)])
def test_in_the_annotation_loop_a_ramp_counts_the_lifetime(step: int, factor: float) -> None:
    assert Ramp(0.4, 2000)(Clock(step, 9, 0, 100, ramp_scope="lifetime")) == pytest.approx(factor)


def test_no_ramp_is_full_from_the_start() -> None:
    assert Ramp(0.0, 0)(Clock(0, 0, 0, 100)) == 1
    assert Ramp(0.0, 0)(Clock(0, 0, 0, 100, ramp_scope="lifetime")) == 1


@pytest.mark.parametrize(("method", "weight"), [("pi", 10.0), ("mean_teacher", 50.0), ("pseudo_label", 1.0)])
def test_published_weights_and_ramps(method: str, weight: float) -> None:
    recipe = build(method, 4, 8)
    assert [w for _, w in recipe.losses] == [1.0, weight]
    assert recipe.pseudo_source == ("ema_eval" if method == "mean_teacher" else "student_train")
    ctx = unlabeled_step([1], [[0.99, 0.005, 0.005]], clock=Clock(0, 0, 0, 100))
    ctx.outs["s"] = NetOut(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3))
    assert recipe.targeter is not None
    ctx.target = recipe.targeter(ctx.scores["w"], ctx.batch.unlabeled_rows, ctx.clock)
    term = recipe.losses[1][0]
    assert float(term(ctx)) == 0
    ctx.clock = Clock(20, 0, 20, 100)
    half = float(term(ctx))
    ctx.clock = Clock(80, 0, 80, 100)
    assert half > 0
    assert float(term(ctx)) == pytest.approx(2 * half)


# BatchNorm.


@pytest.mark.parametrize("method", ["pi", "pseudo_label", "mean_teacher"])
def test_unlabeled_views_leave_batchnorm_alone(faces: PixelCache, method: str) -> None:
    """Without weight, the unlabeled half changes nothing at all: bit for bit the supervised run."""
    supervised, frozen = make_trainer(faces, "supervised"), make_trainer(faces, method, lambda_u=0.0)
    moving = make_trainer(faces, method, lambda_u=0.0, batchnorm="update", forward_mode="separate")
    for trainer in (supervised, frozen, moving):
        train(trainer, 2)
    plain, still, moved = (weights(trainer) for trainer in (supervised, frozen, moving))
    shared = plain.keys() & still.keys()
    assert any("running_mean" in name for name in shared)
    assert all(
        torch.equal(plain[name], still[name])
        for name in shared
        if name.startswith(("student/", "ema/")) and "num_batches_tracked" not in name
    )
    assert any(not torch.equal(plain[name], moved[name]) for name in shared if "running_mean" in name)


# Whole runs of every method of this kind.

RESUMED: dict[str, dict[str, Any]] = {
    "flexmatch": {"threshold": 0.3},
    "adacm": {"margins": {"floor": 0.2, "update_steps": 3}},
    "freematch": {},
    "softmatch": {},
    "adamatch": {"threshold": 0.8},
    "pi": {},
    "pseudo_label": {"threshold": 0.3},
    "mean_teacher": {},
}


@pytest.mark.parametrize("method", RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(faces: PixelCache, method: str) -> None:
    straight, resumed = (make_trainer(faces, method, **RESUMED[method]) for _ in range(2))
    fresh = resumed.keeper_state()
    train(straight, 2)
    tensors, meta = straight.state()
    resumed.load({name: value.clone() for name, value in tensors.items()}, meta)
    for trainer in (straight, resumed):
        train(trainer, 4)
    one, other = weights(straight), weights(resumed)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    kept = straight.keeper_state()
    assert any(v.shape != fresh[k].shape or not torch.equal(v, fresh[k]) for k, v in kept.items()) == bool(kept)


def test_flexmatch_counts_over_the_pool_of_the_run(faces: PixelCache) -> None:
    trainer = make_trainer(faces, "flexmatch", threshold=0.3)
    train(trainer, 4)
    status: Any = trainer.recipe.keepers[0]
    counts, unselected = status.counts()
    assert int(counts.sum() + unselected) == NUM - len(first_labels().rows)
    assert int(counts.sum()) > 0
