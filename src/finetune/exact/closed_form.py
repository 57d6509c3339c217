"""Heads in closed form: ridge regression on stored features, linear or with a Gaussian kernel.

One eigendecomposition gives the heads for all penalties. Targets are +1 for an image's class and -1 for the
others, as in scikit-learn's RidgeClassifier; images may have weights.

Shapes: N training images, M others, D features, C classes, P penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12
"""Eigenvalues below this share of the largest are rounding errors. They are raised to it, since with
penalty 0 they would be divided by."""


def targets(labels: Tensor, classes: int) -> Tensor:
    """Return +1 at each image's class and -1 elsewhere, float64 (N, C), for labels int64 (N,)."""
    signs = torch.full((len(labels), classes), -1.0, dtype=torch.float64, device=labels.device)
    return signs.scatter_(1, labels[:, None], 1.0)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Return image weights (N,), float64, with mean 1, so that all classes that occur weigh the same."""
    sizes = labels.bincount(minlength=classes).double()
    return len(labels) / ((sizes > 0).sum() * sizes[labels])


@dataclass(frozen=True)
class Linear:
    """Linear heads, one per penalty: the outputs are `x @ weight[p] + bias[p]`."""

    weight: Tensor
    """Weights, (P, D, C)."""
    bias: Tensor
    """Biases, (P, C)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs (P, M, C) for features (M, D)."""
        return x.to(self.weight.dtype) @ self.weight + self.bias[:, None]


@dataclass(frozen=True)
class Kernel:
    """Gaussian kernel heads, one per penalty: the outputs are `exp(-gamma |x - centre|^2) @ weight[p]`."""

    centres: Tensor
    """Features of the training images, (N, D)."""
    weight: Tensor
    """Weights, (P, N, C)."""
    gamma: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs (P, M, C) for features (M, D)."""
        return gaussian(x.to(self.centres.dtype), self.centres, self.gamma) @ self.weight


def ridge(x: Tensor, y: Tensor, penalties: Sequence[float], *, weights: Tensor | None = None) -> Linear:
    """Return the linear heads that minimise sum_i w_i |y_i - x_i W - b|^2 + penalty |W|^2, for each penalty.

    It decomposes the smaller of X'X (D, D) and XX' (N, N), in the dtype of `y`.

    Args:
        x: features (N, D).
        y: targets (N, C), usually float64.
        penalties: P penalties above 0.
        weights: image weights (N,); None: all 1.
    """
    x = x.to(y.dtype)
    w = torch.ones_like(y[:, 0]) if weights is None else weights.to(y)
    mean_x, mean_y = (w @ x) / w.sum(), (w @ y) / w.sum()
    root = w.sqrt()[:, None]
    xc, yc = (x - mean_x) * root, (y - mean_y) * root
    primal = xc.shape[1] <= xc.shape[0]
    values, vectors = _eigen(xc.T @ xc if primal else xc @ xc.T)
    inner = vectors.T @ (xc.T @ yc if primal else yc)  # (K, C)
    shrunk = inner / (values[:, None] + _column(penalties, y))  # (P, K, C)
    solved = vectors @ shrunk
    weight = solved if primal else xc.T @ solved
    return Linear(weight, mean_y - mean_x @ weight)


def kernel_ridge(
    x: Tensor, y: Tensor, penalties: Sequence[float], *, gamma: float, weights: Tensor | None = None
) -> Kernel:
    """Return the kernel heads (K + penalty / w)^-1 y with K from `gaussian`; arguments as in `ridge`."""
    x = x.to(y.dtype)
    root = torch.ones_like(y[:, :1]) if weights is None else weights.to(y).sqrt()[:, None]
    values, vectors = _eigen(gaussian(x, x, gamma) * root * root.T)
    inner = vectors.T @ (y * root)
    solved = vectors @ (inner / (values[:, None] + _column(penalties, y)))
    return Kernel(x, solved * root, gamma)


def gaussian(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """Return exp(-gamma |a_i - b_j|^2), (A, B), for features (A, D) and (B, D)."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return squares.clamp_(min=0).mul_(-gamma).exp_()


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(symmetric)
    return values.clamp(min=values[-1] * TINY), vectors


def _column(penalties: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(penalties, dtype=like.dtype, device=like.device)[:, None, None]
