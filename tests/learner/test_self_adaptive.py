"""FreeMatch, SoftMatch, AdaMatch and distribution alignment: averages that take the batch first, and their targets."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.keepers.alignment import DistributionAlign, DistributionAlignment
from learner.keepers.base import IdleKeeper
from learner.keepers.self_adaptive import ConfidenceMoments, Fairness, RelativeThreshold, SelfAdaptive, SoftWeights
from learner.methods import build
from learner.parts import Scores, StepContext, Target
from learner.state import permute_classes
from learner.targeters import ClassThresholds, ConfidenceTargeter
from tests.learner.steps import LATE, labeled_step, output, unlabeled_step


def averages(*values: float) -> Tensor:
    return torch.tensor(values)


def target_of(recipe_name: str, ctx: StepContext, num_classes: int, **options: Any) -> Target:
    recipe = build(recipe_name, num_classes, 2, options)
    for keeper in recipe.keepers:
        keeper.before_target(ctx)
    assert recipe.targeter is not None
    return recipe.targeter(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)


# FreeMatch.


def test_freematch_thresholds_of_the_worked_example() -> None:
    keeper = SelfAdaptive(3)
    keeper.tau, keeper.mean_p = torch.tensor(0.85), averages(0.5, 0.3, 0.2)
    assert keeper.thresholds(LATE).tolist() == pytest.approx([0.85, 0.51, 0.34])
    keeper.tau, keeper.mean_p = torch.tensor(0.75), averages(0.5, 0.375, 0.125)
    exactly = Scores.of(torch.tensor([[0.25, 0.5625, 0.1875], [0.25, 0.5624, 0.1876]]))  # T_1 = .5625
    assert ClassThresholds(keeper)(exactly, torch.arange(2), LATE).subset.tolist() == [True, False]


def test_freematch_takes_the_batch_before_it_makes_targets() -> None:
    keeper = SelfAdaptive(7)
    p = torch.full((1, 7), 0.4 / 6)
    p[0, 2] = 0.6
    keeper.before_target(unlabeled_step([1], p))
    assert keeper.tau.item() == pytest.approx(0.143314, abs=5e-7)
    assert keeper.mean_p.sum().item() == pytest.approx(1, abs=1e-6)
    assert keeper.mean_p.argmax().item() == keeper.histogram.argmax().item() == 2
    assert keeper.histogram[2].item() == pytest.approx(0.999 / 7 + 0.001)


def test_freematch_averages_equal_a_plain_loop() -> None:
    keeper, draw = SelfAdaptive(3, momentum=0.9), torch.Generator().manual_seed(0)
    tau, mean_p, histogram = 1 / 3, averages(1, 1, 1) / 3, averages(1, 1, 1) / 3
    for _ in range(20):
        p = torch.randn(4, 3, generator=draw).mul(2).softmax(dim=1)
        keeper.before_target(unlabeled_step([1, 2, 3, 4], p))
        tau = 0.9 * tau + 0.1 * p.max(dim=1).values.mean().item()
        mean_p = 0.9 * mean_p + 0.1 * p.mean(dim=0)
        shares = torch.bincount(p.argmax(dim=1), minlength=3) / 4
        histogram = 0.9 * histogram + 0.1 * shares
    assert keeper.tau.item() == pytest.approx(tau, rel=1e-5)
    torch.testing.assert_close(keeper.mean_p, mean_p)
    torch.testing.assert_close(keeper.histogram, histogram)


def test_fairness_reads_the_selected_samples_and_the_averages() -> None:
    keeper = SelfAdaptive(3)
    keeper.mean_p, keeper.histogram = averages(0.5, 0.3, 0.2), averages(0.6, 0.2, 0.2)
    ctx = unlabeled_step([1, 2, 3], [[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    chosen = torch.tensor([True, True, False])
    ctx.target = Target(torch.tensor([0, 1, 2]), chosen.float(), chosen)
    assert Fairness(keeper)(ctx).item() + 0.3 * math.log(1e-12) == pytest.approx(-8.787501, abs=1e-5)
    ctx.target.subset = torch.zeros(3, dtype=torch.bool)
    assert Fairness(keeper)(ctx).item() == 0
    ctx.target = None
    with pytest.raises(ValueError, match="targeter"):
        Fairness(keeper)(ctx)


# SoftMatch.


def moments(mean: float, variance: float) -> ConfidenceMoments:
    keeper = ConfidenceMoments(3, None)
    keeper.mean, keeper.variance = torch.tensor(mean), torch.tensor(variance)
    return keeper


def test_softmatch_weights_of_the_worked_examples() -> None:
    conf = torch.tensor([0.95, 0.8, 0.7, 0.6, 0.62])
    p = torch.stack([conf, (1 - conf) / 2, (1 - conf) / 2], dim=1)
    target = SoftWeights(moments(0.8, 0.01))(Scores.of(p), torch.arange(5), LATE)
    assert target.weight.tolist() == pytest.approx([1, 1, 0.135335, 0.000335, 0.001534], abs=1e-6)
    assert target.subset.tolist() == [True, True, False, False, False]


def test_softmatch_moments_take_the_batch_first_and_leave_the_variance_of_one_alone() -> None:
    keeper = ConfidenceMoments(3, None)
    keeper.before_target(unlabeled_step([1, 2], [[0.9, 0.05, 0.05], [0.1, 0.7, 0.2]]))
    assert keeper.mean.item() == pytest.approx(0.999 / 3 + 0.001 * 0.8)
    assert keeper.variance.item() == pytest.approx(0.999 + 0.001 * 0.02)  # unbiased: (.1^2 + .1^2) / 1
    before = keeper.variance.item()
    keeper.before_target(unlabeled_step([1], [[0.9, 0.05, 0.05]]))
    assert keeper.variance.item() == before
    assert keeper.mean.item() > 0.999 / 3 + 0.001 * 0.8


def test_softmatch_aligns_the_weight_and_not_the_label() -> None:
    alignment = DistributionAlignment(2, "uniform")
    alignment.model = averages(0.9, 0.1)
    targeter = DistributionAlign(SoftWeights(moments(0.9, 0.001)), alignment, labels="raw")
    scores = Scores.of(torch.tensor([[0.6, 0.4], [0.95, 0.05]]))
    target = targeter(scores, torch.arange(2), LATE)
    assert target.hard.tolist() == [0, 0]
    aligned = alignment.align(scores.p)
    assert aligned.argmax(dim=1).tolist() == [1, 0]
    plain = SoftWeights(moments(0.9, 0.001))(Scores.of(aligned), torch.arange(2), LATE)
    assert torch.equal(target.weight, plain.weight)


def test_softmatch_moments_see_aligned_confidences() -> None:
    recipe = build("softmatch", 2, 2)
    alignment, keeper = recipe.keepers
    assert isinstance(alignment, DistributionAlignment)
    assert isinstance(keeper, ConfidenceMoments)
    alignment.model = averages(0.9, 0.1)
    ctx = unlabeled_step([1], [[0.6, 0.4]])
    for part in recipe.keepers:
        part.before_target(ctx)
    seen = alignment.align(ctx.scores["w"].p).max()
    assert keeper.mean.item() == pytest.approx(0.999 / 2 + 0.001 * seen.item())
    assert [k.name for k in build("softmatch", 2, 2, {"align": False}).keepers] == ["confidence_moments"]


# AdaMatch and alignment.


def both_halves(labeled: Any, weak: Any) -> StepContext:
    ctx = labeled_step(list(range(len(labeled))), labeled, [0] * len(labeled))
    ctx.scores["w"] = Scores.of(torch.as_tensor(weak))
    ctx.outs["w"] = output(ctx.scores["w"].p, torch.zeros(len(weak), 2))
    ctx.batch.unlabeled_rows = torch.arange(100, 100 + len(weak))
    return ctx


def test_adamatch_threshold_of_the_worked_example() -> None:
    keeper = RelativeThreshold(2)
    assert keeper.reads_labeled
    keeper.before_target(both_halves([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [[0.5, 0.5]]))
    assert keeper.thresholds(LATE).tolist() == pytest.approx([0.76, 0.76])


def test_adamatch_aligns_with_the_labeled_predictions() -> None:
    ctx = both_halves([[0.9, 0.1], [0.7, 0.3]], [[0.6, 0.4], [0.2, 0.8]])
    recipe = build("adamatch", 2, 2, {"momentum": 0.0})
    alignment = recipe.keepers[0]
    assert isinstance(alignment, DistributionAlignment)
    for keeper in recipe.keepers:
        keeper.before_target(ctx)
    assert alignment.target.tolist() == pytest.approx([0.8, 0.2])
    assert alignment.model.tolist() == pytest.approx([0.4, 0.6])
    assert recipe.targeter is not None
    target = recipe.targeter(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    assert target.hard.tolist() == [0, 0], "aligned, the second row is .2 * .8 / .4 against .8 * .2 / .6"
    assert target.subset.tolist() == [True, False]  # .95 * .8 = .76: confidences .9 and .6


def test_alignment_is_a_decorator_of_any_targeter() -> None:
    alignment = DistributionAlignment(3, "uniform")
    alignment.model = averages(0.5, 0.3, 0.2)
    scores = Scores.of(torch.tensor([[0.6, 0.3, 0.1]]))
    assert alignment.align(scores.p)[0].tolist() == pytest.approx([0.444445, 0.370370, 0.185185], abs=1e-6)
    for threshold, selected in ((0.45, False), (0.44, True)):
        target = DistributionAlign(ConfidenceTargeter(threshold), alignment)(scores, torch.arange(1), LATE)
        assert target.subset.tolist() == [selected]


def test_uniform_alignment_does_not_read_the_labels() -> None:
    keeper = DistributionAlignment(2, "uniform")
    assert not keeper.reads_labeled
    keeper.before_target(both_halves([[0.9, 0.1]], [[0.6, 0.4]]))
    assert keeper.target.tolist() == [0.5, 0.5]
    assert keeper.model.tolist() == pytest.approx([0.5001, 0.4999])


@pytest.mark.parametrize("name", ["freematch", "softmatch", "adamatch"])
def test_a_first_step_has_finite_targets(name: str) -> None:
    target = target_of(name, both_halves([[0.9, 0.1]], [[0.6, 0.4]]), 2)
    assert bool(torch.isfinite(target.weight).all())


KEEPERS = [
    lambda k: SelfAdaptive(k, 0.5),
    lambda k: DistributionAlignment(k, "labeled", 0.5),
    lambda k: ConfidenceMoments(k, None, 0.5),
    lambda k: RelativeThreshold(k),
]


@pytest.mark.parametrize("make", KEEPERS)
def test_states_are_saved_exactly_and_follow_the_class_list(make: Any) -> None:
    first: IdleKeeper = make(2)
    ctx = both_halves([[0.9, 0.1]], [[0.6, 0.4], [0.7, 0.3]])
    first.before_target(ctx)
    again: IdleKeeper = make(2)
    again.load_state_dict(first.state_dict())
    first.before_target(ctx)
    again.before_target(ctx)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    grown: IdleKeeper = make(3)
    grown.load_state_dict(permute_classes(first.state_dict(), ["a", "b"], ["new", "b", "a"]))
    for key, value in grown.state_dict().items():
        if key.endswith(":class0") and not key.startswith("known"):
            old = first.state_dict()[key]
            assert value[0].item() > 0
            assert value.sum().item() == pytest.approx(1)
            assert (value[2] / value[1]).item() == pytest.approx((old[0] / old[1]).item(), rel=1e-5)


def test_a_class_that_is_never_predicted_stays_at_zero_after_loading() -> None:
    first = SelfAdaptive(3, momentum=0.0)
    first.before_target(unlabeled_step([1, 2], [[0.9, 0.1, 0.0], [0.7, 0.3, 0.0]]))
    assert first.histogram.tolist() == [1, 0, 0]
    again = SelfAdaptive(3, momentum=0.0)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.histogram, first.histogram)
    assert torch.equal(again.mean_p, first.mean_p)
    grown = SelfAdaptive(4, momentum=0.0)
    grown.load_state_dict(permute_classes(first.state_dict(), ["a", "b", "c"], ["a", "b", "c", "new"]))
    assert grown.histogram.tolist() == pytest.approx([0.8, 0, 0, 0.2])
