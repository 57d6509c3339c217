"""Take the place where it was made out of a model folder's facts: no path, no file name, no machine."""

from pathlib import PurePath
from typing import Any

from finetune.disk.filesystems import is_url

WITHHELD = ("path", "exclude")


def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial without the paths of images, weights and cache."""
    weights, source = dict(values["weights"]), values["weights"]["source"]
    weights["file"] = None if weights["file"] is None else name(weights["file"])
    if source:
        weights["source"] = {**source, "data": _without(source["data"])}
    return {**values, "data": _without(values["data"]), "weights": weights, "cache_dir": ""}


def provenance(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts about a study without the names of its images and machines."""
    told = {key: value for key, value in facts.items() if key != "slots"}
    if "skipped" in told:
        told["skipped"] = len(told["skipped"])
    return told


def name(location: str) -> str:
    """Return the last part of a path or URL."""
    return location.rpartition("/")[2] if is_url(location) else PurePath(location).name


def _without(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, **dict.fromkeys(WITHHELD)}
