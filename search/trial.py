"""One trial as Tune sees it: a light function that borrows a slot and forwards what it reports.

It imports neither torch nor torchvision, so starting its process costs little, and with
`reuse_actors=True` one process serves many trials.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from search.errors import SettingsIgnored, TrialFailed

CHECKED = (
    *("strategy", "head_size", "dropout", "backbone", "optimizer", "momentum", "weight_decay"),
    *("imbalance", "label_smoothing", "unfreeze_epochs", "l2_sp"),
    *("ema_decay", "clip_norm", "accumulate", "mix"),
)
"""Settings that the worker reads back from the model and the optimiser under the same name."""
NOT_USED = {"load": ("head_size", "dropout")}
"""Settings that a strategy has no use for."""


def run_trial(config: dict[str, Any], exchange: Any) -> None:
    """Train one suggestion in a slot, reporting each epoch to Tune.

    Args:
        config: `job`, what a slot needs to train it, as JSON.
        exchange: the actor that hands it to a slot.

    Raises:
        TrialFailed: training failed; the message is the worker's reason, then its trace.
        SettingsIgnored: the worker used other settings than the job's.
    """
    job = json.loads(config["job"])
    ray.get(exchange.submit.remote(job))
    try:
        facts: dict[str, Any] = {}
        while True:
            for message in ray.get(exchange.receive.remote(job["id"])):
                match message.pop("kind"):
                    case "started":
                        facts = {"slot": message["slot"]}
                    case "effective":
                        check_effective(job, message)
                        facts["effective"] = json.dumps(message)
                    case "epoch":
                        tune.report(message | facts)
                        facts = {}  # once is enough
                    case "end" if message["state"] == "failed":
                        raise TrialFailed(f"{message['error']}\n{message.get('trace', '')}")
                    case "end":
                        return
    finally:
        # However the trial ends (done, stopped by Tune, failed), its slot is free from here on.
        exchange.cancel.remote(job["id"])


def check_effective(job: Mapping[str, Any], effective: Mapping[str, Any]) -> None:
    """Compare what the worker used with what it was given.

    Raises:
        SettingsIgnored: they differ; the message names every setting with both values.
    """
    settings = job["settings"]
    unused = NOT_USED.get(settings["strategy"], ())
    used = {name: effective[name] for name in CHECKED if name in effective and name not in unused}
    used["learning_rate"] = effective["learning_rates"].get("head")
    used["batch_size"], used["image_size"] = effective["batch_size"], effective["image_size"]
    used["data_fingerprint"] = effective["data_fingerprint"]
    given = {name: settings.get(name) for name in used}
    given["data_fingerprint"] = job["data_fingerprint"]
    given |= {name: settings["data"][name] for name in ("batch_size", "image_size")}
    if settings["frozen_layers"] >= 0:  # ALL is -1
        used["frozen_layers"], given["frozen_layers"] = effective["frozen_blocks"], settings["frozen_layers"]
    differ = [name for name in used if not _same(given[name], used[name])]
    if differ:
        raise SettingsIgnored(
            "trial: the worker must train with the suggested settings, got "
            + ", ".join(f"{name} {used[name]!r} instead of {given[name]!r}" for name in sorted(differ))
            + ". Do the workers run another version of the code?"
        )


def _same(given: Any, used: Any) -> bool:
    if isinstance(given, float) or isinstance(used, float):
        return isinstance(used, int | float) and math.isclose(given, used, rel_tol=1e-6, abs_tol=1e-12)
    return bool(given == used)
