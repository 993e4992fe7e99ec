import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from learner import augment
from learner.augment import MEAN, STD, Augmenter
from learner.config import OPERATIONS, AugmentConfig

SIZE = 32


def faces(num: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 220, (num, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in coarse])


def maker(**changes: object) -> Augmenter:
    return Augmenter(AugmentConfig.model_validate(changes), SIZE, seed=5, device=torch.device("cpu"))


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


ROWS = np.array([4, 9, 2, 77, 1000003, 8])


def test_views_have_the_papers_shape_and_range_and_are_channels_last() -> None:
    make = maker()
    x = make.upload(faces())
    low = min((0 - m) / s for m, s in zip(MEAN, STD, strict=True)) - 1e-5
    high = max((1 - m) / s for m, s in zip(MEAN, STD, strict=True)) + 1e-5
    for view in (make.weak(x, ROWS, 3), make.strong(x, ROWS, 3)):
        assert view.shape == (6, 3, SIZE, SIZE)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert low <= float(view.min())
        assert float(view.max()) <= high


def test_a_view_depends_on_seed_step_row_and_kind_alone() -> None:
    make, images = maker(), faces()
    x = make.upload(images)
    strong = make.strong(x, ROWS, 3)
    some = [5, 1]
    alone = maker().strong(make.upload(images[some]), ROWS[some], 3)
    assert torch.equal(alone, strong[some])
    assert not torch.equal(make.strong(x, ROWS, 4), strong)
    assert not torch.equal(make.strong(x, ROWS, 3, "s2"), strong)
    assert not torch.equal(make.weak(x, ROWS, 3, "w2"), make.weak(x, ROWS, 3, "w"))
    other = Augmenter(AugmentConfig(), SIZE, seed=6, device=torch.device("cpu"))
    assert not torch.equal(other.strong(x, ROWS, 3), strong)


def test_the_source_pixels_are_left_alone() -> None:
    images = faces()
    before = images.copy()
    make = maker()
    make.strong(make.upload(images), ROWS, 0)
    assert (images == before).all()


def test_weak_views_are_the_face_or_its_mirror_shifted_by_at_most_the_padding() -> None:
    make, images = maker(crop_padding=0.1), faces(64)
    rows = np.arange(64)
    x = as_tensor(images)
    out = make.weak_pixels(x, rows, 0, "w").numpy()
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0))).transpose(0, 3, 1, 2)
    moved = mirrored = 0
    for i in range(64):
        found = [
            (dy, dx, flip)
            for dy in range(7)
            for dx in range(7)
            for flip in (False, True)
            if (padded[i, :, dy : dy + SIZE, dx : dx + SIZE][..., :: -1 if flip else 1] == out[i]).all()
        ]
        assert len(found) == 1
        moved += found[0][:2] != (3, 3)
        mirrored += found[0][2]
    assert 20 <= moved <= 44
    assert 20 <= mirrored <= 44


def test_everything_switched_off_is_normalisation_only() -> None:
    make, images = maker(crop_probability=0, flip_probability=0, operations=("Identity",), cutout=0), faces()
    x = make.upload(images)
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    assert np.allclose(make.strong(x, ROWS, 1).permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert torch.equal(make.strong(x, ROWS, 1), make.weak(x, ROWS, 1))


@pytest.mark.parametrize("name", [op for op in OPERATIONS if op != "Identity"])
def test_every_operation_works_alone_and_changes_faces(name: str) -> None:
    make = maker(operations=(name,), cutout=0, num_operations=1)
    x = as_tensor(faces(16))
    out = make.strong_pixels(x, np.arange(16), 0, "s")
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    assert (out != x).flatten(1).any(dim=1).float().mean() > 0.6


def test_a_switched_off_operation_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[str] = set()
    make = maker(operations=tuple(op for op in OPERATIONS if op not in ("Posterize", "Solarize", "Rotate")))
    inner = make._apply
    monkeypatch.setattr(make, "_apply", lambda x, names, draw: (drawn.update(names), inner(x, names, draw)))
    rows = np.arange(200)
    make.strong_pixels(as_tensor(faces(200)), rows, 0, "s")
    assert drawn == set(OPERATIONS) - {"Posterize", "Solarize", "Rotate"}


def pil_of(operation: str, image: Image.Image, value: float) -> Image.Image:
    if operation == "AutoContrast":
        return ImageOps.autocontrast(image)
    if operation == "Equalize":
        return ImageOps.equalize(image)
    if operation == "Posterize":
        return ImageOps.posterize(image, int(value))
    if operation == "Solarize":
        return ImageOps.solarize(image, int(value))
    return getattr(ImageEnhance, operation)(image).enhance(value)


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        ("AutoContrast", 0.0),
        ("Equalize", 0.0),
        ("Posterize", 5.0),
        ("Posterize", 8.0),
        ("Solarize", 128.0),
        ("Brightness", 0.3),
        ("Color", 0.25),
        ("Contrast", 0.6),
        ("Sharpness", 0.1),
    ],
)
def test_colour_operations_agree_with_the_image_library(operation: str, value: float) -> None:
    images = faces(5)
    x, strength = as_tensor(images), torch.full((5,), value)
    if operation in augment.BLENDS:
        ours = augment.blend(x, [operation] * 5, strength)
    else:
        ours = augment.POINTWISE[operation](x, strength)
    theirs = as_tensor(np.stack([np.asarray(pil_of(operation, Image.fromarray(i), value)) for i in images]))
    gap = (ours.int() - theirs.int()).abs()
    assert int(gap.max()) <= (2 if operation in augment.BLENDS else 1)


def test_flat_images_survive_every_operation() -> None:
    flat = torch.full((13, 3, SIZE, SIZE), 90, dtype=torch.uint8)
    assert torch.equal(augment.auto_contrast(flat, flat), flat)
    assert torch.equal(augment.equalize(flat, flat), flat)


def test_translations_move_by_their_share_and_rotation_keeps_the_centre() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 16, 16] = 200
    moved = augment.warp(image, torch.from_numpy(augment.affine_matrices(["TranslateX"], np.array([0.25], np.float32))))
    assert moved[0, 0].nonzero().tolist() == [[16, 8]]  # input = output + 8 columns
    block = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    block[:, :, 14:18, 14:18] = 200
    turned = augment.warp(block, torch.from_numpy(augment.affine_matrices(["Rotate"], np.array([30.0], np.float32))))
    weight = turned[0, 0].float()
    centre = (weight.sum(dim=1) @ torch.arange(32.0)) / weight.sum()
    assert abs(float(centre) - 15.5) < 0.1


def test_cut_outs_are_at_most_half_the_side_and_gray() -> None:
    make = maker(operations=("Identity",), cutout=0.5)
    x = torch.zeros(200, 3, SIZE, SIZE, dtype=torch.uint8)
    out = make.strong_pixels(x, np.arange(200), 0, "s")
    hole = (out == torch.tensor(augment.CUTOUT_FILL).view(1, 3, 1, 1)).all(dim=1)
    assert (hole | (out == 0).all(dim=1)).all()
    assert int(hole.any(dim=2).sum(dim=1).max()) <= SIZE // 2
    assert 0.8 < float(hole.flatten(1).any(dim=1).float().mean()) <= 1


def test_no_label_can_reach_a_view() -> None:
    """The augmenter is given pixels, rows and a step: relabelling a row cannot change what is seen."""
    names = set(Augmenter.strong.__annotations__) | set(Augmenter.weak.__annotations__)
    assert names == {"x", "rows", "step", "view", "return"}
