"""The masked autoencoder against worked numbers, a brute force, and the rules that masking must keep."""

import copy
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from learner import draws
from learner.config import BackboneConfig, write_json
from learner.data import write_shards
from learner.errors import CheckpointError, InputError
from learner.models import load_backbone, make_backbone
from learner.pretrain.command import keep_pictured
from learner.pretrain.config import PretrainConfig
from learner.pretrain.encoder import FaceEncoder
from learner.pretrain.loop import Pretraining, run_pretraining
from learner.pretrain.mae import (
    MaeConfig,
    MaskedAutoencoder,
    MaskedAutoencoding,
    PatchMap,
    check_vit,
    count_kept,
    mask_patches,
    masked_loss,
    normalise,
    normalise_patches,
    patch_errors,
    patchify,
    reconstruction_errors,
    turning_masks,
    unpatchify,
)
from learner.round import Reporter, StoppedError

CPU = torch.device("cpu")
SMALL = MaeConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2)
ROWS = np.arange(6)


def make_vit(size: int = 16, patch: int = 4, **extra: object) -> nn.Module:
    """A ViT of two narrow blocks."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2} | extra
    return timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=patch, num_classes=0, **sizes)


def make_objective(config: MaeConfig = SMALL, seed: int = 0) -> MaskedAutoencoding:
    torch.manual_seed(seed)
    return MaskedAutoencoding(make_vit(), config, seed, CPU)


def make_faces(count: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def noise(count: int, number: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(draws.uniform(seed, 0, np.arange(count), 1, number))


def test_the_paper_masks_147_of_196_patches_in_every_row() -> None:
    kept = count_kept(196, 0.75)
    assert kept == 49
    masking = mask_patches(noise(64, 196), kept)
    assert masking.masked.sum(dim=1).tolist() == [147] * 64
    assert masking.kept.shape == (64, 49)
    assert len({tuple(row.tolist()) for row in masking.masked}) == 64, "every row has a mask of its own"


@pytest.mark.parametrize(("number", "ratio", "kept"), [(100, 0.9, 10), (196, 0.9, 19), (36, 0.75, 9), (4, 0.01, 3)])
def test_visible_patches_are_counted_without_rounding_noise(number: int, ratio: float, kept: int) -> None:
    """int(100 * (1 - 0.9)) is 9: one minus a decimal fraction falls just short."""
    assert count_kept(number, ratio) == kept


def test_masking_everything_is_refused() -> None:
    with pytest.raises(InputError, match=r"masking 0\.9 of 9 patches leaves none to see"):
        count_kept(9, 0.9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 1000))
def test_kept_and_masked_patches_part_the_picture(number: int, kept: int, seed: int) -> None:
    kept = min(kept, number - 1)
    masking = mask_patches(noise(3, number, seed), kept)
    for row in range(3):
        seen, hidden = masking.kept[row].tolist(), masking.masked[row].nonzero().flatten().tolist()
        assert sorted(seen + hidden) == list(range(number))
        assert masking.restore[row][seen].tolist() == list(range(kept)), "kept patches come first, in their order"
        assert sorted(masking.restore[row].tolist()) == list(range(number))


def test_equal_noise_keeps_the_lower_places() -> None:
    assert mask_patches(torch.zeros(1, 5), 2).kept.tolist() == [[0, 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 100))
def test_patches_are_cut_and_joined_without_loss(patch: int, grid: int, channels: int, seed: int) -> None:
    side = patch * grid
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(seed))
    patches = patchify(images, patch)
    assert patches.shape == (2, grid * grid, patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch, channels), images)
    assert torch.equal(patchify(unpatchify(patches, patch, channels), patch), patches)


def test_patches_run_row_by_row_with_channels_innermost() -> None:
    images = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    assert patchify(images, 2)[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(InputError, match="images of 48×48 do not divide into patches of 7"):
        patchify(torch.zeros(1, 3, 48, 48), 7)
    with pytest.raises(InputError, match="image size 48 is no multiple of patch 10"):
        check_vit(make_vit(48, 10))


def test_a_patch_normalises_to_the_worked_numbers() -> None:
    found = normalise_patches(torch.tensor([[[1.0, 2, 3, 4]]], dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)
    assert torch.equal(normalise_patches(torch.full((1, 1, 4), 7.0)), torch.zeros(1, 1, 4)), "a flat patch is finite"


def test_the_loss_of_the_worked_examples() -> None:
    patch = normalise_patches(torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64))
    target = torch.stack([patch[0], torch.ones(4), torch.full((4,), 2.0)])[None]
    masked = torch.tensor([[True, False, True]])
    prediction = torch.zeros_like(target)
    assert patch_errors(prediction, target).flatten().tolist() == pytest.approx([0.75, 1, 4], abs=1e-6)
    assert masked_loss(prediction, target, masked).item() == pytest.approx(2.375, abs=1e-6)
    second = masked_loss(
        torch.tensor([[[1.0, 1], [0, 0]]]), torch.tensor([[[0.0, 2], [5, 5]]]), torch.tensor([[True, False]])
    )
    assert second.item() == 1.0


def test_the_loss_equals_a_brute_force() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        shape = tuple(draw.integers(1, 6, 3))
        prediction, target = draw.normal(size=shape), draw.normal(size=shape)
        masked = draw.random(shape[:2]) < 0.6
        errors = [
            sum((prediction[b, n] - target[b, n]) ** 2) / shape[2]
            for b in range(shape[0])
            for n in range(shape[1])
            if masked[b, n]
        ]
        expected = sum(errors) / len(errors) if errors else 0.0
        found = masked_loss(*(torch.from_numpy(a) for a in (prediction, target, masked)))
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_predictions_of_visible_patches_count_neither_in_the_loss_nor_in_its_gradient() -> None:
    target, masked = torch.randn(2, 9, 12), mask_patches(noise(2, 9), 4).masked
    prediction = torch.randn(2, 9, 12, requires_grad=True)
    loss = masked_loss(prediction, target, masked)
    loss.backward()
    assert prediction.grad is not None
    assert (prediction.grad.abs().sum(dim=2) > 0).equal(masked)
    for value in (1e4, math.inf, math.nan):
        changed = torch.where(masked[..., None], prediction.detach(), value)
        assert torch.equal(masked_loss(changed, target, masked), loss.detach())


def test_an_empty_mask_costs_nothing() -> None:
    prediction = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_loss(prediction, torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()


def test_predictions_do_not_depend_on_what_is_masked() -> None:
    network = make_objective().network
    images = torch.randn(2, 3, 16, 16)
    masking = mask_patches(noise(2, 16), network.kept)
    hidden = unpatchify(masking.masked[..., None].expand(-1, -1, 48), 4)
    other = torch.where(hidden, torch.randn_like(images), images)
    with torch.no_grad():
        assert torch.equal(network(images, masking), network(other, masking))
        assert not torch.equal(network(images, masking), network(images + 1, masking))


def test_predictions_stand_at_their_own_place() -> None:
    """Masks that differ in nothing but the order of the kept patches give one prediction."""
    network = make_objective().network
    images = torch.randn(2, 3, 16, 16)
    ranks = torch.arange(16.0).repeat(2, 1)
    turned = ranks.clone()
    turned[:, :4] = ranks[:, :4].flip(1)
    with torch.no_grad():
        one, other = (network(images, mask_patches(n, network.kept)) for n in (ranks, turned))
    torch.testing.assert_close(one, other)


def test_positions_are_fixed_and_every_other_weight_learns() -> None:
    objective = make_objective()
    network = objective.network
    assert not network.encoder.pos_embed.requires_grad
    assert not network.encoder.pos_embed[0, 0].any(), "the class token stands nowhere"
    assert network.encoder.pos_embed[0, 1, :8].tolist() == [0.0] * 8
    assert network.encoder.pos_embed[0, 1, 8:].tolist() == [1.0] * 8
    assert len(network.encoder.pos_embed[0].unique(dim=0)) == 17
    loss, _ = objective.loss(make_faces(), ROWS, 0)
    loss.backward()
    still = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2}),
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 16, "depth": 1, "num_heads": 2}),  # no_embed_class, registers
        ("vit_base_patch16_gap_224", {"embed_dim": 16, "depth": 1, "num_heads": 2}),  # no class token
    ],
)
def test_any_plain_vit_of_timm_serves(name: str, extra: dict[str, int]) -> None:
    vit = timm.create_model(name, img_size=12, patch_size=4, num_classes=0, **extra)
    objective = MaskedAutoencoding(vit, SMALL, 0, CPU)
    loss, logs = objective.loss(make_faces(3, 12), np.arange(3), 0)
    loss.backward()
    assert loss.isfinite()
    assert logs["explained"] <= 1
    assert objective.encoder(objective.network)(torch.zeros(2, 3, 12, 12)).shape == (2, 16, 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timm.create_model("resnet18", num_classes=0), "ResNet cannot be masked by patches"),
        (lambda: make_vit(embed_dim=18), "width 18 has no sine-cosine positions"),
        (lambda: make_vit(pos_embed="none"), "no absolute positions"),
    ],
)
def test_a_network_that_cannot_be_masked_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        MaskedAutoencoder(make(), SMALL)


def test_settings_of_the_decoder_are_checked() -> None:
    with pytest.raises(InputError, match="decoder_dim 18 must be a multiple of 4 and of decoder_heads 2"):
        MaskedAutoencoder(make_vit(), MaeConfig(decoder_dim=18, decoder_heads=2))
    with pytest.raises(ValueError, match="mask_rate"):
        MaeConfig.model_validate({"mask_rate": 0.75})


def test_faces_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"the encoder reads \(16, 16\), not \(20, 20\): resize the faces"):
        reconstruction_errors(make_objective().network, make_faces(2, 20), np.arange(2))


def test_the_encoder_is_the_vit_on_whole_faces_and_carries_the_names_of_a_backbone() -> None:
    objective = make_objective()
    part = objective.encoder(copy.deepcopy(objective.network))
    assert isinstance(part, PatchMap)
    images = torch.randn(2, 3, 16, 16)
    found, expected = part.eval()(images), objective.network.encoder.eval().forward_features(images)
    assert found.shape == (2, 16, 4, 4)
    assert torch.equal(found[:, :, 1, 2], expected[:, 1 + 1 * 4 + 2])
    names = set(objective.network.encoder.state_dict())
    assert {name.removeprefix("backbone.") for name in part.state_dict()} == names


def test_a_public_checkpoint_of_another_size_loads_with_its_positions_resampled(tmp_path: Path) -> None:
    """Files of masked autoencoders name their tensors as timm does, and may hold decoder and mask token."""
    donor = MaskedAutoencoder(make_vit(32, 8), SMALL)
    with torch.no_grad():
        donor.encoder.pos_embed.normal_()
    public = {k.removeprefix("encoder."): v for k, v in donor.state_dict().items() if not k.startswith("decoder")}
    public |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 16)}
    torch.save({"model": public}, tmp_path / "mae.pth")
    config = BackboneConfig(
        name="vit_tiny_patch16_224",
        weights=str(tmp_path / "mae.pth"),
        arguments={"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    )
    vit, _ = make_backbone(config, 24)
    network = MaskedAutoencoder(vit, SMALL, fresh=False)
    expected = resample_abs_pos_embed(donor.encoder.pos_embed, [6, 6], [4, 4])
    torch.testing.assert_close(network.encoder.pos_embed, expected)
    assert not network.encoder.pos_embed.requires_grad
    assert torch.equal(network.encoder.blocks[1].attn.qkv.weight, donor.encoder.blocks[1].attn.qkv.weight)
    save_file(donor.state_dict(), tmp_path / "whole.safetensors")
    load_backbone(make_vit(24, 4), tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match="misshapen"):
        load_backbone(make_vit(32, 8, embed_dim=32), tmp_path / "whole.safetensors")
    save_file(donor.state_dict() | {"encoder.pos_embed": torch.zeros(1, 13, 16)}, tmp_path / "oblong.safetensors")
    with pytest.raises(CheckpointError, match=r"positions or patches in .* cannot be resampled"):
        load_backbone(make_vit(32, 8), tmp_path / "oblong.safetensors")


def test_view_and_mask_depend_on_seed_step_and_row_alone() -> None:
    objective, faces = make_objective(), make_faces()
    whole = objective.view(faces, ROWS, 7)
    assert torch.equal(objective.view(faces[[4, 1]], ROWS[[4, 1]], 7), whole[[4, 1]])
    assert not torch.equal(objective.view(faces, ROWS, 8), whole)
    first, again = objective.loss(faces, ROWS, 7)[0], make_objective().loss(faces, ROWS, 7)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, objective.loss(faces, ROWS, 8)[0])


def test_a_view_is_the_whole_face_or_its_mirror_where_nothing_is_cropped() -> None:
    objective, faces = make_objective(SMALL.model_copy(update={"min_area": 1.0})), make_faces()
    views, whole = objective.view(faces, ROWS, 3), normalise(faces)
    flips = [torch.equal(view, face.flip(2)) for view, face in zip(views, whole, strict=True)]
    assert len(set(flips)) == 2
    assert all(flip or torch.equal(view, face) for flip, view, face in zip(flips, views, whole, strict=True))
    assert not torch.equal(make_objective().view(faces, ROWS, 3)[0], views[0])


def test_turned_masks_hide_every_patch_equally_often() -> None:
    network = MaskedAutoencoder(make_vit(56, 4), SMALL)
    times = sum(m.masked.int() for m in turning_masks(network, ROWS, 0, 4, CPU))
    assert isinstance(times, Tensor)
    assert times.unique().tolist() == [3]
    light = MaskedAutoencoder(make_vit(56, 4), SMALL.model_copy(update={"mask_ratio": 0.1}))
    masks = turning_masks(light, ROWS, 0, 4, CPU)
    assert all(bool(sum(m.masked[:, n].int() for m in masks).min() >= 1) for n in range(196))


def test_reconstruction_errors_are_those_of_masked_patches_and_the_same_in_any_batch() -> None:
    network, faces = make_objective().network, make_faces()
    network.train()
    face, patch = reconstruction_errors(network, faces, ROWS)
    assert network.training
    torch.testing.assert_close(face, patch.mean(dim=1))
    expected = torch.zeros(6, 16)
    images = normalise(faces)
    with torch.no_grad():
        for masking in turning_masks(network, ROWS, 0, 4, CPU):
            error = patch_errors(network(images, masking), network.targets(images))
            expected += torch.where(masking.masked, error, 0.0) / 3
    torch.testing.assert_close(patch, expected)
    torch.testing.assert_close(reconstruction_errors(network, faces[2:], ROWS[2:], batch=3)[1], patch[2:])
    assert reconstruction_errors(network, faces[:0], ROWS[:0])[1].shape == (0, 16)


def test_it_learns_to_fill_in_what_faces_share() -> None:
    """Patches of one brightness each, by place: the masked ones follow from their place alone."""
    objective = make_objective(SMALL.model_copy(update={"min_area": 1.0, "norm_pix": False}))
    pattern = torch.linspace(0, 255, 16).view(1, 1, 4, 4)
    faces = nn.functional.interpolate(pattern, scale_factor=4).byte().expand(16, 3, 16, 16)
    optimizer = torch.optim.AdamW(objective.network.parameters(), 5e-3, betas=(0.9, 0.95), weight_decay=0.05)
    explained = []
    for step in range(60):
        loss, logs = objective.loss(faces, np.arange(16), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        explained.append(float(logs["explained"]))
    assert explained[0] < 0.3
    assert explained[-1] > 0.7


class StopAt(threading.Event):
    """Asks to stop when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def make_run(folder: Path, steps: int = 7) -> PretrainConfig:
    """A run folder with 20 faces of 16 pixels."""
    folder.mkdir()
    faces = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    write_shards(folder / "cache", faces)
    write_json(folder / "pool.json", {"cache": str(folder / "cache")})
    np.save(folder / "rows.npy", np.arange(20))
    config = PretrainConfig(
        terms=None,
        mae=SMALL,
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224",
            arguments={"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
            dropout=0,
        ),
        image_size=16,
        steps=steps,
        batch=8,
        dim=8,
        warmup_steps=2,
        checkpoint_every=100,
        device="cpu",
        precision="32-true",
        threads=1,
    )
    config.save(folder / "config.json")
    return config


def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    make_run(tmp_path / "whole")
    config = make_run(tmp_path / "parts")
    report = Reporter(tmp_path / "parts", config.steps)
    stopped = Pretraining(tmp_path / "parts", config, report, StopAt(6))
    with pytest.raises(StoppedError):
        stopped.train()
    assert 0 < stopped.step < config.steps
    whole, parts = (load_file(run_pretraining(tmp_path / n) / "autoencoder.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_draws_the_faces_it_was_given(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=2)
    with pytest.raises(InputError, match="no readable image"):
        keep_pictured(tmp_path, tmp_path / "run")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "face.png")
    keep_pictured(tmp_path, tmp_path / "run")
    run_pretraining(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "pictures").glob("*.png")] == ["step-0000002.png"]
    make_run(tmp_path / "other").replace(terms={}, mae=None).save(tmp_path / "other" / "config.json")
    with pytest.raises(InputError, match="no `mae`"):
        keep_pictured(tmp_path, tmp_path / "other")


@pytest.mark.parametrize(("name", "patches", "kept"), [("mae_vit", 64, 16), ("mae_vit_base", 196, 49)])
def test_shipped_configurations_are_whole_and_build(name: str, patches: int, kept: int) -> None:
    path = Path(__file__).parents[3] / "configs" / "pretrain" / f"{name}.yaml"
    config = PretrainConfig.load(path)
    assert set(yaml.safe_load(path.read_text())) == set(PretrainConfig.model_fields) - {"views"}
    head = path.read_text().splitlines()[:10]
    for word in ("command:", "hardware:", "duration:", "expected:"):
        assert any(line.startswith("#") and word in line for line in head)
    assert config.mae is not None
    with torch.device("meta"):
        vit, _ = make_backbone(config.backbone, config.image_size)
        network = MaskedAutoencoder(vit, config.mae)
    assert (network.num_patches, network.kept) == (patches, kept)


def test_the_encoder_of_a_run_reads_faces_and_starts_a_backbone(tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", steps=2)
    out = run_pretraining(tmp_path / "run")
    encoder = FaceEncoder.load(out / "encoder.safetensors")
    faces = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert encoder(faces).shape == (3, 8)
    for name in ("encoder.safetensors", "autoencoder.safetensors"):
        vit, _ = make_backbone(config.backbone.model_copy(update={"weights": str(out / name)}), 24)
        assert vit.pos_embed.shape == (1, 37, 16)
    trained = load_file(out / "autoencoder.safetensors")
    torch.testing.assert_close(vit.blocks[0].mlp.fc1.weight, trained["encoder.blocks.0.mlp.fc1.weight"])
