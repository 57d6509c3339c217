"""Jobs for the workers, and the messages that a worker sends about one: Started, Effective, Epochs, End.

The driver makes a job and offers it to the exchange (search/slots/exchange.py), which gives it to a slot. The
worker sends its messages to the exchange, which keeps them for the trial's process in Tune. None of these
processes but the worker imports torch, and neither does this module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.metrics import Objective
from finetune.settings import FeatureSettings, TrialSettings


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Files that a trial writes, and the metric that decides which epoch is the best."""

    metric: str
    best: Path
    """Path of the checkpoint with the trained part of the model at its best epoch."""
    last: Path
    """Path of the checkpoint to resume from. Of a complete trial it holds only the metrics of its epochs."""
    every_seconds: float = 30.0
    """Seconds of training between two writes of `last`."""

    @property
    def objective(self) -> Objective:
        """The rule by which epochs are compared."""
        return Objective(self.metric)

    def forget(self) -> None:
        """Delete the files of an attempt that does not count."""
        for path in (self.best, self.last):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for a slot: a TrainJob or an ExportJob."""

    id: str
    first_message: int = 0
    """Number of the worker's first message; the exchange raises it when the job moves to another slot."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """Train one trial."""

    settings: TrialSettings
    features: FeatureSettings
    keep: Keep
    params: Mapping[str, Any]
    """Values of the fields that the trial uses, by name, as the record holds them."""
    data_fingerprint: str
    """Fingerprint of the images that the driver has listed; the worker must list the same ones."""
    may_be_stopped: bool = True
    """False if early stopping spares the trial, so that nobody waits for its epochs: a baseline, or any trial
    where early stopping is off."""
    answers: Path | None = None
    """Folder for the model's answers to the validation and test images; None: it is not asked."""
    latencies: Path | None = None
    """Folder in which the study keeps measured latencies; None: the cost of the model is not measured."""


@dataclass(frozen=True, kw_only=True)
class ExportJob(Job):
    """Write the model folder of a trial that has ended."""

    checkpoint: Path
    """The trial's best weights."""
    to: Path
    """The model folder."""
    answers: Path | None
    """Folder for the answers to the images that the report shows; None: none are written."""
    provenance: dict[str, Any]
    settings: TrialSettings | None
    """The trial's settings with today's paths; None: those in the checkpoint."""
    features: FeatureSettings
    refit: "Refit | None" = None
    """Train the settings again on training and validation images first; None: write the trial's weights."""


@dataclass(frozen=True)
class Refit:
    """Order to train a chosen trial's settings once more, on training and validation images together."""

    metric: str
    """The study's metric."""
    limit: float | None = None
    """Learning rate that the trial used instead of its setting, because that was too high."""


@dataclass(frozen=True)
class Started:
    """A worker has begun the job. A job that moves to another slot starts once in each."""

    slot: str = ""
    """Name of the slot; the exchange enters it, as it knows the slot and the worker need not."""
    retries: int = 0
    """Number of retries so far, entered by the exchange."""


@dataclass(frozen=True)
class Effective:
    """The settings in use, read back from what the worker built; sent before the first epoch in each slot.

    Where the study measures costs, `measured` has latency, parameters and size of the model.
    """

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
