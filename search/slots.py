"""Slots: warm worker groups, each one long-lived `TorchTrainer` run that takes trial after trial.

The documented pattern starts a Train run per trial and pays seconds to tens of seconds for it; a
slot pays once. `once` gives that pattern back: fresh processes for every trial.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from search.errors import CapacityError, SlotsLost, StudyError
from search.exchange import Exchange

START_SECONDS = 180.0
"""For the first slot to be up: imports of torch on a loaded machine take tens of seconds."""
CLOSE_SECONDS = 15.0

TRAIN_ENVIRONMENT = {
    # Train looks at its workers every 2 s by default: a dead one is noticed within this instead.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per run, for nothing we use
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
}


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How many worker groups of which shape."""

    slots: int
    workers: int
    """Per slot."""
    cpus: int
    """Per worker."""
    gpu: bool
    """One GPU per worker."""
    once: bool = False
    """Fresh processes for every trial."""


def plan(
    resources: dict[str, float],
    *,
    slots: int | str,
    workers: int,
    cpus: int,
    gpu: bool | str,
    trials: int,
    once: bool = False,
) -> SlotPlan:
    """Return the slots that fit on `resources` (Ray's names: CPU, GPU), at most one per trial.

    Raises:
        CapacityError: not one slot fits, or fewer than were asked for.
    """
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus > 0 if gpu == "auto" else bool(gpu)
    fit = int(resources.get("CPU", 0)) // (workers * cpus)
    if use_gpu:
        fit = min(fit, gpus // workers)
    wanted = min(fit, trials) if slots == "auto" else int(slots)
    if wanted < 1 or wanted > fit:
        kind = f"{workers} worker(s) of {cpus} CPU(s)" + (" and one GPU each" if use_gpu else "")
        raise CapacityError(
            f"resources: {max(wanted, 1)} slot(s) of {kind} must fit, got room for {fit} "
            f"({resources.get('CPU', 0):g} CPUs, {gpus} GPUs). Lower slots, workers_per_trial or "
            "cpus_per_worker, or set gpu: false."
        )
    return SlotPlan(slots=wanted, workers=workers, cpus=cpus, gpu=use_gpu, once=once)


class Slots:
    """The slots of one study, from start to close; `exchange` is where trials find them."""

    def __init__(
        self, plan: SlotPlan, folder: Path, backbones: Sequence[str], image_sizes: Sequence[int] = ()
    ) -> None:
        self.plan = plan
        self.exchange = ray.remote(Exchange).options(num_cpus=0, max_concurrency=10_000).remote()
        keeper = ray.remote(Keeper).options(
            num_cpus=0, max_concurrency=plan.slots, runtime_env={"env_vars": TRAIN_ENVIRONMENT}
        )
        models = {"backbones": tuple(backbones), "image_sizes": tuple(image_sizes)}
        self._keeper = keeper.remote(self.exchange, plan, str(folder), models, serve)
        self._runs = [self._keeper.run.remote(f"slot-{i}") for i in range(plan.slots)]

    def wait(self, count: int = 1) -> dict[str, Any]:
        """Return facts by slot once `count` slots are up.

        Raises:
            SlotsLost: no slot came up; the message carries the reason.
            StudyError: a backbone of the study does not exist or cannot read its images.
        """
        try:
            status = ray.get(self.exchange.wait_for_slots.remote(count, START_SECONDS))
        except RayError as error:
            raise SlotsLost(f"slots: the exchange must answer, got {error}. See Ray's logs.") from error
        if not status["ready"]:
            reason = "; ".join(f"{name}: {why}" for name, why in status["given_up"].items())
            raise SlotsLost(
                f"slots: one must start within {START_SECONDS:.0f} s, got none"
                f"{f' ({reason})' if reason else ''}. See the worker logs in Ray's session folder."
            )
        facts: dict[str, Any] = status["ready"]
        for slot in facts.values():
            if slot["problem"]:
                raise StudyError(slot["problem"])
        return facts

    def close(self) -> None:
        """End every slot; processes that do not end by themselves are killed."""
        try:
            ray.get(self.exchange.close.remote(), timeout=CLOSE_SECONDS)
            ray.get(self._runs, timeout=CLOSE_SECONDS)
        except (GetTimeoutError, RayError):
            pass  # they are killed below: their workers belong to the keeper and go with it
        for actor in (self._keeper, self.exchange):
            ray.kill(actor)


class Keeper:
    """An actor that holds the Train runs, one thread each, so that the driver need not import torch."""

    def __init__(
        self,
        exchange: Any,
        plan: SlotPlan,
        folder: str,
        models: dict[str, Any],
        serve: Callable[[dict[str, Any]], None],
    ) -> None:
        self._exchange, self._plan, self._folder = exchange, plan, folder
        self._models, self._serve = models, serve

    def run(self, name: str) -> None:
        """Keep one slot up until the exchange closes it."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        plan = self._plan
        run = 0
        while not ray.get(self._exchange.is_closed.remote()):
            run += 1
            _trainer()(
                self._serve,
                train_loop_config={
                    "exchange": self._exchange,
                    "slot": name,
                    **self._models,
                    "threads": plan.cpus,
                    "once": plan.once,
                },
                scaling_config=ScalingConfig(
                    num_workers=plan.workers,
                    use_gpu=plan.gpu,
                    resources_per_worker={"CPU": plan.cpus} | ({"GPU": 1} if plan.gpu else {}),
                ),
                run_config=RunConfig(
                    name=f"{name}-{run}-{time.time_ns()}",
                    storage_path=self._folder,
                    failure_config=FailureConfig(max_failures=-1),
                    callbacks=[_obituary(self._exchange, name)],
                ),
            ).fit()


def _trainer() -> Any:
    """Return `TorchTrainer` without two helper processes per run that a slot has no use for.

    One deals out Ray datasets; the other frees placement groups of Tune trials that were stopped
    under their Train run, and a slot outlives its trials.
    """
    from ray.train.torch import TorchTrainer

    class SlotTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            spared = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in spared]

    return SlotTrainer


def serve(config: dict[str, Any]) -> None:
    """Serve trials in a worker; imported there, so that keeper and controllers start without it."""
    from finetune.worker import slot_loop

    slot_loop(config)


def _obituary(exchange: Any, name: str) -> Any:
    """Return a Train callback that tells the exchange when and why a slot's workers died."""
    from ray.train import UserCallback

    class Obituary(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            rank, error = min(worker_exceptions.items())
            exchange.bury.remote(name, f"worker {rank}: {_first_words(error)}")

    return Obituary()


def _first_words(error: Exception) -> str:
    """Return the one line of a Ray error that says what happened, without its general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "SYSTEM_ERROR" in line or "OOM" in line or "Error:" in line]
    return (telling or lines or [type(error).__name__])[-1].partition(" Some common causes include")[0]
