"""Messages that a worker sends about its trial, in order: Started, Effective, Epoch after Epoch, End.

The worker sends them to the exchange (search/slots/exchange.py), which keeps them for the trial's process in
Tune. None of these processes but the worker imports torch, and neither does this module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Started:
    """A worker has begun the job. A job that moves to another slot starts once in each."""

    slot: str = ""
    """Name of the slot; the exchange enters it, as it knows the slot and the worker need not."""
    retries: int = 0
    """Number of retries so far, entered by the exchange."""


@dataclass(frozen=True)
class Effective:
    """The settings in use, read back from what the worker built; sent before the first epoch in each slot."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """A remark for the trial's record."""

    text: str


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch: `epoch`, `train/loss`, `val/...`, `learning_rate`, `seconds` and others."""

    metrics: Mapping[str, float]

    @property
    def number(self) -> int:
        """Number of the epoch, from 1."""
        return int(self.metrics["epoch"])


EndState = Literal["complete", "stopped", "moved", "failed"]
"""`stopped`: somebody asked for it. `moved`: saved and released, so that another slot can continue it."""


@dataclass(frozen=True)
class End:
    """The last message about a job from a slot. After `moved`, messages from the next slot follow."""

    state: EndState
    seconds: float = 0.0
    error: str = ""
    """One line with the reason if `failed`."""
    trace: str = ""
    """Traceback if `failed`."""
    retries: int | None = None
    """Number of retries before the job failed, if the exchange gave it up."""


Message = Started | Effective | Note | Epoch | End
Report = Callable[[Effective | Note | Epoch], Any]
"""Function that receives the messages of a training run: Effective, then Epochs; Notes may come between."""
