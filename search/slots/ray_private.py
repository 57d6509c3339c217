"""The private parts of Ray that slots use, each behind one function; docs/private-parts.md lists them.

A Train run as Ray offers it costs a slot more than it needs: torch in every controller, two helper processes,
and placement groups that stay after a kill. `lean_trainer` avoids that by private parts of Ray Train, and is
used only on the release of Ray that it was made for (`fits`); on any other a slot is an ordinary
Train run. The functions that only read something work wherever Ray has the part, and have a substitute.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

MADE_FOR = "2.60"
"""Release of Ray from which `lean_trainer` and what it uses were taken."""
VARIABLE = "TRANSFER_SEARCH_RAY"
"""Environment variable; with the value `public` no release counts as the one above."""
NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives to every node."""
LOOK_SECONDS = 0.5
"""Seconds between two checks whether the study is over."""
DEAD_SECONDS = 5.0
"""Seconds for a killed controller to be gone."""
ACTOR_SECONDS = 0.1
"""Seconds between two checks whether actors are dead."""


def fits(version: str | None = None) -> bool:
    """True if Ray is of the release that `lean_trainer` was made for.

    Args:
        version: version of Ray, such as `2.60.1`; None: the installed one.
    """
    release = ".".join((version or ray.__version__).split(".")[:2])
    return release == MADE_FOR and os.environ.get(VARIABLE) != "public"


def environment() -> dict[str, str]:
    """Return the variable by which the driver's choice reaches the processes of slots, if it is set."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def machine() -> dict[str, float]:
    """Return this machine's resources by Ray's own count (which knows container quotas), without Ray.

    Where Ray has no such count, it is that of the CPUs that this process may use, and of NVIDIA's devices.
    """
    try:
        from ray._private.resource_and_label_spec import ResourceAndLabelSpec

        logging.getLogger("ray").setLevel(logging.ERROR)  # Ray would warn of the same again when it starts
        spec = ResourceAndLabelSpec(memory=1, object_store_memory=1)  # these two are not needed here
        found = spec.resolve(is_head=True, node_ip_address="127.0.0.1").to_resource_dict()
    except (ImportError, AttributeError, TypeError):
        return counted()
    return dict(found)


def counted() -> dict[str, float]:
    """Return the CPUs that this process may use, and the GPUs that CUDA_VISIBLE_DEVICES or /dev names."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    else:
        names = os.listdir("/dev") if os.path.isdir("/dev") else []
        gpus = sum(name.startswith("nvidia") and name[6:].isdigit() for name in names)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})


def draining() -> frozenset[str]:
    """Return the ids of the nodes that are being drained; none where Ray does not tell.

    A node that goes without notice is noticed when it is dead, and its trials continue from their last
    checkpoint.
    """
    try:
        from ray._private.state import state

        return frozenset(state.get_draining_nodes())
    except (ImportError, AttributeError):
        return frozenset()


def trainer(workers: int) -> Any:
    """Return Ray's trainer class for a slot: `TorchTrainer`, or its base class if the slot has one worker.

    A single worker needs no process group, so neither supervisor nor controllers import torch for it. On few
    cores that import is a good part of the time that a slot takes to start.
    """
    if workers == 1:
        try:
            from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
        except ImportError:
            pass  # a slot of one worker then has a process group of one
        else:
            return DataParallelTrainer
    from ray.train.torch import TorchTrainer

    from search.slots.network import SlotTorchConfig

    class SlotTrainer(TorchTrainer):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, torch_config=SlotTorchConfig(), **options)

    return SlotTrainer


def lean_trainer(workers: int, over: threading.Event) -> Any:
    """Return the trainer class of a slot, without what a slot does not need.

    Some helper processes of Train are left out. One distributes Ray datasets; another cleans up after a
    controller that died, which `_control` does here; a third sends requests to the autoscaler (see
    `_silent`). `fit` raises TimeoutError if `over` is set first.
    """

    class LeanTrainer(trainer(workers)):  # type: ignore[misc]  # which class it is depends on the slot
        def _create_default_callbacks(self) -> list[Any]:
            spared = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in spared]

        def _initialize_and_run_controller(self, **how: Any) -> Any:
            return _control(how | {"scaling_policy": _silent(self.scaling_config)}, over)

    return LeanTrainer


def group_callback(started: Callable[[list[str]], None], died: Callable[[dict[int, Exception]], None]) -> Any:
    """Return a Train callback that runs in the controller and tells of a slot's workers.

    Args:
        started: called with the ids of the workers' nodes when the workers are up.
        died: called with their errors, by rank, when workers have failed.
    """
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Told(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            started([worker.metadata.node_id for worker in worker_group.get_workers()])

        def after_worker_group_poll_status(self, status: Any) -> None:
            if status.errors:
                died(status.errors)

    return Told()


def _silent(scaling: Any) -> Any:
    """Return Train's policy for a fixed number of workers, without its own requests to the autoscaler.

    The supervisor asks for nodes. Train would keep its request up as long as the run lasts, and the
    autoscaler of Ray 2.60 may reserve an idle node for it and never end that node, although the workers are
    on another one.
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
        # The order matters: a controller that still lives could make another placement group after `_free`.
        ray.kill(controller)
        ray.wait([running], timeout=DEAD_SECONDS)
        _free(controller._actor_id.hex())


def _free(actor: str) -> None:
    """Remove the placement groups of a dead actor; Ray itself would keep them until the driver ends, too."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        if group.creator_actor_id.hex() == actor and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def free_children(actor: Any, seconds: float) -> None:
    """Remove the placement groups of all actors that a dead actor had started, once these are dead, too.

    On another release of Ray this does nothing: the groups stay until the driver ends.

    Args:
        actor: handle of the dead actor.
        seconds: longest time to wait for the death of the actors that it had started.
    """
    if not fits():
        return
    from ray._private.state import state

    end = time.monotonic() + seconds
    while True:
        actors = state.actor_table(None)
        at = actors[actor._actor_id.hex()]["Address"]
        children = {name: one["State"] for name, one in actors.items() if one["OwnerAddress"] == at}
        if set(children.values()) <= {"DEAD"} or time.monotonic() > end:
            break
        time.sleep(ACTOR_SECONDS)
    for child in children:
        _free(child)
