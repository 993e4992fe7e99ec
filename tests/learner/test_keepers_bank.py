"""The complementary bank (LION eq. 9): worked visits, options, events, and one row never touching another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from learner import losses
from learner.keepers.complement_bank import BankOptions, ComplementBank
from learner.parts import Clock, Event, Scores, StepContext
from learner.state import unpack_bits
from tests.learner.steps import unlabeled_step, view_of

Z = torch.tensor([[3.0, 2.0, -0.5, -1.0]])
P = Z.softmax(dim=1)
NEVER_FORGET = {"release_above": None, "max_age_rounds": None}


def make(num_classes: int = 4, **options: object) -> ComplementBank:
    return ComplementBank(num_classes, BankOptions(**options), reliable=0.83)


def excluded(bank: ComplementBank, *rows: int) -> list[list[int]]:
    sets = bank.excluded(torch.tensor(rows))
    return [row.nonzero()[:, 0].tolist() for row in sets]


def visit(bank: ComplementBank, rows: list[int], p: object, **more: object) -> StepContext:
    ctx = unlabeled_step(rows, p, **more)
    bank.before_loss(ctx)
    return ctx


def test_worked_visits() -> None:
    bank = make()
    for expected, cost in (([3], 0.013016), ([2, 3], 0.034566), ([2, 3], 0.034566)):
        ctx = visit(bank, [5], P)
        assert excluded(bank, 5) == [expected]
        assert ctx.target is not None
        assert ctx.target.negative is not None
        assert losses.negative_learning(Z, ctx.target.negative).item() == pytest.approx(cost, abs=5e-7)
    assert P[0].tolist() == pytest.approx([0.706019, 0.259730, 0.021320, 0.012931], abs=5e-7)


def test_renormalised_visits_end_in_the_same_set() -> None:
    bank = make(renormalise=True, delta=0.0216, cap="limit", **NEVER_FORGET)
    visit(bank, [5], P)
    visit(bank, [5], P)  # sees .021320 / (1 - .012931) = .021599
    assert excluded(bank, 5) == [[2, 3]]
    tight = make(renormalise=True, delta=0.02159, **NEVER_FORGET)
    visit(tight, [5], P)
    visit(tight, [5], P)
    assert excluded(tight, 5) == [[3]]


def test_all_below_at_once() -> None:
    bank = make(add="all_below")
    visit(bank, [5], P)
    assert excluded(bank, 5) == [[2, 3]]


def test_a_probability_equal_to_delta_is_excluded() -> None:
    bank = make(delta=0.0625, add="all_below")  # a number that float32 holds exactly
    visit(bank, [5], [[0.5, 0.375, 0.0625, 0.0625]])
    assert excluded(bank, 5) == [[2, 3]]
    visit(bank, [6], [[0.5, 0.3745, 0.0627, 0.0628]])
    assert excluded(bank, 6) == [[]]


def test_one_row_never_touches_another() -> None:
    """The public code indexed its bank with a boolean mask: every unreliable image shared the second image's row."""
    bank = make()
    p = torch.tensor([[0.6, 0.3, 0.09, 0.01], [0.01, 0.6, 0.3, 0.09], [0.97, 0.01, 0.01, 0.01], [0.3, 0.09, 0.01, 0.6]])
    visit(bank, [40, 10, 30, 20], p)
    assert excluded(bank, 40, 10, 30, 20) == [[3], [0], [], [2]]
    assert excluded(bank, 0, 1, 2, 3) == [[], [], [], []]


def test_a_row_twice_in_a_batch_is_two_visits() -> None:
    bank = make()
    ctx = visit(bank, [5, 6, 5], P.expand(3, 4))
    assert excluded(bank, 5, 6) == [[2, 3], [3]]
    assert ctx.target is not None
    assert ctx.target.negative is not None
    assert ctx.target.negative[0].tolist() == ctx.target.negative[2].tolist()


@pytest.mark.parametrize(
    ("num_classes", "cap", "size"),
    [(2, "default", 1), (3, "default", 1), (8, "default", 6), (8, "limit", 7), (8, 2, 2)],
)
def test_cap(num_classes: int, cap: int | str, size: int) -> None:
    bank = make(num_classes, cap=cap, delta=0.4, **NEVER_FORGET)
    p = torch.full((1, num_classes), 0.2 / (num_classes - 1))
    p[0, 1] = 0.8
    for _ in range(num_classes + 2):
        visit(bank, [0], p)
    assert len(excluded(bank, 0)[0]) == size
    assert 1 not in excluded(bank, 0)[0]


@pytest.mark.parametrize(("num_classes", "cap"), [(4, 4), (2, 2), (4, 0)])
def test_cap_out_of_range_is_refused(num_classes: int, cap: int) -> None:
    with pytest.raises(ValueError, match=r"bank\.cap"):
        make(num_classes, cap=cap)


def test_releasing_what_was_just_added_is_refused() -> None:
    with pytest.raises(ValueError, match="release_above"):
        make(delta=0.3, release_above=0.2)
    with pytest.raises(ValidationError):
        make(delta=1.5)


@given(
    st.integers(0, 2**20),
    st.sampled_from(["one_per_visit", "all_below"]),
    st.sampled_from([2, 3, 7, 8]),
)
@settings(max_examples=40, deadline=None)
def test_without_forgetting_the_bank_only_grows(seed: int, add: str, num_classes: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    bank = make(num_classes, add=add, delta=0.1, **NEVER_FORGET)
    rows = torch.arange(6)
    before = bank.excluded(rows)
    for _ in range(12):
        p = (3 * torch.randn(6, num_classes, generator=draw)).softmax(dim=1)
        ctx = visit(bank, rows.tolist(), p)
        after = bank.excluded(rows)
        new = after & ~before
        assert (before & ~after).sum() == 0
        assert int(after.sum(dim=1).max()) <= bank.cap
        assert ctx.target is not None
        assert not new[ctx.target.subset].any()
        assert not new.gather(1, p.argmax(dim=1, keepdim=True)).any()
        assert (p[new] <= 0.1).all()
        if add == "one_per_visit":
            assert int(new.sum(dim=1).max()) <= 1
        before = after


def test_a_contradicted_entry_leaves_after_three_visits_in_a_row() -> None:
    bank = make()
    visit(bank, [5], P)
    back, calm = [[0.4, 0.26, 0.09, 0.25]], [[0.5, 0.3, 0.1, 0.1]]
    for p in (back, back, calm, back, back):
        visit(bank, [5], p)
    assert excluded(bank, 5) == [[3]]
    visit(bank, [5], back)
    assert excluded(bank, 5) == [[]]
    forever = make(**NEVER_FORGET)
    visit(forever, [5], P)
    for _ in range(9):
        visit(forever, [5], back)
    assert excluded(forever, 5) == [[3]]


def test_a_reliable_sample_inside_its_own_bank() -> None:
    for conflict, weight in (("use", 1.0), ("skip", 0.0)):
        bank = make(conflict=conflict)
        visit(bank, [5], P)
        ctx = visit(bank, [5], [[0.01, 0.01, 0.01, 0.97]])
        assert ctx.target is not None
        assert ctx.target.weight.tolist() == [weight]
        assert ctx.target.subset.tolist() == [True]
        assert ctx.logs["bank/conflicts"].item() == 1


def clock(round_: int) -> Clock:
    return Clock(lifetime_step=100 * round_, round=round_, step=0, steps=100)


def test_entries_carry_their_round_and_leave_when_older_than_two() -> None:
    bank = make()
    visit(bank, [5], P, clock=clock(1))
    visit(bank, [5], P, clock=clock(2))
    state = bank.table.at(torch.tensor([5]))
    assert state["round"].tolist() == [[0, 0, 2, 1]]
    assert state["step"].tolist() == [[0, 0, 200, 100]]
    for number, left in ((2, [2, 3]), (3, [2, 3]), (4, [2]), (5, [])):
        bank.on_event(Event("round_started", new=number))
        assert excluded(bank, 5) == [left]
    for keep, left in ((None, [2, 3]), (0, [2])):
        other = make(max_age_rounds=keep)
        visit(other, [5], P, clock=clock(1))
        visit(other, [5], P, clock=clock(2))
        other.on_event(Event("round_started", new=2))
        assert excluded(other, 5) == [left]


def test_labeled_and_back_leaves_an_empty_bank() -> None:
    bank = make()
    visit(bank, [5, 6], P.expand(2, 4))
    bank.on_event(Event("labelled", 5, new=0))
    assert excluded(bank, 5) == [[3]]  # archived
    bank.on_event(Event("label_removed", 5, old=0))
    assert excluded(bank, 5, 6) == [[], [3]]


def test_new_and_removed_samples_change_no_other_row() -> None:
    bank = make()
    visit(bank, [5, 6], P.expand(2, 4))
    bank.on_event(Event("sample_added", 5000))
    bank.on_event(Event("sample_removed", 6))
    visit(bank, [6, 7], P.expand(2, 4))
    assert excluded(bank, 5, 6, 7, 5000) == [[3], [], [3], []]
    bank.on_event(Event("sample_added", 6))
    visit(bank, [6], P)
    assert excluded(bank, 6) == [[3]]


def test_state_survives() -> None:
    bank, other = make(), make()
    visit(bank, [5, 8], P.expand(2, 4), clock=clock(1))
    other.load_state_dict(bank.state_dict())
    assert excluded(other, 5, 8) == [[3], [3]]
    other.on_event(Event("round_started", new=4))
    assert excluded(other, 5, 8) == [[], []]


def test_signals() -> None:
    bank = make()
    for _ in range(2):
        visit(bank, [5, 8, 9], P.expand(3, 4))
    rows = torch.tensor([9, 5, 7, 8])
    scores = Scores.of(torch.tensor([[0.1, 0.1, 0.1, 0.7], [0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0]]))
    found = bank.signals(rows, scores, view_of([7, 8], [0, 3], 4))
    assert found["lion_reliable"].tolist() == [False, True, False, False]
    assert unpack_bits(torch.from_numpy(found["lion_not_set"]), 4).int().tolist() == [[0, 0, 1, 1]] * 2 + [[0] * 4] * 2
    assert found["lion_not_count"].tolist() == [2, 2, 0, 0]
    assert found["lion_remaining"].tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1])
    assert found["lion_conflict"].tolist() == [True, False, False, True]  # predicted 3; a person said 3
    assert bank.signals(rows, scores, view_of([], [], 4))["lion_not_count"].tolist() == [2, 2, 0, 2]
