"""Pictures of reconstructions show what was seen, what was filled in, and by how much that is wrong."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from learner import checkpoint
from learner.config import BackboneConfig
from learner.errors import InputError
from learner.pretrain.config import PretrainConfig
from learner.pretrain.mae import MaeConfig, MaskedAutoencoder, Masking
from learner.pretrain.pictures import (
    draw_grid,
    draw_progress,
    heat,
    keep_faces,
    load_autoencoder,
    reconstruct,
    save_grid,
)


class Perfect(MaskedAutoencoder):
    """Knows every patch."""

    def forward(self, images: Tensor, masking: Masking) -> Tensor:
        return self.targets(images)


class Constant(MaskedAutoencoder):
    """Says nothing about any patch."""

    def forward(self, images: Tensor, masking: Masking) -> Tensor:
        return torch.zeros_like(self.targets(images))


def make(kind: type[MaskedAutoencoder] = MaskedAutoencoder, norm_pix: bool = True) -> MaskedAutoencoder:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=24, patch_size=4, num_classes=0, embed_dim=16, depth=1, num_heads=2
    )
    return kind(vit, MaeConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2, norm_pix=norm_pix))


@pytest.fixture
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def pixels(hidden: np.ndarray) -> np.ndarray:
    """Spread what holds for the patches (n,36) over their pixels (n,24,24)."""
    return hidden.reshape(-1, 6, 6).repeat(4, axis=1).repeat(4, axis=2)


def test_visible_patches_are_the_faces_own_pixels(faces: np.ndarray) -> None:
    found = reconstruct(make(), faces, 0.75)
    hidden = pixels(found.hidden)
    assert found.hidden.sum(axis=1).tolist() == [27] * 3
    assert (found.masked[hidden] == 128).all()
    assert (found.masked[~hidden] == faces[~hidden]).all()
    assert (found.pasted[~hidden] == faces[~hidden]).all()
    assert (found.pasted[hidden] != faces[hidden]).mean() > 0.9
    assert (found.original == faces).all()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_shows_the_face_itself(faces: np.ndarray, norm_pix: bool) -> None:
    found = reconstruct(make(Perfect, norm_pix), faces, 0.9)
    assert (found.pasted == faces).all()
    assert not found.errors.any()


def test_a_constant_prediction_shows_the_mean_color_of_a_patch(faces: np.ndarray) -> None:
    """A patch's mean and deviation run over its pixels and channels together, which have statistics of their own."""
    found = reconstruct(make(Constant), faces, 0.75)
    patch = found.pasted.reshape(3, 6, 4, 6, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 36, 16, 3)
    spread = patch.max(axis=2).astype(int) - patch.min(axis=2)
    assert not spread[found.hidden].any()
    assert spread[~found.hidden].min() > 0
    np.testing.assert_allclose(found.errors, 47 / 48, rtol=1e-4)


def test_a_picture_can_be_made_again_and_a_higher_ratio_hides_more(faces: np.ndarray) -> None:
    network = make()
    network.train()
    low, high, again = (reconstruct(network, faces, ratio, seed=4) for ratio in (0.75, 0.9, 0.75))
    assert network.training
    assert (low.hidden <= high.hidden).all()
    assert (low.pasted == again.pasted).all()
    assert (reconstruct(network, faces[:2], 0.75, seed=4).hidden == low.hidden[:2]).all()
    assert (reconstruct(network, faces, 0.75, seed=5).hidden != low.hidden).any()


def test_heat_runs_from_black_to_yellow_on_hidden_patches_alone() -> None:
    found = heat(np.array([0, 1, 2, 9], np.float32), np.array([True, False, True, True]), 8)
    black, seen, top, over = found[0, 0], found[0, 7], found[7, 0], found[7, 7]
    assert black.max() < 10
    assert seen.tolist() == [128] * 3
    assert top.tolist() == over.tolist()
    assert top[:2].min() > 240


def test_the_grid_has_a_row_for_a_face_and_three_columns_for_a_ratio(faces: np.ndarray, tmp_path: Path) -> None:
    page = draw_grid(make(), faces, ratios=(0.5, 0.75, 0.9), side=32)
    assert page.size == (10 * 36 + 4, 3 * 36 + 4 + 22)
    first = np.asarray(page)[26 : 26 + 32, 4 : 4 + 32]
    nearest = Image.fromarray(faces[0]).resize((32, 32), Image.Resampling.NEAREST)
    assert (first == np.asarray(nearest)).all()
    save_grid(tmp_path / "step.png", make(), faces)
    with Image.open(tmp_path / "step.png") as image:
        assert image.size == draw_grid(make(), faces).size
    assert [p.name for p in tmp_path.iterdir()] == ["step.png"]


def test_progress_is_drawn_of_the_faces_that_a_run_keeps(faces: np.ndarray, tmp_path: Path) -> None:
    assert draw_progress(tmp_path, make(), 3) is None
    keep_faces(tmp_path, faces)
    path = draw_progress(tmp_path, make(), 3)
    assert path is not None
    with Image.open(path) as image:
        assert (np.asarray(image) == np.asarray(draw_grid(make(), faces))).all()


def test_the_autoencoder_of_a_finished_run_is_read_back(faces: np.ndarray, tmp_path: Path) -> None:
    network = make()
    with torch.no_grad():
        network.decoder.head.weight.mul_(2)
    arguments = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = PretrainConfig(
        terms=None,
        mae=network.config,
        image_size=24,
        backbone=BackboneConfig(name="vit_tiny_patch16_224", arguments=arguments, weights="elsewhere.pth"),
    )
    config.save(tmp_path / "config.json")
    checkpoint.save(tmp_path / "autoencoder.safetensors", network.state_dict(), {})
    found = load_autoencoder(tmp_path)
    assert not found.training
    assert (reconstruct(found, faces, 0.75).pasted == reconstruct(network, faces, 0.75).pasted).all()
    PretrainConfig().save(tmp_path / "config.json")
    with pytest.raises(InputError, match="no masked autoencoder"):
        load_autoencoder(tmp_path)


def test_faces_of_another_size_are_refused(faces: np.ndarray) -> None:
    with pytest.raises(InputError, match="the encoder reads"):
        reconstruct(make(), faces[:, :20, :20], 0.75)
