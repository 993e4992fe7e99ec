import hashlib
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from learner.backbones import FaceNet, read_grid
from learner.config import SHIPPED_FILE, BackboneConfig
from learner.errors import CheckpointError, InputError
from learner.models import load_backbone, make_backbone
from learner.pretrain.bodies import make_body
from learner.pretrain.encoder import FaceEncoder, fit_readout, principal_components
from tests.learner.pretrain.faces import SIZE, small_config
from tests.learner.runs import patterns


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    torch.manual_seed(0)
    config = small_config()
    body, _ = make_body(config.backbone, SIZE)
    return fit_readout(body, config, patterns(60, size=SIZE)[0], "tried")


def test_features_are_centred_principal_components_of_the_sample(encoder):
    features = encoder(patterns(60, size=SIZE)[0])
    assert features.shape == (60, 16)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
    covariance = features.T @ features / 60
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-3 * covariance.max()
    assert (np.diff(np.diag(covariance)) <= 1e-4).all()
    assert np.square(features).mean() == pytest.approx(1, rel=1e-3)


def test_a_face_and_its_mirror_image_have_the_same_features(encoder):
    faces = patterns(4, seed=5, size=SIZE)[0]
    np.testing.assert_allclose(encoder(faces), encoder(np.ascontiguousarray(faces[:, :, ::-1])), atol=1e-4)


def test_features_do_not_depend_on_the_batch_nor_on_colour_or_exposure(encoder):
    faces = patterns(70, seed=6, size=SIZE)[0]
    np.testing.assert_allclose(encoder(faces)[65:], encoder(faces[65:]), atol=1e-4)
    dark = (faces * 0.5).astype(np.uint8)
    assert np.abs(encoder(dark) - encoder(faces)).max() < 0.15 * np.abs(encoder(faces)).max()


def test_an_encoder_survives_its_file_up_to_half_precision(encoder, tmp_path):
    encoder.save(tmp_path / "e.safetensors")
    loaded = FaceEncoder.load(tmp_path / "e.safetensors")
    faces = patterns(5, seed=7, size=SIZE)[0]
    np.testing.assert_allclose(loaded(faces), encoder(faces), atol=0.02)
    assert loaded.id == encoder.id
    assert loaded.about == encoder.about


def test_faces_of_any_size_are_read(encoder):
    faces = patterns(3, size=2 * SIZE)[0]
    assert encoder(faces).shape == (3, 16)
    with pytest.raises(InputError, match="faces must be uint8"):
        encoder(faces[:, :, :10])


def test_a_backbone_starts_from_an_encoders_file(encoder, tmp_path):
    encoder.save(tmp_path / "e.safetensors")
    config = BackboneConfig(name="resnet10_grid", dropout=0.0)
    torch.manual_seed(3)
    backbone, width = make_backbone(config, SIZE)
    assert width == 256
    with pytest.raises(CheckpointError, match="projection"):  # 16 components are not 256
        load_backbone(backbone, tmp_path / "e.safetensors")
    loaded, _ = make_body(BackboneConfig(name="resnet10_grid"), SIZE)
    loaded.load_state_dict(encoder.network.body.state_dict())
    assert torch.equal(loaded.stem[0].weight, encoder.network.body.stem[0].weight)


def test_a_file_that_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "e.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="no encoder"):
        FaceEncoder.load(tmp_path / "e.safetensors")
    with pytest.raises(CheckpointError, match="pretrain"):
        FaceEncoder.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("num", [200, 5])
def test_principal_components_match_a_decomposition_by_numpy(num):
    x = torch.randn(num, 7, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 8)
    weight, bias = principal_components(x, 3)
    got = x.float() @ weight.T + bias
    centred = (x - x.mean(dim=0)).numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = (u * s)[:, :3]
    wanted /= np.sqrt((wanted**2).mean())
    np.testing.assert_allclose(np.abs(got.numpy()), np.abs(wanted), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_convolutional_or_plain_vit_body_is_read_out(name):
    arguments = {"patch_size": 8, "depth": 1} if "vit" in name else {}
    config = small_config(backbone={"name": name, "arguments": arguments})
    body, channels = make_body(config.backbone, SIZE)
    found = body(torch.zeros(2, 3, SIZE, SIZE))
    assert found.shape[:2] == (2, channels)
    assert fit_readout(body, config, patterns(20, size=SIZE)[0], name)(patterns(3, size=SIZE)[0]).shape == (3, 16)


def test_the_grid_keeps_places_that_a_global_average_loses():
    x = torch.zeros(2, 1, 6, 6)
    x[0, 0, 0, 0] = x[1, 0, 5, 5] = 4.0
    grid = read_grid(x)
    assert grid.shape == (2, 9)
    assert grid[0].argmax() == 0
    assert grid[1].argmax() == 8
    torch.testing.assert_close(read_grid(x, 1)[0], read_grid(x, 1)[1])


def test_a_blank_face_gives_finite_features():
    net = FaceNet((8, 8, 8, 8), (1, 1, 1, 1)).eval()
    assert torch.isfinite(net(torch.zeros(1, 3, SIZE, SIZE))).all()
    bright = F.interpolate(torch.rand(1, 3, 4, 4), size=(SIZE, SIZE))
    torch.testing.assert_close(net(bright), net(3 * bright), atol=0.05, rtol=0.05)


def test_the_shipped_encoder_is_small_and_is_the_one_of_its_model_card():
    data = SHIPPED_FILE.read_bytes()
    assert len(data) <= 12_000_000
    card = (SHIPPED_FILE.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert re.search(r"sha256:? +`?([0-9a-f]{64})", card)[1] == hashlib.sha256(data).hexdigest()
    shipped = FaceEncoder.load("shipped")
    features = shipped(patterns(4, size=48)[0])
    assert features.shape == (4, 256)
    backbone, _ = make_backbone(BackboneConfig(name="resnet10_grid", weights="shipped"), 48)
    assert torch.equal(backbone.projection.weight, shipped.network.projection.weight)
