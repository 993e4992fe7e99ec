"""LION's complementary label bank (eq. 9): for every image the classes that it surely does not show."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from learner.keepers.base import Answers, KeeperOptions, TableKeeper, change_of_sample
from learner.parts import Clock, Event, LabelView, Scores, StepContext
from learner.state import Column, SampleTable, pack_bits, unpack_bits


class BankOptions(KeeperOptions):
    """Options of `ComplementBank`.

    delta: a class enters at p <= delta. add: one class per visit (the paper's "progressive"), or every class below
    delta at once. cap: how many classes an image may exclude: "default" is max(1, K-2), "limit" K-1, or a number.
    renormalise: compare p over the classes that are left. release_above, release_visits: a class leaves after p >
    release_above on so many visits in a row; None keeps it for ever. max_age_rounds: entries made more rounds ago
    leave; None keeps them. conflict: a reliable pseudo-label inside its own bank is used all the same, or skipped.
    """

    delta: float = Field(0.05, gt=0, lt=1)
    add: Literal["one_per_visit", "all_below"] = "one_per_visit"
    cap: int | Literal["default", "limit"] = "default"
    renormalise: bool = False
    release_above: float | None = Field(0.2, gt=0, lt=1)
    release_visits: int = Field(3, ge=1, le=255)
    max_age_rounds: int | None = Field(2, ge=0)
    conflict: Literal["use", "skip"] = "use"

    def checked_cap(self, num_classes: int) -> int:
        """Return the cap for K classes.

        Raises:
            ValueError: it is not in 1..K-1, an entry would be released by the score that made it, or nothing is ever
                released but release_visits is set.
        """
        if self.release_above is not None and self.release_above <= self.delta:
            raise ValueError(f"bank.release_above {self.release_above} must be above bank.delta {self.delta}")
        if self.release_above is None and "release_visits" in self.model_fields_set:
            raise ValueError("bank.release_visits has no effect without bank.release_above; leave it out")
        named = {"default": max(1, num_classes - 2), "limit": num_classes - 1}
        cap = named[self.cap] if isinstance(self.cap, str) else self.cap
        if not 1 <= cap <= num_classes - 1:
            raise ValueError(f"bank.cap {cap} must be in 1..{num_classes - 1}, one class must stay possible")
        return cap


class ComplementBank(TableKeeper):
    """Keep class sets by row, and give them to the losses as `Target.negative`.

    An image's entry is read and written by its own row alone. The bank is extended before the losses, so that the first
    visit already pays for the new class. Unreliable visits add; every visit can release.
    """

    name = "complement_bank"

    def __init__(self, num_classes: int, options: BankOptions, reliable: float) -> None:
        """Start with empty sets.

        Raises:
            ValueError: see `BankOptions.checked_cap`.
        """
        self.num_classes = num_classes
        self.options = options
        self.reliable = reliable
        self.delta = options.delta  # a calibrator may lower it
        self.cap = options.checked_cap(num_classes)
        self.round = 0
        self.table = SampleTable(
            {
                "excluded": Column(torch.int64, role="bits"),
                "round": Column(torch.int32, width=num_classes, role="class1"),
                "step": Column(torch.int32, width=num_classes, role="class1"),
                "streak": Column(torch.uint8, width=num_classes, role="class1"),
            }
        )

    def excluded(self, rows: Tensor) -> Tensor:
        """Return the sets of rows (B,) as (B,K) bool."""
        return unpack_bits(self.table.at(rows)["excluded"], self.num_classes)

    @torch.no_grad()
    def before_loss(self, ctx: StepContext) -> None:
        """Visit every unlabeled row of the batch, then set `target.negative`."""
        if ctx.target is None:
            raise ValueError("the complementary bank needs a recipe with a targeter")
        rows, target, p = ctx.batch.unlabeled_rows, ctx.target, ctx.scores["w"].p
        for turn in ctx.batch.unlabeled_in_order():
            self.visit(rows[turn], p[turn], target.hard[turn], ~target.subset[turn], ctx.clock)
        target.negative = self.excluded(rows)
        conflict = target.subset & target.negative.gather(1, target.hard[:, None])[:, 0]
        if self.options.conflict == "skip":
            target.weight = target.weight * (~conflict).to(target.weight.dtype)
        ctx.logs["bank/classes"] = target.negative.sum(dim=1).float().mean()
        ctx.logs["bank/conflicts"] = conflict.float().mean()

    def visit(self, rows: Tensor, p: Tensor, hard: Tensor, unreliable: Tensor, clock: Clock) -> None:
        """Update the sets of distinct rows (B,) from p (B,K): release, then add for the unreliable ones."""
        state = self.table.at(rows)
        bank, streak = unpack_bits(state["excluded"], self.num_classes), state["streak"]
        if self.options.release_above is not None:
            back = bank & (p > self.options.release_above)
            streak = torch.where(back, streak + 1, torch.zeros_like(streak))
            leaves = streak >= self.options.release_visits
            bank, streak = bank & ~leaves, streak.masked_fill(leaves, 0)
        fresh = self._additions(bank, p, hard) & unreliable[:, None]
        state["excluded"] = pack_bits(bank | fresh)
        state["streak"] = streak
        state.put("round", torch.full_like(state["round"], clock.round), fresh)
        state.put("step", torch.full_like(state["step"], clock.lifetime_step), fresh)

    def _additions(self, bank: Tensor, p: Tensor, hard: Tensor) -> Tensor:
        left = p.masked_fill(bank, 0)
        q = left / left.sum(dim=1, keepdim=True).clamp(min=1e-12) if self.options.renormalise else p
        closed = bank | F.one_hot(hard, self.num_classes).bool()
        q = q.masked_fill(closed, torch.inf)
        rank = q.argsort(dim=1, stable=True).argsort(dim=1)
        room = self.cap - bank.sum(dim=1, keepdim=True)
        if self.options.add == "one_per_visit":
            room = room.clamp(max=1)
        return (q <= self.delta) & (rank < room)

    def errors(self, rows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the sets with the truth (N,) of rows (N,), labeled ones included, whose sets are archived.

        Returns how many images of each class (K,) were ever visited, and of how many the set holds the true class.
        """
        seen = torch.isin(rows, self.table.rows().to(rows.device))
        of_class = F.one_hot(truth[seen], self.num_classes)
        return of_class.sum(dim=0), (of_class.bool() & self.excluded(rows[seen])).sum(dim=0)

    def on_event(self, event: Event) -> None:
        """Archive on labelling (nothing to do: the row is not read), empty on the way back, age between rounds."""
        change_of_sample(self.table, event)
        if event.kind == "label_removed":
            self.table.reset(torch.tensor([event.row]))
        elif event.kind == "round_started":
            self.round = event.new if event.new >= 0 else self.round + 1
            self._age()

    def _age(self) -> None:
        if self.options.max_age_rounds is None:
            return
        state = self.table.at(self.table.rows())
        old = self.round - state["round"].long() > self.options.max_age_rounds
        bank = unpack_bits(state["excluded"], self.num_classes) & ~old
        state["excluded"] = pack_bits(bank)
        state["streak"] = state["streak"] * bank

    def state_dict(self) -> dict[str, Tensor]:
        """Return the table and the current round."""
        return {**self.table.state_dict(), "now": torch.tensor(self.round)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        self.table.load_state_dict(state)
        self.round = int(state["now"])

    def signals(self, rows: Tensor, scores: Scores, view: LabelView) -> dict[str, Any]:
        """Return lion_reliable, lion_not_set (bits), lion_not_count, lion_remaining and lion_conflict.

        Labeled rows show no set (theirs is archived) and are not "reliable"; they conflict when the archive holds the
        class that a person gave. Unlabeled rows conflict when it holds the predicted class.
        """
        rows, hard, conf = rows.cpu(), scores.hard.cpu(), scores.conf.cpu()
        bank, answers = self.excluded(rows), Answers.of(rows, view, self.num_classes)
        judged = torch.where(answers.labeled, answers.given, hard)
        conflict = bank.gather(1, judged.clamp(min=0)[:, None])[:, 0] & (judged >= 0)
        shown = bank & ~answers.labeled[:, None]
        count = shown.sum(dim=1)
        return {
            "lion_reliable": ((conf >= self.reliable) & ~answers.labeled).numpy(),
            "lion_not_set": pack_bits(shown).numpy(),
            "lion_not_count": count.to(torch.uint8).numpy(),
            "lion_remaining": (1 - count / (self.num_classes - 1)).float().numpy(),
            "lion_conflict": conflict.numpy(),
        }
