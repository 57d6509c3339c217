"""The command line with workers that train a made-up function: `python -m tests.chaos.program run ...`.

Such a worker does all that a real one does with files and messages: it saves a checkpoint after each epoch,
goes on from it with the history that it holds, keeps the best weights, and leaves when it is told to. Each
epoch that it trains becomes a line of `trained.log` beside the results.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from finetune.disk.atomic import replacing
from finetune.messages import EndState, Epoch, ExportJob, Job, Report, TrainJob
from search.record import ledger
from search.slots import slots
from tests import torchless

EPOCH_SECONDS = float(os.environ.get("CHAOS_EPOCH_SECONDS", "0.15"))
WRITE_SECONDS = float(os.environ.get("CHAOS_WRITE_SECONDS", "0"))
"""Seconds by which each round of writing the record is late, as on a slow disk."""


def score(params: dict[str, Any], epoch: int) -> float:
    """Return the made-up score of some parameters after an epoch, from 0 to 1."""
    text = json.dumps(params, sort_keys=True) + str(epoch)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def told(params: dict[str, Any], epoch: int) -> Epoch:
    scores = {"val/accuracy": score(params, epoch), "val/loss": 1.0, "train/loss": 1.0, "learning_rate": 0.1}
    return Epoch({"epoch": epoch, "seconds": 0.0, "images_per_second": 1.0} | scores)


def write(path: Path, facts: dict[str, Any]) -> None:
    """Write a file whole or not at all, by the product's own function."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(facts))


def read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; a missing or damaged one sends its trial to its start."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        return facts if facts["whole"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def train(job: TrainJob, report: Report) -> EndState | None:
    """Train a job from its last checkpoint on."""
    log = job.keep.last.parents[3] / "trained.log"
    report(torchless.effective(job))
    order = report.exchange.until_stopped.remote(job.id, moving=False)  # type: ignore[attr-defined]
    done = read(job.keep.last).get("epoch", 0)
    for epoch in range(1, done + 1):
        report(told(job.params, epoch))
    best = max((score(job.params, epoch), -epoch) for epoch in range(1, done + 1)) if done else (-1.0, 0)
    for epoch in range(done + 1, job.settings.epochs + 1):
        time.sleep(EPOCH_SECONDS)
        with log.open("a") as file:
            file.write(f"{job.id} {epoch} {os.getpid()} {time.time():.3f}\n")
        now = (score(job.params, epoch), -epoch)
        if now > best:
            best = now
            write(job.keep.best, {"whole": True, "epoch": epoch, "params": job.params})
        write(job.keep.last, {"whole": True, "epoch": epoch, "params": job.params})
        report(told(job.params, epoch))
        if ray.wait([order], timeout=0)[0]:
            return "moved" if ray.get(order) == "move" else "stopped"
    return None


def export(job: Job, report: Report) -> None:
    """Write a model folder that counts as whole, of the best weights."""
    assert isinstance(job, ExportJob)
    weights = job.checkpoint.read_bytes()
    job.to.mkdir(parents=True, exist_ok=True)
    (job.to / "model.safetensors").write_bytes(weights)
    provenance = {"trial": job.provenance["trial"], "model_sha256": hashlib.sha256(weights).hexdigest()}
    (job.to / "model.yaml").write_text(json.dumps({"provenance": provenance}))
    (job.to / "README.md").write_text("a model\n")


def late(write: Callable[..., None]) -> Callable[..., None]:
    """Return a function that writes the record as late as WRITE_SECONDS says."""

    def later(*given: Any) -> None:
        time.sleep(WRITE_SECONDS)
        write(*given)

    return later


if __name__ == "__main__":
    from search.__main__ import main
    from tests.chaos import program

    ledger.Ledger._write = late(ledger.Ledger._write)  # type: ignore[method-assign]
    slots.serve = torchless.worker(program.train, program.export)
    sys.exit(main())
