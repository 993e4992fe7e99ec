"""LION's label disambiguation (eqs. 1, 4-6): which given labels does the model doubt, and what does it suggest instead?

A doubt never changes what people said. It leaves a sample out of the loss (or softens its target), gathers evidence
visit by visit, and becomes a suggestion for review and a target for training alone.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.keepers.base import Answers, KeeperOptions, TableKeeper, Warmup, answered_classes, change_of_sample
from learner.keepers.candidates import (
    CandidateRule,
    Similarity,
    candidate_set,
    decay_of,
    enter_and_leave,
    label_doubt,
    move_weights,
)
from learner.keepers.prototypes import Prototypes
from learner.parts import Clock, Event, LabeledTarget, LabelView, Scores, StepContext
from learner.state import Column, RowView, SampleTable, pack_bits, unpack_bits

LOW_CONFIDENCE, DISAGREE = 1, 2  # lion_reason; 0 is none


class DisambiguatorOptions(KeeperOptions):
    """Options of `Disambiguator`.

    ambiguity: what leaves a label out of the loss: "strict", not (max p >= clear and argmax = given), or "margin",
    p_max - p_given > margin. min_visits: grace of each label before it may be doubted. candidates,
    candidate_threshold: eq. 4 (mu). w_init: uniform on the candidates, or p. similarity, temperature, normalise: eq.
    5. half_life_visits: of w, 69 is phi = .99; half_life_steps: counted in steps instead, as visits get rarer with more
    labels. harden: w becomes one-hot above it (public code). suggest,
    suggest_visits: eq. 6, a class is settled on at max w >= suggest after so many doubtful visits. override: train on
    the settled class. protected: classes that are never settled on, nor away from. ambiguous_loss, ambiguous_weight:
    what doubted samples train on meanwhile.
    """

    ambiguity: Literal["strict", "margin"] = "margin"
    clear: float = Field(0.8, gt=0, le=1)
    margin: float = Field(0.5, ge=0, lt=1)
    min_visits: int = Field(30, ge=0)
    candidates: CandidateRule = "union"
    candidate_threshold: float = Field(0.3, gt=0, le=1)
    w_init: Literal["uniform", "probs"] = "uniform"
    similarity: Similarity = "softmax"
    temperature: float = Field(0.1, gt=0)
    normalise: bool = True
    half_life_visits: float = Field(69.0, gt=0)
    half_life_steps: float | None = Field(None, gt=0)
    harden: float | None = Field(None, gt=0, lt=1)
    suggest: float = Field(0.8, gt=0, le=1)
    suggest_visits: int = Field(10, ge=1)
    override: bool = True
    protected: tuple[int, ...] = ()
    ambiguous_loss: Literal["none", "soft"] = "soft"
    ambiguous_weight: float = Field(0.5, gt=0, le=1)

    def check(self, num_classes: int) -> None:
        """Refuse combinations without meaning.

        Raises:
            ValueError: the message says which and why.
        """
        if self.ambiguous_loss == "soft" and not self.normalise:
            raise ValueError("labels.ambiguous_loss 'soft' trains on w and so needs labels.normalise")
        if self.harden is not None and self.harden < self.suggest:
            raise ValueError(f"labels.harden {self.harden} below labels.suggest {self.suggest} would suggest at once")
        if self.similarity == "cosine" and "temperature" in self.model_fields_set:
            raise ValueError("labels.temperature has no effect with labels.similarity 'cosine'; leave it out")
        if self.candidates == "official" and "candidate_threshold" in self.model_fields_set:
            raise ValueError("labels.candidate_threshold has no effect with labels.candidates 'official'; leave it out")
        if self.ambiguous_loss == "none" and "ambiguous_weight" in self.model_fields_set:
            raise ValueError("labels.ambiguous_weight has no effect with labels.ambiguous_loss 'none'; leave it out")
        if wrong := [c for c in self.protected if not 0 <= c < num_classes]:
            raise ValueError(f"labels.protected {wrong} are not classes; there are {num_classes}")


@dataclass(slots=True)
class Visit:
    """Labeled rows (B,): p, cosines (B,K); answer, denied (B,K) bool; single, partial, locked (B,) bool."""

    rows: Tensor
    p: Tensor
    cosines: Tensor
    answer: Tensor
    denied: Tensor
    single: Tensor
    partial: Tensor
    locked: Tensor

    @staticmethod
    def of(ctx: StepContext, cosines: Tensor) -> "Visit":
        """Read a step's labeled half. Vote shares and bare "not these" are neither single nor partial."""
        batch = ctx.batch
        answer, several = answered_classes(batch.given, batch.allowed, batch.excluded)
        denied = batch.excluded & ~answer
        p = ctx.scores["l"].p
        return Visit(batch.rows, p, cosines, answer, denied, batch.given >= 0, several, batch.locked)

    def at(self, index: Tensor) -> "Visit":
        """Take a part of the batch."""
        return Visit(*(getattr(self, name)[index] for name in Visit.__slots__))


class Disambiguator(TableKeeper):
    """Keep, by row: w (K,), candidates, visits, doubtful visits and the settled class (-1: none).

    Reads the prototypes of the step before. A locked (adjudicated) label is never doubted for training.
    """

    name = "disambiguator"
    reads_labeled = True

    def __init__(self, num_classes: int, options: DisambiguatorOptions, prototypes: Prototypes, warmup: Warmup) -> None:
        """Start without doubts.

        Raises:
            ValueError: see `DisambiguatorOptions.check`.
        """
        options.check(num_classes)
        self.num_classes = num_classes
        self.options = options
        self.prototypes = prototypes
        self.warmup = warmup
        self.decay = decay_of(options.half_life_visits)
        self.warm = True
        self.temperature = options.temperature  # a calibrator may fit it
        self.table = SampleTable(
            {
                "w": Column(torch.float32, width=num_classes, role="class1"),
                "candidates": Column(torch.int64, role="bits"),
                "settled": Column(torch.int8, default=-1, role="index"),
                "visits": Column(torch.int32),
                "doubtful": Column(torch.int32),
                "round": Column(torch.int32),
                "step": Column(torch.int32),
            }
        )

    @torch.no_grad()
    def before_target(self, ctx: StepContext) -> None:
        """Visit every labeled row of the batch and replace `ctx.labeled` by what it should train on."""
        self.warm = self.warmup(ctx.clock)
        everything = Visit.of(ctx, self.prototypes.cosines(ctx.outs["l"].f))
        soft, weight = ctx.labeled.soft.clone(), ctx.labeled.weight.clone()
        doubts = torch.zeros_like(everything.locked)
        for turn in ctx.batch.in_order():
            visit = everything.at(turn)
            doubted = self.visit(visit, ctx.clock)
            soft[turn], weight[turn] = self._training(visit, doubted, soft[turn], weight[turn])
            doubts[turn] = doubted
        ctx.labeled = LabeledTarget(soft, weight)
        ctx.logs["labels/doubted"] = doubts.float().mean()
        ctx.logs["labels/used"] = (weight > 0).float().mean()

    def visit(self, visit: Visit, clock: Clock) -> Tensor:
        """Update the state of distinct rows; return which labels (B,) bool are doubted for training."""
        cfg, rows = self.options, visit.rows
        state = self.table.at(rows)
        seen = state["visits"]
        state["visits"] = seen + 1
        may = (visit.single | visit.partial) & ~visit.locked & (seen >= cfg.min_visits)
        if self.warm:
            may = torch.zeros_like(may)
        if cfg.override:
            may = may & (state["settled"] < 0)
        strict, by_margin, _ = label_doubt(visit.p, visit.answer, cfg.clear, cfg.margin)
        doubted = may & (strict if cfg.ambiguity == "strict" else by_margin)
        self._gather_evidence(state, visit, doubted | (may & visit.partial), clock)
        return doubted

    def _gather_evidence(self, state: RowView, visit: Visit, where: Tensor, clock: Clock) -> None:
        cfg = self.options
        previous = unpack_bits(state["candidates"], self.num_classes)
        candidates = candidate_set(visit.p, visit.answer, previous, cfg.candidate_threshold, cfg.candidates)
        candidates = torch.where(visit.partial[:, None], visit.answer, candidates & ~visit.denied)
        candidates = torch.where(candidates.any(dim=1, keepdim=True), candidates, visit.answer)
        size = candidates.sum(dim=1, keepdim=True).clamp(min=1)
        entry = visit.p if cfg.w_init == "probs" else (1 / size).expand_as(visit.p)
        w = enter_and_leave(state["w"], candidates, previous, entry, cfg.normalise)
        usable = candidates & self.prototypes.is_set
        w = move_weights(w, visit.cosines, usable, self._decay(state, clock), cfg.similarity, self.temperature)
        if cfg.normalise:
            w = w / w.sum(dim=1, keepdim=True).clamp(min=1e-12)
        best = w.masked_fill(~candidates, -torch.inf).max(dim=1)
        if cfg.harden is not None:
            hard = F.one_hot(best.indices, self.num_classes).to(w.dtype)
            w = torch.where(best.values[:, None] > cfg.harden, hard, w)
        doubtful = state["doubtful"] + where
        settles = (best.values >= cfg.suggest) & (doubtful >= cfg.suggest_visits)
        settles = settles & self._may_settle(visit, best.indices)
        state["doubtful"] = doubtful
        state.put("w", w, where)
        state.put("candidates", pack_bits(candidates), where)
        state.put("settled", torch.where(settles, best.indices, -1), where)
        state.put("round", clock.round, where)
        state.put("step", clock.lifetime_step, where)

    def _decay(self, state: RowView, clock: Clock) -> Tensor | float:
        """Return phi of this visit: constant, or (B,1) by the steps since the last evidence."""
        if self.options.half_life_steps is None:
            return self.decay
        passed = (clock.lifetime_step - state["step"]).clamp(min=1).float()
        phi = 0.5 ** (passed / self.options.half_life_steps)
        return torch.where(state["doubtful"] > 0, phi, self.decay)[:, None]

    def _may_settle(self, visit: Visit, best: Tensor) -> Tensor:
        """Protected classes are neither suggested nor given up."""
        if not self.options.protected:
            return torch.ones_like(visit.single)
        guarded = torch.zeros(self.num_classes, dtype=torch.bool, device=best.device)
        guarded[list(self.options.protected)] = True
        stays = visit.answer.gather(1, best[:, None])[:, 0] & visit.single
        return stays | ~(guarded[best] | (visit.answer & guarded).any(dim=1))

    def _training(self, visit: Visit, doubted: Tensor, soft: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        state = self.table.at(visit.rows)
        settled = state["settled"].long()
        trained = (settled >= 0) & ~visit.locked & self.options.override
        hard = F.one_hot(settled.clamp(min=0), self.num_classes).to(soft.dtype)
        soft = torch.where(trained[:, None], hard, soft)
        weight = torch.where(trained, torch.ones_like(weight), weight)
        waits = doubted & ~trained
        if self.options.ambiguous_loss == "none":
            return soft, weight.masked_fill(waits, 0)
        w = state["w"].to(soft.dtype)
        return torch.where(waits[:, None], w, soft), weight.masked_fill(waits, self.options.ambiguous_weight)

    def on_event(self, event: Event) -> None:
        """Forget a row whose answer is new, changed or gone: a person's word beats any doubt."""
        change_of_sample(self.table, event)
        if event.kind in ("labelled", "label_changed", "label_removed"):
            self.table.reset(torch.tensor([event.row]))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the table and whether the warm-up still lasted."""
        return {**self.table.state_dict(), "warm": torch.tensor(self.warm)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        self.table.load_state_dict(state)
        self.warm = bool(state["warm"])

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return the doubts about given labels, judged by the evaluation pass.

        lion_ambiguous_strict, lion_ambiguous_margin bool (never during warm-up or grace; locked labels are shown too),
        lion_reason 0 none, 1 low confidence, 2 disagree; lion_label_margin p_max - p_given, NaN without label;
        lion_candidates bits, lion_w (N,K), lion_suggest a class other than the given one or -1, lion_strength max w,
        lion_visits, lion_visits_to_go before a doubt and before a suggestion are possible.
        """
        rows, p = rows.cpu(), scores.p.float().cpu()
        state, answers = self.table.at(rows), Answers.of(rows, view, self.num_classes)
        answer = answers.answer
        judged = answer.any(dim=1)
        strict, by_margin, distance = label_doubt(p, answer, self.options.clear, self.options.margin)
        visits, w, settled = state["visits"], state["w"], state["settled"].long()
        shown = judged & (visits >= self.options.min_visits)
        if self.warm:
            shown = torch.zeros_like(shown)
        disagrees = ~answer.gather(1, p.argmax(dim=1)[:, None])[:, 0]
        reason = torch.where(disagrees, DISAGREE, LOW_CONFIDENCE) * (strict & shown)
        repeats = answer.gather(1, settled.clamp(min=0)[:, None])[:, 0] & (answer.sum(dim=1) == 1)
        waiting = (self.options.suggest_visits - state["doubtful"]).clamp(min=0)
        return {
            "lion_ambiguous_strict": (strict & shown).numpy(),
            "lion_ambiguous_margin": (by_margin & shown).numpy(),
            "lion_reason": reason.to(torch.uint8).numpy(),
            "lion_label_margin": torch.where(judged, distance, torch.nan).numpy(),
            "lion_candidates": self._shown_candidates(state["candidates"], p, answers).numpy(),
            "lion_w": w.numpy(),
            "lion_suggest": torch.where(answers.labeled & ~repeats, settled, -1).to(torch.int8).numpy(),
            "lion_strength": w.max(dim=1).values.numpy(),
            "lion_visits": visits.numpy(),
            "lion_visits_to_go": ((self.options.min_visits - visits).clamp(min=0) + waiting).mul(judged).numpy(),
        }

    def _shown_candidates(self, kept: Tensor, p: Tensor, answers: Answers) -> Tensor:
        """Those of the last doubtful visit; before there was one, what the rule says now."""
        answer = answers.answer
        none, options = torch.zeros_like(answer), self.options
        now = candidate_set(p, answer, none, options.candidate_threshold, options.candidates)
        now = torch.where((answers.given < 0)[:, None], answer, now & ~(answers.excluded & ~answer))
        return torch.where(kept == 0, pack_bits(now), kept) * answer.any(dim=1)
