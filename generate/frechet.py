"""The Fréchet distance of two sets of features, each taken as a Gaussian, without ever holding a set in memory.

Heusel et al. 2017 (FID). Means and covariances are summed in float64 around the first batch's mean; 2,048 features take
32 MB a set. With fewer pictures than features the covariances are singular and the distance is biased upwards, the more
the fewer: compare only figures of equal numbers of pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Moments:
    """Mean and covariance of rows that come in batches."""

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._sum = np.zeros(0)
        self._products = np.zeros((0, 0))

    def add(self, features_ND: NDArray[np.floating]) -> None:
        """Take some rows in."""
        rows = features_ND.astype(np.float64)
        if not self.count:
            self._origin = rows.mean(axis=0)
            self._sum, self._products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        rows -= self._origin
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> Matrix:
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> Matrix:
        """The unbiased one, as numpy's `cov`; raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows, there are {self.count}")
        centred: Matrix = (self._products - np.outer(self._sum, self._sum) / self.count) / (self.count - 1)
        return centred


def frechet_distance(one: Moments, two: Moments) -> float:
    """Return |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), at least 0.

    The trace of the root is the sum of the roots of the eigenvalues of R S2 R with R = S1^½: symmetric, so that no
    complex number arises where scipy's general `sqrtm` fails on singular matrices.
    """
    first, second = one.covariance, two.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = root @ second @ root
    roots = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None))
    difference = one.mean - two.mean
    found = float(difference @ difference + np.trace(first) + np.trace(second) - 2 * roots.sum())
    return max(found, 0.0)
