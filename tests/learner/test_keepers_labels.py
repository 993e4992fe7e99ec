"""Label disambiguation (LION eqs. 1, 4-6): worked numbers, when a label may be doubted, what training does then."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.keepers.base import Warmup
from learner.keepers.candidates import (
    HALF_LIFE_OF_99,
)
from learner.keepers.disambiguator import Disambiguator, DisambiguatorOptions
from learner.keepers.prototypes import PrototypeOptions, Prototypes
from learner.parts import Clock, Event, Scores, StepContext
from learner.state import unpack_bits
from learner.terms import SupervisedCE
from tests.learner.steps import EARLY, LATE, labeled_step, view_of

WRONG = [[0.1, 0.8, 0.06, 0.04]]  # the model says 1, the label says 0
AT_ONCE = {"min_visits": 0, "half_life_visits": HALF_LIFE_OF_99}


def make(num_classes: int = 4, vectors: Any = None, **options: Any) -> Disambiguator:
    """A disambiguator over the prototypes given, by default one axis per class."""
    vectors = torch.eye(num_classes) if vectors is None else torch.as_tensor(vectors, dtype=torch.float32)
    prototypes = Prototypes(num_classes, vectors.shape[1], PrototypeOptions(center=False), 0.8, Warmup())
    prototypes.vectors, prototypes.counts = vectors, (vectors.norm(dim=1) > 0).long()
    return Disambiguator(num_classes, DisambiguatorOptions(**options), prototypes, Warmup())


def axis(c: int, num_classes: int = 4) -> torch.Tensor:
    return torch.eye(num_classes)[c][None]


def visit(doubts: Disambiguator, p: Any = WRONG, given: int = 0, features: Any = None, **more: Any) -> StepContext:
    f = axis(1, doubts.num_classes) if features is None else features
    ctx = labeled_step([7], p, [given], f, **more)
    doubts.before_target(ctx)
    return ctx


def kept(doubts: Disambiguator, name: str, row: int = 7) -> Any:
    return doubts.table.at(torch.tensor([row]))[name][0].tolist()


def bits(doubts: Disambiguator, row: int = 7) -> list[int]:
    sets = unpack_bits(doubts.table.at(torch.tensor([row]))["candidates"], doubts.num_classes)
    return sets[0].nonzero()[:, 0].tolist()


# When a label may be doubted.


def test_grace_of_thirty_visits() -> None:
    doubts = make()
    for n in range(30):
        ctx = visit(doubts)
        assert ctx.labeled.weight.tolist() == [1], n
    assert kept(doubts, "doubtful") == 0
    ctx = visit(doubts)
    assert ctx.labeled.weight.tolist() == [0.5]
    assert (kept(doubts, "visits"), kept(doubts, "doubtful")) == (31, 1)


@pytest.mark.parametrize(
    ("clock", "weight"),
    [
        (EARLY, 1),
        (Clock(0, 0, 333, 1000), 1),
        (Clock(0, 0, 334, 1000), 0.5),
        (Clock(1999, 9, 999, 1000, ramp_scope="lifetime"), 1),
        (Clock(2000, 9, 0, 1000, ramp_scope="lifetime"), 0.5),
    ],
)
def test_warm_up_is_a_third_of_the_run_or_two_thousand_steps_of_the_lifetime(clock: Clock, weight: float) -> None:
    doubts = make(**AT_ONCE)
    assert visit(doubts, clock=clock).labeled.weight.tolist() == [weight]
    assert kept(doubts, "visits") == 1  # a visit in the warm-up counts for the grace


def test_hard_but_correct_labels_stay_under_the_margin_test() -> None:
    hard = [[0.3, 0.45, 0.15, 0.1]]
    assert visit(make(**AT_ONCE), hard).labeled.weight.tolist() == [1]
    assert visit(make(**AT_ONCE, ambiguity="strict"), hard).labeled.weight.tolist() == [0.5]


def test_adjudicated_labels_are_never_doubted_for_training_but_shown() -> None:
    doubts = make(**AT_ONCE)
    for _ in range(20):
        ctx = visit(doubts, locked=[True])
    assert ctx.labeled.weight.tolist() == [1]
    assert ctx.labeled.soft.tolist() == [[1, 0, 0, 0]]
    assert kept(doubts, "settled") == -1
    shown = doubts.signals(torch.tensor([7]), Scores.of(torch.tensor(WRONG)), view_of([7], [0], 4, locked=[True]))
    assert shown["lion_ambiguous_margin"].tolist() == [True]


def test_adjudication_ends_an_override_even_before_its_event_arrives() -> None:
    doubts = make(min_visits=0, half_life_visits=1)
    for _ in range(12):
        ctx = visit(doubts)
    assert ctx.labeled.soft.tolist() == [[0, 1, 0, 0]]
    ctx = visit(doubts, locked=[True])
    assert ctx.labeled.soft.tolist() == [[1, 0, 0, 0]]
    assert ctx.labeled.weight.tolist() == [1]


# What training does.


def test_doubted_labels_train_softly_on_w_or_not_at_all() -> None:
    soft = visit(make(**AT_ONCE))
    w = 0.99 * 0.5 + 0.01 * torch.softmax(torch.tensor([0.0, 10.0]), 0)
    assert soft.labeled.soft[0].tolist() == pytest.approx([*w.tolist(), 0, 0], abs=1e-6)
    none = visit(make(**AT_ONCE, ambiguous_loss="none"))
    assert none.labeled.weight.tolist() == [0]
    assert SupervisedCE()(none).item() == 0
    assert none.batch.target.tolist() == [[1, 0, 0, 0]]  # what the person said stays


def test_ten_doubtful_visits_and_a_strong_class_make_a_suggestion() -> None:
    doubts = make(min_visits=0, half_life_visits=1)
    for n in range(9):
        ctx = visit(doubts)
        assert kept(doubts, "settled") == -1, n
    assert max(kept(doubts, "w")) > 0.8
    assert ctx.labeled.weight.tolist() == [0.5]
    ctx = visit(doubts)
    assert kept(doubts, "settled") == 1
    assert ctx.labeled.weight.tolist() == [1]
    assert ctx.labeled.soft.tolist() == [[0, 1, 0, 0]]
    shown = doubts.signals(torch.tensor([7]), Scores.of(torch.tensor(WRONG)), view_of([7], [0], 4))
    assert shown["lion_suggest"].tolist() == [1]
    assert shown["lion_strength"][0] >= 0.8


def test_suggestion_without_override_trains_as_before() -> None:
    doubts = make(min_visits=0, half_life_visits=1, override=False)
    for _ in range(12):
        ctx = visit(doubts)
    assert kept(doubts, "settled") == 1
    assert ctx.labeled.weight.tolist() == [0.5]


def test_prototypes_can_confirm_the_given_label() -> None:
    doubts = make(min_visits=0, half_life_visits=1)
    for _ in range(10):
        ctx = visit(doubts, features=axis(0))
    assert kept(doubts, "settled") == 0
    assert ctx.labeled.soft.tolist() == [[1, 0, 0, 0]]
    assert ctx.labeled.weight.tolist() == [1]
    shown = doubts.signals(torch.tensor([7]), Scores.of(torch.tensor(WRONG)), view_of([7], [0], 4))
    assert shown["lion_suggest"].tolist() == [-1]


@pytest.mark.parametrize("protected", [0, 1])
def test_protected_classes_are_neither_given_up_nor_suggested(protected: int) -> None:
    doubts = make(min_visits=0, half_life_visits=1, protected=(protected,))
    for _ in range(15):
        visit(doubts)
    assert kept(doubts, "settled") == -1


def test_hardening() -> None:
    doubts = make(**{**AT_ONCE, "half_life_visits": 1.0}, harden=0.9, suggest=0.9)
    visit(doubts)
    visit(doubts)
    assert 0.5 < max(kept(doubts, "w")) < 0.9
    for _ in range(2):
        visit(doubts)
    assert max(kept(doubts, "w")) == 1


def test_candidates_are_recomputed_and_the_given_label_stays_one() -> None:
    doubts = make(**AT_ONCE)
    visit(doubts, [[0.05, 0.9, 0.03, 0.02]])
    assert bits(doubts) == [0, 1]
    visit(doubts, [[0.02, 0.03, 0.9, 0.05]])
    assert bits(doubts) == [0, 2]
    w = kept(doubts, "w")
    assert w[1] == 0
    assert sum(w) == pytest.approx(1)
    visit(doubts, [[0.02, 0.6, 0.33, 0.05]], excluded=[[0, 0, 1, 0]])
    assert bits(doubts) == [0, 1]  # a person said "not 2"


def test_a_persons_candidate_set_is_the_whole_set() -> None:
    doubts = make(min_visits=2, half_life_visits=1)
    several = {"allowed": [[0, 1, 1, 1]], "excluded": [[0, 0, 0, 1]]}
    inside = [[0.1, 0.5, 0.3, 0.1]]
    for _ in range(3):
        ctx = visit(doubts, inside, -1, **several)
    assert bits(doubts) == [1, 2]
    assert ctx.labeled.weight.tolist() == [1]
    assert ctx.labeled.soft.tolist() == [[0, 0.5, 0.5, 0]]  # trains on the set until a class is settled
    for _ in range(10):
        ctx = visit(doubts, inside, -1, **several)
    assert ctx.labeled.soft.tolist() == [[0, 1, 0, 0]]
    scores = Scores.of(torch.tensor(inside))
    shown = doubts.signals(torch.tensor([7]), scores, view_of([7], [-1], 4, **several))
    assert shown["lion_suggest"].tolist() == [1]
    assert shown["lion_candidates"].tolist() == [0b110]


def test_a_candidate_set_far_from_the_prediction_is_doubted() -> None:
    ctx = visit(make(**AT_ONCE), [[0.9, 0.05, 0.03, 0.02]], -1, allowed=[[0, 1, 1, 0]])
    assert ctx.labeled.weight.tolist() == [0.5]
    assert ctx.labeled.soft[0, [0, 3]].tolist() == [0, 0]


def test_bare_not_these_and_votes_are_left_alone() -> None:
    for more in ({"allowed": [[0, 1, 1, 1]], "excluded": [[1, 0, 0, 0]]}, {}):
        doubts = make(**AT_ONCE)
        ctx = visit(doubts, [[0.97, 0.01, 0.01, 0.01]], -1, **more)
        assert ctx.labeled.weight.tolist() == [1]
        assert kept(doubts, "candidates") == 0


def test_a_class_without_prototype_keeps_its_weight() -> None:
    vectors = torch.eye(4)
    vectors[1] = 0
    doubts = make(vectors=vectors, **AT_ONCE)
    p = [[0.02, 0.6, 0.35, 0.03]]
    for _ in range(5):
        visit(doubts, p, features=axis(2))
    w = kept(doubts, "w")
    assert w[1] == pytest.approx(1 / 3, abs=1e-6)
    assert w[2] > 1 / 3 > w[0]
    assert sum(w) == pytest.approx(1)


def test_starting_at_the_probabilities_lets_the_first_visit_decide() -> None:
    doubts = make(**AT_ONCE, w_init="probs", suggest_visits=1)
    visit(doubts, [[0.02, 0.96, 0.01, 0.01]])
    assert kept(doubts, "settled") == 1
    uniform = make(**AT_ONCE, suggest_visits=1)
    visit(uniform, [[0.02, 0.96, 0.01, 0.01]])
    assert kept(uniform, "settled") == -1


def test_papers_raw_weights() -> None:
    doubts = make(
        **AT_ONCE,
        ambiguity="strict",
        candidates="paper",
        w_init="probs",
        similarity="cosine",
        normalise=False,
        ambiguous_loss="none",
    )
    visit(doubts, [[0.10, 0.50, 0.32, 0.08]], features=axis(2))
    assert kept(doubts, "w") == pytest.approx([0, 0.495, 0.99 * 0.32 + 0.01, 0], abs=1e-6)


def test_half_life_in_steps_counts_the_steps_between_visits() -> None:
    doubts = make(min_visits=0, half_life_visits=1e9, half_life_steps=100)
    visit(doubts, clock=replace(LATE, lifetime_step=5000))
    assert kept(doubts, "w") == pytest.approx([0.5, 0.5, 0, 0])
    visit(doubts, clock=replace(LATE, lifetime_step=5100))
    half = 0.5 * 0.5 + 0.5 * torch.softmax(torch.tensor([0.0, 10.0]), 0)
    assert kept(doubts, "w") == pytest.approx([*half.tolist(), 0, 0])


def test_two_visits_of_a_row_in_one_batch() -> None:
    doubts, once = make(**AT_ONCE), make(**AT_ONCE)
    doubts.before_target(labeled_step([7, 3, 7], WRONG * 3, [0, 0, 0], axis(1).expand(3, 4)))
    for _ in range(2):
        visit(once)
    assert (kept(doubts, "visits"), kept(doubts, "visits", 3)) == (2, 1)
    assert kept(doubts, "w") == pytest.approx(kept(once, "w"))
    assert kept(doubts, "visits", 0) == 0


# Events and signals.


@pytest.mark.parametrize("kind", ["labelled", "label_changed", "label_removed"])
def test_a_persons_word_ends_every_override(kind: str) -> None:
    doubts = make(min_visits=0, half_life_visits=1)
    for _ in range(12):
        visit(doubts)
    assert kept(doubts, "settled") == 1
    doubts.on_event(Event(kind, 7, old=0, new=0))
    assert (kept(doubts, "settled"), kept(doubts, "visits"), kept(doubts, "candidates")) == (-1, 0, 0)
    assert kept(doubts, "w") == [0, 0, 0, 0]
    ctx = visit(doubts, [[0.9, 0.1, 0, 0]])
    assert ctx.labeled.soft.tolist() == [[1, 0, 0, 0]]


def test_removed_samples_are_forgotten() -> None:
    doubts = make(**AT_ONCE)
    visit(doubts)
    doubts.on_event(Event("sample_removed", 7))
    visit(doubts)
    assert kept(doubts, "visits") == 0
    doubts.on_event(Event("sample_added", 7))
    visit(doubts)
    assert kept(doubts, "visits") == 1


def test_state_survives_and_continues_alike() -> None:
    doubts, other = make(**AT_ONCE), make(**AT_ONCE)
    for _ in range(4):
        visit(doubts)
    other.load_state_dict(doubts.state_dict())
    for each in (doubts, other):
        visit(each)
    assert kept(doubts, "w") == kept(other, "w")
    assert other.state_dict().keys() == doubts.state_dict().keys()


def test_signals_of_every_kind_of_row() -> None:
    doubts = make(min_visits=1, half_life_visits=69)
    p = torch.tensor([*WRONG, [0.7, 0.2, 0.1, 0], [0.9, 0.1, 0, 0], *WRONG, *WRONG])
    rows = [9, 3, 4, 100, 5]
    for _ in range(2):
        doubts.before_target(labeled_step([9, 3, 4], p[:3], [0, 0, 0], axis(1).expand(3, 4)))
    found = doubts.signals(torch.tensor(rows), Scores.of(p), view_of([3, 4, 5, 9], [0, 0, 0, 0], 4))
    assert all(len(column) == 5 for column in found.values())
    assert found["lion_ambiguous_strict"].tolist() == [True, True, False, False, False]  # 5 is in its grace
    assert found["lion_ambiguous_margin"].tolist() == [True, False, False, False, False]
    assert found["lion_reason"].tolist() == [2, 1, 0, 0, 0]
    np.testing.assert_allclose(found["lion_label_margin"], [0.7, 0, 0, np.nan, 0.7], atol=1e-6)
    assert found["lion_candidates"].tolist() == [0b11, 0b1, 0b1, 0, 0b11]
    assert found["lion_visits"].tolist() == [2, 2, 2, 0, 0]
    assert found["lion_visits_to_go"].tolist() == [9, 10, 10, 0, 11]
    assert found["lion_suggest"].tolist() == [-1] * 5
    assert found["lion_w"].shape == (5, 4)
    assert found["lion_w"][0].sum() == pytest.approx(1)
    assert found["lion_strength"][0] == found["lion_w"][0].max()
    assert {name: column.dtype.name for name, column in found.items()} == {
        "lion_ambiguous_strict": "bool",
        "lion_ambiguous_margin": "bool",
        "lion_reason": "uint8",
        "lion_label_margin": "float32",
        "lion_candidates": "int64",
        "lion_w": "float32",
        "lion_suggest": "int8",
        "lion_strength": "float32",
        "lion_visits": "int32",
        "lion_visits_to_go": "int32",
    }


def test_signals_without_any_label() -> None:
    doubts = make()
    found = doubts.signals(torch.tensor([1, 2]), Scores.of(torch.tensor(WRONG * 2)), view_of([], [], 4))
    assert not found["lion_ambiguous_strict"].any()
    assert np.isnan(found["lion_label_margin"]).all()
    assert found["lion_candidates"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"normalise": False}, "needs labels.normalise"),
        ({"harden": 0.5}, "labels.harden"),
        ({"similarity": "cosine", "temperature": 0.2}, "temperature has no effect"),
        ({"protected": (4,)}, "not classes"),
    ],
)
def test_combinations_without_meaning_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(**options)


def test_old_prototypes_are_read() -> None:
    """The batch's own observations reach w one step later."""
    doubts = make(vectors=torch.zeros(4, 4), **AT_ONCE)
    ctx = labeled_step([7, 8], [*WRONG, [0.03, 0.9, 0.04, 0.03]], [0, 1], axis(1).expand(2, 4), clock=LATE)
    doubts.before_target(ctx)
    doubts.prototypes.observe(ctx)
    assert kept(doubts, "w") == pytest.approx([0.5, 0.5, 0, 0])
    visit(doubts)
    # One prototype alone has nobody to share with: the softmax over one class changes nothing.
    assert doubts.prototypes.is_set.tolist() == [False, True, False, False]
