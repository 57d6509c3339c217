"""Check which changes of study.yaml a resumed study may make, and refuse the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.config.sections import is_weights_file
from search.config.study import StudyConfig
from search.errors import StudyError
from search.record.records import TrialRecord

FACT = "began_with"
"""Name of the fact in the record that holds the result of `fixed` for the study's first config."""
_FIXED = (
    *(("study", key) for key in ("epochs", "metric", "seed")),
    *(("data", key) for key in ("validation_share", "test_share", "views")),
    ("model", "precision"),
)
_PLACES = ("path", "download")


def fixed(config: StudyConfig) -> dict[str, Any]:
    """Return the values that must not change, by dotted key, as JSON values.

    If one of them changed, the study's trials could not be compared. The space, limits and paths may change.
    """
    values = config.model_dump(mode="json")
    weights = {name: config.model.weights_of(name) for name in config.backbones}
    plain = {
        name: given if isinstance(given, str) else given.model_dump(mode="json")
        for name, given in weights.items()
    }
    return {f"{section}.{key}": values[section][key] for section, key in _FIXED} | {
        f"model.weights of {name}": _without_places(given) for name, given in plain.items()
    }


def check(config: StudyConfig, facts: Mapping[str, Any], trials: Sequence[TrialRecord], where: Path) -> None:
    """Compare a study's config with the one that it began with, which its record holds.

    Raises:
        StudyError: a value that must not change has changed.
    """
    began = facts.get(FACT)
    if began is None:  # an older version began it without this fact; its trials still show `study.epochs`
        epochs = {trial.epochs for trial in trials if trial.state == "COMPLETE"}
        began = {"study.epochs": max(epochs)} if epochs else {}
    now = fixed(config)
    told = [
        f"{key} {now[key]!r} instead of {before!r}"
        for key, before in began.items()
        if key in now and now[key] != before
    ]
    if told:
        raise StudyError(
            f"{where}: a study must go on with what it began with, got {', '.join(told)}. "
            "Put that back, or run a new study."
        )


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items() if key not in _PLACES}
    return Path(value).name if is_weights_file(value) else value
