"""One slot's Train run: which nodes it may use, how its workers meet, and what is said when they die."""

import time
from collections.abc import Callable, Sequence
from typing import Any

NODE_LABEL = "ray.io/node-id"
"""Ray's own label of every node."""
NODE_DIED = "its node has died"
"""In the words of Ray's own error."""
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
) -> None:
    """Run one slot until its workers' loop ends.

    Args:
        serve: what each worker runs, with `config`.
        config: has `exchange` and `slot`, the slot's name.
        plan: shape of the slot.
        folder: for what Train writes.
        nodes: ids of those that its workers may be on.
        restarts: start the workers again when they die; else that is raised.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from search.network import SlotTorchConfig  # imports torch

    exchange, name = config["exchange"], config["slot"]
    again = -1 if restarts else 0
    _trainer()(
        serve,
        train_loop_config=config,
        torch_config=SlotTorchConfig(),
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
            callbacks=[_obituary(exchange, name), _address(exchange, name)],
        ),
    ).fit()


def is_unheard(error: Exception) -> bool:
    """True for the end of a run that its obituary could not tell: its workers never came up.

    Waiting in vain for room is no failure: another study may have taken it.
    """
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    waited = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)
    return not isinstance(error, WorkerGroupError) and not waited


def first_words(error: BaseException) -> str:
    """Return the one line of a Ray error that says what happened, without its general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "SYSTEM_ERROR" in line or "OOM" in line or "Error:" in line]
    return (telling or lines or [type(error).__name__])[-1].partition(" Some common causes include")[0]


def how_lost(*errors: Exception) -> dict[str, bool]:
    """Return `lost`, workers died with their node; `parted`, they lost one another, for whatever reason."""
    texts = [str(error) for error in errors]
    return {
        "lost": any(getattr(error, "preempted", False) for error in errors)
        or any(NODE_DIED in text for text in texts),
        "parted": any(word in text for text in texts for word in PEER_LOST),
    }


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


def _obituary(exchange: Any, name: str) -> Any:
    """Return a Train callback that tells the exchange when and why a slot's workers died."""
    from ray.train import UserCallback

    class Obituary(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            rank, error = min(worker_exceptions.items())
            how = how_lost(*worker_exceptions.values())
            exchange.bury.remote(name, f"worker {rank}: {first_words(error)}", **how)

    return Obituary()


def _address(exchange: Any, name: str) -> Any:
    """Return a Train callback that tells the exchange on which nodes a slot's workers start."""
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Address(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]
            ray.get(exchange.place.remote(name, nodes))

    return Address()
