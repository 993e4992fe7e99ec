"""The largest principal components: against numpy's decomposition, whichever of the two matrices is smaller."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.components import largest


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000))
def test_they_are_those_of_a_singular_value_decomposition(num, dim, seed):
    x = np.random.default_rng(seed).normal(size=(num, dim)) * np.arange(1, dim + 1)
    x -= x.mean(axis=0)
    count = min(num - 1, dim)
    values, vectors = largest(x, count)
    s = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(values, (s**2 / num)[:count], atol=1e-8)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-6)
    np.testing.assert_allclose((x @ vectors).var(axis=0), values, atol=1e-8)
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(count)] > 0).all()


@pytest.mark.parametrize("num", [4, 40])
def test_equal_faces_have_no_direction_that_is_not_finite(num):
    x = np.zeros((num, 6), np.float32)
    x[:2, 3] = 1, -1
    values, vectors = largest(x, 3)
    np.testing.assert_allclose(values, [2 / num, 0, 0], atol=1e-12)
    np.testing.assert_allclose(vectors[:, 0], np.eye(6)[3], atol=1e-12)
    assert np.isfinite(vectors).all()
