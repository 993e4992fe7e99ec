"""The one training loop. It knows no method: a `Recipe` says what is read, what is trained on and what is kept.

The order of a step is that of `learner.parts`. Randomness is a function of (seed, lifetime step, row), so the state of
a run is its weights, moments and keepers; on a CPU a resumed run equals an uninterrupted one bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning_fabric
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner import checkpoint, draws
from learner.augment import Augmenter
from learner.config import OptimizerConfig, RunConfig
from learner.data import Balanced, Cycle, PixelCache
from learner.errors import CheckpointError, DivergedError, InputError
from learner.models import Ema, Network, run
from learner.parts import Batch, Clock, Event, LabeledTarget, LabelView, NetOut, Recipe, Scores, StepContext, Survey

Rows = NDArray[np.int64]
POOL_SAMPLE, LABEL_SAMPLE = 1024, 2048  # rows that are read at the start of a round


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from: pixels by row, people's answers, and the rows without answers."""

    cache: PixelCache
    view: LabelView
    unlabeled: Rows


class Trainer:
    """Trains one network by one recipe: `steps()` yields after every step, `state` and `load` are all that resumes."""

    def __init__(self, config: RunConfig, recipe: Recipe, network: Network, data: TrainingData) -> None:
        """Place the network and make optimiser, average and samplers.

        Raises:
            InputError: no labeled face, or a device that this machine does not have.
        """
        if len(data.view.rows) == 0:
            raise InputError("no labeled face to learn from; label some first")
        self.config, self.recipe, self.data = config, recipe, data
        self.fabric = make_fabric(config)
        self.raw = network
        self.step, self.round, self.lifetime_start = 0, 0, 0
        optimizer = make_optimizer(network.parameters(), config.optimizer)
        self.network, self.optimizer = self.fabric.setup(network, optimizer)
        self.ema = Ema(network, config.ema)
        self.augmenter = Augmenter(config.augment, config.image_size, config.seed, self.fabric.device)
        self.labeled, self.unlabeled = self._samplers()
        self._view = {k: getattr(data.view, k).to(self.fabric.device) for k in _VIEW_FIELDS}
        self._view_rows = data.view.rows.numpy()
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self.logs: dict[str, float] = {}
        for table in recipe.tables:
            table.to(self.fabric.device)

    def _samplers(self) -> tuple[Cycle | Balanced, Cycle]:
        config, view = self.config, self.data.view
        rows = view.rows.numpy()
        labeled: Cycle | Balanced = Cycle(rows, config.labeled_batch, config.seed, 1)
        if config.class_balanced:
            labeled = Balanced(rows, view.target.numpy(), config.labeled_batch, config.seed, 1)
        # With every face answered, the answered ones serve as unlabeled images, their answers hidden from that half.
        pool = self.data.unlabeled if len(self.data.unlabeled) else rows
        return labeled, Cycle(pool, config.unlabeled_batch, config.seed, 2)

    @property
    def lifetime_step(self) -> int:
        """Steps over all rounds."""
        return self.lifetime_start + self.step

    def clock(self) -> Clock:
        """Say where training is."""
        config = self.config
        return Clock(
            self.lifetime_step, self.round, self.step, config.steps, config.method_epoch_len, config.ramp_scope
        )

    def steps(self) -> Iterator[int]:
        """Train to the end of the run, yielding the number of steps done after each; read losses now and then.

        Raises:
            DivergedError: a loss is not finite.
        """
        while self.step < self.config.steps:
            self._train_step()
            self.step += 1
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                self.read_logs()
            yield self.step

    def _train_step(self) -> None:
        config, recipe = self.config, self.recipe
        if recipe.keepers and self.step == 0:
            survey = self.survey()
            for keeper in recipe.keepers:
                keeper.survey(survey)
        torch.manual_seed(draws.key(config.seed, self.lifetime_step))  # dropout
        batch = self._batch(self.lifetime_step)
        outs = self._forward(batch)
        scores = self._score(batch, outs)
        labeled = LabeledTarget(batch.target, torch.ones(len(batch.rows), device=batch.target.device))
        ctx = StepContext(batch, outs, scores, self.clock(), len(self.data.view.classes), labeled)
        with torch.no_grad():
            for keeper in recipe.keepers:
                keeper.before_target(ctx)
            if recipe.targeter is not None:
                ctx.target = recipe.targeter(scores["w"], batch.unlabeled_rows, ctx.clock)
            for keeper in recipe.keepers:
                keeper.before_loss(ctx)
        terms = {term.name: (term(ctx), weight) for term, weight in recipe.losses}
        loss = torch.stack([value * weight for value, weight in terms.values()]).sum()
        set_rate(self.optimizer, config.optimizer, self.step, config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.ema.update(self.raw, self.lifetime_step)
        with torch.no_grad():
            for keeper in recipe.keepers:
                keeper.observe(ctx)
        self._note({"loss": loss, **{name: value for name, (value, _) in terms.items()}, **ctx.logs})

    def _batch(self, step: int) -> Batch:
        rows, cache, augment = self.labeled.at(step), self.data.cache, self.augmenter
        where = torch.from_numpy(np.searchsorted(self._view_rows, rows)).to(self.fabric.device)
        x = augment.weak(augment.upload(cache.gather(rows)), rows, step, "l")
        unlabeled: Rows = np.zeros(0, np.int64)
        views: dict[str, Tensor] = {}
        if self.recipe.views:
            unlabeled = self.unlabeled.at(step)
            pixels = augment.upload(cache.gather(unlabeled))
            for name in sorted(self.recipe.views):
                make = augment.weak if name.startswith("w") else augment.strong
                views[name] = make(pixels, unlabeled, step, name)
        columns = {name: column[where] for name, column in self._view.items()}
        place = self.fabric.device
        return Batch(
            rows=torch.from_numpy(rows).to(place),
            x=x,
            unlabeled_rows=torch.from_numpy(unlabeled).to(place),
            views=views,
            **columns,
        )

    def _forward(self, batch: Batch) -> dict[str, NetOut]:
        """Run the student on every view that is trained, and on the weak ones when it makes its own pseudo-labels."""
        recipe = self.recipe
        inputs = {"l": batch.x}
        for name, x in batch.views.items():
            if name in recipe.grad_views or (name.startswith("w") and recipe.pseudo_source == "student_train"):
                inputs[name] = x
        self.network.train()
        if recipe.forward_mode == "concat":
            return split(run(self.network, join(list(inputs.values()))), {k: len(v) for k, v in inputs.items()})
        outs = {}
        for name, x in inputs.items():
            with torch.set_grad_enabled(name == "l" or name in recipe.grad_views):
                outs[name] = run(self.network, x)
        return outs

    @torch.no_grad()
    def _score(self, batch: Batch, outs: dict[str, NetOut]) -> dict[str, Scores]:
        """Read the weak views and the labeled one by the pseudo-label source; adds outputs that are not there yet.

        Without keepers nobody asks about the labeled view's teacher, so the student's own reading does.
        """
        recipe = self.recipe
        weak = sorted(name for name in batch.views if name.startswith("w"))
        read = dict(outs)
        if recipe.pseudo_source != "student_train":
            inputs = {name: batch.views[name] for name in weak} | ({"l": batch.x} if recipe.keepers else {})
            if inputs:
                sizes = {k: len(v) for k, v in inputs.items()}
                read |= split(self._evaluate(join(list(inputs.values()))), sizes)
            for name in weak:
                outs.setdefault(name, read[name])
        scores = {"l": self._read(read["l"])}
        if weak:
            p = torch.stack([self._read(read[name]).p for name in weak]).mean(dim=0)
            scores["w"] = Scores.of(p)
        return scores

    def _read(self, out: NetOut) -> Scores:
        aux = {k: v.detach() for k, v in out.aux.items()}
        return self.recipe.scorer(NetOut(out.f_raw.detach(), out.f.detach(), out.z.detach(), aux))

    def _evaluate(self, x: Tensor) -> NetOut:
        if self.recipe.pseudo_source == "student_eval":
            self.network.eval()
            return run(self.network, x)
        with self.fabric.autocast():
            return run(self.ema.network, x)

    @torch.no_grad()
    def survey(self) -> Survey:
        """Read EMA features and scores, un-augmented, of a sample of the pool and of the labels."""
        rng = np.random.default_rng(draws.key(self.config.seed, self.lifetime_step, 3))
        pool = self._read_rows(sample(np.union1d(self.data.unlabeled, self._view_rows), POOL_SAMPLE, rng))[0]
        labeled = sample(self._view_rows, LABEL_SAMPLE, rng)
        features, p = self._read_rows(labeled)
        given = self.data.view.given[np.searchsorted(self._view_rows, labeled)]
        place = self.fabric.device
        return Survey(pool, torch.from_numpy(labeled).to(place), features, p, given.to(place))

    def _read_rows(self, rows: Rows) -> tuple[Tensor, Tensor]:
        features, p = [], []
        for start in range(0, len(rows), 128):
            x = self.augmenter.upload(self.data.cache.gather(rows[start : start + 128]))
            with self.fabric.autocast():
                out = run(self.ema.network, self.augmenter.normalise(x))
            features.append(out.f)
            p.append(self._read(out).p)
        return torch.cat(features), torch.cat(p)

    def _note(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._counted += 1

    def read_logs(self) -> dict[str, float]:
        """Bring the mean losses since the last reading from the device: the only wait for it in the loop.

        Raises:
            DivergedError: one of them is not finite; the message names which.
        """
        if self._sums:
            names = sorted(self._sums)
            values = (torch.stack([self._sums[name] for name in names]) / self._counted).tolist()
            self.logs = dict(zip(names, values, strict=True))
            self._sums, self._counted = {}, 0
            bad = [name for name, value in self.logs.items() if not math.isfinite(value)]
            if bad:
                raise DivergedError(
                    f"training diverged before step {self.step} (lifetime {self.lifetime_step}): {', '.join(bad)} not "
                    f"finite; lower optimizer.lr (now {self.config.optimizer.lr:g}) or look at the images"
                )
        return self.logs

    def apply(self, events: Sequence[Event]) -> None:
        """Tell every keeper what happened between two rounds, in order."""
        for event in events:
            for keeper in self.recipe.keepers:
                keeper.on_event(event)

    def keeper_state(self) -> dict[str, Tensor]:
        """Gather the recipe's state: keepers by name, tables by position."""
        tensors: dict[str, Tensor] = {}
        for keeper in self.recipe.keepers:
            tensors |= checkpoint.pack(f"keeper/{keeper.name}", keeper.state_dict())
        for index, table in enumerate(self.recipe.tables):
            tensors |= checkpoint.pack(f"table/{index}", table.state_dict())
        return tensors

    def load_keepers(self, tensors: dict[str, Tensor]) -> None:
        """Give keepers and tables the state that `keeper_state` gathered."""
        for keeper in self.recipe.keepers:
            keeper.load_state_dict(checkpoint.unpack(f"keeper/{keeper.name}", tensors))
        for index, table in enumerate(self.recipe.tables):
            table.load_state_dict(checkpoint.unpack(f"table/{index}", tensors))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that a resumed run needs: tensors and a description."""
        self.read_logs()
        tensors = checkpoint.pack("student", self.raw.state_dict())
        tensors |= checkpoint.pack("ema", self.ema.network.state_dict())
        tensors |= checkpoint.pack("optimizer", checkpoint.optimizer_tensors(self.optimizer))
        tensors |= self.keeper_state()
        meta = {
            "step": self.step,
            "round": self.round,
            "lifetime_start": self.lifetime_start,
            "classes": list(self.data.view.classes),
            "label_seq": self.data.view.label_seq,
            "logs": self.logs,
            "config": self.config.model_dump(mode="json"),
        }
        return tensors, meta

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: it belongs to another configuration, class list or label view.
        """
        expected = {
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.data.view.classes),
            "label_seq": self.data.view.label_seq,
        }
        for key, value in expected.items():
            if meta.get(key) != value:
                raise CheckpointError(f"the checkpoint has another {key} than this run; make a new run folder")
        checkpoint.load_weights(self.raw, checkpoint.unpack("student", tensors), "checkpoint")
        checkpoint.load_weights(self.ema.network, checkpoint.unpack("ema", tensors), "checkpoint (EMA)")
        checkpoint.load_optimizer(self.optimizer, checkpoint.unpack("optimizer", tensors))
        self.load_keepers(tensors)
        self.step, self.round, self.lifetime_start = meta["step"], meta["round"], meta["lifetime_start"]
        self.logs = dict(meta["logs"])


_VIEW_FIELDS = ("target", "allowed", "excluded", "given", "locked")


def make_fabric(config: RunConfig) -> lightning_fabric.Fabric:
    """Choose device, precision and threads.

    Raises:
        InputError: this machine has no such device.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        return lightning_fabric.Fabric(accelerator=config.device, devices=1, precision=config.precision)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot use device {config.device!r}: {error}") from error


def make_optimizer(parameters: Iterator[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimiser; it sees parameters only, so weight decay cannot reach BatchNorm's statistics."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
        )
    maker = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return maker(parameters, config.lr, weight_decay=config.weight_decay)


def set_rate(optimizer: Any, config: OptimizerConfig, step: int, steps: int) -> None:
    """Set the learning rate of a step: linear rise, then constant or FixMatch's 7/16 cosine."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        rate *= math.cos(7 * math.pi / 16 * step / steps)
    for group in optimizer.param_groups:
        group["lr"] = rate


def join(parts: list[Tensor]) -> Tensor:
    """Put image batches together, channels last."""
    return parts[0] if len(parts) == 1 else torch.cat(parts).contiguous(memory_format=torch.channels_last)


def sample(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    """Draw at most so many rows without replacement, ascending."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def split(out: NetOut, sizes: dict[str, int]) -> dict[str, NetOut]:
    """Take a joint output apart by view."""
    parts: dict[str, NetOut] = {}
    start = 0
    for name, size in sizes.items():
        cut = slice(start, start + size)
        parts[name] = NetOut(out.f_raw[cut], out.f[cut], out.z[cut], {n: v[cut] for n, v in out.aux.items()})
        start += size
    return parts
