"""The one training loop. It knows no method: a `Recipe` says what is read, what is trained on and what is kept.

The order of a step is that of `learner.parts`. Randomness is a function of (seed, lifetime step, row), so the state of
a run is its weights, moments and keepers; on a CPU a resumed run equals an uninterrupted one bit for bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import checkpoint, draws
from learner.bank import FeatureBank
from learner.batches import frozen_statistics, join, sample, seed_noise, split, visits
from learner.boxes import Boxes, in_view, of_rows
from learner.config import RunConfig
from learner.data import Balanced, Cycle, PixelCache
from learner.device import make_fabric
from learner.errors import CheckpointError, DivergedError, InputError
from learner.models import Ema, Network, run
from learner.optimizer import make_optimizer, set_rate
from learner.parts import Batch, Clock, Event, LabeledTarget, LabelView, NetOut, Recipe, Scores, StepContext, Survey
from learner.sources import Ahead, make_source
from learner.transfer import send

Rows = NDArray[np.int64]
MIXING = 6  # what a seed is drawn for
POOL_SAMPLE, LABEL_SAMPLE = 1024, 2048  # rows that are read at the start of a round


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from: faces by row, people's answers, the rows without answers, face boxes where known."""

    faces: PixelCache | FeatureBank
    view: LabelView
    unlabeled: Rows
    boxes: Boxes | None = None


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
        optimizer = make_optimizer(network, config.optimizer)
        self.network, self.optimizer = self.fabric.setup(network, optimizer)
        self.ema = Ema(network, config.ema)
        if config.compile:
            network.compile()  # in place: its weights keep their names
        self.source = make_source(data.faces, config, self.fabric.device, data.boxes)
        self.labeled, self.unlabeled = self._samplers()
        self.ahead = Ahead(self.source, {"l": self.labeled} | dict.fromkeys(sorted(recipe.views), self.unlabeled))
        self.notes = self._start_mixer()
        self.observers: list[Callable[[Trainer, StepContext], None]] = []
        self._view = {k: getattr(data.view, k).to(self.fabric.device) for k in _VIEW_FIELDS}
        self._view_rows = data.view.rows.numpy()
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self.logs: dict[str, float] = {}
        for table in recipe.tables:
            table.to(self.fabric.device)
        for keeper in recipe.keepers:
            keeper.start_run(torch.from_numpy(self.unlabeled.rows).to(self.fabric.device))
            keeper.reserve(int(max(self.unlabeled.rows[-1], self._view_rows[-1])) + 1, self.fabric.device)

    def _samplers(self) -> tuple[Cycle | Balanced, Cycle]:
        config, view = self.config, self.data.view
        rows = view.rows.numpy()
        labeled: Cycle | Balanced = Cycle(rows, config.labeled_batch, config.seed, 1)
        if config.class_balanced:
            labeled = Balanced(rows, view.target.numpy(), config.labeled_batch, config.seed, 1)
        # With every face answered, the answered ones serve as unlabeled images, their answers hidden from that half.
        pool = self.data.unlabeled if len(self.data.unlabeled) else rows
        return labeled, Cycle(pool, config.unlabeled_batch, config.seed, 2)

    def _start_mixer(self) -> list[str]:
        """Show the mixer the labeled faces' boxes; return what a person should know."""
        if self.recipe.mixer is None:
            return []
        boxes = None if self.data.boxes is None else of_rows(self.data.boxes, self.data.view.rows.numpy())
        note = self.recipe.mixer.start_run(boxes)
        return [] if note is None else [note]

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
        self._surveys()
        seed_noise(draws.key(config.seed, self.lifetime_step), self.fabric.device)
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
            for observer in self.observers:
                observer(self, ctx)
        self._note({"loss": loss, **{name: value for name, (value, _) in terms.items()}, **ctx.logs})

    def _surveys(self) -> None:
        """Give keepers the surveys that they ask for; one pass serves all that ask for the same view."""
        clock = self.clock()
        asked = [(keeper, keeper.wants_survey(clock)) for keeper in self.recipe.keepers]
        for view in sorted({view for _, view in asked if view is not None}):
            survey = self.survey(view)
            for keeper, wanted in asked:
                if wanted == view:
                    keeper.survey(survey)
            self.ema.copy(self.raw, "parts.")  # a survey may have started them

    def _batch(self, step: int) -> Batch:
        rows = self.labeled.at(step)
        unlabeled: Rows = self.unlabeled.at(step) if self.recipe.views else np.zeros(0, np.int64)
        views = self.ahead.at(step, self.lifetime_start + self.config.steps)
        place = self.fabric.device
        where = send(np.searchsorted(self._view_rows, rows), place)
        mixer = self.recipe.mixer
        boxes = None if mixer is None else self.source.boxes("l", rows, step)
        batch = Batch(
            rows=send(rows, place),
            x=views.pop("l"),
            unlabeled_rows=send(unlabeled, place),
            views=views,
            boxes=None if boxes is None else send(in_view(boxes), place),
            visits=[send(turn, place) for turn in visits(rows)],
            unlabeled_visits=[send(turn, place) for turn in visits(unlabeled)],
            **{name: column[where] for name, column in self._view.items()},
        )
        if mixer is not None:
            batch.mix = mixer(batch, draws.key(self.config.seed, step, MIXING))
        return batch

    def _forward(self, batch: Batch) -> dict[str, NetOut]:
        """Run the student on every view, but on the weak ones only where they are trained or it reads them itself."""
        recipe = self.recipe
        unlabeled = {
            name: x
            for name, x in batch.views.items()
            if name in recipe.grad_views or not name.startswith("w") or recipe.pseudo_source == "student_train"
        }
        if not self.raw.training:  # walking the modules costs as much as a small layer
            self.network.train()
        frozen = recipe.batchnorm == "freeze"
        labeled = {"l": batch.x} if "l" in recipe.labeled_views else {}
        if batch.mix is not None:
            labeled["m"] = batch.mix.x
        if recipe.forward_mode == "concat" and not frozen:
            return self._together(labeled | unlabeled)
        if recipe.forward_mode == "concat":
            outs = self._together(labeled)
        else:
            outs = {name: run(self.network, x) for name, x in labeled.items()}
        with frozen_statistics(self.raw) if frozen else nullcontext():
            if recipe.forward_mode == "concat":
                return outs | (self._together(unlabeled) if unlabeled else {})
            for name, x in unlabeled.items():
                with torch.set_grad_enabled(name in recipe.grad_views):
                    outs[name] = run(self.network, x)
        return outs

    def _together(self, inputs: dict[str, Tensor]) -> dict[str, NetOut]:
        return split(run(self.network, join(list(inputs.values()))), {name: len(x) for name, x in inputs.items()})

    @torch.no_grad()
    def _score(self, batch: Batch, outs: dict[str, NetOut]) -> dict[str, Scores]:
        """Read the weak views and the labeled one by the pseudo-label source; adds outputs that are not there yet.

        Where no keeper asks about the labeled view, the student's own reading of it does.
        """
        recipe = self.recipe
        weak = sorted(name for name in batch.views if name.startswith("w"))
        read = dict(outs)
        if recipe.pseudo_source != "student_train":
            asked = any(keeper.reads_labeled for keeper in recipe.keepers)
            inputs = {name: batch.views[name] for name in weak} | ({"l": batch.x} if asked else {})
            if inputs:
                sizes = {k: len(v) for k, v in inputs.items()}
                read |= split(self._evaluate(join(list(inputs.values()))), sizes)
            for name in weak:
                outs.setdefault(name, read[name])
        scores = {"l": self._read(read["l"])} if "l" in read else {}
        if weak:
            scores["w"] = Scores.mean([self._read(read[name]) for name in weak])
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
    def survey(self, view: str = "x") -> Survey:
        """Read EMA features and scores of a sample of the pool and of the labels: clean ("x"), weak or strong."""
        rng = np.random.default_rng(draws.key(self.config.seed, self.lifetime_step, 3))
        pool = sample(np.union1d(self.data.unlabeled, self._view_rows), POOL_SAMPLE, rng)
        labeled = sample(self._view_rows, LABEL_SAMPLE, rng)
        _, seen, pool_p = self._read_rows(pool, view)
        raw, features, p = self._read_rows(labeled, view)
        given = self.data.view.given[np.searchsorted(self._view_rows, labeled)]
        unanswered = torch.from_numpy(~np.isin(pool, self._view_rows))
        place = self.fabric.device
        return Survey(
            pool=seen,
            rows=torch.from_numpy(labeled).to(place),
            features=features,
            p=p,
            given=given.to(place),
            raw=raw,
            pool_p=pool_p,
            unanswered=unanswered.to(place),
            view=view,
        )

    def _read_rows(self, rows: Rows, view: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return f_raw (n,d), f (n,d) and p (n,K) of rows (n,)."""
        found = []
        for start in range(0, len(rows), 128):
            part = rows[start : start + 128]
            steps = np.full(len(part), self.lifetime_step, np.int64)
            x = self.source.clean(part) if view == "x" else self.source.view(view, part, steps)
            with self.fabric.autocast():
                out = run(self.ema.network, x)
            found.append((out.f_raw, out.f, self._read(out).p))
        raw, features, p = (torch.cat(parts) for parts in zip(*found, strict=True))
        return raw, features, p

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
        saved = {**meta, "config": with_later_settings(meta.get("config", {}))}
        for key, value in expected.items():
            if saved.get(key) != value:
                raise CheckpointError(f"the checkpoint has another {key} than this run; make a new run folder")
        checkpoint.load_weights(self.raw, checkpoint.unpack("student", tensors), "checkpoint")
        checkpoint.load_weights(self.ema.network, checkpoint.unpack("ema", tensors), "checkpoint (EMA)")
        checkpoint.load_optimizer(self.optimizer, checkpoint.unpack("optimizer", tensors))
        self.load_keepers(tensors)
        self.step, self.round, self.lifetime_start = meta["step"], meta["round"], meta["lifetime_start"]
        self.logs = dict(meta["logs"])


def with_later_settings(config: dict[str, Any]) -> dict[str, Any] | None:
    """Complete a checkpoint's configuration by settings that came after it, at their defaults; None if it is no such.

    So an interrupted run goes on under a version that knows more settings.
    """
    try:
        return RunConfig.parse(config).model_dump(mode="json")
    except InputError:
        return None


_VIEW_FIELDS = ("target", "allowed", "excluded", "given", "locked")
