"""An exponential moving average of what a trial trains: evaluated and kept in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.model.strategies import TransferModel

WARM_UP = 10
"""Of TensorFlow's ExponentialMovingAverage: after n steps the decay is at most (1 + n) / (10 + n)."""


class Average:
    """The moving average of a model's trained parameters and buffers, by name.

    After each step: average = d * average + (1 - d) * weights (Polyak and Juditsky, 1992, in the
    exponential form of Tarvainen and Valpola, NeurIPS 2017). Running statistics of batch
    norms are averaged alike, counters are copied.

    Args:
        model: its present weights are the first average.
        decay: d, per step, after the warm-up of the first steps.
    """

    def __init__(self, model: TransferModel, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.trained_state().items()}
        self._model = model
        pairs = [(self.state[name], tensor) for name, tensor in model.trained_state().items()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._counters, self._counted = [c for c, _ in counters], [now for _, now in counters]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._weights = [a for a, _ in floating], [w for _, w in floating]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after so many optimiser steps."""
        weight = 1 - min(self.decay, (1 + steps) / (WARM_UP + steps))
        if self._averages:
            torch._foreach_lerp_(self._averages, self._weights, weight)
        if self._counters:
            torch._foreach_copy_(self._counters, self._counted)  # one launch on a GPU, not one for each

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average inside the block, and its own weights back behind it."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.trained_state().items()}
        self._model.load_trained_state(self.state)
        try:
            yield
        finally:
            self._model.load_trained_state(own)
