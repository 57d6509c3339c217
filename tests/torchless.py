"""A worker of a slot that trains nothing and imports no torch, for tests of everything around the training.

`python -m tests.torchless run ...` is the command line with such workers.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.cloudpickle

from finetune.messages import Effective, End, EndState, Epoch, Job, Message, Report, Started, TrainJob
from search.driver.effective import CHECKED, CHECKED_OF_DATA
from search.slots import slots

NOT_IMPORTED = "not imported"
BLOCKS = 18
"""Of every backbone."""
Train = Callable[[Any, Report], EndState | None]
"""Trains a job: reports what was effective and every epoch; an exception fails the trial. Returns how it
ended; None: complete."""


def serve(config: dict[str, Any], train: Train, export: Train) -> None:
    """Serve jobs like `finetune.worker.slot_loop`, for a slot of one worker."""
    exchange, slot = config["exchange"], config["slot"]
    generation = ray.get(exchange.register.remote(slot, facts(config)))
    serial = 0
    while job := ray.get(exchange.take.remote(slot, generation, 0, serial)):
        serial += 1
        number = job.first_message

        def report(message: Message, job: Job = job) -> None:
            nonlocal number
            ray.get(exchange.report.remote(job.id, number, message))
            number += 1

        report.exchange = exchange  # type: ignore[attr-defined]  # for `go_on`
        report(Started())
        try:
            do = train if isinstance(job, TrainJob) else export
            end = End(do(job, report) or "complete")
        except Exception as error:
            end = End("failed", error=str(error), trace=f"{type(error).__name__}: {error}")
        report(end)
        if config["once"]:
            return


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a worker says of itself."""
    return {
        "blocks": dict.fromkeys(config.get("backbones", ()), BLOCKS),
        "problem": "",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "node": ray.get_runtime_context().get_node_id(),
        "workers": 1,
        "device": "none",
        "finetune": "",
        "versions": {"torch": "imported" if "torch" in sys.modules else NOT_IMPORTED},
    }


def train(job: TrainJob, report: Report, seconds: float = 0.0) -> None:
    """Report what was asked for as effective, then epochs of so many seconds with the same scores."""
    report(effective(job))
    for epoch in range(1, job.settings.epochs + 1):
        time.sleep(seconds)
        report(told(epoch))
    for which in ("best", "last"):
        path = getattr(job.keep, which)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")


def effective(job: TrainJob, **changes: Any) -> Effective:
    """Return the message of a worker that does as it is told."""
    settings = job.settings
    used = {name: getattr(settings, name) for name in (*CHECKED, "epochs")}
    used |= {name: getattr(settings.data, name) for name in CHECKED_OF_DATA}
    frozen = settings.frozen_layers
    used |= {"frozen_blocks": BLOCKS if frozen < 0 else frozen, "blocks": BLOCKS}
    used |= {"learning_rates": {"head": settings.learning_rate}}
    return Effective({"data_fingerprint": job.data_fingerprint} | used | changes)


def told(epoch: int) -> Epoch:
    """Return the message of an epoch."""
    scores = {"val/accuracy": 0.5, "val/loss": 1.0, "train/loss": 1.0, "learning_rate": 0.1}
    return Epoch({"epoch": epoch, "seconds": 0.0, "images_per_second": 1.0} | scores)


def export(job: Job, report: Report) -> None:
    """Write no model."""


def go_on(job: TrainJob, report: Report, begin: Callable[[int], None]) -> EndState | None:
    """Train like a real worker: save each epoch, go on from what was saved, and leave when told to.

    Args:
        job: the job.
        report: gets the epochs.
        begin: called with the number of each epoch when it begins.
    """
    saved = job.keep.last
    order = report.exchange.until_stopped.remote(job.id, moving=False)  # type: ignore[attr-defined]
    for epoch in range(1 + int(saved.read_text() if saved.exists() else 0), 1 + job.settings.epochs):
        begin(epoch)
        report(told(epoch))
        part = saved.with_suffix(".part")
        part.write_text(str(epoch))
        part.replace(saved)
        if ray.wait([order], timeout=0)[0]:
            return "moved" if ray.get(order) == "move" else "stopped"
    return None


def worker(train: Train = train, export: Train = export) -> Callable[[dict[str, Any]], None]:
    """Return what to put in the place of `search.slots.slots.serve`."""
    for module in {__name__, train.__module__, export.__module__}:
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    return lambda config: serve(config, train, export)


if __name__ == "__main__":
    from search.__main__ import main

    seconds = float(os.environ.get("TORCHLESS_EPOCH_SECONDS", "0"))
    slots.serve = worker(lambda job, report: train(job, report, seconds))
    sys.exit(main())
