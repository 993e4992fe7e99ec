"""The optimiser of a run: parameter groups, and the learning rate of a step."""

import math
from typing import Any

import torch
from torch import nn

from learner.config import OptimizerConfig


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimiser; it sees parameters only, so weight decay cannot reach BatchNorm's statistics.

    Modules that say `lr_scale` have a group of their own: their rate is that many times the others', without decay.
    """
    scales: dict[nn.Parameter, float] = {}
    for module in network.modules():
        if hasattr(module, "lr_scale"):
            scales |= dict.fromkeys(module.parameters(), float(module.lr_scale))  # type: ignore[arg-type]
    plain = [p for p in network.parameters() if p.requires_grad and p not in scales]
    groups: list[dict[str, Any]] = [{"params": plain, "lr_scale": 1.0}]
    for scale in sorted(set(scales.values())):
        members = [p for p, own in scales.items() if own == scale and p.requires_grad]
        groups += [{"params": members, "lr_scale": scale, "weight_decay": 0.0}] if members else []
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
        )
    maker = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return maker(groups, config.lr, weight_decay=config.weight_decay)


def set_rate(optimizer: Any, config: OptimizerConfig, step: int, steps: int) -> None:
    """Set the learning rate of a step: linear rise, then constant or FixMatch's 7/16 cosine."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        rate *= math.cos(7 * math.pi / 16 * step / steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
