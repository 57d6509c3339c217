"""Batches on their way to a GPU: copied and prepared on a stream of their own while it computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

AHEAD = 2
"""Batches that may lie on the GPU before the one that it computes. Memory of one that it has used is free
for others only when the host has seen the GPU pass it: without a bound, a fast host fills the GPU."""


def aside(
    batches: Iterable[Tensor], prepare: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[Tensor]:
    """Yield what `prepare` makes of each batch on the device.

    On a GPU it works while what the caller has asked for is computed; from pinned memory, copies do too.
    """
    if device.type != "cuda":
        yield from map(prepare, batches)
        return
    stream, computing = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(computing)
    used: deque[torch.cuda.Event] = deque()
    for batch in batches:
        if len(used) > AHEAD:
            used.popleft().synchronize()
        with torch.cuda.stream(stream):
            x = prepare(batch)
        computing.wait_stream(stream)
        x.record_stream(computing)
        yield x
        used.append(computing.record_event(torch.cuda.Event(blocking=True)))


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for copies: each stream keeps memory of its own."""
    return torch.cuda.Stream(device)
