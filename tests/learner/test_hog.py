"""Histograms of oriented gradients: what they see, what they ignore, how fast."""

import time

import numpy as np
import pytest

from learner import hog


def stripes(side: int, vertical: bool) -> np.ndarray:
    wave = ((np.arange(side) // 3) % 2 * 255).astype(np.uint8)
    gray = np.tile(wave, (side, 1)) if vertical else np.tile(wave[:, None], (1, side))
    return np.repeat(gray[None, :, :, None], 3, axis=3)


@pytest.mark.parametrize("side", [16, 48, 50, 96, 112])
def test_every_size_gives_the_same_length_and_unit_blocks(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    descriptors = hog.describe(images)
    assert descriptors.shape == (3, hog.dim())
    lengths = np.linalg.norm(descriptors.reshape(3, 49, 36), axis=2)
    np.testing.assert_allclose(lengths, 1, atol=0.02)


def test_orientation_decides_the_bin() -> None:
    upright = hog.describe(stripes(48, vertical=True)).reshape(49, 4, 9).sum(axis=(0, 1))
    lying = hog.describe(stripes(48, vertical=False)).reshape(49, 4, 9).sum(axis=(0, 1))
    assert upright.argmax() == 0  # a horizontal gradient
    assert lying.argmax() in (4, 5)  # a vertical one lies between the bins at 80 and 100 degrees
    assert upright[0] / upright.sum() > 0.9


def test_brightness_and_contrast_do_not_matter() -> None:
    image = np.random.default_rng(1).integers(60, 120, (1, 48, 48, 3), dtype=np.uint8)
    brighter = (image.astype(int) * 2 - 40).astype(np.uint8)
    np.testing.assert_allclose(hog.describe(image), hog.describe(brighter), atol=0.01)


def test_a_black_image_is_zero_before_and_after_projection() -> None:
    images = np.random.default_rng(2).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
    images[3] = 0
    descriptors = hog.describe(images)
    features = hog.fit(descriptors)(descriptors)
    assert not descriptors[3].any()
    assert not features[3].any()
    assert features[4].any()


def test_projection_is_deterministic_and_survives_a_file() -> None:
    descriptors = hog.describe(np.random.default_rng(3).integers(0, 256, (40, 48, 48, 3), dtype=np.uint8))
    one, two = hog.fit(descriptors, max_dim=8), hog.fit(descriptors.copy(), max_dim=8)
    np.testing.assert_array_equal(one.components, two.components)
    assert one.dim == 8
    again = hog.Projection.from_arrays(**one.arrays())
    np.testing.assert_array_equal(one(descriptors), again(descriptors))
    # orthonormal components, typical length one
    np.testing.assert_allclose(one.components.T @ one.components, np.eye(8), atol=1e-4)
    assert np.sqrt((one(descriptors).astype(float) ** 2).sum(axis=1).mean()) == pytest.approx(1, abs=0.01)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        hog.describe(np.zeros((1, 48, 48, 3), dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too small"):
        hog.describe(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="at least 2"):
        hog.fit(np.zeros((5, hog.dim()), dtype=np.float32))


def test_two_thousand_faces_a_second() -> None:
    images = np.random.default_rng(4).integers(0, 256, (1000, 48, 48, 3), dtype=np.uint8)
    began = time.process_time()
    hog.describe(images)
    assert 1000 / (time.process_time() - began) > 2000
