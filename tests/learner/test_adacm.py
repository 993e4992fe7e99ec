"""Ada-CM: margins from readings of the labeled images, the two subsets, and what trains on which."""

from typing import Any

import pytest
import torch
from torch import Tensor

from learner import losses
from learner.contrast import NTXentSubset
from learner.keepers.adaptive_margins import AdaptiveMargins, MarginOptions, held_out
from learner.methods import build
from learner.parts import Clock, NetOut, Recipe, Scores, StepContext, Survey, Target
from learner.state import permute_classes
from learner.targeters import ClassThresholds
from learner.terms import SupervisedCE
from tests.learner.blobs import FEATURE_DIM, Session, make_blobs
from tests.learner.steps import LATE, labeled_step, survey_of, unlabeled_step, view_of


def reading(p: Any, given: list[int], rows: list[int] | None = None, view: str = "w") -> Survey:
    p = torch.as_tensor(p, dtype=torch.float32)
    at = torch.arange(len(p)) if rows is None else torch.tensor(rows)
    return survey_of(torch.zeros(0, 2), torch.zeros(len(p), 2), p, torch.tensor(given), rows=at, view=view)


def at_epoch(epoch: float, scope: str = "run") -> Clock:
    step = round(800 * epoch)
    return Clock(step, 0, step, 100_000, ramp_scope=scope)


def make(num_classes: int = 2, **options: Any) -> AdaptiveMargins:
    return AdaptiveMargins(num_classes, MarginOptions(**options))


def read(margins: AdaptiveMargins, epoch: float, p: Any, given: list[int], **more: Any) -> list[float]:
    assert margins.wants_survey(at_epoch(epoch)) is not None
    margins.survey(reading(p, given, **more))
    found: list[float] = margins.thresholds(at_epoch(epoch)).tolist()
    return found


def test_margins_start_at_the_floor_and_follow_the_worked_example() -> None:
    margins = make()
    assert margins.thresholds(at_epoch(0)).tolist() == pytest.approx([0.8, 0.8])
    p = [[0.96, 0.04], [0.94, 0.06], [0.15, 0.85], [0.3, 0.7], [0.99, 0.01]]
    given = [0, 0, 1, 0, 1]  # the last two are wrong and do not count, however sure
    for epoch, expected in ((1, [0.8, 0.8]), (2, [0.811655, 0.8]), (5, [0.915333, 0.818982]), (20, [0.9215, 0.8245])):
        assert read(margins, epoch, p, given) == pytest.approx(expected, abs=5e-7)
    assert margins.mean_confidence.tolist() == pytest.approx([0.95, 0.85])


def test_a_class_without_a_correct_sample_has_the_floor() -> None:
    assert read(make(), 20, [[1.0, 0.0], [0.9, 0.1]], [0, 1]) == pytest.approx([0.97, 0.8])


def test_answers_without_a_single_class_are_not_read() -> None:
    assert read(make(), 20, [[1.0, 0.0], [0.9, 0.1]], [0, -1]) == pytest.approx([0.97, 0.8])


@pytest.mark.parametrize("scope", ["run", "lifetime"])
def test_the_labeled_images_are_read_once_per_method_epoch(scope: str) -> None:
    margins = make()
    asked = [step for step in range(2000) if margins.wants_survey(Clock(step, 0, step, 4000, ramp_scope=scope))]
    assert asked == [800, 1600]


def test_short_rounds_of_a_lifetime_share_their_epochs() -> None:
    margins = make()
    asked = []
    for round_number in range(4):
        for step in range(300):
            clock = Clock(300 * round_number + step, round_number, step, 300, ramp_scope="lifetime")
            if margins.wants_survey(clock):
                asked.append(clock.lifetime_step)
    assert asked == [800]


def test_margins_can_be_read_every_few_steps() -> None:
    margins = make(update_steps=50, floor=0.0)
    assert [step for step in range(151) if margins.wants_survey(Clock(step, 0, step, 4000))] == [50, 100, 150]
    margins.survey(reading([[1.0, 0.0]], [0]))
    expected = losses.adaptive_margins(torch.tensor([1.0, 0.0]), 150 / 800, floor=0.0)
    torch.testing.assert_close(margins.thresholds(LATE), expected)


@pytest.mark.parametrize(
    ("source", "view"), [("labelled_train", "w"), ("labelled_augmented", "s"), ("labelled_holdout", "x")]
)
def test_where_margins_are_read(source: Any, view: str) -> None:
    assert make(threshold_source=source).wants_survey(at_epoch(1)) == view


def test_a_fifth_of_the_labels_is_held_out_for_ever() -> None:
    rows = torch.arange(20_000)
    out = held_out(rows)
    assert out.float().mean().item() == pytest.approx(0.2, abs=0.01)
    order = torch.randperm(len(rows))
    assert torch.equal(held_out(rows[order]), out[order])
    far = held_out(rows + 3_000_000_000)
    assert far.float().mean().item() == pytest.approx(0.2, abs=0.01)
    by_class = torch.stack([out[c::7].float().mean() for c in range(7)])
    assert bool(((by_class - 0.2).abs() < 0.03).all()), "classes in turn, as imports often are, are not favoured"


def holdout_rows() -> tuple[int, int]:
    rows = torch.arange(100)
    return int(rows[held_out(rows)][0]), int(rows[~held_out(rows)][0])


def test_held_out_labels_set_the_margin_and_do_not_train() -> None:
    out, kept = holdout_rows()
    margins = make(threshold_source="labelled_holdout")
    found = read(margins, 20, [[1.0, 0.0], [0.9, 0.1]], [0, 0], rows=[kept, out], view="x")
    assert found == pytest.approx([0.97 * 0.9, 0.8], abs=1e-6)
    ctx = labeled_step([out, kept], [[0.5, 0.5], [0.3, 0.7]], [0, 0])
    margins.before_target(ctx)
    assert ctx.labeled.weight.tolist() == [0, 1]
    torch.testing.assert_close(SupervisedCE()(ctx), -torch.tensor(0.3).log())
    candidates = labeled_step([out], [[0.5, 0.3, 0.2]], [-1], allowed=[[1, 1, 0]])
    make(3, threshold_source="labelled_holdout").before_target(candidates)
    assert candidates.labeled.weight.tolist() == [1], "no margin can be read from a candidate set, so it trains"


def test_other_sources_leave_the_labels_alone() -> None:
    ctx = labeled_step(list(range(20)), [[0.5, 0.5]] * 20, [0] * 20)
    make().before_target(ctx)
    assert ctx.labeled.weight.tolist() == [1] * 20


def test_the_state_survives_saving_and_a_new_class_starts_at_the_floor() -> None:
    margins = make()
    read(margins, 5, [[0.95, 0.05], [0.15, 0.85]], [0, 1])
    again = make()
    again.load_state_dict(margins.state_dict())
    assert torch.equal(again.thresholds(LATE), margins.thresholds(LATE))
    grown = make(3)
    grown.load_state_dict(permute_classes(margins.state_dict(), ["a", "b"], ["b", "new", "a"]))
    assert grown.thresholds(LATE).tolist() == pytest.approx([0.818982, 0.8, 0.915333], abs=5e-7)
    with pytest.raises(ValueError, match="classes"):
        make(4).load_state_dict(margins.state_dict())


def test_signals() -> None:
    margins = make()
    read(margins, 5, [[0.95, 0.05], [0.15, 0.85]], [0, 1])
    scores = Scores.of(torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    found = margins.signals(torch.tensor([5, 6]), scores, view_of([1], [0], 2))
    assert found["adacm_subset"].tolist() == [False, True]
    assert found["adacm_T"].tolist() == pytest.approx([0.915333, 0.818982], abs=5e-7)
    assert found["adacm_gap"].tolist() == pytest.approx([0.9 - 0.915333, 0.9 - 0.818982], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"margins": {"floor": 0.98}}, "floor 0.98"),
        ({"margins": {"ceiling": 1.1}}, "less than or equal to 1"),
        ({"margins": {"update_steps": 0}}, "greater than or equal to 1"),
        ({"margins": {"threshold_source": "test_set"}}, "labelled_train"),
        ({"temperature": 0}, "greater than 0"),
        ({"weights": {"contrastive": 1}}, "Extra inputs"),
    ],
)
def test_bad_options_fail_with_the_reason(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build("adacm", 3, 4, options)


# The subsets and the losses.


def two_views(p: Tensor, first: Tensor, second: Tensor, subset: list[bool]) -> StepContext:
    ctx = unlabeled_step(list(range(len(p))), p)
    ctx.outs["w"] = NetOut(first, first, p.log())
    ctx.outs["w2"] = NetOut(second, second, p.log())
    confident = torch.tensor(subset)
    ctx.target = Target(p.argmax(dim=1), confident.float(), confident)
    return ctx


def test_contrast_is_taken_over_the_samples_below_their_margin() -> None:
    first = torch.tensor([[9.0, 9.0], [1, 0], [0, 1]])
    second = torch.tensor([[-9.0, 9.0], [0.6, 0.8], [0, 1]])
    p = torch.full((3, 2), 0.5)
    ctx = two_views(p, first, second, [True, False, False])
    assert NTXentSubset()(ctx).item() == pytest.approx(0.922667, abs=5e-6)
    assert NTXentSubset(0.5)(ctx).item() == pytest.approx(0.758885, abs=5e-6)
    assert ctx.logs["contrast/samples"].item() == 2


@pytest.mark.parametrize("subset", [[True, True], [True, False]])
def test_contrast_of_none_or_one_is_exactly_nothing(subset: list[bool]) -> None:
    f = torch.randn(2, 3, requires_grad=True)
    ctx = two_views(torch.full((2, 2), 0.5), f, torch.randn(2, 3), subset)
    loss = NTXentSubset()(ctx)
    loss.backward()
    assert loss.item() == 0
    assert f.grad is not None
    assert bool((f.grad == 0).all())


def test_gradient_flows_through_both_weak_views_of_the_low_confidence_subset_alone() -> None:
    first, second = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    ctx = two_views(torch.full((4, 2), 0.5), first, second, [True, False, False, False])
    NTXentSubset()(ctx).backward()
    for f in (first, second):
        assert f.grad is not None
        assert (f.grad.abs().sum(dim=1) > 0).tolist() == [False, True, True, True]


def test_pseudo_labels_come_from_the_mean_probability_of_both_weak_views() -> None:
    recipe = build("adacm", 2, 2)
    assert recipe.targeter is not None
    one, two = torch.tensor([[0.95, 0.05], [0.95, 0.05]]), torch.tensor([[0.75, 0.25], [0.6, 0.4]])
    scores = Scores.mean([Scores.of(one), Scores.of(two)])
    target = recipe.targeter(scores, torch.arange(2), LATE)
    assert scores.conf.tolist() == pytest.approx([0.85, 0.775])
    assert target.subset.tolist() == [True, False]


def test_margins_of_a_step_are_those_from_before_it() -> None:
    recipe = build("adacm", 2, 2)
    ctx = unlabeled_step([1], [[0.81, 0.19]])
    for keeper in recipe.keepers:
        keeper.before_target(ctx)
        keeper.observe(ctx)
    assert recipe.targeter is not None
    assert recipe.targeter(ctx.scores["w"], torch.tensor([1]), LATE).subset.tolist() == [True]


def test_weights_total_the_worked_example() -> None:
    recipe = build("adacm", 8, 4)
    parts = {"supervised": 1.2, "consistency": 0.3, "contrast": 2.0}
    assert sum(weight * parts[term.name] for term, weight in recipe.losses) == pytest.approx(1.1)
    assert recipe.views == recipe.grad_views == {"w", "w2", "s"}


def test_without_contrast_and_margins_adacm_trains_like_fixmatch_on_two_weak_views() -> None:
    same = {"margins": {"floor": 0.8, "ceiling": 0.8}, "weights": {"supervised": 1.0, "contrast": 0.0}}
    recipe = build("adacm", 4, FEATURE_DIM, same)
    host = build("fixmatch", 4, FEATURE_DIM, {"threshold": 0.8})
    seen = [*host.losses, (NTXentSubset(), 0.0)]  # reads the second weak view, changes nothing
    fixmatch = Recipe(
        host.name, seen, host.scorer, host.targeter, feature_norm=host.feature_norm, feature_scale=host.feature_scale
    )
    assert Session(recipe, make_blobs()).run(30) == Session(fixmatch, make_blobs()).run(30)


def test_margins_adapt_in_training() -> None:
    recipe = build("adacm", 4, FEATURE_DIM, {"margins": {"update_steps": 50, "floor": 0.3}})
    margins = recipe.keepers[0]
    assert isinstance(margins, AdaptiveMargins)
    assert isinstance(recipe.targeter, ClassThresholds)
    session = Session(recipe, make_blobs())
    session.run(160)
    found = margins.thresholds(LATE)
    assert bool(((found > 0.4) & (found <= 0.97)).all())
    assert session.last is not None
    assert session.last.logs["adacm/margin_mean"].item() == pytest.approx(found.mean().item())
