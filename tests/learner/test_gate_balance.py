"""The balance of gates: when it sets in, what it reads and logs, and that it survives saving."""

import pytest
import torch
from torch import Tensor

from learner.eaf import ExpertOptions, FeatureEaf, GateBalance
from learner.parts import NetOut
from tests.learner.steps import labeled_step


def balanced(adapter: FeatureEaf, images: Tensor) -> Tensor:
    """The balance term on a step whose labeled view the adapter read."""
    num = len(images)
    ctx = labeled_step(range(num), torch.full((num, 3), 1 / 3), [0] * num)
    aux: dict[str, Tensor] = {}
    f = adapter(images, aux)
    ctx.outs["l"] = NetOut(f, f, f[:, :3], aux)
    return GateBalance((adapter,), frozenset())(ctx)


def test_balance_switches_itself_on_when_one_expert_takes_most() -> None:
    torch.manual_seed(0)
    adapter = FeatureEaf("semantic", 6, ExpertOptions(num=4, top=1, style="switch", noise=False, gate_std=0.01))
    images = 1 + torch.rand(8, 6, generator=torch.Generator().manual_seed(4))
    assert balanced(adapter, images).item() == 0
    with torch.no_grad():
        adapter.experts.gate[:, 0] = 0.3  # the first expert wins for all
    for _ in range(400):
        adapter.experts(images)
    assert adapter.experts.usage[0] > 0.95
    assert bool(adapter.experts.lopsided)
    optimizer = torch.optim.SGD([adapter.experts.gate], 0.01)
    spread = []
    for _ in range(100):
        loss = balanced(adapter, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        spread.append(loss.item())
    assert spread[0] > 1
    assert spread[-1] < 0.01


def test_balance_can_be_forced_or_forbidden_and_eval_mode_counts_nothing() -> None:
    torch.manual_seed(0)
    on = FeatureEaf("semantic", 6, ExpertOptions(balance="on"))
    assert balanced(on, torch.randn(8, 6)).item() > 0
    off = FeatureEaf("semantic", 6, ExpertOptions(balance="off"))
    off.experts.lopsided.fill_(True)
    assert balanced(off, torch.randn(8, 6)).item() == 0
    before = off.experts.usage.clone()
    off.eval()
    off.experts(torch.ones(4, 6))
    assert torch.equal(off.experts.usage, before)


def test_usage_of_experts_is_logged_and_survives_saving() -> None:
    adapter = FeatureEaf("semantic", 6, ExpertOptions(num=2))
    ctx = labeled_step([0, 1], torch.full((2, 3), 1 / 3), [0, 1])
    gate = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    ctx.outs["l"].aux["gate_semantic"] = gate
    GateBalance((adapter,), frozenset())(ctx)
    assert [ctx.logs[f"gate_semantic/{j}"].item() for j in range(2)] == pytest.approx([0.7, 0.3])
    adapter.train()
    adapter.experts(torch.ones(4, 6))
    again = FeatureEaf("semantic", 6, ExpertOptions(num=2))
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again.experts.usage, adapter.experts.usage)
    assert not torch.equal(again.experts.usage, torch.full((2,), 0.5))


def test_balance_without_gates_is_zero_with_a_graph() -> None:
    ctx = labeled_step([0], torch.full((1, 3), 1 / 3), [0])
    ctx.outs["l"].z.requires_grad_()
    loss = GateBalance((FeatureEaf("semantic", 6, ExpertOptions()),), frozenset())(ctx)
    loss.backward()
    assert loss.item() == 0
