"""One trial as Tune sees it: a light process that reads a slot's messages and reports them to Tune.

It imports neither torch nor torchvision, so its process starts quickly, and with `reuse_actors=True` one
process serves many trials.
"""

import json
import math
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.tune import Trainable
from ray.tune.result import DONE, RESULT_DUPLICATE

from finetune.messages import Effective, End, Epoch, Message, Note, Started
from search.errors import SettingsIgnored
from search.record.records import RECALL, RECALLS_OF_AN_EPOCH

CHECKED = (
    *("strategy", "head_size", "dropout", "backbone", "optimizer", "momentum", "weight_decay"),
    *("schedule", "warmup_epochs", "label_smoothing", "imbalance", "focal_gamma", "class_balanced_beta"),
    *("logit_adjustment_tau", "unfreeze_epochs", "l2_sp", "ema_decay", "clip_norm", "accumulate"),
    *("mix", "mix_alpha"),
)
CHECKED_OF_DATA = ("batch_size", "image_size", "crop_scale", "horizontal_flip", "augment")
"""Settings, and settings below `data`, that the worker reads back from what it built, by the same names."""
SHOWN = 5
"""Number of settings that an error names; of the others it gives the number."""


class SlotTrial(Trainable):
    """Report each epoch of a trial, which a slot trains, to Tune; then do so for the next trial.

    This is a class since for a function Tune needs two threads, a queue and one more call per trial. The
    driver's callback (callback.py) frees the slot at the end, since this process may be killed, and is idle
    while Tune decides. `config` holds `job`, the slot's job, as JSON.
    """

    exchange: Any = None
    """Actor that gives trials to slots; set in a subclass (tuner.py)."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial's job, which a slot may have begun already; ask the exchange for nothing yet.

        Tune may still drop this process and set the trial up in another one, and the answer would be lost.
        """
        self._job = json.loads(config["job"])
        self._heard: deque[Message] = deque()
        self._facts: dict[str, Any] = {}
        self._count = 0
        """Number of messages received; a process that replaces a dead one begins at 0 and gets all again."""
        self._answer: Any = None
        """Reference to the exchange's next answer, if it has been asked for."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; Tune calls this instead of starting another process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next epoch, or the trial's end, and return it as a result for Tune.

        The result of a failed trial holds `failed`, the worker's reason, and `trace`; also `ignored` if the
        worker used other settings than the job's. Failures are results, not exceptions: after an exception
        Tune would drop this process, and with it the epochs that arrived together with the end.
        """
        try:
            while True:
                while not self._heard:
                    self._ask()
                result = self._hear(self._heard.popleft())
                if result is not None:
                    return result
        except SettingsIgnored as error:
            return {DONE: True, "failed": str(error), "trace": traceback.format_exc(), "ignored": True}

    def _ask(self) -> None:
        """Wait for the next messages, and ask for those after them in advance."""
        self._answer = self._answer or self.exchange.run.remote(self._job)
        heard = ray.get(self._answer)
        self._heard.extend(heard)
        self._count += len(heard)
        over = self._has_ended
        self._answer = None if over else self.exchange.receive.remote(self._job["id"], self._count)

    def train_buffered(self, *_: Any) -> list[dict[str, Any]]:
        """Return the next epoch and all further ones that have arrived, without waiting for more."""
        results = [self.train()]
        while self._heard and RESULT_DUPLICATE not in results[-1]:
            results.append(self.train())
        return results

    def log_result(self, result: dict[str, Any]) -> None:
        """Remove the trial's config from a result, which Tune would transfer and keep for each epoch."""
        result.pop("config", None)

    @property
    def _has_ended(self) -> bool:
        return bool(self._heard) and isinstance(self._heard[-1], End)

    def _hear(self, message: Message) -> dict[str, Any] | None:
        """Return a message as a result for Tune; None if it holds only facts, which join the next epoch."""
        match message:
            case Started():
                self._facts = {"slot": message.slot, "retries": message.retries}
            case Note(text):
                self._facts["note"] = text
            case Effective(used):
                check_effective(self._job, used)
                self._facts["effective"] = json.dumps(used)
            case Epoch(metrics):
                facts, self._facts = self._facts, {}  # the callback needs them once per slot
                return compact(metrics, self._job["keep"]["metric"]) | facts
            case End("failed"):
                retries = self._facts.get("retries") if message.retries is None else message.retries
                told = {} if retries is None else {"retries": retries}
                return told | {DONE: True, "failed": message.error, "trace": message.trace}
            case End():
                return {RESULT_DUPLICATE: True}
        return None


def compact(epoch: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return an epoch's metrics, with the recalls of many classes replaced by one text, `recalls`.

    Tune, TensorBoard and the record handle each metric of each epoch; with 1,000 classes that would be 1,000
    values. The text is a JSON object, name of the metric -> recall. The study's own `metric` always stays.
    """
    recalls = {name: value for name, value in epoch.items() if name.startswith(RECALL)}
    if len(recalls) <= RECALLS_OF_AN_EPOCH:
        return dict(epoch)
    rest = {name: value for name, value in epoch.items() if name not in recalls or name == metric}
    return rest | {"recalls": json.dumps(recalls)}


def check_effective(job: Mapping[str, Any], effective: Mapping[str, Any]) -> None:
    """Check that the worker trains with the settings of its job, learning rates included.

    Raises:
        SettingsIgnored: they differ; the message names the first settings that do, with both values.
    """
    settings = job["settings"]
    # `given` holds what the job says, `used` what the worker reports, by the same names.
    given = {name: settings[name] for name in CHECKED if name in job["params"]}
    given |= {name: settings["data"][name] for name in CHECKED_OF_DATA if name in job["params"]}
    used = {name: effective.get(name) for name in given}
    given |= {"data_fingerprint": job["data_fingerprint"], "epochs": settings["epochs"]}
    used |= {name: effective.get(name) for name in ("data_fingerprint", "epochs")}
    every = effective.get("blocks")
    # -1 (`finetune.settings.ALL`) stands for all blocks.
    given["frozen_layers"] = every if settings["frozen_layers"] < 0 else settings["frozen_layers"]
    used["frozen_layers"] = effective.get("frozen_blocks")
    # A worker may lower a rate at which the loss diverges (finetune/training/limits.py), but never raise it.
    limit = effective.get("learning_rate_limit", settings["learning_rate"])
    peak = min(limit, settings["learning_rate"])
    given |= _rates(settings | {"learning_rate": peak}, effective["learning_rates"])
    used |= {_rate_of(group): rate for group, rate in effective["learning_rates"].items()}
    differ = sorted(name for name in used if not _same(given[name], used[name]))
    if differ:
        told = [f"{name} {used[name]!r} instead of {given[name]!r}" for name in differ[:SHOWN]]
        more = [f"{len(differ) - SHOWN} more"] * (len(differ) > SHOWN)  # there is a rate for each block
        raise SettingsIgnored(
            f"trial: the worker must train with the suggested settings, got {', '.join(told + more)}. "
            "Do the workers run another version of the code?"
        )


def _rates(settings: Mapping[str, Any], groups: Iterable[str]) -> dict[str, float]:
    """Return the peak learning rate that each parameter group should have; block groups come in block order.

    A block's rate is learning_rate * backbone_rate * layer_decay ** distance, with distance 1 for the last.
    """
    blocks = [group for group in groups if group.startswith("blocks.")]
    share = {
        group: settings["backbone_rate"] * settings["layer_decay"] ** distance
        for distance, group in enumerate(reversed(blocks), 1)
    }
    return {_rate_of(group): settings["learning_rate"] * share.get(group, 1.0) for group in groups}


def _rate_of(group: str) -> str:
    return "learning_rate" if group == "head" else f"learning_rate of {group}"


def _same(given: Any, used: Any) -> bool:
    """True if two values are equal, or as near as floats are after a calculation in another order."""
    if isinstance(given, float) or isinstance(used, float):
        return isinstance(used, int | float) and math.isclose(given, used, rel_tol=1e-6, abs_tol=1e-12)
    return bool(given == used)
