"""Progress of a trial: metrics of its epochs, its best weights, and the checkpoints that hold both."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from finetune.disk import checkpoint
from finetune.errors import CheckpointError
from finetune.messages import Keep
from finetune.model.strategies import TransferModel
from finetune.settings import TrialSettings
from finetune.training.averaging import Average
from finetune.training.optimize import Rates


class History:
    """Metrics of the epochs so far and the best weights, with the checkpoints of both."""

    def __init__(
        self,
        model: TransferModel,
        optimizer: Optimizer,
        rates: Rates,
        settings: TrialSettings,
        keep: Keep,
        *,
        average: Average | None,
        read: Mapping[str, str | None],
        leads: bool,
        limit: float | None = None,
    ) -> None:
        self.model, self.optimizer, self.rates = model, optimizer, rates
        self.settings, self.keep, self.average = settings, keep, average
        self.read = dict(read)
        """Hashes of data and weights. A checkpoint must have the same ones, wherever the files are stored."""
        self.leads = leads
        """True for the one worker that writes the files; the others only count."""
        self.limit = limit
        """Learning rate in use, if it is not that of the settings; see limits.py."""
        self.epochs: list[dict[str, float]] = []
        self._best: dict[str, Tensor] = {}
        self._best_epoch = 0
        self._unsaved = False
        self._written = time.monotonic()

    def add(self, metrics: dict[str, float]) -> None:
        """Add an epoch's metrics; keep the weights if they are the best, and save every `every_seconds`."""
        self.epochs.append(metrics)
        if self.keep.objective.best(self.epochs) is metrics:
            # Copied to memory now and written later: many short epochs would write the same file many times.
            evaluated = self.average.state if self.average else self.model.trained_state()
            self._best = {k: v.detach().cpu().clone() for k, v in evaluated.items()}
            self._best_epoch, self._unsaved = int(metrics["epoch"]), True
        if time.monotonic() - self._written >= self.keep.every_seconds:
            self.save()

    def save(self) -> None:
        """Write both checkpoints, so that the trial can resume after its last epoch."""
        self._written = time.monotonic()
        self.save_best()
        if self.leads:
            self._write_last()

    def save_best(self) -> None:
        """Write the best weights unless they are on disk already."""
        if self._unsaved and self.leads:
            metrics = self.epochs[self._best_epoch - 1]
            facts = {"settings": self.settings.to_dict(), "metrics": metrics}
            checkpoint.write(self.keep.best, self._best, facts)
        self._unsaved = False

    def finish(self) -> None:
        """Write the best weights, and a last checkpoint that says that all epochs are done.

        If the trial is started again because its end message was lost, it then only reports its epochs.
        """
        self.save_best()
        if self.leads:
            checkpoint.write(self.keep.last, {}, self._facts())

    def restore(self) -> list[dict[str, float]]:
        """Restore an interrupted run of the same trial, if there is one; return its epochs.

        Raises:
            CheckpointError: its files are damaged or belong to another trial. The model may then be partly
                overwritten and must not be used.
        """
        if not self.keep.last.exists():
            return []
        tensors, facts = checkpoint.read(self.keep.last)
        try:
            self._check(facts)
            # A complete trial left no weights to continue from; its epochs and best weights are enough.
            if len(facts["history"]) < self.settings.epochs:
                self._take_up(tensors, facts)
            self._best, best = checkpoint.read(self.keep.best)
            self._best_epoch = int(best["metrics"]["epoch"])
            self.epochs = list(facts["history"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.keep.last}: a checkpoint must hold all that a trial needs to go on, "
                f"got {type(error).__name__}: {error}. Remove the file to start the trial afresh."
            ) from error
        return self.epochs

    def _check(self, facts: Mapping[str, Any]) -> None:
        written = TrialSettings.from_dict(facts["settings"]).choices()
        if written != self.settings.choices() or facts.get("read", self.read) != self.read:
            raise CheckpointError(
                f"{self.keep.last}: a checkpoint must be of the trial's own settings, data and weights, "
                f"got those of another. Remove the file to start the trial afresh."
            )

    def _take_up(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.model.load_trained_state(_below("model.", tensors))
        if self.average:
            for name, tensor in _below("average.", tensors).items():
                self.average.state[name].copy_(tensor)
        checkpoint.unpack_optimizer(self.optimizer, tensors, facts["groups"])
        self.rates.go_to(facts["steps"])

    def _write_last(self) -> None:
        flat, groups = checkpoint.pack_optimizer(self.optimizer)
        model = {f"model.{k}": v for k, v in self.model.trained_state().items()}
        if self.average:
            model |= {f"average.{k}": v for k, v in self.average.state.items()}
        facts = self._facts() | {"groups": groups, "steps": self.rates.steps}
        checkpoint.write(self.keep.last, model | flat, facts)

    def _facts(self) -> dict[str, Any]:
        limited = {} if self.limit is None else {"learning_rate_limit": self.limit}
        return {"settings": self.settings.to_dict(), "read": self.read, "history": self.epochs} | limited


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
