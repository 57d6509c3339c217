"""Ridge regression among few images: one eigendecomposition of their inner products serves all penalties.

Its predictions for images of a fold, made without that fold, follow from it exactly: with the inverse
G = (K + penalty)^-1, weights a = G y and a held-out fold F, the weights without F are
a - G[:, F] G[F, F]^-1 a[F]. So nothing is decomposed again for the folds.

Shapes: n images, C classes.
"""

import torch
from torch import Tensor

from finetune.exact.rows import FOLDS

TINY = 1e-6
"""Eigenvalues below this share of the largest are rounding errors of float32, and are raised to it."""


def eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n,), raised to TINY of the largest, and eigenvectors (n, n), in float32.

    The float32 routine of LAPACK does not always converge where hundreds of eigenvalues are zero; the float64
    one then does.
    """
    try:
        values, vectors = torch.linalg.eigh(symmetric.float())
    except RuntimeError:  # torch exports no narrower name for it
        values, vectors = (part.float() for part in torch.linalg.eigh(symmetric.double()))
    return values.clamp(min=values[-1] * TINY), vectors


class Dual:
    """Ridge regression on an inner product (gram) of the images.

    Args:
        gram: inner products (n, n), float32, as they are trained on.
        targets: +1 at an image's class, -1 elsewhere, (n, C).
        folds: fold of each image, int64 (n,).
        weights: weights of the images, (n,).
    """

    def __init__(self, gram: Tensor, targets: Tensor, folds: Tensor, weights: Tensor) -> None:
        self._root = weights.sqrt()
        self._values, vectors = eigen(gram * self._root[:, None] * self._root)
        self._vectors = vectors.contiguous()  # its rows are gathered by fold
        self._unit = self._values.mean()
        """Mean eigenvalue. Penalties are multiples of it, to mean the same for every preparation."""
        self._turned = self._vectors.T @ (targets * self._root[:, None])
        self._members = [(folds == fold).nonzero().flatten() for fold in range(FOLDS)]

    def solve(self, penalty: float) -> Tensor:
        """Return the weights (n, C) of the images: the outputs for x are `inner products of x @ weights`."""
        return self._solve(penalty) * self._root[:, None]

    def held_out(self, penalty: float, gram: Tensor) -> Tensor:
        """Return the outputs (n, C) for each image without its fold.

        Args:
            penalty: the penalty.
            gram: inner products (n, n) of each image as it is judged with the images as they are trained on.
        """
        whole, damped = self._solve(penalty), self._values + penalty * self._unit
        outputs = torch.empty_like(whole)
        for members in self._members:
            own = self._vectors[members] / damped  # (F, n)
            block = own @ self._vectors[members].T
            rest = whole - self._vectors @ (own.T @ torch.linalg.solve(block, whole[members]))
            rest[members] = 0
            outputs[members] = gram[members] @ (rest * self._root[:, None])
        return outputs

    def _solve(self, penalty: float) -> Tensor:
        solved: Tensor = self._vectors @ (self._turned / (self._values + penalty * self._unit)[:, None])
        return solved
