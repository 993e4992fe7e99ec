"""The parts that a recipe is made of, and the data that flows between them (ALGORITHMS.md 10).

No method inherits from another: a method is a `Recipe`, which is data. Each part works on plain tensors.

One step, in this order (`learner.trainer`):

0. surveys that keepers ask for;
1. the mixer, then forward of every view in `Recipe.views`, with gradient only where a loss term says so;
2. the scorer reads every weak view and the labeled one; several weak views are averaged in probability space;
3. `Keeper.before_target`, then the targeter makes the `Target`, then `Keeper.before_loss`;
4. the weighted losses, backward, optimiser step, EMA step;
5. `Keeper.observe`;
6. per-row signals.

Everything in a `Target` and in a keeper's state is computed without gradient and in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.facemix import Mix
from learner.state import SampleTable, visits_in_order


@dataclass(slots=True)
class Batch:
    """One step's images. `labeled` views hold people's answers, `unlabeled` views none. All tensors on one device.

    rows (B_l,) int64; x (B_l,3,H,W) weak view in [0,1] normalised; target (B_l,K) float, rows sum to one (one-hot for
    one class, uniform on `allowed` for a candidate set or a bare "not these", vote shares for votes); allowed (B_l,K)
    bool, the candidate set (all true for one class or votes; all but the excluded for a bare "not these"); excluded
    (B_l,K) bool, people's "not these"; given (B_l,) int64, the single class a person gave or -1; locked (B_l,) bool,
    adjudicated.
    unlabeled_rows (B_u,) int64; views: "w" weak, "s" strong (and "w2", "s2" where asked), each (B_u,3,H,W).
    boxes (B_l,4): where the faces lie in the labeled view, left, top, right, bottom in shares of the side; None where
    no boxes are known or no mixer asks. mix: the labeled images mixed in pairs, where the recipe has a mixer.
    visits, unlabeled_visits: the positions of the rows, in groups without a repeated row; found where they
    are missing, at the price of a wait for the device.
    """

    rows: Tensor
    x: Tensor
    target: Tensor
    allowed: Tensor
    excluded: Tensor
    given: Tensor
    locked: Tensor
    unlabeled_rows: Tensor
    views: dict[str, Tensor]
    boxes: Tensor | None = None
    mix: Mix | None = None
    visits: Sequence[Tensor] | None = None
    unlabeled_visits: Sequence[Tensor] | None = None

    def in_order(self) -> Sequence[Tensor]:
        """Return the visits to the labeled rows, which a keeper writes one after the other."""
        return list(visits_in_order(self.rows)) if self.visits is None else self.visits

    def unlabeled_in_order(self) -> Sequence[Tensor]:
        """Return the visits to the unlabeled rows."""
        return list(visits_in_order(self.unlabeled_rows)) if self.unlabeled_visits is None else self.unlabeled_visits


@dataclass(slots=True)
class NetOut:
    """What the network says about one view: f_raw (B,d) pooled, f (B,d) after adapters, z (B,K) logits.

    aux: what adapters and parts leave for scorers and losses, by name; the first axis is the batch.
    """

    f_raw: Tensor
    f: Tensor
    z: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Scores:
    """A reading of network outputs: p (B,K) in [0,1] summing to one, conf (B,) its maximum, hard (B,) its argmax.

    log_mean: mean of log p (B,K) over several weak views, where there were several; their p is the mean of the views'.
    columns: what readers found in the same outputs, for `Keeper.signals`; empty in training.
    """

    p: Tensor
    conf: Tensor
    hard: Tensor
    log_mean: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(p: Tensor) -> "Scores":
        """Read probabilities; ties go to the lowest class."""
        conf = p.max(dim=1).values
        hard = (p >= conf[:, None]).to(torch.uint8).argmax(dim=1)
        return Scores(p, conf, hard)

    @staticmethod
    def mean(several: Sequence["Scores"]) -> "Scores":
        """Average the readings of several weak views in probability space."""
        if len(several) == 1:
            return several[0]
        p = torch.stack([scores.p for scores in several])
        mean = Scores.of(p.mean(dim=0))
        mean.log_mean = p.clamp(min=1e-38).log().mean(dim=0)
        return mean


@dataclass(slots=True)
class Target:
    """What the unlabeled half of the step trains on.

    hard (B_u,) int64 pseudo-label; weight (B_u,) in [0,1] (the mask); subset (B_u,) bool, the confident or reliable
    part; soft (B_u,K) or None; positive (B_u,K) bool or None; negative (B_u,K) bool or None, complementary labels.
    """

    hard: Tensor
    weight: Tensor
    subset: Tensor
    soft: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None


@dataclass(slots=True)
class LabeledTarget:
    """What the labeled half trains on: soft targets (B_l,K) and weights (B_l,) >= 0 (0 leaves a sample out)."""

    soft: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Clock:
    """Where training is: steps over the life of the workspace and inside this run (ALGORITHMS.md 10.6)."""

    lifetime_step: int
    round: int
    step: int
    steps: int
    method_epoch_len: int = 800
    ramp_scope: str = "run"

    @property
    def clock_step(self) -> int:
        """The step that ramps count: of the run in benchmarks, of the lifetime in the annotation loop."""
        return self.step if self.ramp_scope == "run" else self.lifetime_step

    @property
    def method_epoch(self) -> float:
        """The papers' epoch, a fixed number of steps."""
        return self.clock_step / self.method_epoch_len

    @property
    def progress(self) -> float:
        """Share of this run that is done, in [0, 1]."""
        return self.step / max(1, self.steps)


@dataclass(slots=True)
class StepContext:
    """Everything a part may read in one step; `signals` is where parts leave per-row columns."""

    batch: Batch
    outs: dict[str, NetOut]  # "l", "m" (mixed), "w", "s", …
    scores: dict[str, Scores]  # "l" and "w"
    clock: Clock
    num_classes: int
    labeled: LabeledTarget
    target: Target | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


class Mixer(Protocol):
    """Makes mixed images of the labeled ones, which the network reads as view "m"."""

    @property
    def needs_real(self) -> bool:
        """Whether a loss reads the labeled images as they were before mixing, too."""
        ...

    def start_run(self, boxes: NDArray[np.float32] | None) -> str | None:
        """Take note of the face boxes (L,4) of the labeled images; return what a person should know, if anything."""
        ...

    def __call__(self, batch: Batch, seed: int) -> Mix:
        """Mix the labeled images of a step, without changing them; what is drawn depends on the seed alone."""
        ...


class Scorer(Protocol):
    """How a network output is read, for pseudo-labels and for evaluation."""

    def __call__(self, out: NetOut) -> Scores:
        """Read one view's output (B,…), in float32 and without gradient."""
        ...


class Reader(Protocol):
    """Makes per-image columns for the labeling tool from one clean view, read in eval mode (ALGORITHMS.md 12)."""

    def __call__(self, out: NetOut, scores: Scores, strong: Scores | None) -> dict[str, Tensor]:
        """Return columns (B,) or (B,n); `strong` is the reading of the strong view where one was made."""
        ...


class Targeter(Protocol):
    """Turns the scores of the weak view into targets."""

    def __call__(self, scores: Scores, rows: Tensor, clock: Clock) -> Target:
        """Make the targets of the unlabeled rows (B_u,)."""
        ...


class LossTerm(Protocol):
    """One term of the objective. `views` are the unlabeled views it reads, `grad_views` those that it trains."""

    @property
    def name(self) -> str:
        """Name in logs."""
        ...

    @property
    def views(self) -> frozenset[str]:
        """Unlabeled views that are read."""
        ...

    @property
    def grad_views(self) -> frozenset[str]:
        """Unlabeled views that receive gradient."""
        ...

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss, before its weight in the recipe."""
        ...


class Keeper(Protocol):
    """Bookkeeping across steps: prototypes, banks, label doubts. State is per class or by row, never by position."""

    @property
    def name(self) -> str:
        """Name in logs and prefix of the saved state."""
        ...

    @property
    def reads_labeled(self) -> bool:
        """Whether it reads the labeled view's scores; if no keeper does, they are the student's own."""
        ...

    def start_run(self, unlabeled: Tensor) -> None:
        """Take note of the rows (N,) int64 that this run draws unlabeled images from; comes before any saved state."""
        ...

    def reserve(self, num_rows: int, device: torch.device) -> None:
        """Make room on a device for rows 0 … num_rows-1, which are the ones to come."""
        ...

    def before_target(self, ctx: StepContext) -> None:
        """Read the scores before the targets are made; may replace `ctx.labeled`."""
        ...

    def before_loss(self, ctx: StepContext) -> None:
        """Read or extend `ctx.target` before the losses."""
        ...

    def observe(self, ctx: StepContext) -> None:
        """Learn from the step after the optimiser has moved."""
        ...

    def wants_survey(self, clock: Clock) -> str | None:
        """Ask for a survey before the step at `clock`: of the clean ("x"), weak ("w") or strong ("s") view, or none."""
        ...

    def survey(self, survey: "Survey") -> None:
        """Take the survey that was asked for."""
        ...

    def on_event(self, event: "Event") -> None:
        """Take note of what happened between two rounds."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that must survive, as tensors; keys carry class roles (`learner.state`)."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        ...

    def signals(self, rows: Tensor, scores: Scores, view: "LabelView") -> dict[str, Any]:
        """Return numpy columns aligned with rows (N,), from scores of the evaluation pass."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a sample between two rounds (ALGORITHMS.md 11.4).

    kind: labelled | label_changed | label_removed | sample_added | sample_removed | features_changed | round_started.
    old and new are class indices or -1; `round_started` carries the number of the round in `new`; `features_changed`
    says that other feature adapters stand in the network than those that saved state was made with. An answer that
    repeats the label it replaces is a `label_changed` too: a person has spoken again, so what the model thought is
    dropped.
    """

    kind: str
    row: int = -1
    old: int = -1
    new: int = -1


@dataclass(frozen=True, slots=True)
class Survey:
    """A pass of the averaged model in eval mode over a sample of the pool (N,d) and of the labeled images.

    rows (L,) int64, features (L,d), p (L,K) and given (L,) int64 (class or -1) are of the labeled images, raw (L,d)
    their features as the backbone gives them. pool_p (N,K) is the reading of the pool sample, which answered images may
    be in; unanswered (N,) bool tells which are not. view is the one that was read.
    """

    pool: Tensor
    rows: Tensor
    features: Tensor
    p: Tensor
    given: Tensor
    raw: Tensor
    pool_p: Tensor
    unanswered: Tensor
    view: str = "x"


@dataclass(frozen=True, slots=True)
class LabelView:
    """People's answers frozen at one `label_seq`, as arrays aligned by position; `rows` is ascending.

    rows (L,) int64; target (L,K) float32; allowed, excluded (L,K) bool; given (L,) int64 or -1; locked (L,) bool;
    stamp (L,) int64, the seq of the last annotation that counted for this row.
    """

    label_seq: int
    classes: tuple[str, ...]
    rows: Tensor
    target: Tensor
    allowed: Tensor
    excluded: Tensor
    given: Tensor
    locked: Tensor
    stamp: Tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method as data: what `learner.methods` returns and `learner.trainer` runs.

    Features pass feature_adapters, then the unit length of feature_norm "l2": that is NetOut.f. head_adapters stand
    between it and the linear head, logit_adapters behind the head. parts are trainable things beside that path, which
    leave what scorers and losses need in NetOut.aux. readers make columns for the labeling tool. batchnorm "freeze":
    unlabeled forwards do not move BatchNorm's running statistics. tables: per-row state that belongs to no keeper; a
    keeper saves and moves its own.
    """

    name: str
    losses: Sequence[tuple[LossTerm, float]]
    scorer: Scorer
    targeter: Targeter | None = None
    mixer: Mixer | None = None
    keepers: Sequence[Keeper] = ()
    tables: Sequence[SampleTable] = ()
    feature_norm: str = "none"  # none | l2
    feature_scale: float = 16.0
    feature_adapters: Sequence[nn.Module] = ()
    head_adapters: Sequence[nn.Module] = ()
    logit_adapters: Sequence[nn.Module] = ()
    parts: Mapping[str, nn.Module] = field(default_factory=dict)
    readers: Sequence[Reader] = ()
    forward_mode: str = "concat"  # concat | separate
    pseudo_source: str = "ema_eval"  # student_train | student_eval | ema_eval
    batchnorm: str = "update"  # update | freeze

    @property
    def views(self) -> frozenset[str]:
        """The unlabeled views that the parts need."""
        needed = {v for term, _ in self.losses for v in term.views}
        return frozenset(needed | ({"w"} if self.targeter is not None else set()))

    @property
    def labeled_views(self) -> frozenset[str]:
        """The forms of the labeled images that are read: "l" as they are, "m" mixed."""
        mixed = frozenset({"m"} if self.mixer is not None else ())
        real = self.mixer is None or self.mixer.needs_real or len(self.losses) > 1 or bool(self.keepers)
        return mixed | {"l"} if real else mixed

    @property
    def grad_views(self) -> frozenset[str]:
        """The unlabeled views that receive gradient."""
        return frozenset(v for term, _ in self.losses for v in term.grad_views)
