"""Copy batches to a GPU and prepare them on a separate CUDA stream, while the GPU computes earlier ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

AHEAD = 2
"""Batches that may be queued on the GPU behind the one that it computes. The memory of a used batch is free
only after the host has seen the GPU finish with it: without a bound, a fast host would fill the GPU."""


def aside(
    batches: Iterable[Tensor], prepare: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[Tensor]:
    """Yield `prepare(batch)` for each batch, on the device.

    On a GPU, `prepare` runs while the caller's computation runs. Copies overlap with it too if the batches
    are in pinned memory.
    """
    if device.type != "cuda":
        yield from map(prepare, batches)
        return
    stream, computing = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(computing)
    used: deque[torch.cuda.Event] = deque()
    for batch in batches:
        if len(used) > AHEAD:
            used.popleft().synchronize()  # wait here, so that the host stays at most AHEAD batches in front
        with torch.cuda.stream(stream):
            x = prepare(batch)
        computing.wait_stream(stream)
        # The allocator of `stream` must not reuse the memory before the computing stream has read it.
        x.record_stream(computing)
        yield x
        used.append(computing.record_event(torch.cuda.Event(blocking=True)))


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the only stream for copies of a device: each further stream would keep memory of its own."""
    return torch.cuda.Stream(device)
