"""Across methods: a method without its own terms is its host, every weight learns, no image's state is another's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.keepers.complement_bank import ComplementBank
from learner.methods import HOSTS, available, build
from learner.models import Network, run
from learner.parts import Batch, Event, NetOut, Recipe
from learner.state import SampleTable
from tests.learner.blobs import FEATURE_DIM, Session, make_blobs, make_context
from tests.learner.test_method_contract import LATE, keeper_states, outputs, quick, random_step

PRESETS = {
    *("supervised", "pi", "pseudo_label", "mean_teacher", "fixmatch", "flexmatch", "adacm", "freematch", "softmatch"),
    *("facemix", "ema_teacher"),
    *("adamatch", "eaf+fixmatch", "eaf+flexmatch", "leaf", "leaf_official", "lion", "lion_annotation"),
    *("remop+fixmatch", "remop+flexmatch", "remop+adacm", "remop_official", "lion+remop", "loop"),
}
ALONE: dict[str, dict[str, Any]] = {  # options under which nothing but people's answers trains
    "fixmatch": {"lambda_u": 0.0},
    "flexmatch": {"lambda_u": 0.0},
    "freematch": {"lambda_u": 0.0, "lambda_fairness": 0.0},
    "softmatch": {"lambda_u": 0.0},
    "adamatch": {"lambda_u": 0.0},
    "pi": {"lambda_u": 0.0},
    "pseudo_label": {"lambda_u": 0.0},
    "mean_teacher": {"lambda_u": 0.0},
    "ema_teacher": {"lambda_u": 0.0},
    "adacm": {"weights": {"supervised": 1.0, "consistency": 0.0, "contrast": 0.0}},
    "leaf": {"lambda_u": 0.0, "semantic": False, "instance": "none"},
    "lion": {"weights": {"reliable": 0.0, "negative": 0.0, "consistency": 0.0}, "warmup_share": 1.0},
}


def test_every_preset_of_the_specification_is_there() -> None:
    assert set(available()) >= PRESETS
    assert ALONE.keys() | {"supervised", "facemix"} == HOSTS.keys()  # FaceMix always mixes


@pytest.mark.parametrize("host", ALONE)
def test_with_all_weights_zero_a_host_is_supervised_bit_for_bit(host: str) -> None:
    plain = Session(build("supervised", 4, FEATURE_DIM), make_blobs())
    zero = Session(build(host, 4, FEATURE_DIM, ALONE[host]), make_blobs())
    assert plain.run(15) == zero.run(15)
    mine, theirs = zero.network.state_dict(), plain.network.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, mine[name]) for name, value in theirs.items())


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("host", sorted(HOSTS.keys() - {"leaf"}))
def test_experts_that_have_not_learned_yet_leave_any_host_as_it_is_bit_for_bit(host: str, num: int) -> None:
    torch.manual_seed(0)
    plain = Network(torch.nn.Identity(), 8, 5, build(host, 5, 8), dropout=0.0)
    recipe = build(f"eaf+{host}", 5, 8, {"eaf": {"experts": {"num": num}}})
    wrapped = Network(torch.nn.Identity(), 8, 5, recipe, dropout=0.0)
    wrapped.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(6, 8)
    for network in (plain, wrapped):
        network.train()  # with the noise of the gates
    one, two = run(plain, x), run(wrapped, x)
    assert torch.equal(one.z, two.z)
    assert torch.equal(one.f, two.f)
    assert torch.equal(plain_scores(recipe, two), plain_scores(build(host, 5, 8), one))


def plain_scores(recipe: Recipe, out: NetOut) -> Tensor:
    return recipe.scorer(out).p


@pytest.mark.parametrize("name", available())
def test_every_weight_learns_within_a_few_steps(name: str) -> None:
    """A gate, an expert or a center that no loss reaches would train to nothing, unseen."""
    session = Session(quick(name), make_blobs(), steps=60)
    untouched = {key for key, _ in session.network.named_parameters()}
    for _ in range(20):
        session.step()
        moved = [key for key, p in session.network.named_parameters() if p.grad is not None and bool(p.grad.any())]
        untouched -= set(moved)
        if not untouched:
            break
    assert untouched == set()


def tables(recipe: Recipe) -> dict[str, SampleTable]:
    return {keeper.name: keeper.table for keeper in recipe.keepers if hasattr(keeper, "table")}


WITH_ROWS = [name for name in available() if tables(build(name, 4, FEATURE_DIM))]


def after_some_steps(name: str) -> Recipe:
    """A recipe whose tables hold labeled rows 0, 3, 6, … and unlabeled rows 1, 4, 7, …"""
    recipe = quick(name)
    for turn in range(4):
        batch, logits = random_step(4, 5, turn, 6.0)
        ctx = make_context(recipe, outputs(recipe, logits), batch, LATE, 4)
        for keeper in recipe.keepers:
            keeper.observe(ctx)
    return recipe


def tell(recipe: Recipe, *events: Event) -> None:
    for event in events:
        for keeper in recipe.keepers:
            keeper.on_event(event)


def written(table: SampleTable, rows: list[int]) -> dict[str, list[Any]]:
    state = table.at(torch.tensor(rows))
    return {column: state[column].tolist() for column in table.columns}


@pytest.mark.parametrize("name", WITH_ROWS)
def test_what_happens_to_one_image_changes_no_other_ones_state(name: str) -> None:
    recipe = after_some_steps(name)
    others = [0, 3, 6, 1, 7, 10]
    before = {key: written(table, others) for key, table in tables(recipe).items()}
    assert any(table.rows().numel() for table in tables(recipe).values())
    tell(recipe, Event("sample_added", 5000), Event("labelled", 4, new=2), Event("sample_removed", 13))
    tell(recipe, Event("label_removed", 4, old=2), Event("label_changed", 12, old=0, new=1))
    assert {key: written(table, others) for key, table in tables(recipe).items()} == before


@pytest.mark.parametrize("name", WITH_ROWS)
def test_labeled_and_back_an_image_is_as_if_never_seen(name: str) -> None:
    recipe = after_some_steps(name)
    tell(recipe, Event("labelled", 4, new=2), Event("label_removed", 4, old=2))
    for table in tables(recipe).values():
        assert written(table, [4]) == written(table, [99_999])


@pytest.mark.parametrize("name", WITH_ROWS)
def test_the_order_in_which_rows_were_saved_does_not_matter(name: str) -> None:
    recipe, other = after_some_steps(name), quick(name)
    by_row = {key: table.state_dict().keys() - {"removed"} for key, table in tables(recipe).items()}
    for mine, again in zip(recipe.keepers, other.keepers, strict=True):
        state, columns = mine.state_dict(), by_row.get(mine.name, set())
        assert columns <= state.keys()
        again.load_state_dict({key: value.flip(0) if key in columns else value for key, value in state.items()})
    straight, turned = keeper_states(recipe), keeper_states(other)
    for key, saved in straight.items():
        assert all(torch.equal(value, turned[key][part]) for part, value in saved.items()), key


PARTIAL = {  # what people may answer about five images of five classes
    "target": [
        [1, 0, 0, 0, 0],
        [0, 0.5, 0.5, 0, 0],
        [0.25, 0.25, 0.25, 0.25, 0],
        [0, 0, 0.6, 0.4, 0],
        [0, 0, 0, 1, 0],
    ],
    "allowed": [[1] * 5, [0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5, [1] * 5],
    "excluded": [[0] * 5, [0] * 5, [0, 0, 0, 0, 1], [0] * 5, [0] * 5],
}
GIVEN, SET, NOT_THESE, VOTES, LOCKED = range(5)
AT_ONCE = ("lion_paper", "lion_official")  # w starts at p: a first doubtful visit can settle on another class


def partial_batch(turn: int) -> tuple[Batch, dict[str, Tensor]]:
    """One image of every kind of answer; the model is sure of class 4 for all of them, which each answer rules out."""
    batch, logits = random_step(5, 5, turn, 3.0)
    logits["l"], logits["m"] = (torch.tensor([0.0, 0.1, 0.2, 0.3, 6.0]).repeat(5, 1) for _ in range(2))
    fields = {name: torch.tensor(value) for name, value in PARTIAL.items()}
    given = torch.tensor([0, -1, -1, -1, 3])
    locked = torch.arange(5) == LOCKED
    answers = {"allowed": fields["allowed"].bool(), "excluded": fields["excluded"].bool(), "given": given}
    return replace(batch, target=fields["target"].float(), locked=locked, **answers), logits


@pytest.mark.parametrize("name", available())
def test_every_kind_of_answer_trains_and_none_is_overruled(name: str) -> None:
    recipe = quick(name, 5)
    for turn in range(40):
        batch, logits = partial_batch(turn)
        before = {key: getattr(batch, key).clone() for key in ("target", "allowed", "excluded", "given", "locked")}
        leaves = [logits[view].requires_grad_() for view in sorted(recipe.labeled_views)]
        ctx = make_context(recipe, outputs(recipe, logits), batch, LATE, 5)
        torch.stack([weight * term(ctx) for term, weight in recipe.losses]).sum().backward()
        for keeper in recipe.keepers:
            keeper.observe(ctx)
        grads = [z.grad for z in leaves if z.grad is not None]  # of plain and mixed images alike
        grad = torch.stack(grads).sum(dim=0)
        assert bool(grad.isfinite().all())
        assert all(torch.equal(getattr(batch, key), value) for key, value in before.items())
        soft, weight = ctx.labeled.soft, ctx.labeled.weight
        assert not soft[SET, ~batch.allowed[SET]].any(), "a candidate set is the whole set"
        assert torch.equal(soft[[NOT_THESE, VOTES, LOCKED]], batch.target[[NOT_THESE, VOTES, LOCKED]])
        assert weight[[NOT_THESE, VOTES, LOCKED]].tolist() == [1, 1, 1], "votes and adjudicated labels stand"
        assert bool((grad[[NOT_THESE, VOTES, LOCKED], 4] > 0).all()), "the class that was ruled out loses"
        assert grad[LOCKED, 3] < 0
        assert grad[VOTES, 2] < grad[VOTES, 3] < 0
        if turn == 0:
            assert (grad[GIVEN, 0] < 0) == (name not in AT_ONCE)
            assert bool((grad[SET, 1:3] < 0).all()) or name in AT_ONCE


@pytest.mark.parametrize("name", [name for name in WITH_ROWS if "lion" in name or name == "loop"])
def test_peoples_not_these_never_enter_the_models_bank(name: str) -> None:
    recipe = quick(name, 5)
    for turn in range(10):
        batch, logits = partial_batch(turn)
        make_context(recipe, outputs(recipe, logits), batch, LATE, 5)
    bank = next(keeper for keeper in recipe.keepers if isinstance(keeper, ComplementBank))
    assert not bank.excluded(batch.rows).any()
