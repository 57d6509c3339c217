"""Read a config file and `--set key=value` into a StudyConfig, or report every mistake with its place."""

import copy
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import is_url, text_of
from finetune.errors import clipped
from search.config.problems import ConfigErrors, Place, Problem, dotted, shown
from search.config.problems import Path as KeyPath
from search.config.sections import is_weights_file
from search.config.study import StudyConfig
from search.config.yaml_text import Text

MOST_CONFIG_BYTES = 2**22
"""Largest size of a config file."""
PATHS = (("results",), ("data", "path"), ("features", "dir"))
"""Keys that always hold a path. `_weights_paths` finds those below `model.weights`."""


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a config file.

    Args:
        path: the file. Relative paths in it start at its folder.
        overrides: `dotted.key=value`, the value in YAML; later ones win. Relative paths start at the
            current folder, where the user types them.

    Raises:
        ConfigErrors: with every mistake of the file and of the overrides.

    """
    text = _sections(path)
    values = copy.deepcopy(text.values)
    _start_paths_at(os.path.dirname(path), values)
    given = [_Override(order, words) for order, words in enumerate(overrides)]
    found = [*text.problems, *(problem for override in given for problem in override.apply(values))]

    def locate(path: KeyPath, key: bool) -> Place:
        # The latest override wins, so search them from the last. One that set a value above or at `path` is
        # its place; so is one below it, unless the file itself has a value at `path`.
        for override in reversed(given):
            below = path[: len(override.path)] == override.path
            above = override.path[: len(path)] == path and not text.contains(path)
            if below or above:
                return override.place
        return text.place(path, key)

    try:
        config = StudyConfig.from_dict(values, locate)
    except ConfigErrors as errors:
        raise ConfigErrors([*found, *errors.problems]) from None
    if found:
        raise ConfigErrors(found)
    return config


def paths_of_this_machine(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> dict[str, str]:
    """Return the keys of a config whose paths mean something on this machine only: relative ones and `~`.

    Args:
        path: the file, which `load` accepts with these overrides.
        overrides: as for `load`.

    Returns:
        The paths as the user wrote them, by dotted key; `results` also if it is left out.
    """
    values = {"results": "results", **copy.deepcopy(_sections(path).values)}
    for order, words in enumerate(overrides):
        _Override(order, words).apply(values)
    return {
        dotted((*parents, key)): inner[key]
        for parents, key, inner in _paths(values)
        if not os.path.isabs(inner[key])
    }


def _sections(path: str | os.PathLike[str]) -> Text:
    text = Text(_read(Path(path)), str(path))
    if not isinstance(text.values, dict):
        fix = "Start with `study:` and below it `name:`."
        rule = f"must be a mapping of sections, got {_or_nothing(text.values)}. {fix}"
        raise ConfigErrors(text.problems or [Problem(Place(str(path)), rule)])
    return text


def _read(path: Path) -> str:
    try:
        return text_of(path, encoding="utf-8-sig", most=MOST_CONFIG_BYTES)
    except OSError as error:
        got = (error.strerror or "an error").lower()
        text = f"must be a readable config file, got {got}. Check the path."
    except UnicodeDecodeError as error:
        text = f"must be UTF-8 text, got byte 0x{error.object[error.start]:02x}. Save it as UTF-8."
    raise ConfigErrors([Problem(Place(str(path)), text)])


def _or_nothing(value: object) -> str:
    return "nothing" if value is None else shown(value)


def _start_paths_at(folder: str, values: dict[str, Any]) -> None:
    """Make the relative paths in `values` start at `folder`."""
    for _, key, inner in _paths(values):
        inner[key] = os.path.normpath(os.path.join(folder, os.path.expanduser(inner[key])))


def _paths(values: dict[str, Any]) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield each path in `values` that is not a URL, as (keys above it, its key, what has it there)."""
    studies = _inside(values, ("study", "warm_start"))
    for place, path in enumerate(studies if isinstance(studies, list) else ()):
        if isinstance(path, str) and path:
            yield ("study", "warm_start"), place, studies
    for *parents, key in [*PATHS, *_weights_paths(values)]:
        inner = _inside(values, parents)
        path = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(path, str) and path and not is_url(path):
            yield tuple(parents), key, inner


def _weights_paths(values: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the keys below which `model.weights` holds paths: its own, or one for each backbone."""
    said = _inside(values, ("model", "weights"))
    whole: list[tuple[str, ...]] = [("model", "weights")]
    is_mapping = isinstance(said, dict) and "source" not in said
    for place in [("model", "weights", name) for name in said] if is_mapping else whole:
        if is_weights_file(_inside(values, place)):
            yield place
        yield (*place, "source", "path")


def _inside(values: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


class _Override:
    """One `--set key=value` of the command line."""

    def __init__(self, order: int, words: str) -> None:
        keys, self._sign, self._value = words.partition("=")
        self.path: KeyPath = tuple(keys.strip().split("."))
        self.place = Place(f"--set {clipped(words)}", order=(sys.maxsize, order))

    def apply(self, values: dict[str, Any]) -> list[Problem]:
        """Write the value into `values`, and return the problems that prevent it."""
        if not self._sign or not all(self.path):
            fix = "Write --set study.trials=10."
            return [Problem(self.place, f"must be key=value, got '{self.place.where[6:]}'. {fix}")]
        text = Text(self._value, "value")
        inner: Any = values
        for depth, part in enumerate(self.path[:-1], 1):
            if inner.get(part) is None:
                inner[part] = {}
            inner = inner[part]
            if not isinstance(inner, dict):
                rule = f"{dotted(self.path[:depth])}: must be a mapping to set a key in"
                return [Problem(self.place, f"{rule}, got {shown(inner)}. Set the whole of it.")]
        if not text.problems:
            inner[self.path[-1]] = text.values
        return [Problem(self.place, problem.text) for problem in text.problems]
