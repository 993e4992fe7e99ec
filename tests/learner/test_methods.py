"""Methods by name: presets, options that fail with a reason, and what the terms of the objectives read."""

from typing import Any

import pytest
import torch

from learner import losses
from learner.keepers.complement_bank import ComplementBank
from learner.keepers.disambiguator import Disambiguator
from learner.keepers.prototypes import Prototypes
from learner.methods import available, build, resolve
from learner.methods.lion import LionOptions
from learner.models import run
from learner.parts import Recipe, Target
from learner.terms import ConsistencyCE, NegativeConsistency, NegativeLearning, SupervisedCE
from tests.learner.blobs import FEATURE_DIM, Session, make_blobs
from tests.learner.steps import labeled_step, unlabeled_step


def lion_keepers(recipe: Recipe) -> tuple[Disambiguator, ComplementBank, Prototypes]:
    doubts, bank, prototypes = recipe.keepers
    assert isinstance(doubts, Disambiguator)
    assert isinstance(bank, ComplementBank)
    assert isinstance(prototypes, Prototypes)
    return doubts, bank, prototypes


def test_available() -> None:
    assert {"supervised", "fixmatch", "lion", "lion_annotation", "lion_paper", "lion_official"} <= set(available())
    for name in available():
        assert build(name, 8, 32).name == name


def test_views() -> None:
    assert build("supervised", 8, 4).views == frozenset()
    assert build("fixmatch", 8, 4).views == {"w", "s"}
    assert build("fixmatch", 8, 4).grad_views == {"s"}
    assert build("lion", 8, 4).grad_views == {"w", "s"}


def test_papers_weights_total_the_worked_example() -> None:
    recipe = build("lion", 8, 4)
    parts = {"supervised": 1.0, "consistency": 0.4, "negative_learning": 0.05, "negative_consistency": 0.2}
    assert sum(weight * parts[term.name] for term, weight in recipe.losses) == pytest.approx(1.3745)


def test_lion_is_the_annotation_loops_default() -> None:
    assert resolve("lion", {}) == resolve("lion_annotation", {})
    options = resolve("lion", {}).options
    assert options == LionOptions()
    assert isinstance(options, LionOptions)
    assert (options.reliable, options.bank.delta, options.labels.min_visits) == (0.83, 0.05, 30)
    assert (options.labels.ambiguity, options.labels.ambiguous_loss, options.pseudo_source) == (
        "margin",
        "soft",
        "ema_eval",
    )
    assert (options.warmup_steps, options.bank.release_above) == (2000, 0.2)


def test_benchmark_presets_lead_back_to_paper_and_code() -> None:
    paper, official = resolve("lion_paper", {}).options, resolve("lion_official", {}).options
    assert isinstance(paper, LionOptions)
    assert isinstance(official, LionOptions)
    assert (paper.labels.ambiguity, paper.labels.w_init, paper.reduction) == ("strict", "probs", "selected")
    assert (paper.bank.release_above, paper.bank.max_age_rounds) == (None, None)
    assert (official.reliable, official.reliable_growth, official.bank.delta) == (0.8, 0.01, 0.01)
    assert [weight for _, weight in build("lion_official", 7, 4).losses] == [1.6, 1.2, 1.0, pytest.approx(1 / 6.5)]


def test_options_override_presets_section_by_section() -> None:
    options = resolve("lion_paper", {"labels": {"suggest": 0.9}, "bank": {"cap": 2}}).options
    assert isinstance(options, LionOptions)
    assert (options.labels.suggest, options.labels.w_init, options.bank.cap) == (0.9, "probs", 2)
    assert options.bank.release_above is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mixmatch", {}, "unknown method 'mixmatch'; available: adacm"),
        ("fixmatch+lion", {}, "must name exactly one of"),
        ("eaf", {}, "must name exactly one of"),
        ("eaf+eaf+fixmatch", {}, "each plug-in once"),
        ("eaf+fixmatch", {"eaf": {"experts": 0}}, "eaf.experts"),
        ("fixmatch", {"treshold": 0.9}, "treshold: Extra inputs"),
        ("fixmatch", {"threshold": 1.1}, "threshold: Input should be less than or equal to 1"),
        ("lion", {"reliable": 1.1}, "reliable: Input should be less than or equal to 1"),
        ("lion", {"bank": {"detla": 0.1}}, "bank.detla"),
        ("lion", {"bank": {"cap": 8}}, "bank.cap 8 must be in 1..7"),
        ("lion", {"bank": {"delta": 0.9, "release_above": None}}, "must lie below reliable"),
        ("lion", {"bank": {"delta": 0.2}}, "release_above 0.2 must be above"),
        ("lion", {"labels": {"normalise": False}}, "needs labels.normalise"),
        ("lion", {"labels": {"protected": [9]}}, "are not classes"),
        ("lion", {"prototypes": {"start": "mean"}}, "needs prototypes.normalise"),
        ("lion_paper", {"labels": {"ambiguous_loss": "soft"}}, "needs labels.normalise"),
        ("lion_paper", {"labels": {"ambiguous_weight": 0.2}}, "ambiguous_weight has no effect"),
        ("lion_paper", {"bank": {"release_visits": 2}}, "release_visits has no effect"),
        ("lion_official", {"labels": {"candidate_threshold": 0.2}}, "candidate_threshold has no effect"),
    ],
)
def test_bad_options_fail_at_build_with_the_reason(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace(".", r"\.").replace("[", r"\[")):
        build(name, 8, 4, options)


@pytest.mark.parametrize(("num_classes", "feature_dim"), [(1, 4), (63, 4), (8, 0)])
def test_bad_sizes_fail(num_classes: int, feature_dim: int) -> None:
    with pytest.raises(ValueError, match=r"classes|feature_dim"):
        build("lion", num_classes, feature_dim)


def test_options_cannot_be_changed_later() -> None:
    options = resolve("lion", {}).options
    assert isinstance(options, LionOptions)
    with pytest.raises(ValueError, match="frozen"):
        options.feature_scale = 3.0


# The supervised term.


def test_one_class_trains_by_cross_entropy() -> None:
    ctx = labeled_step([1, 2], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [0, 1])
    expected = losses.cross_entropy(ctx.outs["l"].z, torch.tensor([0, 1])).mean()
    torch.testing.assert_close(SupervisedCE()(ctx), expected)


def test_candidate_set_trains_by_its_sum() -> None:
    ctx = labeled_step([1], [[0.5, 0.25, 0.25]], [-1], allowed=[[1, 1, 0]])
    assert SupervisedCE()(ctx).item() == pytest.approx(-torch.tensor(0.75).log().item())
    ctx = labeled_step([1], [[0.5, 0.2, 0.2, 0.1]], [-1], allowed=[[1, 1, 1, 0]], excluded=[[0, 1, 0, 0]])
    assert SupervisedCE()(ctx).item() == pytest.approx(-torch.tensor(0.7).log().item())


def test_bare_not_these_trains_by_negative_learning_alone() -> None:
    ctx = labeled_step([1], [[0.5, 0.2, 0.2, 0.1]], [-1], allowed=[[0, 1, 1, 0]], excluded=[[1, 0, 0, 1]])
    assert SupervisedCE()(ctx).item() == pytest.approx(-(torch.tensor(0.5).log() + torch.tensor(0.9).log()).item())


def test_one_class_and_not_these_train_together() -> None:
    ctx = labeled_step([1], [[0.5, 0.2, 0.2, 0.1]], [0], excluded=[[1, 0, 0, 1]])  # class 0 is the answer: not denied
    assert SupervisedCE()(ctx).item() == pytest.approx(-(torch.tensor(0.5).log() + torch.tensor(0.9).log()).item())


def test_votes_train_softly() -> None:
    ctx = labeled_step([1], [[0.5, 0.25, 0.25]], [-1])
    ctx.labeled.soft = torch.tensor([[0.6, 0.4, 0.0]])
    expected = losses.soft_cross_entropy(ctx.outs["l"].z, ctx.labeled.soft)
    torch.testing.assert_close(SupervisedCE()(ctx), expected[0])


def test_labels_left_out_do_not_count_and_soft_ones_count_by_weight() -> None:
    ctx = labeled_step([1, 2, 3], [[0.5, 0.5]] * 3, [0, 1, 0])
    ctx.labeled.weight = torch.tensor([1.0, 0.0, 0.5])
    assert SupervisedCE()(ctx).item() == pytest.approx(0.693147 * 1.5 / 2, abs=1e-6)


# The unlabeled terms.


def test_negative_terms_average_over_unreliable_samples() -> None:
    ctx = unlabeled_step([1, 2, 3], [[0.25] * 4, [0.25] * 4, [0.97, 0.01, 0.01, 0.01]])
    assert ctx.target is not None
    ctx.target.negative = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    for term in (NegativeLearning(), NegativeConsistency()):
        assert term(ctx).item() == pytest.approx(0.287682 / 2, abs=1e-6)
    ctx.target.subset = torch.ones(3, dtype=torch.bool)
    for term in (NegativeLearning(), NegativeConsistency(), NegativeConsistency(official=True)):
        assert term(ctx).item() == 0


def test_consistency_of_a_sample_without_weight_is_zero() -> None:
    ctx = unlabeled_step([1], [[0.4, 0.6]])
    assert ConsistencyCE("all")(ctx).item() == ConsistencyCE("selected")(ctx).item() == 0


def test_share_of_selected_samples_is_logged() -> None:
    ctx = unlabeled_step([1, 2], [[0.4, 0.6], [0.1, 0.9]])
    ConsistencyCE()(ctx)
    assert ctx.logs["consistency/selected"].item() == 0.5


def test_terms_say_what_they_miss() -> None:
    ctx = unlabeled_step([1], [[0.4, 0.6]])
    with pytest.raises(ValueError, match="ComplementBank"):
        NegativeLearning()(ctx)
    ctx.target = None
    with pytest.raises(ValueError, match="targeter"):
        ConsistencyCE()(ctx)
    with pytest.raises(ValueError, match="targeter"):
        lion_keepers(build("lion", 2, 2))[1].before_loss(ctx)


def test_without_its_own_terms_lion_is_fixmatch_bit_for_bit() -> None:
    off = {"negative": 0.0, "consistency": 0.0}
    lion = build("lion", 4, FEATURE_DIM, {"weights": off, "warmup_share": 1.0})
    fixmatch = build("fixmatch", 4, FEATURE_DIM, {"threshold": 0.83, "lambda_u": 0.85})
    assert Session(lion, make_blobs()).run(40) == Session(fixmatch, make_blobs()).run(40)


def test_lion_finds_the_wrong_labels() -> None:
    """One label in eight is wrong: after training those are doubted, with the right class suggested."""
    blobs = make_blobs(labeled=8, spread=0.25)
    wrong = blobs.labeled[::8]
    truth = blobs.y.clone()
    blobs.y[wrong] = (blobs.y[wrong] + 1) % 4
    labels = {"min_visits": 10, "half_life_visits": 10, "suggest_visits": 5}
    recipe = build("lion", 4, FEATURE_DIM, {"labels": labels, "reliable": 0.7})
    session = Session(recipe, blobs, steps=450)
    session.run(450)
    doubts, _, _ = lion_keepers(recipe)
    with torch.no_grad():
        scores = recipe.scorer(run(session.network.eval(), blobs.x[blobs.labeled]))
    found = doubts.signals(blobs.labeled, scores, session.view())
    suggested = {int(r): int(c) for r, c in zip(blobs.labeled, found["lion_suggest"], strict=True) if c >= 0}
    assert suggested == {int(r): int(truth[r]) for r in wrong}
    assert session.accuracy(blobs.labeled) == pytest.approx(1 - len(wrong) / len(blobs.labeled))


def test_target_of_lion_carries_no_gradient() -> None:
    session = Session(build("lion", 4, FEATURE_DIM), make_blobs())
    session.run(3)
    assert session.last is not None
    target = session.last.target
    assert isinstance(target, Target)
    assert target.negative is not None
    assert not any(t.requires_grad for t in (target.hard, target.weight, target.subset, target.negative))
