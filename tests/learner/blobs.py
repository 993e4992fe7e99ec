"""Points of a plane in place of faces: a step of training in few lines, for tests of parts and of whole methods."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learner import draws
from learner.models import Network, run
from learner.parts import Batch, Clock, LabeledTarget, LabelView, NetOut, Recipe, Scores, StepContext, Survey

FEATURE_DIM = 16


@dataclass
class Blobs:
    """Gaussian blobs on a circle: x (N,2), y (N,); the first `labeled` rows of every class are labeled."""

    x: Tensor
    y: Tensor
    labeled: Tensor
    unlabeled: Tensor
    num_classes: int


def make_blobs(num_classes: int = 4, size: int = 60, labeled: int = 4, spread: float = 0.35, seed: int = 0) -> Blobs:
    draw = torch.Generator().manual_seed(seed)
    angle = torch.arange(num_classes) * 2 * torch.pi / num_classes
    centers = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    y = torch.arange(num_classes).repeat(size)
    x = centers[y] + spread * torch.randn(len(y), 2, generator=draw)
    known = torch.arange(len(y)) < labeled * num_classes
    rows = torch.arange(len(y))
    return Blobs(x, y, rows[known], rows[~known], num_classes)


def make_network(num_classes: int, recipe: Recipe, seed: int = 0) -> Network:
    """A small MLP on points (B,2) with the recipe's adapters, head and parts."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, FEATURE_DIM), nn.ReLU())
    network = Network(trunk, FEATURE_DIM, num_classes, recipe, dropout=0.0)
    nn.init.kaiming_uniform_(network.head.weight, a=5**0.5)
    return network


def single_labels(y: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Batch fields of samples to which a person gave one class."""
    return {
        "target": F.one_hot(y, num_classes).float(),
        "allowed": torch.ones(len(y), num_classes, dtype=torch.bool),
        "excluded": torch.zeros(len(y), num_classes, dtype=torch.bool),
        "given": y,
        "locked": torch.zeros(len(y), dtype=torch.bool),
    }


def boxes(size: int, draw: torch.Generator) -> Tensor:
    """Faces (size,4) of half the image's side and more, anywhere in it."""
    low = torch.rand(size, 2, generator=draw) / 2
    return torch.cat([low, low + 0.5], dim=1)


def make_context(recipe: Recipe, outs: dict[str, NetOut], batch: Batch, clock: Clock, num_classes: int) -> StepContext:
    """Steps 2 and 3 of a training step: scores, keepers, targets; the mix, where the batch has none yet."""
    if recipe.mixer is not None and batch.mix is None:
        batch.mix = recipe.mixer(batch, clock.lifetime_step)
    with torch.no_grad():
        scores = {"l": recipe.scorer(outs["l"])} if "l" in outs else {}
        weak = sorted(name for name in outs if name.startswith("w"))
        if weak:
            scores["w"] = Scores.mean([recipe.scorer(outs[name]) for name in weak])
        labeled = LabeledTarget(batch.target.clone(), torch.ones(len(batch.rows)))
        ctx = StepContext(batch, outs, scores, clock, num_classes, labeled)
        for keeper in recipe.keepers:
            keeper.before_target(ctx)
        if recipe.targeter is not None:
            ctx.target = recipe.targeter(scores["w"], batch.unlabeled_rows, clock)
        for keeper in recipe.keepers:
            keeper.before_loss(ctx)
    return ctx


class Session:
    """Train a recipe on blobs; the draws of step n depend on (seed, n) alone."""

    def __init__(self, recipe: Recipe, blobs: Blobs, seed: int = 0, scope: str = "run", steps: int = 200) -> None:
        self.recipe, self.blobs, self.seed, self.scope, self.steps = recipe, blobs, seed, scope, steps
        self.network = make_network(blobs.num_classes, recipe, seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-3)
        self.done = 0
        self.last: StepContext | None = None

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(1000 * self.seed + step)
        blobs = self.blobs
        rows = blobs.labeled[torch.randint(len(blobs.labeled), (16,), generator=draw)]
        pool = blobs.unlabeled[torch.randint(len(blobs.unlabeled), (32,), generator=draw)]

        def seen(at: Tensor, noise: float) -> Tensor:
            return blobs.x[at] + noise * torch.randn(len(at), 2, generator=draw)

        return Batch(
            rows=rows,
            x=seen(rows, 0.05),
            unlabeled_rows=pool,
            boxes=boxes(len(rows), torch.Generator().manual_seed(step)),
            views={name: seen(pool, 0.05 if name.startswith("w") else 0.25) for name in ("w", "s", "w2", "s2")},
            **single_labels(blobs.y[rows], blobs.num_classes),
        )

    def survey(self, clock: Clock) -> None:
        """Give every keeper that asks a reading of all points."""
        for keeper in self.recipe.keepers:
            view = keeper.wants_survey(clock)
            if view is not None:
                keeper.survey(self.reading(view))

    @torch.no_grad()
    def reading(self, view: str = "x") -> Survey:
        blobs = self.blobs
        self.network.eval()
        pool, labeled = run(self.network, blobs.x), run(self.network, blobs.x[blobs.labeled])
        self.network.train()
        return Survey(
            pool=pool.f,
            rows=blobs.labeled,
            features=labeled.f,
            p=self.recipe.scorer(labeled).p,
            given=blobs.y[blobs.labeled],
            raw=labeled.f_raw,
            pool_p=self.recipe.scorer(pool).p,
            unanswered=~torch.isin(torch.arange(len(blobs.x)), blobs.labeled),
            view=view,
        )

    def step(self) -> float:
        batch = self.batch(self.done)
        clock = Clock(self.done, 0, self.done, self.steps, ramp_scope=self.scope)
        self.survey(clock)
        self.network.train()
        torch.manual_seed(self.seed + self.done)
        outs = {"l": run(self.network, batch.x)} if "l" in self.recipe.labeled_views else {}
        if self.recipe.mixer is not None:
            batch.mix = self.recipe.mixer(batch, draws.key(self.seed, self.done))
            outs["m"] = run(self.network, batch.mix.x)
        outs |= {v: run(self.network, batch.views[v]) for v in sorted(self.recipe.views)}
        ctx = make_context(self.recipe, outs, batch, clock, self.blobs.num_classes)
        loss = sum((weight * term(ctx) for term, weight in self.recipe.losses), torch.zeros(()))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for keeper in self.recipe.keepers:
                keeper.observe(ctx)
        self.done += 1
        self.last = ctx
        return float(loss.detach())

    def run(self, steps: int) -> list[float]:
        return [self.step() for _ in range(steps)]

    def accuracy(self, rows: Tensor) -> float:
        self.network.eval()
        with torch.no_grad():
            hard = self.recipe.scorer(run(self.network, self.blobs.x[rows])).hard
        self.network.train()
        return float((hard == self.blobs.y[rows]).float().mean())

    def view(self) -> LabelView:
        fields = single_labels(self.blobs.y[self.blobs.labeled], self.blobs.num_classes)
        classes = tuple(f"class{c}" for c in range(self.blobs.num_classes))
        stamp = torch.zeros(len(self.blobs.labeled), dtype=torch.int64)
        return LabelView(0, classes, self.blobs.labeled, stamp=stamp, **fields)
