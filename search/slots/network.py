"""Choose the network interface by which the workers of a slot connect to one another.

gloo resolves the machine's own host name, and NCCL takes the first interface that looks right. On a cluster
both may choose an interface that other nodes cannot reach, such as a loopback or a container bridge. The
interface that holds the node's Ray address can be reached, as Ray itself uses it.

This module imports torch, so it is imported for slots of several workers only.
"""

import os
import socket
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig

from finetune.worker import gpu_problem
from search.errors import SlotsLost

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables from which gloo and NCCL read the interface; values that the user has set are kept."""


class SlotTorchConfig(TorchConfig):
    """Configuration of a slot's process group, whose workers first choose their network interface."""

    @property
    def backend_cls(self) -> Any:
        """Class that sets up the process group."""
        return SlotBackend


class SlotBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # torch's, by its public name
    """Set up the process group of a slot; runs in the controller of its Train run."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Check the workers' GPUs, choose their interfaces and connect them.

        Raises:
            SlotsLost: torch does not see the GPU of a worker, or the workers cannot connect; the message then
                names the interface of each.
        """
        if problem := max(worker_group.execute(gpu_problem), default=""):
            raise SlotsLost(problem)
        if len(worker_group) > 1:
            worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayActorError:
            raise  # a worker died, maybe with its node: Train reports that
        except Exception as error:
            raise meeting_failed(worker_group, error) from error


def interface_of(address: str) -> str | None:
    """Return the name of the interface that holds an IPv4 address of this machine, or None."""
    for name, held in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == address for one in held):
            return name
    return None


def choose_interface() -> dict[str, str]:
    """Set the interface for this process, unless the user has set one; return the variables now in use."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)
    return in_use()


def in_use() -> dict[str, str]:
    """Return the values of VARIABLES in this process, without those that are not set."""
    return {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ}


def meeting_failed(worker_group: Any, error: Exception) -> SlotsLost:
    """Return an error about workers that could not connect, with the interface that each of them used."""
    try:
        used = ray.get(worker_group.execute_async(in_use), timeout=10)
        told = [sorted(set(each.values())) for each in used]
    except Exception:  # the workers are gone, too
        told = []
    names = ", ".join(f"worker {rank} by {'/'.join(each) or 'any'}" for rank, each in enumerate(told))
    reason = str(error).strip().splitlines()[-1]
    return SlotsLost(
        f"slots: the workers of a slot must reach one another, got {reason} ({names or 'no answer'}). "
        f"Set {' and '.join(VARIABLES)} to the interface that joins the nodes, or open their ports."
    )
