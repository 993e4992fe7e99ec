import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import hog
from learner.data import PixelCache, write_shards
from learner.errors import InputError
from learner.pretrain import targets
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig, ViewConfig
from learner.pretrain.objectives import FaceTerms, hog_cells, vicreg
from learner.pretrain.views import SafeViews
from tests.learner.pretrain.faces import SIZE, small_config
from tests.learner.runs import patterns

STILL = {"shift": 0, "scale": (1, 1), "rotation": 0, "gamma": 0, "contrast": 0, "blur": 0, "cutout": 0}


def floats(num: int) -> torch.Tensor:
    return torch.from_numpy(patterns(num, size=SIZE)[0]).permute(0, 3, 1, 2).float() / 255


def test_a_view_depends_on_seed_step_and_row_only():
    make, faces, rows = SafeViews(ViewConfig(), 3), floats(6), np.array([5, 9, 11, 20, 21, 40])
    all_at_once, mirrored = make(faces, rows, 7)
    alone, flag = make(faces[2:3], rows[2:3], 7)
    torch.testing.assert_close(alone[0], all_at_once[2])
    assert flag[0] == mirrored[2]
    assert not torch.equal(make(faces, rows, 8)[0], all_at_once)
    assert not torch.equal(make(faces, rows, 7, view=1)[0], all_at_once)


def test_without_any_change_a_view_is_the_face_or_its_mirror_image():
    faces, rows = floats(16), np.arange(16)
    views, mirrored = SafeViews(ViewConfig.model_validate(STILL), 0)(faces, rows, 0)
    assert 0 < int(mirrored.sum()) < 16
    wanted = torch.where(mirrored[:, None, None, None], faces.flip(3), faces)
    torch.testing.assert_close(views, wanted.clamp(1e-4, 1), atol=2e-4, rtol=0)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_cut_out_covers_no_more_than_it_may(step):
    views, _ = SafeViews(ViewConfig.model_validate(STILL | {"cutout": 0.12, "flip_probability": 0}), 0)(
        floats(8), np.arange(8), step
    )
    changed = (views - floats(8).clamp(1e-4, 1)).abs().amax(dim=1) > 1e-3
    assert (changed.float().mean(dim=(1, 2)) <= 0.12 + 2 * 0.35 / SIZE + 1 / SIZE**2).all()


def test_vicreg_of_hand_worked_embeddings():
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    # s = (0 + 1 + 0 + 1) / 4; deviations: a sqrt(2) and 0, b sqrt(2) twice; covariance of b: 2
    hinge = (0 + 1 - 1e-2) / 2
    assert vicreg(a, b).item() == pytest.approx(25 * 0.5 + 25 * hinge / 2 + (4 + 4) / 2, abs=1e-3)
    assert vicreg(b, a).item() == pytest.approx(vicreg(a, b).item(), rel=1e-6)


def test_hog_cells_see_a_vertical_edge_as_one_orientation_and_no_contrast():
    face = torch.zeros(1, 1, 48, 48)
    face[..., 26:] = 0.5
    cells = hog_cells(face)
    assert cells.shape == (1, 9, 12, 12)
    strongest = cells[0, :, 6, 6]
    assert strongest.argmax() == 0
    assert strongest[1:].max() == 0
    torch.testing.assert_close(hog_cells(face * 1.9), cells, atol=0.06, rtol=0)
    assert cells[0, :, :, :5].abs().max() == 0


def test_targets_are_the_descriptors_of_the_face_and_of_its_mirror_image(tmp_path):
    images, _ = patterns(40, size=SIZE)
    write_shards(tmp_path / "cache", images)
    rows = np.arange(3, 40)
    targets.build(PixelCache(tmp_path / "cache", SIZE), rows, tmp_path, 8, 0.0, lambda share: None)
    read = targets.HogTargets(tmp_path)
    projection = hog.fit(hog.describe(images[rows]), 8)
    wanted = (hog.describe(images) - projection.mean) @ projection.components
    mirror = (hog.describe(images[:, :, ::-1]) - projection.mean) @ projection.components
    got = read(np.array([30, 4]), torch.tensor([False, True])).numpy()
    scale = got[0, 0] / wanted[30, 0]
    np.testing.assert_allclose(got[0], scale * wanted[30], rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(got[1], scale * mirror[4], rtol=2e-2, atol=2e-3)
    every = read(rows, torch.zeros(len(rows), dtype=torch.bool))
    assert every.square().mean().item() == pytest.approx(1, rel=0.02)


def test_whitening_makes_the_variances_of_all_components_equal(tmp_path):
    images, _ = patterns(60, size=SIZE)
    write_shards(tmp_path / "cache", images)
    rows = np.arange(60)
    targets.build(PixelCache(tmp_path / "cache", SIZE), rows, tmp_path, 6, 1.0, lambda share: None)
    every = targets.HogTargets(tmp_path)(rows, torch.zeros(60, dtype=torch.bool))
    torch.testing.assert_close(every.var(dim=0, correction=0), torch.ones(6), atol=0.02, rtol=0)


@pytest.mark.parametrize("weights", [{"simclr": 1.0}, {"vicreg": 0.5}, {"maskfeat": 2.0, "pixels": 1.0}, {"hog": 1.0}])
def test_a_loss_is_the_weighted_sum_of_its_terms_and_trains_the_body(weights, tmp_path):
    torch.manual_seed(0)
    config = small_config(terms={"weights": weights, "target_dim": 8})
    read = None
    if "hog" in weights:
        write_shards(tmp_path / "cache", patterns(12, size=SIZE)[0])
        targets.build(PixelCache(tmp_path / "cache", SIZE), np.arange(12), tmp_path, 8, 0.0, lambda share: None)
        read = targets.HogTargets(tmp_path)
    objective = FaceTerms(*make_body(config.backbone, SIZE), config, read, torch.device("cpu"))
    faces = (floats(12) * 255).to(torch.uint8)
    loss, parts = objective.loss(faces, np.arange(12), 0)
    assert set(parts) == set(weights)
    assert loss.item() == pytest.approx(sum(weights[k] * v.item() for k, v in parts.items()), rel=1e-5)
    loss.backward()
    assert objective.encoder(objective.network).stem[0].weight.grad.abs().sum() > 0


def test_what_is_visible_does_not_count_for_masked_terms():
    config = small_config(terms={"weights": {"maskfeat": 1.0, "pixels": 1.0}, "mask": 0.5})
    objective = FaceTerms(*make_body(config.backbone, SIZE), config, None, torch.device("cpu"))
    mask = objective._masks(np.arange(4), 0, 1, vary=False)
    assert mask.flatten(1).sum(dim=1).tolist() == [32.0] * 4
    view = floats(4).mean(dim=1, keepdim=True)
    hidden = objective._hide(view, mask)
    seen = torch.nn.functional.interpolate(mask, size=(SIZE, SIZE)) == 0
    torch.testing.assert_close(hidden[seen], view[seen])
    assert not torch.equal(hidden, view)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"terms": {"weights": {"dino": 1.0}}}, "dino"),
        ({"terms": {"weights": {"hog": 0.0}}}, "above 0"),
        ({"terms": None}, "either terms or mae"),
        ({"rate": 1}, "rate"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(wrong, named):
    with pytest.raises(InputError, match=named):
        PretrainConfig.parse(wrong)
