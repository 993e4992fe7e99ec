"""LEAF's semantic and instance levels: experts behind a gate, on features and on logits (ALGORITHMS.md 5.1).

Every expert has weights of its own, unlike in the public code, where one module stands n times in the list.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from learner.gates import Combine, GateActivation, combine_experts, importance_spread, topk_gate
from learner.keepers.base import KeeperOptions
from learner.parts import StepContext

Kind = Literal["residual", "bottleneck", "linear"]
Level = Literal["semantic", "instance"]

MAX_RANK = 32
USAGE_DECAY = 0.99  # of the running share of every expert, per training forward
NOISE_FLOOR = 0.01


class ExpertOptions(KeeperOptions):
    """What the experts of a level are and how they are chosen.

    kind: residual x + W2 relu(W1 x + b1) + b2, bottleneck without the x, or linear W x + b; num of them, the gate opens
    `top` (2, or 1 where there is but one). rank: hidden width in place of D//2, or rank of a linear expert; for the
    features of a frozen encoder, where full-width experts learn a hundred labels by heart. gate_act: none takes the
    softmax of raw scores, softplus is the paper's. style: switch keeps the softmax over all experts, the only way to
    train a gate that opens one. noise on the scores in training. combine: weighted sum, or the public code's log of
    summed exponentials. zero_init: residual experts start as the identity. gate_std: first weights of the gate.
    balance: the term that spreads the load; auto switches it on for good once one expert's running share of the gate
    weights exceeds balance_above.
    """

    kind: Kind = "residual"
    num: int = Field(4, ge=1, le=64)
    top: int | None = Field(None, ge=1)
    rank: int | None = Field(None, ge=1, le=MAX_RANK)
    gate_act: GateActivation = "none"
    style: Literal["topk", "switch"] = "topk"
    noise: bool = True
    combine: Combine = "sum"
    zero_init: bool = True
    gate_std: float = Field(0.01, ge=0)
    balance: Literal["auto", "on", "off"] = "auto"
    balance_above: float = Field(0.8, gt=0, lt=1)

    @property
    def chosen(self) -> int:
        """Experts that the gate opens for one image."""
        return min(2, self.num) if self.top is None else self.top

    @property
    def rated(self) -> int:
        """Experts with a positive weight in the gate's rating: those that it opens, or all with style "switch"."""
        return self.num if self.style == "switch" else self.chosen

    @model_validator(mode="after")
    def _meaningful(self) -> "ExpertOptions":
        if self.chosen > self.num:
            raise ValueError(f"the gate cannot open top {self.chosen} of num {self.num} experts")
        if self.style == "switch" and (self.num == 1 or self.chosen != 1):
            raise ValueError("style 'switch' opens one of several experts; it needs num >= 2 and top 1")
        if self.balance == "on" and self.num == 1:
            raise ValueError("balance 'on' needs several experts to balance")
        if self.gate_std == 0 and self.num > 1 and not self.noise:
            raise ValueError("gate_std 0 without noise sends every image to the same experts for ever")
        return self

    def hidden(self, width: int) -> int | None:
        """Hidden width of an expert of the given width; None for a full linear one."""
        half = max(1, width // 2)
        if self.kind == "linear":
            return None if self.rank is None or self.rank >= width else self.rank
        return half if self.rank is None else min(self.rank, half)


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Draw first weights as `nn.Linear` does: uniform within 1 / sqrt(fan_in)."""
    return nn.Parameter((2 * torch.rand(shape) - 1) / fan_in**0.5)


class Experts(nn.Module):
    """n experts of width D and their gate: v (B,D) → o = sum_j g_j E_j(v) (B,D) and how the gate rates them (B,n).

    The rating is g itself; with style "switch" the softmax over all experts of which g keeps the largest, so that the
    balance of a gate that sends everything to one expert has a gradient. All experts are computed by two matrix
    products; a closed one is multiplied by zero. A single expert has no gate.
    `usage` (n,) is the running share of the gate weights in training, `lopsided` says that one share has been above
    the limit. over_classes: the width is the number of classes.
    """

    def __init__(self, width: int, options: ExpertOptions, over_classes: bool = False) -> None:
        super().__init__()
        self.width, self.options, self.over_classes = width, options, over_classes
        num, hidden = options.num, options.hidden(width)
        self.identity = options.kind == "residual"
        self.bent = options.kind != "linear"
        if hidden is None:
            self.weight = uniform((num, width, width), width)  # input by output
            self.bias = uniform((num, width), width)
        else:
            self.down = uniform((num, hidden, width), width)
            if self.bent:
                self.down_bias = uniform((num, hidden), width)
            silent = self.identity and options.zero_init
            self.up = nn.Parameter(torch.zeros(num, hidden, width)) if silent else uniform((num, hidden, width), hidden)
            self.bias = nn.Parameter(torch.zeros(num, width)) if silent else uniform((num, width), hidden)
        self.full = hidden is None
        if num > 1:
            self.gate = nn.Parameter(options.gate_std * torch.randn(width, num))
            if options.noise:
                self.gate_noise = nn.Parameter(torch.zeros(width, num))
            self.register_buffer("usage", torch.full((num,), 1 / num))
            self.register_buffer("lopsided", torch.zeros((), dtype=torch.bool))

    @property
    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes of the state's entries that run over the classes; none for experts on features."""
        if not self.over_classes:
            return {}
        own: dict[str, tuple[int, ...]] = {"bias": (1,)}
        own |= {"weight": (1, 2)} if self.full else {"down": (2,), "up": (2,)}
        own |= {"gate": (0,)} if self.options.num > 1 else {}
        return own | ({"gate_noise": (0,)} if self.options.num > 1 and self.options.noise else {})

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the joined output (B,D) and the rating (B,n), this in float32 or better."""
        gate, rating = self.weigh(v)
        return self._join(v, gate), rating

    def _join(self, v: Tensor, gate: Tensor) -> Tensor:
        if self.options.combine == "logexp":
            with torch.autocast(v.device.type, enabled=False):
                return combine_experts(self.each(v.to(gate.dtype)), gate, "logexp")
        if self.full:
            joined = combine_experts(torch.einsum("bd,nde->bne", v, self.weight), gate.to(v.dtype))
        else:
            opened = self._hidden(v) * gate[:, :, None].to(v.dtype)
            joined = opened.flatten(1) @ self.up.flatten(0, 1)
        joined = joined + gate.to(joined.dtype) @ self.bias
        if not self.identity:
            return joined
        kept = v * gate.sum(dim=1, keepdim=True) if self.options.style == "switch" else v  # else the weights sum to 1
        return kept + joined

    def _hidden(self, v: Tensor) -> Tensor:
        """Return the hidden layers (B,n,h) of every expert."""
        h = F.linear(v, self.down.flatten(0, 1), self.down_bias.flatten() if self.bent else None)
        h = h.view(len(h), *self.down.shape[:2])
        return F.relu(h) if self.bent else h

    def each(self, v: Tensor) -> Tensor:
        """Return the output (B,n,D) of every expert by itself."""
        if self.full:
            out = torch.einsum("bd,nde->bne", v, self.weight)
        else:
            out = torch.einsum("bnh,nhd->bnd", self._hidden(v), self.up)
        out = out + self.bias
        return out + v[:, None, :] if self.identity else out

    def weigh(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and rating (B,n); in training with noise eps * (softplus(v W_n) + .01) on the scores."""
        options = self.options
        with torch.autocast(v.device.type, enabled=False):
            x = v.to(torch.promote_types(v.dtype, torch.float32))
            if options.num == 1:
                return torch.ones_like(x[:, :1]), torch.ones_like(x[:, :1])
            scores = x @ self.gate
            if options.noise and self.training:
                scores = scores + torch.randn_like(scores) * (F.softplus(x @ self.gate_noise) + NOISE_FLOOR)
            switch = options.style == "switch"
            gate = topk_gate(scores, options.chosen, options.gate_act, switch)
            rating = topk_gate(scores, options.num, options.gate_act) if switch else gate
        if self.training:
            self._note(gate)
        return gate, rating

    @torch.no_grad()
    def _note(self, gate: Tensor) -> None:
        share = (gate.sum(dim=0) / gate.sum()).to(self.usage.dtype)
        self.usage.lerp_(share, 1 - USAGE_DECAY)
        self.lopsided.logical_or_(self.usage.max() > self.options.balance_above)

    usage: Tensor
    lopsided: Tensor


class FeatureEaf(nn.Module):
    """Experts on features (B,d): the semantic level before normalisation, or the public code's instance level."""

    def __init__(self, level: Level, width: int, options: ExpertOptions) -> None:
        super().__init__()
        self.level: Level = level
        self.experts = Experts(width, options)

    def forward(self, f: Tensor, aux: dict[str, Tensor]) -> Tensor:
        """Return the adapted features (B,d); leave the rating (B,n) of several experts in `aux`."""
        out: Tensor
        out, rating = self.experts(f)
        if rating.shape[1] > 1:
            aux[gate_key(self.level)] = rating
        return out


class LogitEaf(nn.Module):
    """Experts on logits (B,K): the paper's instance level, whose gate reads the logits too."""

    level: Level = "instance"

    def __init__(self, num_classes: int, options: ExpertOptions) -> None:
        super().__init__()
        self.experts = Experts(num_classes, options, over_classes=True)

    def forward(self, z: Tensor, f: Tensor, aux: dict[str, Tensor]) -> Tensor:
        """Return the adapted logits (B,K); leave the rating (B,n) of several experts in `aux`."""
        out: Tensor
        out, rating = self.experts(z)
        if rating.shape[1] > 1:
            aux[gate_key(self.level)] = rating
        return out


def gate_key(level: Level) -> str:
    """Name the rating of a level's experts in `NetOut.aux`."""
    return f"gate_{level}"


@dataclass(frozen=True, slots=True)
class GateBalance:
    """Spread the load over the experts: the levels' CV^2 of importance over the student's views, summed.

    A level whose balance is "auto" counts from when it is lopsided. Logs every expert's share of the gate weights.
    """

    adapters: tuple[FeatureEaf | LogitEaf, ...]
    grad_views: frozenset[str]
    name: str = "gate_balance"

    @property
    def views(self) -> frozenset[str]:
        """The unlabeled views that are trained anyway."""
        return self.grad_views

    def __call__(self, ctx: StepContext) -> Tensor:
        """Return the scalar loss; exactly 0 where no level needs it."""
        total = ctx.outs["l"].z.sum() * 0
        for adapter in self.adapters:
            key, experts = gate_key(adapter.level), adapter.experts
            gates = [ctx.outs[view].aux[key] for view in ("l", *sorted(self.grad_views)) if key in ctx.outs[view].aux]
            if not gates:
                continue
            gate = torch.cat(gates)
            for index, share in enumerate(gate.detach().mean(dim=0)):
                ctx.logs[f"{key}/{index}"] = share
            if experts.options.balance != "off":
                due = experts.lopsided if experts.options.balance == "auto" else torch.ones_like(experts.lopsided)
                total = total + importance_spread(gate) * due.to(gate.dtype)
        return total
