"""Properties of a searched setting besides its domain, default and meaning, which its field in a section has.

A field is declared with a Setting: `momentum: Annotated[Fraction, Setting(when=chosen("optimizer", "sgd"))]`.
From there the space knows where it is used, the baselines their value, the portfolio what to carry over,
table and TensorBoard what to show, and the driver what to check of what the worker reads back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from finetune.strategy import Strategy, Value


@dataclass(frozen=True)
class Asked:
    """Choices that a trial has made so far, when a further setting is asked for."""

    strategy: Strategy
    params: Mapping[str, Any]
    trains_blocks: Callable[[], bool]
    """True if the trial does not freeze every block; asked only once `frozen_layers` is chosen."""


def _always(asked: Asked) -> bool:
    return True


def _by_all(strategy: Strategy) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Properties of one searched setting."""

    by: Callable[[Strategy], bool] = _by_all
    """Returns True for the strategies that use it."""
    when: Callable[[Asked], bool] = _always
    """Returns True for the trials of these that use it."""
    needs: Literal["image", "text", "frames"] = "image"
    """Part that samples must have besides an image for it to be used: text, or several frames."""
    baseline: Value | None = None
    """Value in the baselines `recipe` and `scratch`; None: each has its own, or does not use it."""
    reported: bool = True
    """True if the worker reports the value in use under the same name. Rates and frozen layers are checked as
    it reports them: the rates of each group of weights, and a number of blocks."""
    carried: bool = False
    """True if a portfolio carries it over to another study."""
    shown: bool = False
    """True if table and TensorBoard show it whether it is searched or not."""

    def is_used(self, asked: Asked) -> bool:
        """Return True if a trial uses it."""
        return self.by(asked.strategy) and self.when(asked)


def chosen(field: str, value: Value) -> Callable[[Asked], bool]:
    """Return the rule that another setting, which is asked for earlier, has this value."""
    return lambda asked: bool(asked.params[field] == value)


def not_chosen(field: str, value: Value) -> Callable[[Asked], bool]:
    """Return the rule that another setting, which is asked for earlier, has another value."""
    return lambda asked: bool(asked.params[field] != value)


def trains(asked: Asked) -> bool:
    """Return True if the trial trains blocks of the backbone."""
    return asked.trains_blocks()


def declared(section: type[BaseModel]) -> dict[str, Setting]:
    """Return the settings of a section, by name, in the order of its keys."""
    return {
        name: one
        for name, field in section.model_fields.items()
        for one in field.metadata
        if isinstance(one, Setting)
    }
