"""Heads from inner products of all images with each other, for a few thousand images.

An image and its mirrored copy are one point: the mean of both in the space of the kernel. That halves the
images at no loss (docs/heads.md).

Shapes: n images, E inputs, C classes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from finetune.exact.dual import Dual
from finetune.exact.rows import Preparation, Rows
from finetune.model.exact_head import ExactShape

Made = tuple[ExactShape, dict[str, Tensor]]
Solution = tuple[float, Tensor, Callable[[float], Made]]
"""Penalty, held-out outputs (n, C), and a function from a factor of the outputs to the head."""


class Few:
    """One candidate, on one worker's rows, which hold all images.

    Args:
        rows: stored features of all training images.
        folds: fold of each image, (n,).
        preparation: how inputs are made from features.
        width: gamma of the Gaussian kernel as a share of 1 / mean squared distance; 0: linear.
        weights: weights of the images, (n,).
    """

    def __init__(
        self, rows: Rows, folds: Tensor, preparation: Preparation, width: float, weights: Tensor
    ) -> None:
        self._preparation = preparation
        self._mean, scale, varies = preparation.fit(rows)
        self._scale = (
            scale * (width / (2 * varies)) ** 0.5 if width else scale
        )  # 2 varies: mean squared distance
        z = (preparation.raw(rows.pooled, rows.answers) - self._mean) * self._scale
        views = [z[rows.plain], *([z[rows.mirrored]] if rows.mirrored.any() else [])]
        self._bias = 0.0 if width else varies
        self._judged, gram = _grams(views, width, self._bias)
        self._centres = views if width else [sum(views[1:], views[0]) / len(views)]
        targets = torch.full((len(rows.labels), rows.classes), -1.0).scatter_(1, rows.labels[:, None], 1.0)
        self._dual = Dual(gram, targets, folds, weights)

    def solution(self, penalty: float) -> Solution:
        """Return the solution for a penalty."""
        return penalty, self._dual.held_out(penalty, self._judged), partial(self._made, penalty)

    def _made(self, penalty: float, factor: float) -> Made:
        """Return the head whose outputs are multiplied by a factor."""
        solved, made = factor * self._dual.solve(penalty), self._preparation
        shape = ExactShape(answers=made.answers, unit=made.unit, root=made.root)
        if self._bias:
            weight = self._centres[0].T @ solved
            return shape, folded(weight, self._bias * solved.sum(0), self._mean, self._scale)
        count = len(self._centres)
        state = {"0.mean": self._mean, "0.scale": self._scale, "0.centres": torch.cat(self._centres)}
        state |= {"1.weight": (solved / count).repeat(count, 1).T, "1.bias": torch.zeros(solved.shape[1])}
        return replace(shape, kind="kernel", size=len(state["0.centres"])), state


def folded(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return the state of one Linear that computes ((x - mean) * scale) @ weight + bias."""
    weight = weight * scale[:, None]
    return {"1.weight": weight.T, "1.bias": bias - mean @ weight}


def gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(-|a_i - b_j|^2), (A, B)."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return squares.clamp_(min=0).neg_().exp_()


def _grams(views: list[Tensor], width: float, bias: float) -> tuple[Tensor, Tensor]:
    """Return the inner products (n, n) of the images as they are judged, and as they are trained on.

    Both are with the images as they are trained on; an image is judged as it is.
    """
    if not width:
        mean = sum(views[1:], views[0]) / len(views)
        return views[0] @ mean.T + bias, mean @ mean.T + bias
    judged = gaussian(views[0], views[0])
    if len(views) == 1:
        return judged, judged
    across, mirrored = gaussian(views[0], views[1]), gaussian(views[1], views[1])
    return (judged + across) / 2, (judged + across + across.T + mirrored) / 4
