import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from learner import augment, operations
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
    monkeypatch.setattr(make, "_apply", lambda x, names, size: (drawn.update(names), inner(x, names, size)))
    rows = np.arange(200)
    make.strong_pixels(as_tensor(faces(200)), rows, 0, "s")
    assert drawn == set(OPERATIONS) - {"Posterize", "Solarize", "Rotate"}


def pil_of(operation: str, image: Image.Image, value: float) -> Image.Image:
    """The image library's operation, with the papers' matrices for geometry."""
    matrices = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, value * SIZE, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, value * SIZE),
    }
    if operation in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[operation])
    if operation == "Rotate":
        return image.rotate(value)
    if operation in ("AutoContrast", "Equalize"):
        return getattr(ImageOps, operation.lower())(image)
    if operation == "Posterize":
        return ImageOps.posterize(image, int(value))
    if operation == "Solarize":
        return ImageOps.solarize(image, value)  # type: ignore[arg-type]
    return getattr(ImageEnhance, operation)(image).enhance(value)


def ours_of(operation: str, images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One operation with a magnitude per image, by the augmenter's own kernels."""
    make, x = maker(), as_tensor(images).contiguous()
    make._apply(x, np.array([operation] * len(x)), values.astype(np.float32))
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op != "Identity"])
def test_operations_agree_with_the_image_library_to_the_pixel(operation: str) -> None:
    rng, images = np.random.default_rng(1), faces(24)
    low, high = augment.RANGES.get(operation, (0.0, 0.0))
    values = rng.uniform(low, high, len(images)).astype(np.float32)
    if high > low:
        values[:2] = low, np.nextafter(np.float32(high), np.float32(low))
    theirs = np.stack(
        [np.asarray(pil_of(operation, Image.fromarray(i), float(v))) for i, v in zip(images, values, strict=True)]
    )
    gap = np.abs(ours_of(operation, images, values).astype(int) - theirs)
    if operation == "AutoContrast":  # the library stretches in float64: a level that falls on an integer may differ
        assert gap.max() <= 1
        assert (gap > 0).mean() < 0.02
    else:
        assert gap.max() == 0


def test_solarize_inverts_at_and_above_the_threshold_for_every_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for threshold in (0.0, 0.5, 1.0, 100.0, 254.5, 255.0, 255.5):
        out = operations.solarize(levels.contiguous(), torch.tensor([threshold]))
        wanted = np.where(np.arange(256) < threshold, np.arange(256), 255 - np.arange(256))
        assert (out[0, 0].flatten().numpy() == wanted).all()


@pytest.mark.parametrize("planar", [False, True])
def test_rows_slide_from_other_images_and_black_comes_from_outside(planar: bool) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(1, 255, (3, 5, 7, 3), dtype=np.uint8)
    source, down = np.array([2, 0, 2, 1]), rng.integers(-3, 9, (4, 5))
    across = rng.integers(-9, 10, (4, 5))
    x = torch.from_numpy(images)
    if planar:
        out = operations.slide(x.permute(0, 3, 1, 2).contiguous(), down, across, source).permute(0, 2, 3, 1).numpy()
    else:
        out = operations.slide(x.flatten(2), down, across, source, unit=3).view(4, 5, 7, 3).numpy()
    for b in range(4):
        for y in range(5):
            for column in range(7):
                at = column + across[b, y]
                inside = 0 <= down[b, y] < 5 and 0 <= at < 7
                assert (out[b, y, column] == (images[source[b], down[b, y], at] if inside else 0)).all()


def test_a_block_of_steps_gives_what_its_steps_give_alone() -> None:
    make, images = maker(), faces(40)
    rng = np.random.default_rng(3)
    rows, steps = rng.integers(0, 12, 40), np.repeat(np.arange(7, 11), 10)  # rows repeat inside a step and across steps
    x = make.upload(images)
    for kind in (make.weak, make.strong):
        together = kind(x, rows, steps)
        for step in range(7, 11):
            where = np.flatnonzero(steps == step)
            assert torch.equal(together[where], kind(make.upload(images[where]), rows[where], step))


def test_layout_in_memory_changes_no_view() -> None:
    make, x = maker(), as_tensor(faces())
    weak, normal = make.weak_pixels(x, ROWS, 2, "w"), make.normalise(x)
    assert torch.equal(make.weak_pixels(x.contiguous(), ROWS, 2, "w"), weak)
    assert torch.equal(make.normalise(x.contiguous()), normal)
    assert torch.equal(make.strong(x.contiguous(), ROWS, 2), make.strong(x, ROWS, 2))


def test_flat_images_survive_every_operation() -> None:
    flat = torch.full((13, 3, SIZE, SIZE), 90, dtype=torch.uint8)
    assert torch.equal(operations.auto_contrast(flat).to(torch.uint8), flat)
    assert torch.equal(operations.equalize(flat), flat)


def test_no_view_of_no_face() -> None:
    make = maker()
    x = torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)
    for kind in (make.weak, make.strong):
        assert kind(x, np.zeros(0, np.int64), 0).shape == (0, 3, SIZE, SIZE)


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
