"""One question about one field of one trial, and answers to it.

The space (space.py) walks through the fields in order and asks a Question about each that is used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from finetune.strategy import Value
from search.config.domain import ALL_WORD, Domain, Range
from search.suggest.baselines import START_NEAR


@dataclass(frozen=True)
class Question:
    """One field of one trial, with the domain that the answers so far leave to it."""

    field: str
    name: str
    """Optuna's name for the parameter."""
    domain: Domain | None
    """Domain in the config; None if the config has none for this strategy, which is then not searched."""
    blocks: int | None
    """Number of blocks of the trial's backbone; None while the backbone is not known."""

    def ask(self, trial: optuna.Trial) -> Any:
        """Return the value that Optuna suggests, or the fixed one."""
        domain = self.domain
        if isinstance(domain, tuple):
            return trial.suggest_categorical(self.name, domain)
        if not isinstance(domain, Range):
            return self.usual()
        low, high, step = domain.low, domain.high, domain.step
        if isinstance(low, int):
            return trial.suggest_int(self.name, low, high, log=domain.log, step=step or 1)
        return trial.suggest_float(self.name, low, high, log=domain.log, step=step)

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of a field that is searched."""
        domain = self.domain
        if isinstance(domain, tuple):
            return CategoricalDistribution(domain)
        if not isinstance(domain, Range):
            raise TypeError(f"{self.field} is not searched")
        if isinstance(domain.low, int):
            return IntDistribution(domain.low, domain.high, domain.log, domain.step or 1)
        return FloatDistribution(domain.low, domain.high, domain.log, domain.step)

    @property
    def is_searched(self) -> bool:
        """True if Optuna suggests the field, False if the config fixes it."""
        return isinstance(self.domain, tuple | Range)

    def held(self, value: Any) -> Value | None:
        """Return `value` if it lies in the domain, in the sampler's units; else None."""
        if isinstance(self.domain, tuple):
            return next((choice for choice in self.domain if choice == value), None)
        if isinstance(self.domain, Range):
            number = self._of_blocks(value) if self.field == "frozen_layers" else value
            return number if number is not None and self.domain.reaches(number) else None
        return None

    def _of_blocks(self, value: Any) -> int | float | None:
        """Return a count or share of blocks, or `all`, in the range's unit; None if it has none there."""
        if value is None or self.blocks is None or not isinstance(self.domain, Range):
            return None
        if isinstance(self.domain.low, float):
            return value if isinstance(value, float) else count_frozen(value, self.blocks) / self.blocks
        return None if isinstance(value, float) else count_frozen(value, self.blocks)

    def numbers(self, near: int) -> Sequence[Any]:
        """Return the values in the domain of `frozen_layers`.

        A range of shares without steps has no list of values; of it, return only the one nearest to the
        share of `near` blocks.
        """
        if not isinstance(self.domain, Range):
            return self.domain if isinstance(self.domain, tuple) else ()
        low, high, step = self.domain.low, self.domain.high, self.domain.step
        if isinstance(low, int):
            return range(low, high + 1, step or 1)
        if step is None:
            return [min(max(low, near / (self.blocks or 1)), high)]
        return [low + number * step for number in range(round((high - low) / step) + 1)]

    def usual(self, wanted: Any = None) -> Any:
        """Return `wanted` if it is in the domain or there is none, else the first value in the config."""
        if self.domain is None or self.held(wanted) is not None:
            return wanted
        if isinstance(self.domain, tuple):
            return self.domain[0]
        return self.domain.low if isinstance(self.domain, Range) else self.domain


Answer = Callable[["Question"], Any]
"""Function that answers a question."""


def fixed_value(question: Question) -> Any:
    """Answer with the value that the config fixes.

    Raises:
        KeyError: the field is searched.
    """
    if isinstance(question.domain, tuple | Range):
        raise KeyError(question.field)
    return question.domain


def started(wanted: Mapping[str, Value], frozen: float, question: Question) -> Any:
    """Answer with the start's value if it is searched and in the domain, else with the config's first."""
    if not question.is_searched:
        return question.usual()
    if question.field == "frozen_layers" and question.blocks is not None:
        count, blocks = int(question.blocks * frozen), question.blocks
        return min(question.numbers(count), key=lambda said: abs(count_frozen(said, blocks) - count))
    return question.usual(wanted.get(question.field))


def is_near(params: Mapping[str, Any], share: float, blocks: int) -> bool:
    """Return True if `params` freeze about this share of the blocks, or exactly all if the share is 1."""
    missed = abs(count_frozen(params["frozen_layers"], blocks) - int(blocks * share))
    return missed <= (0 if share == 1 else max(1, int(blocks * START_NEAR)))


def count_frozen(said: int | float | str, blocks: int) -> int:
    """Return the number of blocks that a value of `frozen_layers` freezes; a share is rounded half up."""
    if said == ALL_WORD:
        return blocks
    return math.floor(said * blocks + 0.5) if isinstance(said, float) else int(said)
