"""Ridge regression on many images: normal equations, summed over rows, folds and workers.

Each worker adds up the products of its own rows for each fold. The sums over all workers are small, and every
worker solves the same equations from them.

Shapes: R rows of a worker, E inputs, F folds, C classes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from finetune.exact.dual import eigen
from finetune.exact.rows import FOLDS


class Primal:
    """Sums of products for each fold, from which all penalties are solved.

    Args:
        parts: rows in parts: inputs (r, E), targets (r, C), folds (r,) and weights (r,).
        total: function that sums a tensor over all workers.
    """

    def __init__(
        self, parts: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], total: Callable[[Tensor], Tensor]
    ) -> None:
        products: Tensor | None = None
        for z, y, folds, weights in parts:
            # A column of ones and the targets are appended: one product then has all sums.
            whole = torch.cat([z, torch.ones(len(z), 1), y], dim=1)
            if products is None:
                products = torch.zeros(FOLDS, whole.shape[1], whole.shape[1], dtype=torch.float64)
            for fold in range(FOLDS):
                own = whole[folds == fold]
                products[fold] += (own.T @ (own * weights[folds == fold][:, None])).double()
        assert products is not None
        self._products = total(products)
        self._classes = y.shape[1]
        self._eigen: dict[int, tuple[Tensor, ...]] = {}

    def solve(self, penalty: float, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Return weight (E, C) and bias (C,) of all rows, or of those outside the fold `without`.

        Penalties are multiples of the mean eigenvalue.
        """
        values, vectors, inner, mean_x, mean_y = self._decomposed(-1 if without is None else without)
        weight = vectors @ (inner / (values + penalty * values.mean())[:, None])
        return weight, mean_y - mean_x @ weight

    def _decomposed(self, without: int) -> tuple[Tensor, ...]:
        if without not in self._eigen:
            sums = self._products.sum(0)
            if without >= 0:
                sums = sums - self._products[without]
            inputs = len(sums) - 1 - self._classes
            count, mean = sums[inputs, inputs], sums[inputs] / sums[inputs, inputs]
            centred = sums - count * mean[:, None] * mean
            values, vectors = eigen(centred[:inputs, :inputs])
            inner = vectors.T @ centred[:inputs, inputs + 1 :].float()
            self._eigen[without] = values, vectors, inner, mean[:inputs].float(), mean[inputs + 1 :].float()
        return self._eigen[without]
