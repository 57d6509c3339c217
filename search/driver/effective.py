"""Check that a worker has trained with the settings of its job, by what it read back from what it built."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from finetune.messages import TrainJob
from finetune.settings import ALL, TrialSettings
from search.config.sections import DATA_FIELDS, SETTINGS
from search.errors import SettingsIgnored

_REPORTED = [name for name, setting in SETTINGS.items() if setting.reported]
CHECKED = tuple(name for name in _REPORTED if name not in DATA_FIELDS)
CHECKED_OF_DATA = tuple(name for name in _REPORTED if name in DATA_FIELDS)
"""Settings, and settings below `data`, that the worker reads back from what it built, by the same names."""
SHOWN = 5
"""Number of settings that an error names; of the others it gives the number."""


def check_effective(job: TrainJob, effective: Mapping[str, Any]) -> None:
    """Check that the worker trains with the settings of its job, learning rates included.

    Raises:
        SettingsIgnored: they differ; the message names the first settings that do, with both values.
    """
    settings = job.settings
    # `given` holds what the job says, `used` what the worker reports, by the same names.
    given = {name: getattr(settings, name) for name in CHECKED if name in job.params}
    given |= {name: getattr(settings.data, name) for name in CHECKED_OF_DATA if name in job.params}
    used = {name: effective.get(name) for name in given}
    given |= {"data_fingerprint": job.data_fingerprint, "epochs": settings.epochs}
    used |= {name: effective.get(name) for name in ("data_fingerprint", "epochs")}
    every = effective.get("blocks")
    given["frozen_layers"] = every if settings.frozen_layers == ALL else settings.frozen_layers
    used["frozen_layers"] = effective.get("frozen_blocks")
    # A worker may lower a rate at which the loss diverges (finetune/training/limits.py), but never raise it.
    peak = min(effective.get("learning_rate_limit", math.inf), settings.learning_rate)
    given |= _rates(replace(settings, learning_rate=peak), effective["learning_rates"])
    used |= {_rate_of(group): rate for group, rate in effective["learning_rates"].items()}
    differ = sorted(name for name in used if not _same(given[name], used[name]))
    if differ:
        told = [f"{name} {used[name]!r} instead of {given[name]!r}" for name in differ[:SHOWN]]
        more = [f"{len(differ) - SHOWN} more"] * (len(differ) > SHOWN)  # there is a rate for each block
        raise SettingsIgnored(
            f"trial: the worker must train with the suggested settings, got {', '.join(told + more)}. "
            "Do the workers run another version of the code?"
        )


def _rates(settings: TrialSettings, groups: Iterable[str]) -> dict[str, float]:
    """Return the peak learning rate that each parameter group should have; block groups come in block order.

    A block's rate is learning_rate * backbone_rate * layer_decay ** distance, with distance 1 for the last.
    """
    blocks = [group for group in groups if group.startswith("blocks.")]
    share = {
        group: settings.backbone_rate * settings.layer_decay**distance
        for distance, group in enumerate(reversed(blocks), 1)
    }
    return {_rate_of(group): settings.learning_rate * share.get(group, 1.0) for group in groups}


def _rate_of(group: str) -> str:
    return "learning_rate" if group == "head" else f"learning_rate of {group}"


def _same(given: Any, used: Any) -> bool:
    """True if two values are equal, or as near as floats are after a calculation in another order."""
    if isinstance(given, float) or isinstance(used, float):
        return isinstance(used, int | float) and math.isclose(given, used, rel_tol=1e-6, abs_tol=1e-12)
    return bool(given == used)
