"""Heads from normal equations, for many images or several workers.

The Gaussian kernel is approximated by random Fourier features (Rahimi and Recht, NeurIPS 2007).

Shapes: R rows of a worker, N training images, E inputs, M frequencies, C classes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.exact.few import Made, Solution, folded
from finetune.exact.primal import Primal
from finetune.exact.rows import CHUNK, FOLDS, Preparation, Rows
from finetune.model.exact_head import ExactShape

FREQUENCIES = 2048
"""Most frequencies M. A head with more needs more than the square of the time."""


class Many:
    """One candidate, on the rows of all workers; each worker must make the same ones in the same order.

    Arguments as for `Few`; `rows` holds this worker's share of the images.
    """

    def __init__(
        self, rows: Rows, folds: Tensor, preparation: Preparation, width: float, weights: Tensor
    ) -> None:
        self._rows, self._folds, self._preparation = rows, folds, preparation
        self._mean, scale, varies = preparation.fit(rows)
        self._scale = scale * ((width / (2 * varies)) if width else 1 / varies) ** 0.5
        # Many more waves than images would only cost time.
        waves = min(FREQUENCIES, 4 * len(rows.labels))
        self._drawn = _frequencies(len(self._mean), waves) if width else None
        self._primal = Primal(self._parts(weights), rows.total)

    def solution(self, penalty: float) -> Solution:
        """Return the solution for a penalty."""
        return penalty, self._held_out(penalty), partial(self._made, penalty)

    def _inputs(self, places: Tensor) -> Tensor:
        """Return the inputs of the regression for some rows."""
        rows = self._rows
        answers = None if rows.answers is None else rows.answers[places]
        z: Tensor = (self._preparation.raw(rows.pooled[places], answers) - self._mean) * self._scale
        if self._drawn is None:
            return z
        frequencies, phase = self._drawn
        waves: Tensor = (z @ frequencies + phase).cos_()
        return waves * math.sqrt(2 / len(phase))

    def _parts(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        rows = self._rows
        for places in torch.arange(len(rows.images)).split(CHUNK):
            own = rows.images[places]
            y = 2.0 * F.one_hot(rows.labels[own], rows.classes).float() - 1
            yield self._inputs(places), y, self._folds[own], weights[own]

    def _held_out(self, penalty: float) -> Tensor:
        """Return the outputs (N, C) for all training images, each without its fold, on every worker."""
        rows = self._rows
        outputs = torch.zeros(len(rows.labels), rows.classes)
        heads = [self._primal.solve(penalty, fold) for fold in range(FOLDS)]
        for places in rows.plain.split(CHUNK):
            own, z = rows.images[places], self._inputs(places)
            for fold, (weight, bias) in enumerate(heads):
                members = self._folds[own] == fold
                outputs[own[members]] = z[members] @ weight + bias
        return rows.total(outputs)

    def _made(self, penalty: float, factor: float) -> Made:
        """Return the head whose outputs are multiplied by a factor."""
        weight, bias = (factor * part for part in self._primal.solve(penalty))
        made = self._preparation
        shape = ExactShape(answers=made.answers, unit=made.unit, root=made.root)
        if self._drawn is None:
            return shape, folded(weight, bias, self._mean, self._scale)
        state = {"0.mean": self._mean, "0.scale": self._scale}
        state |= {"0.frequencies": self._drawn[0], "0.phase": self._drawn[1]}
        return replace(shape, kind="fourier", size=len(self._drawn[1])), state | {
            "1.weight": weight.T,
            "1.bias": bias,
        }


def _frequencies(inputs: int, waves: int) -> tuple[Tensor, Tensor]:
    """Return the frequencies (E, M) and phases (M,), always the same ones."""
    draw = torch.Generator().manual_seed(0)
    return (
        math.sqrt(2) * torch.randn(inputs, waves, generator=draw),
        2 * math.pi * torch.rand(waves, generator=draw),
    )
