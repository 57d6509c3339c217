"""Report all mistakes of a config at once, each with its place, rule, value and fix.

ConfigErrors      every mistake found in a config, in the order of the file
└── Problem       one of them (a value, not an exception)
"""

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune.errors import clipped, did_you_mean

RANGE_ENDS = {"min": "low", "max": "high", "lower": "low", "upper": "high", "from": "low", "to": "high"}
"""Words that other programs use for the ends of a range, with ours."""

Path = tuple[str | int, ...]
"""Keys and list positions from the top of a config to one of its values."""


@dataclass(frozen=True)
class Place:
    """Position of a value or key in the config file or on the command line."""

    where: str = ""
    """`configs/pets.yaml:12:3` or `--set study.trials=0`; empty for a value that came from Python."""
    excerpt: str = ""
    """The line with the mistake underlined, as a compiler shows it."""
    order: tuple[int, int] = (0, 0)
    """Sort key: line and column in the file; overrides come last."""
    written: str = ""
    """The value as it is written there, if it is a single word."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a config."""

    place: Place
    text: str

    def __str__(self) -> str:
        head = f"{self.place.where}: {self.text}" if self.place.where else self.text
        return f"{head}\n{self.place.excerpt}" if self.place.excerpt else head


class ConfigErrors(Exception):
    """Every mistake found in a config."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.place.order))
        super().__init__("\n".join(map(str, self.problems)))


Locate = Callable[[Path, bool], Place]
"""Function from (path, True for the key or False for the value) to its place."""


def nowhere(path: Path, key: bool) -> Place:
    """Return the empty place, for values that came from no file."""
    return Place()


def dotted(path: Path) -> str:
    """Return a path as a user writes it, such as `space.head_size[2]`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{clipped(str(p))}" for p in path).lstrip(".")


def problems(
    error: ValidationError, values: Mapping[str, Any], known: Callable[[Path], Iterable[str]], locate: Locate
) -> list[Problem]:
    """Turn pydantic's errors about `values` into problems with place, rule, value and fix.

    The errors of one value are joined with "or", since each comes from one form that the field may take.

    Args:
        error: the error that pydantic raised.
        values: the values that pydantic validated.
        known: returns the keys that the mapping at one of pydantic's locations may have.
        locate: returns the place of a value in the config file or on the command line.

    """
    found: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors():
        if not _follows(details):
            found.setdefault(_path(details, values), []).append(details)
    return [_problem(path, group, known, locate) for path, group in found.items()]


def _follows(details: ErrorDetails) -> bool:
    """Return True for an error that only follows from another one: in an item, or in a value it needs."""
    if details["type"] == "too_short":
        return bool(len(details["input"]) >= details["ctx"]["min_length"])
    return details["type"] == "default_factory_not_called"


def _path(details: ErrorDetails, values: Any) -> Path:
    """Return pydantic's location without the names of the union members in it."""
    given: Path | None = details.get("ctx", {}).get("path")
    if given is not None:
        return given
    path: list[str | int] = []
    for i, part in enumerate(details["loc"]):
        in_mapping = isinstance(values, Mapping) and part in values
        if in_mapping or (isinstance(values, list | tuple) and isinstance(part, int)):
            path.append(part)
            values = values[part]
        elif isinstance(values, Mapping) and i == len(details["loc"]) - 1 and str(part)[0] != "<":
            path.append(part)  # a required key that is missing
    return tuple(path)


def _problem(
    path: Path, group: list[ErrorDetails], known: Callable[[Path], Iterable[str]], locate: Locate
) -> Problem:
    """Make one problem from the errors that pydantic has about the value at `path`."""
    first = group[0]
    if first["type"] == "extra_forbidden":
        inside = f" in '{dotted(path[:-1])}'" if path[:-1] else ""
        key, keys = str(path[-1]), tuple(known(first["loc"][:-1]))
        end = RANGE_ENDS.get(key) if "low" in keys else None
        hint = f"Write `{end}`: a range has low and high." if end else did_you_mean(key, keys)
        return Problem(locate(path, True), f"unknown key '{clipped(key)}'{inside}. {hint}")
    if first["type"] == "missing":
        return Problem(locate(path, True), f"{dotted(path)}: must be given, got nothing. Add this key.")
    context, place = first.get("ctx", {}), locate(path, False)
    if first["type"] == "refused":
        text = f"{context['rule']}, got {clipped(str(context['got']))}. {context['fix']}"
    else:
        rules = " or ".join(dict.fromkeys(_rule(details) for details in group))
        is_number = isinstance(first["input"], int | float)  # quote 1e3 as written, not as 1000.0
        got = clipped(place.written) if is_number and place.written else shown(first["input"])
        text = f"must be {rules}, got {got}. {_fix(group, place.written)}"
    return Problem(place, f"{dotted(path)}: {text}" if path else text)


def shown(value: Any) -> str:
    """Return a value as a message quotes it: shortened, and None by its YAML name `null`."""
    return "null" if value is None else reprlib.repr(value)


_RULES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "model_type": "a mapping of keys",
    "tuple_type": "a list",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "string_too_short": "text of at least {min_length} character",
}


def _rule(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if details["type"] == "literal_error":
        words = _words(context["expected"])
        return f"'{words[0]}'" if len(words) == 1 else f"one of {', '.join(words)}"
    rule = _RULES.get(details["type"])
    return rule.format(**context) if rule else f"valid ({details['msg']})"


_FIXES = {
    "int_type": "Write a number without quotes or decimals, such as 8.",
    "float_type": "Write a number without quotes, such as 0.01.",
    "bool_type": "Write true or false, without quotes.",
    "string_unicode": "Rename the file, or write it in UTF-8.",
    "finite_number": "Write a number such as 0.01.",
    "model_type": "Write `key: value` lines below it.",
    "tuple_type": "Write it as [first, second].",
    "greater_than": "Raise it.",
    "greater_than_equal": "Raise it.",
    "less_than": "Lower it.",
    "less_than_equal": "Lower it.",
}


def _fix(group: list[ErrorDetails], written: str) -> str:
    for details in group:
        value = details["input"]
        if details["type"] == "literal_error" and isinstance(value, str):
            words = _words(details["ctx"]["expected"])
            return did_you_mean(value, words) if len(group) == 1 else "Write one of these."
        if details["type"] == "string_type" and isinstance(value, bool | int | float):
            return f"Put it in quotes: '{clipped(written)}'." if written else "Put it in quotes."
    kind = group[0]["type"]
    return _FIXES.get(kind, "Write one of these words." if kind == "literal_error" else "Change it.")


def _words(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)
