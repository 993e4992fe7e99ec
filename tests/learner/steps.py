"""Steps made by hand: probabilities and features in, a `StepContext` out, for tests of keepers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.parts import Batch, Clock, LabeledTarget, LabelView, NetOut, Scores, StepContext, Survey, Target

LATE = Clock(lifetime_step=5000, round=3, step=900, steps=1000)  # after every warm-up
EARLY = Clock(lifetime_step=10, round=0, step=10, steps=1000)


def output(p: Tensor, features: Tensor) -> NetOut:
    return NetOut(features, features, p.clamp(min=1e-30).log())


def labeled_step(
    rows: Sequence[int],
    p: Any,
    given: Sequence[int],
    features: Any = None,
    *,
    allowed: Any = None,
    excluded: Any = None,
    locked: Sequence[bool] | None = None,
    clock: Clock = LATE,
) -> StepContext:
    """One labeled batch; given -1 with `allowed` (B,K) is a candidate set. The unlabeled half is one unreliable row."""
    p = torch.as_tensor(p, dtype=torch.float32)
    size, num_classes = p.shape
    y = torch.tensor(given)
    some = torch.ones(size, num_classes, dtype=torch.bool) if allowed is None else torch.as_tensor(allowed).bool()
    none = torch.zeros(size, num_classes, dtype=torch.bool) if excluded is None else torch.as_tensor(excluded).bool()
    possible = (some & ~none).float()
    uniform = possible / possible.sum(dim=1, keepdim=True)
    one = F.one_hot(y.clamp(min=0), num_classes).float()
    target = torch.where((y >= 0)[:, None], one, uniform)
    f = torch.ones(size, 2) if features is None else torch.as_tensor(features, dtype=torch.float32)
    batch = Batch(
        rows=torch.tensor(rows),
        x=torch.zeros(size, 0),
        target=target,
        allowed=some,
        excluded=none,
        given=y,
        locked=torch.zeros(size, dtype=torch.bool) if locked is None else torch.tensor(locked),
        unlabeled_rows=torch.tensor([999]),
        views={},
    )
    flat = torch.full((1, num_classes), 1 / num_classes)
    outs = {"l": output(p, f), "w": output(flat, torch.zeros(1, f.shape[1]))}
    scores = {"l": Scores.of(p), "w": Scores.of(flat)}
    unreliable = Target(torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    labeled = LabeledTarget(target.clone(), torch.ones(size))
    return StepContext(batch, outs, scores, clock, num_classes, labeled, unreliable)


def unlabeled_step(
    rows: Sequence[int], p: Any, features: Any = None, *, gamma: float = 0.83, clock: Clock = LATE
) -> StepContext:
    """One unlabeled batch with LION's reliability; the labeled half is empty."""
    p = torch.as_tensor(p, dtype=torch.float32)
    f = torch.ones(len(p), 2) if features is None else torch.as_tensor(features, dtype=torch.float32)
    ctx = labeled_step([998], torch.full((1, p.shape[1]), 1 / p.shape[1]), [0], torch.zeros(1, f.shape[1]), clock=clock)
    ctx.batch.unlabeled_rows = torch.tensor(rows)
    ctx.outs["w"] = output(p, f)
    ctx.outs["s"] = output(p, f)
    read = Scores.of(p)
    ctx.scores["w"] = read
    reliable = read.conf >= gamma
    ctx.target = Target(read.hard, reliable.float(), reliable)
    return ctx


def view_of(rows: Sequence[int], given: Sequence[int], num_classes: int, **columns: Any) -> LabelView:
    """People's answers; `allowed`, `excluded`, `locked` where they matter."""
    size = len(rows)
    y = torch.tensor(given, dtype=torch.int64)
    return LabelView(
        label_seq=1,
        classes=tuple(f"class{c}" for c in range(num_classes)),
        rows=torch.tensor(rows, dtype=torch.int64),
        target=F.one_hot(y.clamp(min=0), num_classes).float(),
        allowed=torch.as_tensor(columns.get("allowed", torch.ones(size, num_classes))).bool(),
        excluded=torch.as_tensor(columns.get("excluded", torch.zeros(size, num_classes))).bool(),
        given=y,
        locked=torch.as_tensor(columns.get("locked", torch.zeros(size))).bool(),
        stamp=torch.zeros(size, dtype=torch.int64),
    )


def survey_of(
    pool: Tensor,
    features: Tensor,
    p: Tensor,
    given: Tensor,
    *,
    rows: Tensor | None = None,
    raw: Tensor | None = None,
    pool_p: Tensor | None = None,
    view: str = "x",
) -> Survey:
    """A pass over a pool without answers and labeled rows; without adapters, and nothing known in the pool."""
    return Survey(
        pool=pool,
        rows=torch.arange(len(given)) if rows is None else rows,
        features=features,
        p=p,
        given=given,
        raw=features if raw is None else raw,
        pool_p=torch.full((len(pool), p.shape[1]), 1 / p.shape[1]) if pool_p is None else pool_p,
        unanswered=torch.ones(len(pool), dtype=torch.bool),
        view=view,
    )
