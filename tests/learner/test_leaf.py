"""LEAF and EAF on hosts: the ambiguous term in all its forms, what a plug-in changes, and the columns."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.ambiguity import AmbiguityOptions, AmbiguousConsistency, LeafReader, Partition
from learner.eaf import FeatureEaf, GateBalance, LogitEaf
from learner.losses import ambiguous_consistency, cross_entropy, partition_weight, positive_partition
from learner.methods import build
from learner.methods.eaf import with_category
from learner.models import Network, run
from learner.parts import NetOut, Recipe, Scores, StepContext
from learner.state import unpack_bits
from learner.targeters import ConfidenceTargeter
from learner.terms import ConsistencyCE, Scheduled, SupervisedCE
from tests.learner.steps import LATE, unlabeled_step

STRONG = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, -1.0]])
WEAK = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.5, 1.0, 1.2, -1.0]])
OFFICIAL = AmbiguityOptions(
    rule="official", weight="official", rescale_to_ce=True, mask="official_mean_mask", partition_of="logits"
)


def step(options: AmbiguityOptions, weak: Tensor = WEAK, strong: Tensor = STRONG) -> StepContext:
    """An unlabeled step whose two weak views have the mean logits `weak`, with gradient on every view."""
    ctx = unlabeled_step(range(len(weak)), weak.softmax(1), clock=LATE)
    tilt = 0.1 * torch.randn(weak.shape, generator=torch.Generator().manual_seed(0))
    ctx.scores["w"] = Scores.mean([Scores.of((weak + tilt).softmax(1)), Scores.of((weak - tilt).softmax(1))])
    ctx.target = Partition(ConfidenceTargeter(0.7), options)(ctx.scores["w"], ctx.batch.unlabeled_rows, ctx.clock)
    for name, z in (("w", weak), ("s", strong)):
        leaf = z.clone().requires_grad_()
        ctx.outs[name] = NetOut(leaf, leaf, leaf)
    return ctx


def test_worked_batch_of_the_public_code() -> None:
    ctx = step(OFFICIAL)
    assert ctx.target is not None
    assert ctx.target.positive is not None
    q = OFFICIAL.read(ctx.scores["w"])
    torch.testing.assert_close(q, WEAK.softmax(1))
    assert ctx.target.positive.sum(1).tolist() == [1, 2]
    assert ctx.target.weight.tolist() == [1, 0]
    weights = partition_weight(q, ctx.target.positive)
    assert weights.tolist() == pytest.approx([0.918369, 0.671168], abs=5e-6)
    costs = ambiguous_consistency(STRONG, ctx.target.positive)
    assert costs.tolist() == pytest.approx([0.440190, 0.523744], abs=5e-6)
    plain = cross_entropy(STRONG, ctx.target.hard)
    assert plain.tolist() == pytest.approx([0.440190, 0.440190], abs=5e-6)
    assert (weights * costs).mean().item() == pytest.approx(0.377888, abs=5e-6)
    assert (plain.mean() / (weights * costs).mean()).item() == pytest.approx(1.164867, abs=5e-6)
    loss = AmbiguousConsistency(OFFICIAL)(ctx)
    assert loss.item() == pytest.approx(0.220095, abs=5e-6)
    loss.backward()
    grad = ctx.outs["s"].z.grad
    assert grad is not None
    assert (grad[1] != 0).any()  # a masked sample still trains: its mask only shrinks the batch
    direction = torch.autograd.functional.jacobian(
        lambda z: (weights * ambiguous_consistency(z, ctx.target.positive)).mean(),  # type: ignore[union-attr, arg-type]
        STRONG,
    )
    torch.testing.assert_close(grad, direction * 0.5 * 1.164867, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("none", lambda cost: cost.mean()),
        ("host_mask_per_sample", lambda cost: cost[0] / 2),
        ("official_mean_mask", lambda cost: cost.mean() / 2),
    ],
)
def test_masks(mask: Any, expected: Any) -> None:
    options = AmbiguityOptions(mask=mask)
    ctx = step(options)
    assert ctx.target is not None
    cost = ambiguous_consistency(STRONG, positive_partition(ctx.scores["w"].p))
    assert AmbiguousConsistency(options)(ctx).item() == pytest.approx(expected(cost).item())
    assert ctx.logs["ambiguous/classes"].item() == ctx.target.positive.sum(1).float().mean()  # type: ignore[union-attr]
    if mask == "host_mask_per_sample":
        assert AmbiguousConsistency(options, "selected")(ctx).item() == pytest.approx(cost[0].item())


def test_one_positive_class_and_the_hosts_mask_make_fixmatch() -> None:
    options = AmbiguityOptions(cumulative=0.01)
    ctx = step(options)
    torch.testing.assert_close(AmbiguousConsistency(options)(ctx), ConsistencyCE()(ctx))
    weighted = replace(ctx.target, weight=torch.tensor([0.3, 0.8]))  # type: ignore[type-var]
    ctx.target = weighted
    torch.testing.assert_close(AmbiguousConsistency(options)(ctx), ConsistencyCE()(ctx))


@pytest.mark.parametrize("direction", ["weak_to_strong", "strong_to_weak"])
def test_the_trained_side_and_the_splitting_side(direction: Any) -> None:
    options = AmbiguityOptions(direction=direction, mask="none", weight="official", margin=0.2)
    ctx = step(options)
    term = AmbiguousConsistency(options)
    loss = term(ctx)
    loss.backward()
    trained = "s" if direction == "weak_to_strong" else "w"
    other = "w" if trained == "s" else "s"
    assert term.grad_views == {trained}
    assert term.views == {"w", "s"}
    assert ctx.outs[trained].z.grad is not None
    assert ctx.outs[other].z.grad is None
    q = ctx.scores["w"].p if trained == "s" else STRONG.softmax(1)
    split = positive_partition(q)
    expected = ambiguous_consistency(STRONG if trained == "s" else WEAK, split, 0.2) * partition_weight(q, split)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-6)


def test_loss_on_probabilities() -> None:
    options = AmbiguityOptions(scores="probs", mask="none")
    ctx = step(options, torch.tensor([[9.0, 8.9, 0, 0]]), STRONG[:1])
    assert AmbiguousConsistency(options)(ctx).item() == pytest.approx(1.332663, abs=5e-6)


def test_rescaling_a_batch_that_costs_nothing_divides_by_no_zero() -> None:
    ctx = step(OFFICIAL, torch.zeros(3, 5), torch.randn(3, 5))  # uniform: every weight is 0
    assert AmbiguousConsistency(OFFICIAL)(ctx).item() == 0
    sure = OFFICIAL.model_copy(update={"mask": "none", "weight": "none", "rule": "cumulative"})
    ctx = step(sure, 1e4 * torch.eye(3), 1e4 * torch.eye(3))  # satisfied to the last bit
    loss = AmbiguousConsistency(sure)(ctx)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(ctx.outs["s"].z.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_public_rule_on_few_classes(num_classes: int) -> None:
    ctx = step(OFFICIAL, torch.randn(5, num_classes), torch.randn(5, num_classes))
    loss = AmbiguousConsistency(OFFICIAL)(ctx)
    assert torch.isfinite(loss)


def test_partition_leaves_the_hosts_targets_alone() -> None:
    scores = Scores.of(WEAK.softmax(1))
    rows = torch.arange(2)
    plain = ConfidenceTargeter(0.7)(scores, rows, LATE)
    split = Partition(ConfidenceTargeter(0.7), AmbiguityOptions())(scores, rows, LATE)
    for name in ("hard", "weight", "subset"):
        assert torch.equal(getattr(plain, name), getattr(split, name))
    assert plain.positive is None
    assert torch.equal(split.positive, positive_partition(scores.p))  # type: ignore[arg-type]


def test_a_term_without_partition_says_so() -> None:
    ctx = step(AmbiguityOptions())
    ctx.target = ConfidenceTargeter()(ctx.scores["w"], ctx.batch.unlabeled_rows, ctx.clock)
    with pytest.raises(ValueError, match="Partition"):
        AmbiguousConsistency(AmbiguityOptions())(ctx)


def kinds(recipe: Recipe) -> list[str]:
    return [type(term).__name__ for term, _ in recipe.losses]


def test_leaf_is_what_the_paper_says() -> None:
    recipe = build("leaf", 7, 16)
    assert kinds(recipe) == ["SupervisedCE", "AmbiguousConsistency", "GateBalance"]
    assert [weight for _, weight in recipe.losses] == [1, 1, 0.01]
    (semantic,), (instance,) = recipe.feature_adapters, recipe.logit_adapters
    assert isinstance(semantic, FeatureEaf)
    assert isinstance(instance, LogitEaf)
    assert [module.experts.width for module in (semantic, instance)] == [16, 7]
    assert not recipe.head_adapters
    assert (recipe.views, recipe.grad_views) == ({"w", "s"}, {"s"})
    assert semantic.experts.options.num == 4
    assert semantic.experts.options.chosen == 2


def test_official_is_eaf_on_ada_cm() -> None:
    recipe = build("leaf_official", 7, 16)
    assert kinds(recipe) == ["SupervisedCE", "AmbiguousConsistency", "NTXentSubset"]  # one expert: nothing to balance
    assert [weight for _, weight in recipe.losses] == [0.5, 1.0, 0.1]
    assert isinstance(recipe.head_adapters[0], FeatureEaf)
    assert recipe.head_adapters[0].level == "instance"
    assert not recipe.logit_adapters
    assert sum(p.numel() for p in recipe.feature_adapters[0].parameters()) == 16 * 8 + 8 + 8 * 16 + 16
    assert recipe.views == {"w", "w2", "s"}
    assert (recipe.feature_scale, recipe.forward_mode, recipe.pseudo_source) == (1.0, "separate", "student_train")
    assert isinstance(recipe.targeter, Partition)
    assert len(recipe.keepers) == 1


@pytest.mark.parametrize(
    ("options", "adapters", "terms"),
    [
        ({"semantic": False}, (0, 0, 1), "AmbiguousConsistency"),
        ({"instance": "none"}, (1, 0, 0), "AmbiguousConsistency"),
        ({"instance": "features"}, (1, 1, 0), "AmbiguousConsistency"),
        ({"consistency": "none"}, (1, 0, 1), None),
        ({"consistency": "cross_entropy"}, (1, 0, 1), "ConsistencyCE"),
        ({"semantic": False, "instance": "none"}, (0, 0, 0), "AmbiguousConsistency"),
    ],
)
def test_ablations_take_a_level_out(options: dict[str, Any], adapters: tuple[int, ...], terms: str | None) -> None:
    recipe = build("leaf", 4, 8, options)
    found = tuple(len(group) for group in (recipe.feature_adapters, recipe.head_adapters, recipe.logit_adapters))
    assert found == adapters
    expected = ["SupervisedCE", *([terms] if terms else []), *(["GateBalance"] if sum(adapters) else [])]
    assert kinds(recipe) == expected
    assert recipe.views == (set() if terms is None else {"w", "s"})


@pytest.mark.parametrize("kind", ["linear", "bottleneck", "residual"])
@pytest.mark.parametrize("num", [1, 2, 8])
def test_ablations_of_experts(kind: str, num: int) -> None:
    recipe = build("leaf", 4, 8, {"experts": {"kind": kind, "num": num}})
    options = recipe.feature_adapters[0].experts.options  # type: ignore[union-attr]
    assert (options.kind, options.num, options.chosen) == (kind, num, min(2, num))  # type: ignore[union-attr]
    assert ("GateBalance" in kinds(recipe)) == (num > 1)


def test_plug_in_keeps_the_host_and_adds_experts() -> None:
    host, recipe = build("flexmatch", 4, 8), build("eaf+flexmatch", 4, 8)
    assert kinds(recipe) == [*kinds(host), "GateBalance"]
    assert type(recipe.targeter) is type(host.targeter)
    assert [keeper.name for keeper in recipe.keepers] == [keeper.name for keeper in host.keepers]
    assert recipe.scorer == host.scorer


@pytest.mark.parametrize("host", ["fixmatch", "flexmatch", "adacm", "freematch", "lion"])
def test_category_level_replaces_the_hosts_cross_entropy_in_place(host: str) -> None:
    plain, recipe = build(host, 4, 8), build(f"eaf+{host}", 4, 8, {"eaf": {"category": True}})
    assert isinstance(recipe.targeter, Partition)
    assert type(recipe.targeter.inner) is type(plain.targeter)
    for (old, old_weight), (new, new_weight) in zip(plain.losses, recipe.losses, strict=False):
        assert old_weight == new_weight
        if isinstance(old, ConsistencyCE):
            assert isinstance(new, AmbiguousConsistency)
            assert new.reduction == old.reduction
            assert new.options.mask == "host_mask_per_sample"
        else:
            assert type(new) is type(old)
    assert sum(isinstance(term, AmbiguousConsistency) for term, _ in recipe.losses) == 1


def test_category_level_reaches_into_a_schedule() -> None:
    host = build("fixmatch", 4, 8)
    faded = Scheduled(ConsistencyCE("selected"), lambda _: 0.5)
    scheduled = replace(host, losses=[(SupervisedCE(), 1.0), (faded, 2.0)])
    term, weight = with_category(scheduled, AmbiguityOptions()).losses[1]
    assert weight == 2.0
    assert isinstance(term, Scheduled)
    assert isinstance(term.term, AmbiguousConsistency)
    assert term.term.reduction == "selected"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("eaf+leaf", {}, "experts already"),
        ("eaf+supervised", {"eaf": {"category": True}}, "no consistency cross-entropy"),
        ("eaf+mean_teacher", {"eaf": {"category": True}}, "no consistency cross-entropy"),
        ("eaf+fixmatch", {"eaf": {"semantic": False, "instance": "none"}}, "all three levels"),
        ("eaf+fixmatch", {"eaf": {"ambiguity": {"margin": 0.1}}}, "set eaf.category"),
        ("leaf", {"consistency": "none", "ambiguity": {"margin": 0.1}}, "consistency is 'none'"),
        ("leaf", {"consistency": "none", "lambda_u": 2.0}, "lambda_u"),
        (
            "eaf+fixmatch",
            {"eaf": {"semantic": False, "instance": "none", "category": True, "experts": {"num": 2}}},
            "both off",
        ),
        ("leaf", {"ambiguity": {"direction": "strong_to_weak", "weak_views": 2}}, "strong_to_weak"),
        ("leaf", {"experts": {"num": 2, "top": 3}}, "top 3"),
        ("leaf", {"experts": {"heads": 3}}, "heads"),
        ("eaf+eaf+fixmatch", {}, "once"),
    ],
)
def test_combinations_without_meaning_are_refused(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build(name, 4, 8, options)


def test_a_gate_that_cannot_learn_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="receives no gradient"):
        build("leaf", 4, 8, {"experts": {"top": 1}})


def test_two_weak_views_are_asked_for() -> None:
    assert build("leaf", 4, 8, {"ambiguity": {"weak_views": 2}}).views == {"w", "w2", "s"}


def network_of(recipe: Recipe) -> Network:
    return Network(torch.nn.Identity(), 8, 4, recipe, dropout=0.0).eval()


@pytest.mark.parametrize("instance", ["logits", "features"])
def test_plugging_into_a_trained_host_changes_nothing_bit_for_bit(instance: str) -> None:
    torch.manual_seed(0)
    host = network_of(build("fixmatch", 4, 8))
    wrapped = network_of(build("eaf+fixmatch", 4, 8, {"eaf": {"instance": instance}}))
    missing, unexpected = wrapped.load_state_dict(host.state_dict(), strict=False)
    assert not unexpected
    assert all("experts" in key for key in missing)
    x = torch.randn(6, 8)
    mine, theirs = run(wrapped, x), run(host, x)
    assert torch.equal(mine.z, theirs.z)
    assert torch.equal(mine.f, theirs.f)
    assert mine.aux.keys() == {"gate_semantic", "gate_instance"}


def reading(gate: Tensor | None = None) -> tuple[NetOut, Scores]:
    z = torch.tensor([[3.0, 2.5, 0.0, -1.0], [5.0, 0, 0, 0]])
    aux = {} if gate is None else {"gate_semantic": gate, "gate_instance": gate.flip(1)}
    return NetOut(z, z, z, aux), Scores.of(z.softmax(1))


def test_columns_of_the_labeling_tool() -> None:
    gate = torch.tensor([[0.268941, 0, 0, 0.731059], [0, 1.0, 0, 0]])
    out, scores = reading(gate)
    strong = Scores.of(STRONG.softmax(1))
    columns = LeafReader()(out, scores, strong)
    assert columns["leaf_m"].tolist() == [2, 1]
    assert columns["leaf_m"].dtype == columns["leaf_top_expert"].dtype == torch.uint8
    assert columns["leaf_set"].tolist() == [0b0011, 0b0001]
    assert unpack_bits(columns["leaf_set"], 4)[0].tolist() == [True, True, False, False]
    torch.testing.assert_close(columns["leaf_coverage"], torch.stack([scores.p[0, :2].sum(), scores.p[1, 0]]))
    assert columns["leaf_gate_entropy_sem"].tolist() == pytest.approx([0.839942, 0], abs=5e-6)
    assert columns["leaf_gate_entropy_inst"].tolist() == pytest.approx([0.839942, 0], abs=5e-6)
    assert columns["leaf_top_expert"].tolist() == [3, 1]
    expected = ambiguous_consistency(STRONG, positive_partition(scores.p))
    torch.testing.assert_close(columns["leaf_loss"], expected)
    assert columns["leaf_loss"][0].item() == pytest.approx(0.523744, abs=5e-6)


def test_columns_that_nothing_was_read_for_are_absent() -> None:
    out, scores = reading()
    assert LeafReader()(out, scores, None).keys() == {"leaf_m", "leaf_set", "leaf_coverage"}


def test_a_switch_rates_all_its_experts() -> None:
    recipe = build("leaf", 4, 8, {"experts": {"style": "switch", "top": 1}})
    x = torch.randn(3, 8)
    out = run(network_of(recipe), x)
    columns = recipe.readers[0](out, recipe.scorer(out), None)
    assert (out.aux["gate_semantic"] > 0).all()
    assert (columns["leaf_gate_entropy_sem"] > 0.9).all()  # gates start near uniform


def test_gate_balance_reads_the_trained_views_only() -> None:
    terms = {term.name: term for term, _ in build("eaf+lion", 4, 8).losses}
    assert isinstance(terms["gate_balance"], GateBalance)
    assert terms["gate_balance"].views == build("lion", 4, 8).grad_views
