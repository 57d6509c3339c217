"""One worker of a slot: it trains one trial after another. This is the only file here that imports Ray.

A slot is one long-lived Ray Train run, and `slot_loop` is its training function. The worker takes trials
from the exchange actor (search/slots/exchange.py) and sends all messages of a trial back to it.
"""

import math
import os
import platform
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torchvision
from ray.train.collective import broadcast_from_rank_zero

import finetune
from finetune import model_folder, steps
from finetune.disk import file_cache
from finetune.disk.atomic import settle
from finetune.errors import FinetuneError, NonFiniteLoss
from finetune.messages import End, ExportJob, Job, Message, Report, Started, TrainJob
from finetune.steps import Step
from finetune.training import loop
from finetune.training.workers import World

STOP_POLL_SECONDS = 0.02
"""Least time between two checks whether the trial was stopped, so that a check per batch costs nothing."""
TOGETHER_SECONDS = 0.005
"""Messages within this time of the last call wait for the next call, so that short epochs share one call."""
BEAT_SECONDS = 5.0
"""Least time between two signs that a trial makes progress, which its worker gives between batches."""
PATIENT_SECONDS = 0.2
"""The same for a trial that early stopping cannot end, so that nobody needs its messages at once."""


def slot_loop(config: dict[str, Any]) -> None:
    """Train trials until the exchange closes the slot.

    Args:
        config: `exchange` (actor handle), `slot` (its name), `threads` per worker, `copies_bytes` (limit for
            local copies of remote files on this node), and `once` (end after one trial, so that the next
            one gets fresh processes).

    Raises:
        RuntimeError: Ray assigned a GPU that torch cannot use; training on the CPU would go unnoticed.
    """
    exchange, slot = config["exchange"], config["slot"]
    if problem := gpu_problem():
        raise RuntimeError(problem)
    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    file_cache.limit(config["copies_bytes"])
    world = World(context.get_world_rank(), context.get_world_size(), _device())
    # Registering returns a generation number. If this slot's workers are replaced, the exchange can tell the
    # calls of the old workers from those of the new ones. Only rank 0 registers; the others share its number.
    generation = ray.get(exchange.register.remote(slot, _facts(world))) if world.rank == 0 else None
    if world.size > 1:
        generation = broadcast_from_rank_zero(generation)
    # Every worker asks for the same job by the same serial number, so all of them train the same trial.
    serial = 0
    while job := ray.get(exchange.take.remote(slot, generation, world.rank, serial)):
        serial += 1
        said = _serve(job, slot, exchange, world)
        if config["once"]:
            said.wait()  # this process ends, and messages still on their way would be lost
            return


def _serve(job: Job, slot: str, exchange: Any, world: World) -> "_Outbox":
    """Run one job and report its end to the exchange.

    An error after which this process cannot train further trials is raised, and ends the slot.
    """
    leads = world.rank == 0
    spared = isinstance(job, TrainJob) and not job.may_be_stopped
    outbox = _Outbox(exchange, job.id, job.first_message, PATIENT_SECONDS if spared else TOGETHER_SECONDS)

    def tell(message: Message) -> None:
        if leads:
            outbox.put(message)

    # All workers train, but only rank 0 reports, else each message would arrive once per worker.
    begin = time.perf_counter()
    tell(Started())
    outbox.wait()  # else a trial that kills its worker at once would look as if it had not begun

    def show(step: Step) -> None:
        if leads:
            exchange.show.remote(slot, job.id, step)  # nobody waits: the next one replaces a lost one

    try:
        with steps.listening(show):
            end = _do(job, exchange, world, tell)
    except Exception as error:
        if not _survives(error, world):
            raise
        end = End("failed", error=_one_line(error), trace=traceback.format_exc())
    tell(replace(end, seconds=time.perf_counter() - begin))
    outbox.send()
    return outbox


class _Outbox:
    """Messages of the rank-0 worker about its job, sent to the exchange in batches.

    The calls are not awaited, and calls to an asynchronous actor may overtake one another. So messages are
    numbered, and the exchange puts them in order.
    """

    def __init__(self, exchange: Any, job_id: str, first: int, together: float) -> None:
        self._exchange, self._job_id, self._together = exchange, job_id, together
        self._messages: list[Message] = []
        self._number = first
        self._sent = -math.inf
        self._call: Any = None

    def put(self, message: Message) -> None:
        """Queue a message; send the queue unless the last call was less than `together` seconds ago."""
        self._messages.append(message)
        if time.monotonic() - self._sent >= self._together:
            self.send()

    def send(self) -> None:
        """Send all queued messages."""
        if self._messages:
            self._call = self._exchange.report_all.remote(self._job_id, self._number, self._messages)
            self._number += len(self._messages)
            self._messages, self._sent = [], time.monotonic()

    def wait(self) -> None:
        """Wait until the last call has arrived."""
        if self._call is not None:
            ray.get(self._call)


def _do(job: Job, exchange: Any, world: World, tell: Report) -> End:
    match job:
        case TrainJob():
            return _train(job, exchange, world, tell)
        case ExportJob():
            return _export(job, world)
        case _:
            raise TypeError(f"a worker has no use for {job}")


def _train(job: TrainJob, exchange: Any, world: World, tell: Report) -> End:
    orders = _Orders(exchange, job.id) if world.rank == 0 else None
    outcome = loop.train(
        job.settings,
        keep=job.keep,
        report=tell,
        world=world,
        should_stop=orders.stopped if orders else lambda: False,
        should_move=orders.moving if orders else lambda: False,
        features=job.features,
        latencies=job.latencies,
    )
    if world.rank == 0:  # before the end is told: the record may then say that the trial has a model
        settle(job.keep.best)
        settle(job.keep.last)
    if outcome.state == "complete" and job.answers is not None:
        model_folder.measure(job.keep.best, job.answers, world=world, features=job.features)
        world.agree(True)  # a barrier: no worker takes the next job before all have finished this one
    return End(outcome.state)


def _export(job: ExportJob, world: World) -> End:
    model_folder.write(
        job.checkpoint,
        job.to,
        job.provenance,
        world=world,
        features=job.features,
        now=job.settings,
        answers=job.answers,
        refit=job.refit,
    )
    world.agree(True)  # a barrier: no worker takes the next job before all have finished this one
    return End("complete")


class _Orders:
    """Requests of the exchange to stop or move the running trial.

    Asking is cheap: one call stays open at the exchange and returns when there is a request, so a check only
    looks whether it has returned.
    """

    def __init__(self, exchange: Any, job_id: str) -> None:
        self._exchange, self._job_id = exchange, job_id
        self._answer: Any = None  # the open call; a very short trial makes none
        self._looked = self._beaten = time.monotonic()
        self._stopped = self._moving = False

    def stopped(self) -> bool:
        """Return True once the trial is to end between two batches."""
        self._look()
        return self._stopped

    def moving(self) -> bool:
        """Return True once the trial is to leave this slot between two epochs, since its node will go."""
        self._look()
        return self._moving

    def _look(self) -> None:
        if self._stopped or time.monotonic() - self._looked < STOP_POLL_SECONDS:
            return
        self._looked = time.monotonic()
        if self._looked - self._beaten >= BEAT_SECONDS:
            self._beaten = self._looked
            self._exchange.beat.remote(self._job_id)
        if self._answer is None:
            self._answer = self._exchange.until_stopped.remote(self._job_id, moving=self._moving)
        if ray.wait([self._answer], timeout=0)[0]:
            told, self._answer = ray.get(self._answer), None
            self._stopped, self._moving = told == "stop", told == "move"


def _survives(error: Exception, world: World) -> bool:
    """Return True if this process, and the workers that train with it, can take another trial after `error`.

    A non-finite loss is seen by all workers at the same step. Any other error of one worker leaves the others
    waiting for it, and an error on a GPU may have corrupted its context; then the slot must be restarted.
    """
    if isinstance(error, NonFiniteLoss):
        return True
    if world.size > 1:
        return False
    if world.device.type == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def _one_line(error: Exception) -> str:
    """Return the first line of the error's message, with the type for errors that are not our own."""
    text = str(error).strip().splitlines() or [""]
    return text[0] if isinstance(error, FinetuneError) else f"{type(error).__name__}: {text[0]}"


def gpu_problem() -> str:
    """Return a message if Ray assigned this worker a GPU, or part of one, that torch cannot use; else ''."""
    if not _given_gpus() or torch.cuda.is_available():
        return ""
    return (
        f"node {socket.gethostname()}: torch must see the GPU that Ray gives a worker, got none. "
        "Check its driver with nvidia-smi and that torch is built for CUDA, or set resources.gpu: false."
    )


def _device() -> torch.device:
    if _given_gpus() and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _given_gpus() -> list[str]:
    given: list[str] = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return given


def _facts(world: World) -> dict[str, Any]:
    """Return the facts about this slot for the record: host, process, device, code and versions."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "node": ray.get_runtime_context().get_node_id(),
        "workers": world.size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor(),
        "finetune": str(Path(finetune.__file__).parent),
        "versions": {
            "python": platform.python_version(),
            "ray": ray.__version__,
            "torch": str(torch.__version__),  # torch's own class can be unpickled only where torch is
            "torchvision": torchvision.__version__,
        },
    }
