"""Learning rates that are too high for a model: notice that the loss diverges, and lower them.

A rate that suits one backbone makes another one diverge: on the features of a network without batch norm,
the loss of a fresh head may begin at ten times that of guessing. The first steps of every trial are watched.
If the loss grows beyond all measure, a range test (Smith, WACV 2017) on the trial's own first batches finds
the rate from which on it diverges, and the trial begins again with a tenth of that. A trial whose rate is
fine pays nothing, and the result is a function of the trial's settings alone. Measurements and what was
rejected: docs/decisions.md.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from finetune.errors import NonFiniteLoss
from finetune.settings import TrialSettings
from finetune.training.optimize import Rates

if TYPE_CHECKING:
    from finetune.training.run import Run

LEAST_STEPS = 6
"""Steps that are watched at least; the epochs to which they belong are watched to their end."""
BLOWN_UP = 10.0
"""A loss this many times that of the first step, or of guessing, shows that the model has blown up."""
SPIKE = 2.0
"""The same factor for a spike after which the loss must fall below that of guessing again."""
FIRST = 1e-6
"""First rate of a range test; of one for a trial that cannot stand even that, as many times lower again."""
LEAST = 1e-14
"""A trial that diverges at this rate fails."""
RISE = 10 ** (1 / 5)
"""Factor between the rates of two steps of a range test."""
DIVERGES = 4.0
"""A range test ends at this many times its lowest loss."""
MARGIN = 10.0
"""Factor by which the limit lies below the rate at which a range test diverges."""


class RateTooHigh(Exception):
    """The loss diverged within the steps that are watched; the text says where."""


class Watch:
    """The losses of a trial's first steps, as one worker sees them.

    Args:
        settings: settings of the trial, with the learning rate in use.
        classes: number of classes C; guessing has a loss of ln C.
        steps_per_epoch: steps of an epoch.
    """

    def __init__(self, settings: TrialSettings, *, classes: int, steps_per_epoch: int) -> None:
        self._rate, self._guess = settings.learning_rate, math.log(classes)
        self._steps = min(settings.epochs, -(-LEAST_STEPS // steps_per_epoch)) * steps_per_epoch
        self._waiting: list[tuple[Tensor, float]] = []
        """Loss and weight of the steps that nobody has looked at yet."""
        self._losses: list[float] = []
        self.is_over = False

    def add(self, loss: Tensor, weight: float) -> None:
        """Take the sum of the losses of one step's images, and the sum of these images' weights."""
        if not self.is_over:
            self._waiting.append((loss.clone(), weight))  # a GPU's replayed step reuses the memory

    def is_too_high(self) -> bool:
        """Return True if the losses so far show that the rate is too high; on a GPU this waits for them."""
        if self.is_over:
            return False
        self._losses += [loss.item() / weight for loss, weight in self._waiting]
        self._waiting.clear()
        return self._judge()

    def error(self) -> Exception:
        """Return the error to raise once `is_too_high` was True here or on another worker."""
        told = f"at {self._rate:.3g} the loss diverged within {len(self._losses)} steps"
        if self._rate <= LEAST:
            return NonFiniteLoss(f"learning rate: must let the loss fall, got none that does: {told}.")
        return RateTooHigh(told)

    def _judge(self) -> bool:
        usual, most = max(self._losses[0], self._guess), max(self._losses)
        if not all(map(math.isfinite, self._losses)) or most > BLOWN_UP * usual:
            return True
        if len(self._losses) < self._steps:
            return False
        self.is_over = True
        late = self._losses[-max(1, self._steps // 4) :]
        return most > SPIKE * usual and sum(late) / len(late) >= self._guess


class _Rise(Rates):
    """The schedule of a range test: each step has the rate of the one before, times RISE."""

    def __init__(self, optimizer: Optimizer, settings: TrialSettings) -> None:
        super().__init__(optimizer, settings, steps_per_epoch=1)

    def factor(self, step: int) -> float:
        """Return the rate of a step as a multiple of the first one."""
        return float(RISE**step)


class _RangeTest(Watch):
    """The losses of a range test; it is over at its last step at the latest."""

    def __init__(self, settings: TrialSettings, *, classes: int, steps: int) -> None:
        super().__init__(settings, classes=classes, steps_per_epoch=1)
        self._steps = steps

    @property
    def edge(self) -> int:
        """Number of steps before the loss diverged; that of all steps if it did not."""
        lowest = math.inf
        for step, loss in enumerate(self._losses):
            lowest = min(lowest, loss)
            if not math.isfinite(loss) or loss > max(SPIKE * self._guess, DIVERGES * lowest):
                return step
        return self._steps

    def error(self) -> Exception:
        """Return the error that ends the test."""
        return RateTooHigh("the range test is over")

    def _judge(self) -> bool:
        return self.edge < len(self._losses) or len(self._losses) >= self._steps


def first_rate(highest: float) -> float:
    """Return the first rate of a range test for a trial that diverges at `highest`."""
    return FIRST if highest > FIRST * MARGIN else highest * FIRST


def find(run: "Run", highest: float, should_stop: Callable[[], bool]) -> float | None:
    """Return a learning rate that a model can stand, or None if the trial was stopped meanwhile.

    Args:
        run: the trial, newly built with the learning rate `first_rate`. It must not be used afterwards.
        highest: learning rate at which the trial diverges.
        should_stop: called between batches; True ends the test.
    """
    lowest = first_rate(highest)
    steps = max(1, math.ceil(math.log(highest / lowest, RISE)))
    run.rates = _Rise(run.optimizer, run.settings)
    run.watch = test = _RangeTest(run.settings, classes=len(run.data.classes), steps=steps)
    epoch = 1
    try:
        while run.train_epoch(epoch, should_stop) is not None:
            epoch += 1
    except RateTooHigh:
        # Each worker has seen its own losses; the lowest edge of all of them counts.
        reached = run.world.agree(*(step >= test.edge for step in range(steps)))
        edge = reached.index(True) if any(reached) else steps
        return max(lowest, min(highest, lowest * RISE**edge) / MARGIN)
    return None


def of_checkpoint(path: Path) -> float | None:
    """Return the limit with which the checkpoint of an interrupted run was trained; None if it has none.

    A file that cannot be read has none either: restoring it gives the reason.
    """
    try:
        with safe_open(path, framework="pt") as file:
            limit = json.loads(file.metadata()["facts"]).get("learning_rate_limit")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return float(limit) if isinstance(limit, int | float) else None
