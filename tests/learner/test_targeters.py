"""Thresholds: the worked example, equality, and gamma that may grow but never past everything."""

import pytest
import torch

from learner.methods.lion import negative_fade
from learner.parts import Clock, NetOut, Scores
from learner.scorers import LinearSoftmax
from learner.targeters import ConfidenceTargeter, LionReliability

ROWS = torch.arange(3)


def at_epoch(epoch: int) -> Clock:
    """The first step of an epoch counted from 1."""
    return Clock(lifetime_step=0, round=0, step=(epoch - 1) * 800, steps=24000)


def scores(*p: list[float]) -> Scores:
    return Scores.of(torch.tensor(p))


def test_fixmatch_masks_the_worked_example() -> None:
    z = torch.tensor([[5.0, 1, 0], [2, 1, 0], [0, 4.5, 0]], requires_grad=True)
    read = LinearSoftmax()(NetOut(z, z, z))
    target = ConfidenceTargeter(0.95)(read, ROWS, at_epoch(1))
    assert read.conf.tolist() == pytest.approx([0.975559, 0.665241, 0.978265], abs=5e-7)
    assert target.weight.tolist() == [1, 0, 1]
    assert target.subset.tolist() == [True, False, True]
    assert target.hard.tolist() == [0, 0, 1]
    assert not read.p.requires_grad
    shifted = LinearSoftmax()(NetOut(z, z, z + torch.tensor([[3.0], [-2], [100]])))
    torch.testing.assert_close(shifted.p, read.p)


def test_second_worked_example_has_two_classes() -> None:
    z = torch.tensor([[0.0, 6], [1, 0], [4, 0]])
    read = LinearSoftmax()(NetOut(z, z, z))
    assert read.conf.tolist() == pytest.approx([0.997527, 0.731059, 0.982014], abs=5e-7)


@pytest.mark.parametrize("make", [ConfidenceTargeter, LionReliability])
def test_a_confidence_equal_to_the_threshold_is_selected(make: type[ConfidenceTargeter | LionReliability]) -> None:
    exactly = 0.75  # a number that float32 holds exactly
    target = make(exactly)(scores([0.75, 0.25], [0.7499, 0.2501]), ROWS[:2], at_epoch(1))
    assert target.subset.tolist() == [True, False]


def test_ties_go_to_the_lowest_class() -> None:
    read = scores([0.125] * 8, [0.1, 0.4, 0.4, 0.1, 0, 0, 0, 0])
    assert read.hard.tolist() == [0, 1]


@pytest.mark.parametrize(("epoch", "gamma"), [(1, 0.81), (10, 0.90), (16, 0.96), (19, 0.99)])
def test_public_codes_growing_threshold(epoch: int, gamma: float) -> None:
    assert LionReliability(0.80, growth=0.01).gamma(at_epoch(epoch)) == pytest.approx(gamma)


@pytest.mark.parametrize("epoch", [20, 21, 30, 100])
def test_growing_threshold_never_shuts_everything_out(epoch: int) -> None:
    targeter = LionReliability(0.80, growth=0.01)
    assert targeter.gamma(at_epoch(epoch)) == 0.99
    assert targeter(scores([0.995, 0.005]), ROWS[:1], at_epoch(epoch)).subset.tolist() == [True]


def test_papers_threshold_is_constant() -> None:
    assert {LionReliability().gamma(at_epoch(e)) for e in (1, 10, 30)} == {0.83}


@pytest.mark.parametrize(
    ("epoch", "weak", "strong"), [(1, 0.225, 0.03462), (10, 0.09, 0.01385), (16, 0, 0), (19, 0, 0), (30, 0, 0)]
)
def test_public_codes_fading_weights(epoch: int, weak: float, strong: float) -> None:
    assert negative_fade(at_epoch(epoch)) == pytest.approx(weak, abs=1e-12)
    assert negative_fade(at_epoch(epoch)) / 6.5 == pytest.approx(strong, abs=5e-6)
