"""Exponential moving average of a trial's trained weights, evaluated and saved in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.model.strategies import TransferModel

WARM_UP = 10
"""Warm-up of TensorFlow's ExponentialMovingAverage: after n steps the decay is at most (1 + n) / (10 + n)."""


class Average:
    """The moving average of a model's trained parameters and buffers, by name.

    After each step: average = d * average + (1 - d) * weights (Polyak and Juditsky, 1992, in the
    exponential form of Tarvainen and Valpola, NeurIPS 2017). Running statistics of batch
    norms are averaged in the same way, counters are copied.

    Args:
        model: the model, whose present weights are the first average.
        decay: d, per step; the first steps use less (`WARM_UP`).
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
        """Update the average with the weights after `steps` optimiser steps."""
        weight = 1 - min(self.decay, (1 + steps) / (WARM_UP + steps))
        if self._averages:
            torch._foreach_lerp_(self._averages, self._weights, weight)
        if self._counters:
            torch._foreach_copy_(self._counters, self._counted)  # one kernel launch for all of them

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the average into the model inside the `with` block, and restore its own weights after it."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.trained_state().items()}
        self._model.load_trained_state(self.state)
        try:
            yield
        finally:
            self._model.load_trained_state(own)
