import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from learner import checkpoint, methods
from learner.config import BackboneConfig, EmaConfig
from learner.errors import CheckpointError, InputError
from learner.models import Ema, build_network, load_backbone, make_backbone, run


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("running", torch.tensor([value], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def averaged(start: float, target: float, steps: int, config: EmaConfig) -> Scalar:
    network = Scalar(start)
    ema = Ema(network, config)
    with torch.no_grad():
        network.weight.fill_(target)
        network.running.fill_(target)
    for step in range(steps):
        network.count += 1
        ema.update(network, step)
    return ema.network


def test_the_average_follows_the_worked_numbers() -> None:
    plain = EmaConfig(decay=0.999, warmup=False)
    three = averaged(1.0, 0.0, 3, plain)
    assert three.weight.item() == pytest.approx(0.997002999, abs=1e-9)
    assert three.running.item() == pytest.approx(0.997002999, abs=1e-9)
    assert three.count.item() == 3
    assert averaged(1.0, 0.0, 100, plain).weight.item() == pytest.approx(0.904792, abs=1e-6)
    assert averaged(0.7, 0.7, 50, plain).weight.item() == pytest.approx(0.7, abs=1e-12)


def test_half_of_the_start_is_forgotten_after_692_8_steps() -> None:
    assert math.log(0.5) / math.log(EmaConfig().decay) == pytest.approx(692.8, abs=0.05)
    plain = EmaConfig(decay=0.999, warmup=False)
    assert averaged(1.0, 0.0, 692, plain).weight.item() > 0.5 > averaged(1.0, 0.0, 693, plain).weight.item()


def test_averaging_leaves_the_live_model_alone_and_asks_for_no_gradient() -> None:
    """In public code the average's helper also shrinks every float of the student, BatchNorm's variances among them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema = Ema(network, EmaConfig())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(5):
        ema.update(network, step)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not ema.network.training


def test_the_warm_up_forgets_the_start_soon() -> None:
    ema = Ema(Scalar(0), EmaConfig())
    assert ema.decay(0) == pytest.approx(0.1)
    assert ema.decay(10) == pytest.approx(11 / 20)
    assert ema.decay(100_000) == 0.999
    assert averaged(1.0, 0.0, 30, EmaConfig()).weight.item() < 1e-4


def test_the_small_backbone_is_small_and_takes_any_size() -> None:
    backbone, width = make_backbone(BackboneConfig(name="resnet10_small"), 48)
    assert sum(p.numel() for p in backbone.parameters()) <= 2_800_000
    assert width == 256
    for size in (17, 48, 64, 112):
        assert backbone(torch.zeros(2, 3, size, size)).shape == (2, 256)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_backbones_by_name_take_the_image_size(name: str) -> None:
    backbone, width = make_backbone(BackboneConfig(name=name), 32)
    assert backbone.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, width)


def test_a_vision_transformer_of_any_size_and_patch() -> None:
    small = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    backbone, width = make_backbone(BackboneConfig(name="vit_tiny_patch16_224", arguments=small), 48)
    assert (width, tuple(backbone(torch.zeros(2, 3, 48, 48)).shape)) == (24, (2, 24))
    wrong_ones = (({"patches": 8}, "patches"), ({"img_size": 96}, "img_size follows"), ({"num_heads": 7}, "7"))
    for wrong, message in wrong_ones:
        with pytest.raises(InputError, match=message):
            make_backbone(BackboneConfig(name="vit_tiny_patch16_224", arguments=wrong), 48)


def test_an_unknown_backbone_is_an_input_error_that_names_near_ones() -> None:
    with pytest.raises(InputError, match=r"no backbone 'resnet19'.*resnet1"):
        make_backbone(BackboneConfig(name="resnet19"), 48)


@pytest.mark.parametrize("norm", ["none", "l2"])
def test_features_have_unit_length_only_where_asked(norm: str) -> None:
    torch.manual_seed(0)
    made = make_backbone(BackboneConfig(name="resnet10_small"), 24)
    recipe = methods.build("supervised", 3, made[1], {"feature_norm": norm})
    network = build_network(BackboneConfig(name="resnet10_small", dropout=0), 3, recipe, made).eval()
    out = run(network, torch.randn(4, 3, 24, 24))
    unit = torch.allclose(out.f.norm(dim=1), torch.ones(4), atol=1e-5)
    assert unit == (norm == "l2")
    scale = recipe.feature_scale if norm == "l2" else 1.0
    assert torch.allclose(out.z, out.f @ network.head.weight.T * scale + network.head.bias, atol=1e-5)


def fresh() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    backbone, _ = make_backbone(BackboneConfig(name="resnet10_small"), 24)
    return backbone, {
        k: torch.randn_like(v) if v.is_floating_point() else v + 3 for k, v in backbone.state_dict().items()
    }


def test_weights_load_from_safetensors_and_plain_checkpoints_under_any_wrapper(tmp_path: Path) -> None:
    backbone, state = fresh()
    save_file(
        {f"module.{k}": v.contiguous() for k, v in state.items()} | {"fc.weight": torch.ones(2, 2)},
        tmp_path / "w.safetensors",
    )
    load_backbone(backbone, tmp_path / "w.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    other, _ = fresh()
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    load_backbone(other, tmp_path / "w.pth")
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    backbone, state = fresh()
    state.pop("layer1.0.conv1.weight")
    state["layer9.weight"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(1, 3, 3, 3)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(layer1.0.conv1.weight\).*1 unknown \(layer9.weight\).*1 misshapen"
    ):
        load_backbone(backbone, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no weight file"):
        make_backbone(BackboneConfig(name="resnet10_small", weights=str(tmp_path / "none.pth")), 24)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone, _ = fresh()
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump(Bomb(), file)
    torch.save({"state_dict": Bomb()}, tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(CheckpointError, match=r"pickled objects|cannot read"):
            load_backbone(backbone, tmp_path / name)
        with pytest.raises(CheckpointError, match="never loaded"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_comes_back_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tensors = {"a/x": torch.arange(6).view(2, 3).T, "b": torch.tensor(2.5), "c": torch.zeros(0, dtype=torch.int64)}
    checkpoint.save(path, {"a/x": torch.zeros(1)}, {"step": 1})
    checkpoint.save(path, tensors, {"step": 2, "classes": ["ä", "b"]})
    loaded, meta = checkpoint.load(path)
    assert meta["step"] == 2
    assert meta["classes"] == ["ä", "b"]
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="no safetensors checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_goes_on_exactly_where_it_was(kind: type[torch.optim.Optimizer]) -> None:
    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            optimizer.zero_grad()
            network(torch.randn(4, 3, 9, 9)).square().mean().backward()
            optimizer.step()

    def fresh_pair() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return network, kind(network.parameters(), lr=0.01, weight_decay=0.02, **extra)  # type: ignore[call-arg]

    straight = fresh_pair()
    steps(*straight, 0, 8)
    first, second = fresh_pair(), fresh_pair()
    steps(*first, 0, 5)
    second[0].load_state_dict(first[0].state_dict())
    checkpoint.load_optimizer(second[1], checkpoint.optimizer_tensors(first[1]))
    steps(*second, 5, 8)
    assert torch.equal(second[0].weight, straight[0].weight)
    assert torch.equal(second[0].bias, straight[0].bias)
