"""By which network interface the workers of a slot find one another.

gloo asks for the address of the machine's own name, and NCCL takes the first interface that looks right.
On a cluster both may choose one that other nodes cannot reach, such as a loopback or a container bridge.
The interface that holds the node's Ray address is reachable: Ray itself uses it. Imports torch.
"""

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from finetune.worker import gpu_problem
from search.errors import SlotsLost

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""What gloo and NCCL read; whoever sets them is obeyed."""
_GET_ADDRESS = 0x8915
"""Linux: SIOCGIFADDR, the IPv4 address of an interface (netdevice(7))."""


class SlotTorchConfig(TorchConfig):
    """Torch's process group for a slot, whose workers first choose the interface that they meet by."""

    @property
    def backend_cls(self) -> Any:
        """What sets it up."""
        return SlotBackend


class SlotBackend(_TorchBackend):
    """Runs in the controller of a slot's Train run."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Have the workers meet.

        Raises:
            SlotsLost: they do not; the message names the interface of each. Or torch sees no GPU there.
        """
        if problem := max(worker_group.execute(gpu_problem), default=""):
            raise SlotsLost(problem)
        if len(worker_group) > 1:
            worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayActorError:
            raise  # a worker died, maybe with its node: Train tells
        except Exception as error:
            raise meeting_failed(worker_group, error) from error


def interface_of(address: str) -> str | None:
    """Return the name of the interface that holds an IPv4 address of this machine; None: none does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asked.fileno(), _GET_ADDRESS, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_interface() -> dict[str, str]:
    """Set the interface of this worker's process where the user has not; return what is set."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)
    return in_use()


def in_use() -> dict[str, str]:
    """Return what gloo and NCCL are told in this process, by variable."""
    return {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ}


def meeting_failed(worker_group: Any, error: Exception) -> SlotsLost:
    """Return the error of workers that could not meet, with the interface that each one used."""
    try:
        used = ray.get(worker_group.execute_async(in_use), timeout=10)
        told = [sorted(set(each.values())) for each in used]
    except Exception:  # they are gone, too
        told = []
    names = ", ".join(f"worker {rank} by {'/'.join(each) or 'any'}" for rank, each in enumerate(told))
    reason = str(error).strip().splitlines()[-1]
    return SlotsLost(
        f"slots: the workers of a slot must reach one another, got {reason} ({names or 'no answer'}). "
        f"Set {' and '.join(VARIABLES)} to the interface that joins the nodes, or open their ports."
    )
