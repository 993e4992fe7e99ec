"""What every method must do, whatever it is: one class of tests that each preset runs through."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.facemix import Mix
from learner.methods import available, build
from learner.models import run
from learner.parts import Batch, Clock, NetOut, Recipe, StepContext
from learner.state import permute_classes
from tests.learner.blobs import FEATURE_DIM, Blobs, Session, boxes, make_blobs, make_context, single_labels

LATE = Clock(lifetime_step=9000, round=2, step=900, steps=1000)
# Small grace and warm-up, so that short runs reach every branch.
QUICK = {
    "lion": {"warmup_steps": 20, "warmup_share": 0.1, "labels": {"min_visits": 2, "suggest_visits": 2}},
    "lion_paper": {"warmup_share": 0.1},
    "lion_official": {"warmup_share": 0.1},
}
QUICK["lion_annotation"] = QUICK["lion+remop"] = QUICK["loop"] = QUICK["lion"]
QUICK["remop_official"] = {"remop": {"centers": {"init": "class_means"}}}  # random centers tell classes apart by place


def quick(name: str, num_classes: int = 4, feature_dim: int = FEATURE_DIM) -> Recipe:
    torch.manual_seed(0)  # first weights of adapters and parts
    return still(build(name, num_classes, feature_dim, QUICK.get(name, {})))


# Raw cosines of non-negative features are near 1 for every class, so the printed rule relabels hard samples wrongly:
# .73 to .91 over five seeds, where plain supervision has .95 to .99.
FAR_BELOW = {"lion_paper": 0.27}
VIEWS = ("l", "w", "s", "w2", "s2", "m")


def random_step(num_classes: int, size: int, seed: int = 0, scale: float = 1.0) -> tuple[Batch, dict[str, Tensor]]:
    """A batch without images, and logits for every view, to be replaced at will."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes, (size,), generator=draw)
    batch = Batch(
        rows=torch.arange(size) * 3,
        x=torch.zeros(size, 2),
        unlabeled_rows=torch.arange(size) * 3 + 1,
        views={},
        boxes=boxes(size, torch.Generator().manual_seed(seed)),
        **single_labels(y, num_classes),
    )
    return batch, {v: scale * torch.randn(size, num_classes, generator=draw) for v in VIEWS}


def reordered(mix: Mix | None, order: Tensor) -> Mix | None:
    """The same pairs in another order."""
    if mix is None:
        return None
    place = order.argsort()
    return Mix(mix.x[order], place[mix.partner[order]], mix.share, mix.kappa[order])


def features(logits: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(len(z), FEATURE_DIM, generator=draw) for name, z in logits.items()}


def outputs(recipe: Recipe, logits: dict[str, Tensor], given: dict[str, Tensor] | None = None) -> dict[str, NetOut]:
    """What a network without backbone would say: given features and head logits, through adapters and parts."""
    outs = {}
    for name, f in (given or features(logits)).items():
        if name not in recipe.views | recipe.labeled_views:
            continue
        aux: dict[str, Tensor] = {}
        raw, z = f, logits[name]
        for adapter in recipe.feature_adapters:
            f = adapter(f, aux)
        if recipe.feature_norm == "l2":
            f = torch.nn.functional.normalize(f, dim=1)
        seen = f
        for adapter in recipe.head_adapters:
            seen = adapter(seen, aux)
        for adapter in recipe.logit_adapters:
            z = adapter(z, f, aux)
        for part in recipe.parts.values():
            part(f, aux)
        outs[name] = NetOut(raw, f, z, aux)
    return outs


def still(recipe: Recipe) -> Recipe:
    """Adapters without their training noise, so that equal inputs give equal outputs."""
    for module in (*recipe.feature_adapters, *recipe.head_adapters, *recipe.logit_adapters, *recipe.parts.values()):
        module.eval()
    return recipe


def total(recipe: Recipe, ctx: StepContext) -> Tensor:
    return torch.stack([weight * term(ctx) for term, weight in recipe.losses]).sum()


def keeper_states(recipe: Recipe) -> dict[str, dict[str, Tensor]]:
    return {keeper.name: keeper.state_dict() for keeper in recipe.keepers}


HARD_BLOBS = make_blobs(spread=0.6, seed=2)


@functools.cache
def supervised_accuracy() -> float:
    """What four labels a class give without any method, on blobs that overlap."""
    plain = Session(build("supervised", 4, FEATURE_DIM), HARD_BLOBS)
    plain.run(200)
    return plain.accuracy(HARD_BLOBS.unlabeled)


class Continued(Session):
    """A session that can be put down and taken up."""

    def save(self) -> dict[str, Any]:
        return {
            "network": {k: v.clone() for k, v in self.network.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "keepers": keeper_states(self.recipe),
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        for keeper in self.recipe.keepers:
            keeper.load_state_dict(state["keepers"][keeper.name])


class MethodContract:
    """Inherit, and say `name`."""

    name: str

    def recipe(self, num_classes: int = 4) -> Recipe:
        return quick(self.name, num_classes)

    def session(self, blobs: Blobs | None = None, seed: int = 0, **more: Any) -> Continued:
        return Continued(self.recipe(), blobs or make_blobs(), seed, **more)

    def test_learns_blobs_without_nan(self) -> None:
        session = self.session(scope="lifetime")
        found = session.run(200)
        assert all(torch.isfinite(torch.tensor(found)))
        assert session.accuracy(session.blobs.labeled) == 1

    def test_is_not_far_below_supervised_on_four_labels_a_class(self) -> None:
        mine = self.session(HARD_BLOBS)
        mine.run(200)
        assert mine.accuracy(HARD_BLOBS.unlabeled) > supervised_accuracy() - FAR_BELOW.get(self.name, 0.05)

    def test_same_seed_same_steps(self) -> None:
        assert self.session().run(20) == self.session().run(20)

    def test_continues_bit_for_bit_after_saving(self) -> None:
        first = self.session()
        first.run(60)
        saved = first.save()
        second = self.session(seed=first.seed)
        second.load(saved)
        assert first.run(20) == second.run(20)
        for name, state in keeper_states(first.recipe).items():
            other = keeper_states(second.recipe)[name]
            assert state.keys() == other.keys()
            assert all(torch.equal(state[key], other[key]) for key in state)

    @pytest.mark.parametrize("num_classes", [2, 3, 7, 8])
    @pytest.mark.parametrize("size", [1, 2, 5])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
    def test_any_number_of_classes_and_samples(self, num_classes: int, size: int, scale: float) -> None:
        recipe = self.recipe(num_classes)
        for turn in range(6):  # the first steps fill the state that later ones read
            batch, logits = random_step(num_classes, size, turn, scale)
            leaves = {v: z.requires_grad_() for v, z in logits.items()}
            ctx = make_context(recipe, outputs(recipe, leaves), batch, LATE, num_classes)
            loss = total(recipe, ctx)
            loss.backward()
            assert torch.isfinite(loss)
            assert all(torch.isfinite(z.grad).all() for z in leaves.values() if z.grad is not None)
            for keeper in recipe.keepers:
                keeper.observe(ctx)

    @pytest.mark.parametrize("half", [False, True])
    def test_enormous_logits(self, half: bool) -> None:
        recipe = self.recipe(8)
        for turn in range(4):
            batch, logits = random_step(8, 5, turn)
            leaves = {v: (1e4 * z.sign()).requires_grad_() for v, z in logits.items()}
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                z = {v: leaf @ torch.eye(8) for v, leaf in leaves.items()}
                loss = total(recipe, make_context(recipe, outputs(recipe, z), batch, LATE, 8))
            loss.backward()
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
            assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values() if leaf.grad is not None)

    def test_order_of_samples_does_not_matter(self) -> None:
        straight, shuffled = self.recipe(), self.recipe()
        order = torch.tensor([3, 0, 4, 1, 2])
        for turn in range(8):
            batch, logits = random_step(4, 5, turn, 3.0)
            seen = features(logits)
            outs = outputs(straight, logits, seen)
            fields = ("rows", "x", "target", "allowed", "excluded", "given", "locked", "unlabeled_rows")
            one = make_context(straight, outs, batch, LATE, 4)
            mixed = replace(
                batch, **{name: getattr(batch, name)[order] for name in fields}, mix=reordered(batch.mix, order)
            )
            turned = {v: z[order] for v, z in logits.items()}
            moved = outputs(shuffled, turned, {v: f[order] for v, f in seen.items()})
            two = make_context(shuffled, moved, mixed, LATE, 4)
            torch.testing.assert_close(total(straight, one), total(shuffled, two))
            for recipe, ctx in ((straight, one), (shuffled, two)):
                for keeper in recipe.keepers:
                    keeper.observe(ctx)
        self.assert_same_state(keeper_states(straight), keeper_states(shuffled))

    def test_order_of_classes_does_not_matter(self) -> None:
        straight, renamed = self.recipe(5), self.recipe(5)
        order = torch.tensor([2, 4, 0, 1, 3])  # new class i is old class order[i]
        place = order.argsort()
        for turn in range(8):
            batch, logits = random_step(5, 4, turn, 3.0)
            columns = {name: getattr(batch, name)[:, order] for name in ("target", "allowed", "excluded")}
            other = replace(batch, given=place[batch.given], **columns)
            one = make_context(straight, outputs(straight, logits), batch, LATE, 5)
            turned = {v: z[:, order] for v, z in logits.items()}
            two = make_context(renamed, outputs(renamed, turned), other, LATE, 5)
            torch.testing.assert_close(total(straight, one), total(renamed, two))
            for recipe, ctx in ((straight, one), (renamed, two)):
                for keeper in recipe.keepers:
                    keeper.observe(ctx)
        old = [f"class{c}" for c in range(5)]
        new = [old[int(c)] for c in order]
        moved = {name: permute_classes(state, old, new) for name, state in keeper_states(straight).items()}
        self.assert_same_state(moved, keeper_states(renamed))

    @staticmethod
    def assert_same_state(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> None:
        assert one.keys() == two.keys()
        for name, state in one.items():
            assert state.keys() == two[name].keys()
            for key, value in state.items():
                torch.testing.assert_close(value, two[name][key], msg=lambda m, key=key: f"{key}: {m}")

    def test_gradient_reaches_exactly_the_views_that_it_should(self) -> None:
        recipe = self.recipe()
        reached: set[str] = set()
        for turn in range(12):
            batch, logits = random_step(4, 5, turn, 8.0)
            leaves = {v: z.requires_grad_() for v, z in logits.items()}
            seen = {v: f.requires_grad_() for v, f in features(logits).items()}
            ctx = make_context(recipe, outputs(recipe, leaves, seen), batch, LATE, 4)
            total(recipe, ctx).backward()
            touched = [(v, leaf.grad) for group in (leaves, seen) for v, leaf in group.items()]
            reached |= {v for v, grad in touched if grad is not None and bool((grad != 0).any())}
            with torch.no_grad():
                for keeper in recipe.keepers:
                    keeper.observe(ctx)
                    assert not any(t.requires_grad for t in keeper.state_dict().values())
            if ctx.target is not None:
                assert not ctx.target.weight.requires_grad
        assert reached == recipe.grad_views | recipe.labeled_views

    def test_signals_are_aligned_and_change_nothing(self) -> None:
        session = self.session()
        session.run(30)
        before = keeper_states(session.recipe)
        rows = torch.arange(len(session.blobs.y)).flip(0)
        with torch.no_grad():
            out = run(session.network.eval(), session.blobs.x[rows])
            scores = session.recipe.scorer(out)
            for reader in session.recipe.readers:
                for name, column in reader(out, scores, scores).items():
                    assert len(column) == len(rows), name
        for keeper in session.recipe.keepers:
            for name, column in keeper.signals(rows, scores, session.view()).items():
                assert len(column) == len(rows), name
        for name, state in keeper_states(session.recipe).items():
            assert all(torch.equal(state[key], before[name][key]) for key in state)

    def test_labels_of_people_are_never_written(self) -> None:
        recipe = self.recipe()
        for turn in range(10):
            batch, logits = random_step(4, 5, turn, 5.0)
            target, given = batch.target.clone(), batch.given.clone()
            ctx = make_context(recipe, outputs(recipe, logits), batch, LATE, 4)
            for keeper in recipe.keepers:
                keeper.observe(ctx)
            assert torch.equal(batch.target, target)
            assert torch.equal(batch.given, given)


for preset in available():  # one class a method, as if each had been written out
    title = "Test" + "".join(word.capitalize() for word in preset.replace("+", "_").split("_"))
    globals()[title] = type(title, (MethodContract,), {"name": preset})


def test_every_method_is_under_contract() -> None:
    assert {cls.name for cls in MethodContract.__subclasses__()} == set(available())
