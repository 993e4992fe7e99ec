"""FlexMatch: who counts, when a class is noted, what people's answers and rounds do to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.keepers.learning_status import LearningStatus, StatusOptions
from learner.methods import build
from learner.parts import Clock, Event, Scores
from learner.round import Reporter, Round, RunFiles, run_round, stop_requests
from learner.state import permute_classes
from learner.targeters import ClassThresholds
from learner.terms import ConsistencyCE
from tests.learner.runs import first_labels, small_config, write_run
from tests.learner.runs import view_of as answers
from tests.learner.steps import LATE, unlabeled_step, view_of

SURE, UNSURE = 0.96, 0.6
POOL = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


def probabilities(classes: Sequence[int], conf: float = SURE, num_classes: int = 3) -> Tensor:
    p = torch.full((len(classes), num_classes), (1 - conf) / (num_classes - 1))
    p[torch.arange(len(classes)), torch.tensor(classes)] = conf
    return p


def make(pool: Sequence[int] | None = POOL, **options: object) -> LearningStatus:
    status = LearningStatus(3, StatusOptions(**options))
    if pool is not None:
        status.start_run(torch.tensor(pool))
    return status


def visit(status: LearningStatus, rows: Sequence[int], classes: Sequence[int], conf: float = SURE) -> None:
    ctx = unlabeled_step(rows, probabilities(classes, conf))
    status.before_target(ctx)
    status.observe(ctx)


def worked() -> LearningStatus:
    """Ten images: four last seen as class 0, one as class 1, five never."""
    status = make()
    visit(status, [10, 11, 12, 13, 14], [0, 0, 0, 0, 1])
    return status


def numbers(status: LearningStatus) -> tuple[list[int], int]:
    counts, unselected = status.counts()
    return counts.tolist(), int(unselected)


def test_the_worked_example() -> None:
    status = worked()
    assert numbers(status) == ([4, 1, 0], 5)
    assert status.status().tolist() == pytest.approx([0.8, 0.2, 0])
    assert status.thresholds(LATE).tolist() == pytest.approx([0.633333, 0.105556, 0], abs=5e-7)


def test_without_warm_up() -> None:
    status = make(thresh_warmup=False)
    visit(status, [10, 11, 12, 13, 14], [0, 0, 0, 0, 1])
    assert status.thresholds(LATE).tolist() == pytest.approx([0.95, 0.135714, 0], abs=5e-7)


def test_a_row_that_a_person_labels_leaves_the_counts() -> None:
    status = worked()
    status.start_run(torch.tensor(POOL[1:]))
    status.on_event(Event("labelled", 10, new=2))
    assert numbers(status) == ([3, 1, 0], 5)
    assert status.status().tolist() == pytest.approx([0.6, 0.2, 0])
    status.start_run(torch.tensor(POOL))
    status.on_event(Event("label_removed", 10, old=2))
    assert numbers(status) == ([3, 1, 0], 6), "it comes back without a class"


def test_what_was_noted_while_a_label_stood_does_not_outlive_it() -> None:
    """With every image answered, the answered ones serve as unlabeled ones."""
    status = make()
    status.on_event(Event("labelled", 10, new=2))
    visit(status, [10], [0])
    assert numbers(status) == ([1, 0, 0], 9)
    status.on_event(Event("label_removed", 10, old=2))
    assert numbers(status) == ([0, 0, 0], 10)


def test_a_row_that_is_removed_leaves_the_counts_and_comes_back_without_a_class() -> None:
    status = worked()
    status.start_run(torch.tensor(POOL[1:]))
    status.on_event(Event("sample_removed", 10))
    assert numbers(status) == ([3, 1, 0], 5)
    status.start_run(torch.tensor(POOL))
    status.on_event(Event("sample_added", 10))
    assert numbers(status) == ([3, 1, 0], 6)


def test_without_a_pool_the_rows_that_training_met_count() -> None:
    status = make(pool=None)
    visit(status, [3, 900], [0, 1])
    visit(status, [4, 5], [0, 0], UNSURE)
    assert numbers(status) == ([1, 1, 0], 2)
    saved = status.state_dict()
    again = make(pool=None)
    again.load_state_dict(saved)
    assert numbers(again) == ([1, 1, 0], 2)


def test_everything_passes_before_anything_was_selected() -> None:
    status = make()
    assert status.thresholds(LATE).tolist() == [0, 0, 0]
    target = ClassThresholds(status)(Scores.of(probabilities([0, 1, 2], 0.34)), torch.tensor(POOL[:3]), LATE)
    assert target.weight.tolist() == [1, 1, 1]


def test_a_floor_can_be_put_under_the_thresholds() -> None:
    assert make(t_min=0.5).thresholds(LATE).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="t_min"):
        build("flexmatch", 3, 4, {"t_min": 0.96})


def test_the_state_moves_by_the_fixed_tau_not_by_the_classs_own() -> None:
    status = worked()
    below = 0.7  # above T_0 = .633, so it trains; below tau, so it is not noted
    ctx = unlabeled_step([15], probabilities([0], below))
    target = ClassThresholds(status)(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    status.observe(ctx)
    assert target.weight.tolist() == [1]
    assert numbers(status) == ([4, 1, 0], 5)


def test_the_thresholds_of_a_step_are_those_from_before_it() -> None:
    recipe = build("flexmatch", 3, 2)
    status = recipe.keepers[0]
    assert isinstance(status, LearningStatus)
    status.start_run(torch.tensor(POOL))
    ctx = unlabeled_step(POOL[:4], probabilities([0, 0, 0, 1]))
    status.before_target(ctx)
    assert recipe.targeter is not None
    before = recipe.targeter(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    assert before.weight.tolist() == [1, 1, 1, 1]
    assert numbers(status)[1] == 10, "making targets notes nothing"
    status.observe(ctx)
    assert numbers(status) == ([3, 1, 0], 6)


def test_a_confidence_equal_to_a_threshold_is_selected() -> None:
    class Fixed:
        def thresholds(self, clock: Clock) -> Tensor:
            return torch.tensor([0.75, 0.5])

    p = torch.tensor([[0.75, 0.25], [0.7499, 0.2501], [0.5, 0.5], [0.49, 0.51]])
    assert ClassThresholds(Fixed())(Scores.of(p), torch.arange(4), LATE).subset.tolist() == [True, False, False, True]
    status = make(threshold=0.75)
    visit(status, [10], [0], 0.75)
    assert numbers(status)[0] == [1, 0, 0]


def test_an_image_changes_its_class_only_when_the_model_is_sure_again() -> None:
    status = worked()
    visit(status, [10], [2], UNSURE)
    assert numbers(status) == ([4, 1, 0], 5)
    visit(status, [10], [2])
    assert numbers(status) == ([3, 1, 1], 5)


def test_a_row_twice_in_a_batch_counts_once_with_its_last_class() -> None:
    status = make()
    visit(status, [10, 10, 11], [0, 1, 2])
    assert numbers(status) == ([0, 1, 1], 8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), max_size=30), st.integers(0, 1000))
def test_counts_equal_a_plain_dictionary_and_the_order_of_the_pool_does_not_matter(
    visits: list[tuple[int, int, bool]], seed: int
) -> None:
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    one, other = make(range(7)), make([int(row) for row in order])
    last: dict[int, int] = {}
    for row, cls, sure in visits:
        for status in (one, other):
            visit(status, [row], [cls], SURE if sure else UNSURE)
        if sure:
            last[row] = cls
    expected = [list(last.values()).count(c) for c in range(3)]
    assert numbers(one) == numbers(other) == (expected, 7 - len(last))
    one.load_state_dict(one.state_dict())
    assert numbers(one) == (expected, 7 - len(last))
    assert torch.equal(one.thresholds(LATE), other.thresholds(LATE))


def test_classes_older_than_two_rounds_are_forgotten() -> None:
    status = make()
    old = Clock(lifetime_step=5, round=1, step=5, steps=10)
    status.note(torch.tensor([10, 11]), torch.tensor([0, 1]), torch.tensor([True, True]), old)
    status.on_event(Event("round_started", new=3))
    assert numbers(status) == ([1, 1, 0], 8)
    status.note(torch.tensor([11]), torch.tensor([1]), torch.tensor([True]), Clock(9, 3, 1, 10))
    status.on_event(Event("round_started", new=4))
    assert numbers(status) == ([0, 1, 0], 9)
    keeps = make(max_age_rounds=None)
    keeps.note(torch.tensor([10]), torch.tensor([0]), torch.tensor([True]), old)
    keeps.on_event(Event("round_started", new=40))
    assert numbers(keeps)[0] == [1, 0, 0]


def test_the_state_follows_the_class_list() -> None:
    moved = permute_classes(worked().state_dict(), ["a", "b", "c"], ["b", "c", "d"])
    status = make()
    status.load_state_dict(moved)
    assert numbers(status) == ([1, 0, 0], 9), "class a is gone, and with it what was noted of its images"


def test_signals() -> None:
    status = worked()
    found = status.signals(torch.tensor([14, 10, 19]), Scores.of(probabilities([1, 2, 0])), view_of([1], [0], 3))
    assert found["flex_T"].tolist() == pytest.approx([0.105556, 0, 0.633333], abs=5e-7)
    assert found["flex_beta"].tolist() == pytest.approx([0.2, 0, 0.8])
    assert found["flex_last"].tolist() == [1, 0, -1]


def test_nothing_selected_costs_exactly_nothing() -> None:
    ctx = unlabeled_step([10], probabilities([0], UNSURE))
    status = make(t_min=0.9)
    ctx.target = ClassThresholds(status)(ctx.scores["w"], ctx.batch.unlabeled_rows, LATE)
    assert ConsistencyCE()(ctx).item() == 0


def test_a_million_images_cost_little() -> None:
    status = make(pool=None)
    status.start_run(torch.arange(1_000_000))
    visit(status, [999_999], [1])
    assert numbers(status) == ([0, 1, 0], 999_999)
    assert status.table.nbytes < 20_000_000


def test_a_labeled_image_leaves_the_counts_of_the_next_round(tmp_path: Path) -> None:
    config = small_config(method="flexmatch", options={"threshold": 0.3}, steps=10, labeled_batch=4)
    first = write_run(tmp_path / "first", config, first_labels())
    table = pq.read_table(run_round(first) / "signals.parquet").to_pydict()
    noted = {row: last for row, last in zip(table["row"], table["flex_last"], strict=True) if last >= 0}
    assert noted
    assert set(noted) <= set(range(20, 80)), "neither labeled images nor those kept for reporting"
    assert {"flex_T", "flex_beta"} <= table.keys()
    chosen = min(noted)
    rows, given = list(range(20)), [row % 4 for row in range(20)]
    after = answers([*rows, chosen], [*given, 0])
    second = write_run(tmp_path / "second", config, after, previous=first / "out")
    report = Reporter(second, config.steps)
    with stop_requests() as asked:
        status = Round(RunFiles.read(second), report, asked).trainer.recipe.keepers[0]
    assert isinstance(status, LearningStatus)
    kept = status.table.at(torch.arange(120))["last"].tolist()
    assert {row: last for row, last in enumerate(kept) if last >= 0} == {r: c for r, c in noted.items() if r != chosen}
    expected = np.bincount([c for r, c in noted.items() if r != chosen], minlength=4).tolist()
    assert numbers(status) == (expected, 59 - sum(expected))
