"""Decide how many slots a study may have on the machine or cluster where it is started."""

import os
from collections.abc import Sequence

import ray

from search.config.study import StudyConfig
from search.errors import CapacityError
from search.slots import nodes, slots
from search.slots.nodes import Resources
from search.slots.slots import SlotPlan


def plan(config: StudyConfig, up: Sequence[Resources]) -> SlotPlan:
    """Return the number and shape of a study's slots on nodes with these resources.

    Raises:
        CapacityError: they do not fit, or the budget counts GPUs and the slots have none.
    """
    wanted = config.resources
    planned = slots.plan(
        up,
        slots=wanted.slots,
        workers=wanted.workers_per_trial,
        cpus=wanted.cpus_per_worker,
        gpu=wanted.gpu,
        gpu_per_worker=wanted.gpu_per_worker,
        trials=config.study.trials,
        may_come=nodes.may_come() if is_cluster() else (),
        grows=is_cluster() or len(up) > 1,
        once=config.study.isolation == "process",
    )
    spending = config.study.spending
    if spending is not None and spending.of_gpus and not planned.gpu:
        raise CapacityError(
            f"study.budget: {config.study.budget} needs slots with GPUs, got none. Write a time such as 10m."
        )
    return planned


def is_cluster() -> bool:
    """True if the study joins a Ray cluster named by RAY_ADDRESS, whose nodes may come and go."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def is_here() -> bool:
    """True if the study starts its own Ray on this machine, so that its resources are known without Ray."""
    return not is_cluster() and not ray.is_initialized()
