"""Run one slot as a Ray Train run: choose its nodes, connect its workers, and report why they died."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from search.slots import nodes

LOOK_SECONDS = 0.5
"""Seconds between two checks whether the study is over."""
DEAD_SECONDS = 5.0
"""Seconds for a killed controller to be gone."""
NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives to every node."""
NODE_DIED = ("its node has died",)
"""Words in Ray's errors about a worker whose node died."""
UNAVAILABLE = "is unavailable"
"""Words in Ray's errors about a worker that does not answer."""
PEER_LOST = ("gloo", "NCCL")
"""Words in the errors of workers that lost the connection to one another."""


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
        serve: function that each worker runs, with `config`.
        config: settings of the workers, with `exchange` (the actor) and `slot` (the slot's name).
        plan: shape of the slot (a SlotPlan).
        folder: folder for the files that Train writes.
        nodes: ids of the nodes that its workers may use.
        restarts: whether dead workers are started again; if not, their error is raised.
        over: set when the study is over and waits for nothing any more; whatever still runs is then killed.

    Raises:
        TimeoutError: `over` was set first.
        TrainingFailedError: (Ray's) workers or their controller failed.
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
    """True if a run waited for room in vain. That is no failure, as another study may have taken the room."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def failures(error: Exception) -> list[Exception]:
    """Return the errors of the workers that ended a run, by rank, or else the run's own error."""
    by_rank: dict[int, Exception] = getattr(error, "worker_failures", {})
    return [by_rank[rank] for rank in sorted(by_rank)] or [error]


def first_words(error: BaseException) -> str:
    """Return the line of a Ray error that tells what happened, without Ray's general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "SYSTEM_ERROR" in line or "OOM" in line or "Error:" in line]
    return (telling or lines or [type(error).__name__])[-1].partition(" Some common causes include")[0]


def how_lost(*errors: Exception, away: bool = False) -> dict[str, bool]:
    """Classify how a slot's workers died, as flags for `Exchange.bury`.

    Args:
        errors: the errors of the workers.
        away: whether workers were on a node other than the head.

    Returns:
        `lost`: they died with their node. `parted`: they lost the connection to one another, for whatever
        reason. `raised`: the trial itself raised an exception after which its worker could not continue.
    """
    texts = [str(error) for error in errors]
    # If a worker dies alone, Ray knows the reason within a second. If all that Ray knows by then is that the
    # worker is unavailable, its whole node is silent; the head's node cannot be, as this code runs there.
    died = NODE_DIED if not away else (*NODE_DIED, UNAVAILABLE)
    return {
        "lost": any(getattr(error, "preempted", False) for error in errors)
        or any(word in text for text in texts for word in died),
        "parted": any(word in text for text in texts for word in PEER_LOST),
        "raised": any(is_own(error) for error in errors),
    }


def is_own(error: Exception) -> bool:
    """True for an exception of the trial itself: neither one of Ray's nor workers that lost one another."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError
    from ray.train.v2.api.exceptions import TrainingFailedError

    theirs = isinstance(error, RayError | RayTrainError | TrainingFailedError)
    return not theirs and not any(word in str(error) for word in PEER_LOST)


def _trainer(workers: int, over: threading.Event) -> Any:
    """Return the trainer class of a slot: `TorchTrainer`, or its base class if the slot has one worker.

    A single worker needs no process group, so neither keeper nor controllers import torch for it. On few
    cores that import is a good part of the time that a slot takes to start.

    Some helper processes of Train are left out, as a slot does not need them. One distributes Ray datasets;
    another cleans up after a controller that died, which `_control` does here; a third sends requests to the
    autoscaler (see `_silent`).
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
    """Return Train's policy for a fixed number of workers, without its own requests to the autoscaler.

    The keeper asks for nodes. Train would keep its request up as long as the run lasts, and the autoscaler of
    Ray 2.60 may reserve an idle node for it and never end that node, although the workers are on another one.
    """
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Silent(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return Silent(scaling)


def _control(how: dict[str, Any], over: threading.Event) -> Any:
    """Run Train's controller, an actor, until its workers have ended or `over` is set; then remove it.

    Train itself waits without limit, and leaves the removal of the actor to Ray's reference counting.

    Raises:
        TimeoutError: `over` was set first.
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
        # The order matters: a controller that still lives could make another placement group after `free`.
        ray.kill(controller)
        ray.wait([running], timeout=DEAD_SECONDS)
        nodes.free(controller._actor_id.hex())


def _witness(exchange: Any, name: str) -> Any:
    """Return a Train callback that reports a slot's nodes, and the death of its workers, to the exchange."""
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
                # One worker's exception is the cause; the others may only report that they lost that worker.
                rank, error = min(
                    status.errors.items(), key=lambda worker: (not is_own(worker[1]), worker[0])
                )
                how = how_lost(*status.errors.values(), away=self.away)
                # Wait for the answer: this actor is killed when the run ends, and its open calls with it.
                ray.get(exchange.bury.remote(name, f"worker {rank}: {first_words(error)}", **how))

    return Witness()
