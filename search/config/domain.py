"""Domains of searched fields: a value, a list of values, a range, or one of these for each strategy.

    learning_rate: 0.01                                   a value: fixed, the sampler is not asked
    learning_rate: [0.001, 0.01]                          a list: one of these
    learning_rate: {low: 1e-4, high: 1e-1, log: true}     a range, both ends included
    learning_rate: {replace: 0.01, fuse: {low: ...}}      one of the above for each strategy

The annotation `Searched` gives a field of a config these four forms.
"""

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from finetune.settings import (
    Augment,
    Fusion,
    HeadInit,
    Imbalance,
    Mix,
    Optimizer,
    PoolingName,
    Schedule,
)
from finetune.strategy import STRATEGIES as BY_NAME
from finetune.strategy import Strategy
from finetune.strategy import Value as Value
from search.config.problems import RANGE_ENDS

STRATEGIES = tuple(BY_NAME)
ALL_WORD = "all"
"""Word for every block of the backbone, in place of a number of blocks."""


def refused(rule: str, got: object, fix: str, path: tuple[str, ...] | None = None) -> PydanticCustomError:
    """Return an error with a rule, a value and a fix.

    `path` names the key that the error is about, if it is not the one that pydantic validates.
    """
    parts = {"rule": rule, "got": got, "fix": fix, "path": path}
    return PydanticCustomError("refused", "{rule}, got {got}. {fix}", parts)


class Section(BaseModel):
    """Base class of every mapping in a config file: frozen, with strict types and no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class Range(Section):
    """Every number from `low` to `high`, both included."""

    low: Any
    """Smallest value."""
    high: Any
    """Largest value; `all` where blocks are counted."""
    log: bool = False
    """Sample evenly on a logarithmic scale, for values that span powers of ten."""
    step: Any = None
    """Distance between the values: low, low + step, low + 2 step, ...; null: every number."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        low, high, step = self.low, self.high, self.step
        if isinstance(low, str):
            raise refused("`low` must be a number", low, "Write a number and leave 'all' to `high`.")
        self._check_units()
        if not isinstance(high, str) and low >= high:
            raise refused("`low` must be below `high`", f"{low} and {high}", "Swap them, or write one value.")
        if self.log and low <= 0:
            raise refused("`low` of a logarithmic range must be above 0", low, "Raise `low` or drop `log`.")
        if step is not None:
            self._check_step(step)
        return self

    def _check_units(self) -> None:
        """Refuse a range of blocks that mixes counts (whole numbers) and shares (decimals)."""
        said = {"high": self.high, "step": self.step}
        shares = isinstance(self.low, float)
        for name, value in said.items():
            if value is not None and isinstance(value, float) != shares:
                rule = f"`{name}` must be a {'share' if shares else 'number'} of blocks, as `low` is"
                raise refused(rule, value, "Write shares, such as 0.0 and 1.0, or numbers, such as 0 and 8.")

    def _check_step(self, step: Any) -> None:
        if isinstance(step, str) or step <= 0:
            raise refused("`step` must be a number above 0", step, "Write one, or drop `step`.")
        if self.log:
            raise refused("a range takes `log` or `step`, not both", step, "Drop one of them.")
        if not isinstance(self.high, str) and not self.reaches(self.high):
            fix = "Change `high` or `step`."
            raise refused("`high` must lie a whole number of steps above `low`", self.high, fix)

    def reaches(self, number: float) -> bool:
        """Return True if `number` lies between the ends and on a step."""
        if not self.low <= number <= self.high:
            return False
        steps = 0.0 if self.step is None else (number - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-8)


class PerStrategy(Section):
    """A value, list or range for each strategy. The classes that are made of it have a field for each."""


Domain = Value | tuple[Value, ...] | Range | PerStrategy

FORMS = ("<value>", "<list>", "<range>", "<strategies>")
"""Names of the four forms in pydantic's error locations; the angle brackets tell them from keys of a file."""


def form(value: object, *, ranges: bool) -> str:
    """Return the name of the form in which `value` is written."""
    if isinstance(value, list | tuple):
        return "<list>"
    if isinstance(value, Mapping):
        is_range = value.keys() & {*Range.model_fields, *RANGE_ENDS}
        return "<range>" if ranges and is_range else "<strategies>"
    if isinstance(value, Range):
        return "<range>"
    return "<strategies>" if isinstance(value, PerStrategy) else "<value>"


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise refused("a list must name each value once", repr(value), "Delete the second one.")
    return values


Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_distinct)]
"""A list of texts without repetition."""


class Searched:
    """Annotation of a field that holds one `item`, or a list, a range or a mapping from strategy to these.

    `ends` is the type of low, high and step of a range, if it is not `item`. `name` goes into the names of
    the classes that are made for the field's range and mapping.
    """

    def __init__(
        self, name: str, item: Any, *, ends: Any = None, ranges: bool = True, strategies: bool = True
    ) -> None:
        many = Annotated[tuple[item, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
        forms = [Annotated[item, Tag("<value>")], Annotated[many, Tag("<list>")]]
        if ranges:
            forms.append(Annotated[_range_of(name, ends or item), Tag("<range>")])
        if strategies:
            forms.append(Annotated[_per_strategy(name, _either(forms, ranges)), Tag("<strategies>")])
        self._union = _either(forms, ranges)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self._union)


def _either(forms: list[Any], ranges: bool) -> Any:
    def which(value: object) -> str:
        return form(value, ranges=ranges)

    return Annotated[reduce(operator.or_, forms), Discriminator(which)]


def per_strategy(default: Callable[[Strategy], Any]) -> Any:
    """Return a field whose default differs between strategies; a strategy with None has no domain."""
    said = {name: default(strategy) for name, strategy in BY_NAME.items()}
    plain = {name: dict(one) if isinstance(one, Mapping) else one for name, one in said.items()}
    return Field(default={name: one for name, one in plain.items() if one is not None})


def between(low: float, high: float, *, log: bool = False) -> Any:
    """Return a field whose default is a range."""
    return Field(default={"low": low, "high": high, "log": log})


class _MadeRange(Range):
    # Pydantic would look for attribute docstrings in the source of every loaded module. That takes seconds
    # once torch is loaded.
    model_config = ConfigDict(use_attribute_docstrings=False)


class _MadePerStrategy(PerStrategy):
    model_config = ConfigDict(use_attribute_docstrings=False)


def _range_of(name: str, item: Any) -> type[Range]:
    def told(field: str, default: Any) -> Any:
        return Field(default, description=Range.model_fields[field].description)

    ends: dict[str, Any] = {"low": (item, told("low", ...)), "high": (item, told("high", ...))}
    step: Any = (item | None, told("step", None))
    return create_model(f"{name}Range", __base__=_MadeRange, __doc__=Range.__doc__, **ends, step=step)


def _per_strategy(name: str, one: Any) -> type[PerStrategy]:
    fields: dict[str, Any] = {
        name: (one | None, Field(None, description=f"Domain for {strategy.trials}."))
        for name, strategy in BY_NAME.items()
    }
    return create_model(
        f"{name}PerStrategy",
        __base__=_MadePerStrategy,
        __doc__="A value, list or range for each strategy.",
        **fields,
    )


def entries(domain: Domain, strategies: tuple[str, ...]) -> dict[str, Domain | None]:
    """Return the domain for each of the strategies; None for one that a mapping leaves out."""
    if isinstance(domain, PerStrategy):
        return {strategy: getattr(domain, strategy) for strategy in strategies}
    return dict.fromkeys(strategies, domain)


def values_of(domain: Domain | None) -> tuple[Value, ...]:
    """Return the values that a domain lists, over all strategies, each once; ranges contribute none."""
    found: dict[Value, None] = {}
    for entry in entries(domain, STRATEGIES).values() if domain is not None else ():
        if entry is not None and not isinstance(entry, Range | PerStrategy):
            found.update(dict.fromkeys(entry if isinstance(entry, tuple) else (entry,)))
    return tuple(found)


def choices(domain: Domain) -> float:
    """Return the number of values in a domain, over all strategies; infinite for decimals without steps."""
    found: set[Value] = set(values_of(domain))
    for entry in entries(domain, STRATEGIES).values():
        if isinstance(entry, Range):
            if isinstance(entry.low, float) and entry.step is None:
                return math.inf
            step = entry.step or 1
            found.update(entry.low + step * i for i in range(round((entry.high - entry.low) / step) + 1))
    return len(found)


Above0 = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _blocks(value: object) -> object:
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 <= value <= 1
    if not (count or share or value == ALL_WORD):
        rule = "must be a number of blocks, a share of them from 0.0 to 1.0, or 'all'"
        raise refused(rule, repr(value), "Write 3, 0.5 or all.")
    return value


Blocks = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] | Literal["all"],
    BeforeValidator(_blocks),
]
"""A number of blocks: 3 is three blocks, 0.5 half of them, 1 one block, 1.0 and `all` all of them."""


def _whole(value: int | float | str) -> int | float | str:
    """Return `all` for 1.0 and 0 for 0.0: 1 and 1.0 differ here, but are equal to Python and Optuna."""
    if isinstance(value, float) and value in (0, 1):
        return ALL_WORD if value else 0
    return value


Rate = Annotated[Domain, Searched("Rate", Above0)]
Amount = Annotated[Domain, Searched("Amount", NotNegative)]
Fraction = Annotated[Domain, Searched("Fraction", Share)]
Scale = Annotated[Domain, Searched("Scale", Annotated[float, Field(gt=0, le=1)])]
Size = Annotated[Domain, Searched("Size", Annotated[int, Field(ge=0)])]
Count = Annotated[Domain, Searched("Count", Annotated[int, Field(ge=1)])]
Pixels = Annotated[Domain, Searched("Pixels", Annotated[int, Field(ge=8)])]
BlockCount = Annotated[Domain, Searched("Blocks", Annotated[Blocks, AfterValidator(_whole)], ends=Blocks)]
Switch = Annotated[Domain, Searched("Switch", bool, ranges=False)]
OptimizerName = Annotated[Domain, Searched("Optimizer", Optimizer, ranges=False)]
ScheduleName = Annotated[Domain, Searched("Schedule", Schedule, ranges=False)]
ImbalanceName = Annotated[Domain, Searched("Imbalance", Imbalance, ranges=False)]
MixName = Annotated[Domain, Searched("Mix", Mix, ranges=False)]
HeadInitName = Annotated[Domain, Searched("HeadInit", HeadInit, ranges=False)]
FusionName = Annotated[Domain, Searched("Fusion", Fusion, ranges=False)]
PoolingNames = Annotated[Domain, Searched("Pooling", PoolingName, ranges=False)]
AugmentName = Annotated[Domain, Searched("Augment", Augment, ranges=False)]
StrategyName = Annotated[Domain, Searched("Strategy", Literal[STRATEGIES], ranges=False, strategies=False)]
