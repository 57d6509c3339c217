"""One slot's Train run: which nodes it may use, how its workers meet, and what is said when they die."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from search.slots import nodes

LOOK_SECONDS = 0.5
DEAD_SECONDS = 5.0
"""For a controller that was killed to be gone."""
NODE_LABEL = "ray.io/node-id"
"""Ray's own label of every node."""
NODE_DIED = ("its node has died",)
UNAVAILABLE = "is unavailable"
"""In the words of Ray's own errors."""
PEER_LOST = ("gloo", "NCCL")
"""Words of errors by which workers lose one another."""


def run(
    serve: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    plan: Any,
    folder: str,
    nodes: Sequence[str],
    restarts: bool,
    over: threading.Event,
) -> None:
    """Run one slot until its workers' loop ends.

    Args:
        serve: what each worker runs, with `config`.
        config: has `exchange` and `slot`, the slot's name.
        plan: shape of the slot.
        folder: for what Train writes.
        nodes: ids of those that its workers may be on.
        restarts: start the workers again when they die; else that is raised.
        over: set when the study has ended and waits for nothing any more: whatever still runs is killed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    exchange, name = config["exchange"], config["slot"]
    again = -1 if restarts else 0
    _trainer(plan.workers, over)(
        serve,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.gpu,
            resources_per_worker=plan.bundle,
            label_selector={NODE_LABEL: f"in({','.join(nodes)})"},
        ),
        run_config=RunConfig(
            name=f"{name}-{time.time_ns()}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=again, controller_failure_limit=again),
            callbacks=[_witness(exchange, name)],
        ),
    ).fit()


def has_waited(error: Exception) -> bool:
    """True if a run has waited in vain for room, which is no failure: another study may have taken it."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def failures(error: Exception) -> list[Exception]:
    """Return what the workers ended with that ended a run; if it was not they, the run's own error."""
    by_rank: dict[int, Exception] = getattr(error, "worker_failures", {})
    return [by_rank[rank] for rank in sorted(by_rank)] or [error]


def first_words(error: BaseException) -> str:
    """Return the one line of a Ray error that says what happened, without its general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "SYSTEM_ERROR" in line or "OOM" in line or "Error:" in line]
    return (telling or lines or [type(error).__name__])[-1].partition(" Some common causes include")[0]


def how_lost(*errors: Exception, away: bool = False) -> dict[str, bool]:
    """Return `lost`, workers died with their node; `parted`, they lost one another, for whatever reason.

    And `raised`: the trial itself has raised an exception that spoilt its worker.

    Of a worker that dies alone Ray knows why within a second. One that is only `unavailable` by then, and
    `away` from the head, has a node that is silent, too.
    """
    texts = [str(error) for error in errors]
    died = NODE_DIED if not away else (*NODE_DIED, UNAVAILABLE)
    return {
        "lost": any(getattr(error, "preempted", False) for error in errors)
        or any(word in text for text in texts for word in died),
        "parted": any(word in text for text in texts for word in PEER_LOST),
        "raised": any(is_own(error) for error in errors),
    }


def is_own(error: Exception) -> bool:
    """True for an exception of the trial itself: not one of Ray's, nor by which workers lose one another."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError
    from ray.train.v2.api.exceptions import TrainingFailedError

    theirs = isinstance(error, RayError | RayTrainError | TrainingFailedError)
    return not theirs and not any(word in str(error) for word in PEER_LOST)


def _trainer(workers: int, over: threading.Event) -> Any:
    """Return the trainer of a slot: `TorchTrainer`, or what it is built on where a worker is alone.

    One worker has nobody to meet, so neither keeper nor controllers import torch for it: on few cores that is
    a good part of what the start of a slot costs.

    Left out are helper processes that a slot has no use for. One deals out Ray datasets, another frees what a
    controller leaves that has died: `_control` does that. A third speaks to the autoscaler (`_silent`).
    """
    if workers == 1:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as Base

        backend = {}
    else:
        from ray.train.torch import TorchTrainer as Base

        from search.slots.network import SlotTorchConfig

        backend = {"torch_config": SlotTorchConfig()}

    class SlotTrainer(Base):
        def _create_default_callbacks(self) -> list[Any]:
            spared = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in spared]

        def _initialize_and_run_controller(self, **how: Any) -> Any:
            return _control(how | {"scaling_policy": _silent(self.scaling_config)}, over)

    return partial(SlotTrainer, **backend)


def _silent(scaling: Any) -> Any:
    """Return Train's policy for a fixed number of workers, less its own requests to the autoscaler.

    The keeper asks for nodes. What Train asks for is kept up while the run lasts: the autoscaler of Ray 2.60
    may take an idle node for it and never end that node, although the workers are on another.
    """
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Silent(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return Silent(scaling)


def _control(how: dict[str, Any], over: threading.Event) -> Any:
    """Run Train's controller, an actor, until its workers have ended or it is `over`; leave nothing of it.

    Train itself waits without limit, and leaves the actor to Ray's count of references.

    Raises:
        TimeoutError: it was over first.
    """
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.controller import TrainController

    actor = ray.remote(TrainController).options(
        num_cpus=0,
        label_selector={NODE_LABEL: ray.get_runtime_context().get_node_id()},
        runtime_env={"env_vars": get_env_vars_to_propagate()},
    )
    controller = actor.remote(**how)
    running = controller.run.remote()
    try:
        while not ray.wait([running], timeout=LOOK_SECONDS)[0]:
            if over.is_set():
                raise TimeoutError("a slot's workers must end with their study")
        ray.get(running)
        return ray.get(controller.get_result.remote())
    finally:
        ray.kill(controller)
        ray.wait([running], timeout=DEAD_SECONDS)  # a controller that lives may still ask for room
        nodes.free(controller._actor_id.hex())


def _witness(exchange: Any, name: str) -> Any:
    """Return a Train callback that tells the exchange where a slot's workers start, and how they died."""
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Witness(WorkerGroupCallback):
        away = False

        def after_worker_group_start(self, worker_group: Any) -> None:
            nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]
            self.away = set(nodes) != {ray.get_runtime_context().get_node_id()}
            ray.get(exchange.place.remote(name, nodes))

        def after_worker_group_poll_status(self, status: Any) -> None:
            if status.errors:
                # The others may say no more than that they have lost the one that failed.
                rank, error = min(
                    status.errors.items(), key=lambda worker: (not is_own(worker[1]), worker[0])
                )
                how = how_lost(*status.errors.values(), away=self.away)
                # Awaited, as this actor is killed as soon as the run ends, and its calls with it.
                ray.get(exchange.bury.remote(name, f"worker {rank}: {first_words(error)}", **how))

    return Witness()
