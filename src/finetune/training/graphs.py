"""Steps of training that a GPU replays: launched one kernel at a time, small batches leave it waiting.

A CUDA graph records what a forward and a backward pass launch. It computes the same on other images, as long
as shapes and addresses stay; the optimiser's step is not part of it, since its rates change.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

ON = True
"""Replayed steps train as launched ones do, to the bit: `python -m benchmarks.gpu --only right.graphs`."""
EAGER_STEPS = 20
"""Of one shape before its recording, which costs as much as a few dozen steps gain."""

Step = Callable[[Tensor, Tensor, float | Tensor], Tensor]
"""Images, targets, scale of the gradient -> the loss; leaves gradients at the parameters, which had none."""


class Recorded:
    """One step, recorded. Recording computes nothing and draws no random numbers."""

    def __init__(
        self, step: Step, x: Tensor, targets: Tensor, scale: float, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.x, self.targets = x.clone(), targets.clone()
        self.scale = torch.tensor(scale, dtype=torch.float32, device=x.device)
        self.parameters = parameters
        here = torch.cuda.current_stream(x.device)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads go on allocating memory meanwhile.
        recording = torch.cuda.graph(self.graph, stream=_stream(x.device), capture_error_mode="thread_local")
        try:
            with torch.cuda.device(x.device), recording:
                self.loss = step(self.x, self.targets, self.scale)
        finally:
            torch.cuda.set_stream(here)  # a failed recording leaves its own behind
        self.gradients = [p.grad for p in parameters]

    def replay(self, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Take the step with these images; the loss is overwritten by the next one."""
        self.x.copy_(x)
        self.targets.copy_(targets)
        self.scale.fill_(scale)
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        self.graph.replay()
        return self.loss


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Replays:
    """Takes steps, recorded ones where they have come often enough and can be recorded.

    Args:
        parameters: all that may get gradients.
        on: False: no step is ever recorded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, on: bool) -> None:
        self.on, self._parameters = on, parameters
        self._seen: Counter[Hashable] = Counter()
        self._recorded: tuple[Hashable, Recorded] | None = None

    def take(self, step: Step, kind: Hashable, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Take a step and return its loss; steps of one `kind` launch the same on images of one shape."""
        if not self.on:
            return step(x, targets, scale)
        key = (kind, x.shape, x.stride(), x.dtype, targets.shape, targets.dtype)
        self._seen[key] += 1
        if self._seen[key] == EAGER_STEPS + 1:
            self._record(key, step, x, targets, scale)
        if self._recorded is not None and self._recorded[0] == key:
            return self._recorded[1].replay(x, targets, scale)
        return step(x, targets, scale)

    @property
    def records(self) -> bool:
        """True if there is a recording."""
        return self._recorded is not None

    def drop(self) -> None:
        """Give back the memory of what is recorded, and record nothing any more."""
        self._recorded, self.on = None, False

    def _record(self, key: Hashable, step: Step, x: Tensor, targets: Tensor, scale: float) -> None:
        self._recorded = None  # its memory first
        try:
            self._recorded = key, Recorded(step, x, targets, scale, self._parameters)
        except Exception:  # what cannot be recorded fails in as many ways as there are models
            self.drop()
            for p in self._parameters:
                p.grad = None
