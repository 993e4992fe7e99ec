"""The largest principal components of many faces of a few values, or of few faces of many."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

F64 = NDArray[np.float64]


def largest(centred: NDArray[np.floating[Any]], count: int) -> tuple[F64, F64]:
    """Return the `count` largest variances (count,) of centred lines (n,D), falling, and their directions (D,count).

    count <= min(n, D). The entry of a direction that is largest in size is positive. A direction without any variance
    (below 1e-12) has no length.
    """
    few = len(centred) < centred.shape[1]  # then the products of lines are the smaller matrix, with the same variances
    lines = centred.astype(np.float64) if few else centred
    product = (lines @ lines.T if few else lines.T @ lines).astype(np.float64, copy=False) / len(lines)
    values, vectors = linalg.eigh(product, subset_by_index=[len(product) - count, len(product) - 1])
    if few:
        vectors = lines.T @ (vectors / np.sqrt(np.maximum(values, 1e-12) * len(lines)))
    values, vectors = values[::-1], vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
    return values, np.ascontiguousarray(vectors * signs)
