"""Run one slot as a Ray Train run: choose its nodes, connect its workers, and report why they died."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from search.slots import ray_private
from search.slots.ray_private import LOOK_SECONDS, NODE_LABEL

NODE_DIED = ("its node has died",)
"""Words in Ray's errors about a worker whose node died."""
UNAVAILABLE = "is unavailable"
"""Words in Ray's errors about a worker that does not answer."""
WAITED = "WorkerGroupStartupTimeoutError"
"""Name of Train's error for workers that found no room in time; Train has no public name for it."""
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
    lean = ray_private.fits()
    trainer = ray_private.lean_trainer(plan.workers, over) if lean else ray_private.trainer(plan.workers)
    slot = trainer(
        serve if lean else _placed(serve),
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
            callbacks=[_witness(exchange, name, restarts=restarts, lean=lean)],
        ),
    )
    if lean:
        slot.fit()
    else:
        _until(over, slot.fit)


def has_waited(error: Exception) -> bool:
    """True if a run waited for room in vain. That is no failure, as another study may have taken the room."""
    return type(getattr(error, "controller_failure", None)).__name__ == WAITED


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
    # Train's own errors have no public base class, but all are defined in Ray.
    theirs = any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__)
    return not theirs and not any(word in str(error) for word in PEER_LOST)


def _until(over: threading.Event, fit: Callable[[], Any]) -> None:
    """Run Train's `fit`, which waits without limit, until it returns or `over` is set.

    What is left running then ends with this process, which the driver kills.

    Raises:
        TimeoutError: `over` was set first.
    """
    ended: Future[Any] = Future()

    def wait() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    while not ended.done():
        if over.is_set():
            raise TimeoutError("a slot's workers must end with their study")
        concurrent.futures.wait([ended], timeout=LOOK_SECONDS)
    ended.result()


def _placed(serve: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return the function that each worker runs: tell the exchange the slot's nodes, then `serve`."""

    def begin(config: dict[str, Any]) -> None:
        from ray.train import get_context
        from ray.util import get_current_placement_group, placement_group_table

        if get_context().get_world_rank() == 0:
            nodes = placement_group_table(get_current_placement_group())["bundles_to_node_id"].values()
            ray.get(config["exchange"].place.remote(config["slot"], sorted(set(nodes))))
        serve(config)

    return begin


def _witness(exchange: Any, name: str, *, restarts: bool, lean: bool) -> Any:
    """Return a Train callback that reports the death of a slot's workers to the exchange, and their nodes.

    The public kind of callback does not hear of nodes, so there the workers tell them (`_placed`).
    """

    def started(nodes: list[str]) -> None:
        ray.get(exchange.place.remote(name, nodes))

    def died(errors: dict[int, Exception]) -> None:
        # One worker's exception is the cause; the others may only report that they lost that worker.
        rank, error = min(errors.items(), key=lambda worker: (not is_own(worker[1]), worker[0]))
        here = ray.get_runtime_context().get_node_id()
        nodes = ray.get(exchange.places.remote()).get(name, ())
        how = how_lost(*errors.values(), away=not {here}.issuperset(nodes))
        # Wait for the answer: this actor is killed when the run ends, and its open calls with it.
        ray.get(exchange.bury.remote(name, f"worker {rank}: {first_words(error)}", **how))
        if restarts and not lean:  # others start on this node, and their death counts even before they tell
            started([here])

    if lean:
        return ray_private.group_callback(started, died)
    from ray.train import UserCallback

    class Witness(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            died(worker_exceptions)

    return Witness()
