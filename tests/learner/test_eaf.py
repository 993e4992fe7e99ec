"""Gates and experts: hand-worked numbers, brute force, and the faults of public code that must not come back."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from learner.eaf import ExpertOptions, Experts, Kind, LogitEaf
from learner.gates import LOG_FLOOR, combine_experts, gate_entropy, importance_spread, topk_gate

SCORES = torch.tensor([[1.0, 0.0, -1.0, 2.0]], dtype=torch.float64)
KINDS: tuple[Kind, ...] = ("residual", "bottleneck", "linear")


def experts(width: int = 6, over_classes: bool = False, seed: int = 0, **options: object) -> Experts:
    """Experts that differ from each other, in eval mode and float64."""
    torch.manual_seed(seed)
    made = Experts(width, ExpertOptions.model_validate({"zero_init": False, "gate_std": 1.0, **options}), over_classes)
    return made.double().eval()


def features(num: int = 5, width: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(num, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("k", "activation", "expected"),
    [
        (2, "softplus", [0.307110, 0, 0, 0.692890]),
        (2, "none", [0.268941, 0, 0, 0.731059]),
        (4, "softplus", [0.240273, 0.129239, 0.088392, 0.542096]),
        (4, "none", [0.236883, 0.087144, 0.032059, 0.643914]),
        (1, "none", [0, 0, 0, 1]),
    ],
)
def test_worked_gates(k: int, activation: str, expected: list[float]) -> None:
    assert topk_gate(SCORES, k, activation)[0].tolist() == pytest.approx(expected, abs=5e-7)  # type: ignore[arg-type]


def test_worked_softplus_gradients_and_entropies() -> None:
    assert F.softplus(SCORES)[0].tolist() == pytest.approx([1.313262, 0.693147, 0.313262, 2.126928], abs=5e-7)
    s = SCORES.clone().requires_grad_()
    (topk_gate(s, 2, "softplus") * torch.tensor([3.0, 0, 0, 1])).sum().backward()
    assert s.grad is not None
    assert s.grad[0].tolist() == pytest.approx([0.311129, 0, 0, -0.374856], abs=5e-7)
    raw, soft = gate_entropy(topk_gate(SCORES, 2)).item(), gate_entropy(topk_gate(SCORES, 2, "softplus")).item()
    assert [raw, raw / math.log(2)] == pytest.approx([0.582203, 0.839942], abs=5e-7)
    assert [soft, soft / math.log(2)] == pytest.approx([0.616769, 0.889809], abs=5e-7)


def test_a_gate_that_opens_one_gets_no_gradient_but_the_switch_does() -> None:
    s = SCORES.clone().requires_grad_()
    for activation in ("none", "softplus"):
        (topk_gate(s, 1, activation) * torch.arange(4)).sum().backward()  # type: ignore[arg-type]
        assert s.grad is not None
        assert (s.grad == 0).all()
    s.grad = None
    gate = topk_gate(s, 1, switch=True)
    assert gate[0].tolist() == pytest.approx([0, 0, 0, 0.643914], abs=5e-7)
    gate.sum().backward()
    assert (s.grad != 0).all()


def test_ties_open_the_first_experts_and_softplus_underflow_keeps_the_order() -> None:
    assert (topk_gate(torch.zeros(1, 8), 3) > 0).tolist() == [[True] * 3 + [False] * 5]
    assert (topk_gate(torch.tensor([[-300.0, -200.0, -250.0]]), 1, "softplus") > 0).tolist() == [[False, True, False]]


@pytest.mark.parametrize("k", [0, 5])
def test_impossible_number_of_open_gates(k: int) -> None:
    with pytest.raises(ValueError, match="4 experts"):
        topk_gate(SCORES, k)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.data())
def test_gate_invariants(num: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num))
    s = torch.tensor([data.draw(st.lists(st.floats(-20, 20), min_size=num, max_size=num))], dtype=torch.float64)
    for activation in ("none", "softplus"):
        gate = topk_gate(s, k, activation)  # type: ignore[arg-type]
        assert (gate > 0).sum() == k
        assert gate.sum().item() == pytest.approx(1)
        opened = gate[0] > 0
        assert s[0][opened].min() >= (s[0][~opened].max() if k < num else -math.inf)
    closed_form = (1 + s.exp()) * opened
    torch.testing.assert_close(gate, closed_form / closed_form.sum(), rtol=1e-9, atol=1e-12)


def test_gates_equal_brute_force_on_200_draws() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        num = int(rng.integers(1, 9))
        k, s = int(rng.integers(1, num + 1)), rng.normal(0, 3, num)
        chosen = np.argsort(-s, kind="stable")[:k]
        for activation, a in (("none", s), ("softplus", np.log1p(np.exp(s)))):
            expected = np.zeros(num)
            expected[chosen] = np.exp(a[chosen]) / np.exp(a[chosen]).sum()
            found = topk_gate(torch.from_numpy(s)[None], k, activation)[0]  # type: ignore[arg-type]
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_worked_combinations() -> None:
    outputs = torch.tensor([[[0.0, 1.0], [2.0, -1.0]]], dtype=torch.float64)
    gate = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert combine_experts(outputs, gate)[0].tolist() == pytest.approx([1.5, -0.5])
    assert combine_experts(outputs, gate, "logexp")[0].tolist() == pytest.approx([1.756442, -0.045541], abs=5e-7)


def test_one_open_expert_passes_the_log_space_but_for_its_floor() -> None:
    outputs = torch.tensor([[[3.0, -80.0, 500.0], [7.0, 1.0, 2.0]]], requires_grad=True)
    joined = combine_experts(outputs, torch.tensor([[1.0, 0.0]]), "logexp")
    assert joined[0].tolist() == pytest.approx([3, -36.0437, 500], abs=1e-4)
    assert pytest.approx(-36.0437, abs=5e-5) == LOG_FLOOR
    joined.sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_worked_importance() -> None:
    gate = torch.tensor([[0.75, 0.25, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.float64)
    assert gate.sum(0).tolist() == [2.25, 0.25, 0.5, 1.0]
    assert importance_spread(gate).item() == pytest.approx(0.791667, abs=5e-7)
    population = gate.sum(0).var(unbiased=False) / gate.sum(0).mean() ** 2
    assert population.item() == pytest.approx(0.593750, abs=5e-7)
    assert importance_spread(torch.ones(3, 1)).item() == 0
    assert importance_spread(torch.full((4, 2), 0.5)).item() == 0


def parameters_of_one(kind: Kind, width: int) -> int:
    return sum(p.numel() for p in Experts(width, ExpertOptions(kind=kind, num=1)).parameters())


def test_worked_numbers_of_weights() -> None:
    assert parameters_of_one("linear", 512) == 262_656
    assert parameters_of_one("bottleneck", 512) == parameters_of_one("residual", 512) == 262_912
    assert parameters_of_one("residual", 7) == 52
    eight = Experts(512, ExpertOptions(num=8))
    assert eight.gate.numel() == 512 * 8
    assert sum(p.numel() for p in eight.parameters()) == 8 * 262_912 + 2 * 512 * 8  # gate and noise


def test_worked_noise_at_the_start() -> None:
    module = Experts(3, ExpertOptions(num=4, top=4))
    module.train()
    torch.manual_seed(0)
    gate, _ = module.weigh(torch.zeros(20_000, 3))  # scores 0: what is left is noise
    scores = gate.log() - gate.log().mean(dim=1, keepdim=True)
    assert scores.std().item() * (4 / 3) ** 0.5 == pytest.approx(0.7031, rel=0.01)
    assert math.log(2) + 0.01 == pytest.approx(0.7031, abs=5e-5)
    module.eval()
    assert (module.weigh(torch.zeros(3, 3))[0] == 0.25).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("style", ["topk", "switch"])
@pytest.mark.parametrize("combine", ["sum", "logexp"])
def test_output_is_the_gated_sum_of_experts_built_one_by_one(
    kind: Kind, rank: int | None, style: str, combine: str
) -> None:
    top = 1 if style == "switch" else 2
    module = experts(kind=kind, rank=rank, style=style, combine=combine, num=3, top=top)
    v = features()
    out, rating = module(v)
    singles = []
    for j in range(3):
        if module.full:
            own = v @ module.weight[j] + module.bias[j]
        else:
            hidden = v @ module.down[j].T
            hidden = F.relu(hidden + module.down_bias[j]) if kind != "linear" else hidden
            own = hidden @ module.up[j] + module.bias[j]
        singles.append(own + v if kind == "residual" else own)
    by_hand = torch.stack(singles, dim=1)
    torch.testing.assert_close(module.each(v), by_hand)
    weights = topk_gate(v @ module.gate, top, switch=style == "switch")
    torch.testing.assert_close(rating, torch.softmax(v @ module.gate, 1) if style == "switch" else weights)
    joined = (weights[:, :, None] * (by_hand.exp() if combine == "logexp" else by_hand)).sum(1)
    torch.testing.assert_close(out, joined.log() if combine == "logexp" else joined)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_really_several(kind: Kind) -> None:
    module = experts(kind=kind, num=3)
    weights = [p for name, p in module.named_parameters() if name in ("weight", "up", "down", "bias")]
    assert len(weights) >= 2
    for stacked in weights:
        assert len({stacked[j].data_ptr() for j in range(3)}) == 3
        assert not torch.equal(stacked[0], stacked[1])
    outs = module.each(features())
    assert (outs[:, 0] - outs[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_gate_is_alive_when_two_experts_are_open(kind: Kind) -> None:
    module = experts(kind=kind, num=4, top=2).train()
    torch.manual_seed(0)
    out, _ = module(features(16))
    (out * features(16, seed=9)).sum().backward()
    for name in ("gate", "gate_noise"):
        grad = getattr(module, name).grad
        assert grad is not None
        assert (grad != 0).any(), name


def test_zero_experts_have_a_dead_gate_in_the_first_step_only() -> None:
    module = experts(zero_init=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    alive = []
    for _ in range(2):
        optimizer.zero_grad()
        ((module(features())[0] - 1) ** 2).sum().backward()
        assert module.gate.grad is not None
        alive.append(bool((module.gate.grad != 0).any()))
        optimizer.step()
    assert alive == [False, True]


@pytest.mark.parametrize("options", [{"num": 1}, {"num": 4}, {"num": 4, "top": 3, "gate_act": "softplus"}])
def test_residual_experts_start_as_the_identity_bit_for_bit(options: dict[str, object]) -> None:
    module = Experts(8, ExpertOptions.model_validate(options)).train()
    v = torch.randn(6, 8)
    assert torch.equal(module(v)[0], v)


def test_one_expert_is_applied_as_it_is() -> None:
    module = experts(num=1)
    v = features()
    torch.testing.assert_close(module(v)[0], module.each(v)[:, 0])
    assert not hasattr(module, "gate")


def test_equal_experts_make_the_gate_irrelevant() -> None:
    module = experts(num=3)
    with torch.no_grad():
        for name in ("down", "down_bias", "up", "bias"):
            stacked = getattr(module, name)
            stacked.copy_(stacked[:1].expand_as(stacked).clone())
    v = features()
    before = module(v)[0]
    with torch.no_grad():
        module.gate.copy_(torch.randn_like(module.gate))
    torch.testing.assert_close(module(v)[0], before)


def test_order_of_experts_does_not_matter() -> None:
    module, turned = experts(num=4), experts(num=4)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for name, p in turned.named_parameters():
            p.copy_(p[:, order] if name.startswith("gate") else p[order])
    v = features()
    torch.testing.assert_close(module(v)[0], turned(v)[0])
    torch.testing.assert_close(module(v)[1][:, order], turned(v)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 1])
def test_class_axes_follow_a_change_of_order(kind: Kind, rank: int | None) -> None:
    module, renamed = (experts(5, over_classes=True, kind=kind, num=3, rank=rank) for _ in range(2))
    order = torch.tensor([3, 0, 4, 2, 1])
    state = copy.deepcopy(module.state_dict())
    for key, axes in module.class_axes.items():
        for axis in axes:
            assert state[key].shape[axis] == 5
            state[key] = state[key].index_select(axis, order)
    renamed.load_state_dict(state)
    z = features(4, 5)
    torch.testing.assert_close(renamed(z[:, order])[0], module(z)[0][:, order])
    assert experts(5).class_axes == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["sum", "logexp"])
@pytest.mark.parametrize("activation", ["none", "softplus"])
def test_gradients_are_right_in_float64(kind: Kind, combine: str, activation: str) -> None:
    module = experts(4, kind=kind, combine=combine, gate_act=activation, num=3)
    names = [name for name, _ in module.named_parameters() if name != "gate_noise"]

    def call(v: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (v,))[0]
        return out

    inputs = [features(3, 4).requires_grad_(), *(getattr(module, n).detach().requires_grad_() for n in names)]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("num_classes", [2, 3, 7, 8])
@pytest.mark.parametrize("half", [False, True])
def test_any_number_of_classes_and_enormous_logits(num_classes: int, half: bool) -> None:
    torch.manual_seed(0)
    adapter = LogitEaf(num_classes, ExpertOptions(zero_init=False)).train()
    z = (1e4 * torch.randn(5, num_classes).sign()).requires_grad_()
    aux: dict[str, Tensor] = {}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        out = adapter(z, z, aux)
    out.float().sum().backward()
    assert torch.isfinite(out).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert aux["gate_instance"].dtype == torch.float32
    assert aux["gate_instance"].shape == (5, 4)


def test_low_rank_caps_the_hidden_width() -> None:
    def weights(**options: object) -> int:
        module = Experts(512, ExpertOptions.model_validate({"num": 4, "noise": False, **options}))
        return sum(p.numel() for p in module.parameters())

    slim = 4 * (512 * 32 + 32 + 32 * 512 + 512) + 512 * 4
    assert weights(rank=32) == slim
    assert weights(rank=32, kind="linear") == slim - 4 * 32
    assert Experts(7, ExpertOptions(rank=32)).down.shape == (4, 3, 7)  # never wider than without it
    assert Experts(7, ExpertOptions(rank=32, kind="linear")).weight.shape == (4, 7, 7)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num": 2, "top": 3}, "top 3 of num 2"),
        ({"style": "switch"}, "top 1"),
        ({"style": "switch", "num": 1, "top": 1}, "num >= 2"),
        ({"balance": "on", "num": 1}, "several"),
        ({"gate_std": 0, "noise": False}, "for ever"),
        ({"rank": 33}, "32"),
        ({"kind": "round"}, "residual"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ExpertOptions.model_validate(options)


def test_noise_follows_the_seed() -> None:
    module = experts(num=4).train()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(module(features())[1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert isinstance(module, nn.Module)
