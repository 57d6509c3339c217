"""CUDA graphs of training steps, which save the launch of each kernel: with small batches a GPU waits for it.

A CUDA graph records the kernels of a forward and a backward pass. It can be replayed with other images as
long as shapes and memory addresses stay the same. The optimiser step is not recorded, since its rates change.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

ON = True
"""Whether to record steps. Replays give the same bits: `python -m benchmarks.gpu --only right.graphs`."""
EAGER_STEPS = 20
"""Steps of one shape before it is recorded, since a recording costs as much as a few dozen replays save."""

Step = Callable[[Tensor, Tensor, float | Tensor], Tensor]
"""A function (images, targets, scale of the gradient) -> loss.

It sets the gradients of the parameters, which must have none before."""


class Recorded:
    """One recorded step. Recording computes nothing and draws no random numbers."""

    def __init__(
        self, step: Step, x: Tensor, targets: Tensor, scale: float, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.x, self.targets = x.clone(), targets.clone()
        self.scale = torch.tensor(scale, dtype=torch.float32, device=x.device)
        self.parameters = parameters
        here = torch.cuda.current_stream(x.device)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads allocate memory meanwhile, which the default mode would treat as an error.
        recording = torch.cuda.graph(self.graph, stream=_stream(x.device), capture_error_mode="thread_local")
        try:
            with torch.cuda.device(x.device), recording:
                self.loss = step(self.x, self.targets, self.scale)
        finally:
            torch.cuda.set_stream(here)  # a failed recording does not restore the stream
        self.gradients = [p.grad for p in parameters]

    def replay(self, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Run the step on these images; the returned loss is overwritten by the next replay."""
        self.x.copy_(x)
        self.targets.copy_(targets)
        self.scale.fill_(scale)
        # The graph writes to the gradient tensors of its recording, and `optimize.clear` has removed them.
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        self.graph.replay()
        return self.loss


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Replays:
    """Run training steps, and replay a recording of those that are frequent and can be recorded.

    Only the recording of one kind of step is kept at a time.

    Args:
        parameters: all parameters that may get gradients.
        on: False turns recording off.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, on: bool) -> None:
        self.on, self._parameters = on, parameters
        self._seen: Counter[Hashable] = Counter()
        self._recorded: tuple[Hashable, Recorded] | None = None

    def take(self, step: Step, kind: Hashable, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Run a step and return its loss; steps of one `kind` and shape launch the same kernels."""
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
        """Free the memory of the recording, and turn recording off."""
        self._recorded, self.on = None, False

    def _record(self, key: Hashable, step: Step, x: Tensor, targets: Tensor, scale: float) -> None:
        self._recorded = None  # free the memory of the earlier one first
        try:
            self._recorded = key, Recorded(step, x, targets, scale, self._parameters)
        except Exception:  # models fail to record in many ways; their steps then run as usual
            self.drop()
            for p in self._parameters:
                p.grad = None
