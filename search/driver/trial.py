"""One trial as Tune sees it: a light process that reads a slot's messages and reports them to Tune.

It imports neither torch nor torchvision, so its process starts quickly, and with `reuse_actors=True` one
process serves many trials.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.tune import Trainable
from ray.tune.result import DONE, RESULT_DUPLICATE

from finetune.messages import Effective, End, Epoch, Message, Note, Started
from search.record.records import RECALL, RECALLS_OF_AN_EPOCH


class SlotTrial(Trainable):
    """Report each epoch of a trial, which a slot trains, to Tune; then do so for the next trial.

    This is a class since for a function Tune needs two threads, a queue and one more call per trial. The
    driver's callback (callback.py) frees the slot at the end, since this process may be killed, and is idle
    while Tune decides. `config` holds `id`, the trial's id in the record, by which the slots know its job.
    """

    exchange: Any = None
    """Actor that gives trials to slots; set in a subclass (tuner.py)."""
    metric: str = ""
    """The study's metric; set in the same subclass."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial, which a slot may have begun already; ask the exchange for nothing yet.

        Tune may still drop this process and set the trial up in another one, and the answer would be lost.
        """
        self._id = str(config["id"])
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

        The result of a failed trial holds `failed`, the worker's reason, and `trace`. Failures are results,
        not exceptions: after an exception Tune would drop this process, and with it the epochs that arrived
        together with the end.
        """
        while True:
            while not self._heard:
                self._ask()
            result = self._hear(self._heard.popleft())
            if result is not None:
                return result

    def _ask(self) -> None:
        """Wait for the next messages, and ask for those after them in advance."""
        heard = ray.get(self._answer or self._next())
        self._heard.extend(heard)
        self._count += len(heard)
        self._answer = None if self._has_ended else self._next()

    def _next(self) -> Any:
        return self.exchange.receive.remote(self._id, self._count)

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
                self._facts["effective"] = json.dumps(used)
            case Epoch(metrics):
                facts, self._facts = self._facts, {}  # the callback needs them once per slot
                return compact(metrics, self.metric) | facts
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
