"""List the nodes of a Ray cluster that are up, are being drained, or may be added by its autoscaler."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

HEAD = "node:__internal_head__"
"""A resource that only Ray's head node has."""
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""File on the head node to which `ray up` writes the cluster's whole config, for the autoscaler."""

LOOK_SECONDS = 0.1
"""Seconds between two checks whether actors are dead."""

Resources = Mapping[str, float]
"""Resources of a node: Ray's name of each (CPU, GPU, ...) -> its amount."""


@dataclass(frozen=True)
class Node:
    """One node that is up."""

    id: str
    address: str
    resources: Resources

    @property
    def is_head(self) -> bool:
        """True for the head node, which holds Ray's own state and runs the study's driver."""
        return HEAD in self.resources

    @property
    def gpus(self) -> float:
        """Number of GPUs that Ray knows of."""
        return self.resources.get("GPU", 0.0)


def here() -> Resources:
    """Return this machine's resources by Ray's own count (which knows container quotas), without Ray."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # Ray would give the same warnings again when it starts
    spec = ResourceAndLabelSpec(memory=1, object_store_memory=1)  # these two are not needed here
    found: Resources = spec.resolve(is_head=True, node_ip_address="127.0.0.1").to_resource_dict()
    return found


def up() -> list[Node]:
    """Return the nodes that live and are not being drained, the head first."""
    going = about_to_go()
    nodes = [
        Node(entry["NodeID"], entry["NodeManagerAddress"], entry["Resources"])
        for entry in ray.nodes()
        if entry["Alive"] and entry["NodeID"] not in going
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.id))


def alive() -> frozenset[str]:
    """Return the ids of all nodes that live, including those that are being drained."""
    return frozenset(entry["NodeID"] for entry in ray.nodes() if entry["Alive"])


def about_to_go() -> frozenset[str]:
    """Return the ids of the nodes that are being drained, to which Ray gives no more work."""
    return frozenset(state.get_draining_nodes())


def free(actor: str) -> None:
    """Remove the placement groups of a dead actor; Ray itself would keep them until the driver ends, too."""
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        if group.creator_actor_id.hex() == actor and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def free_children(actor: str, seconds: float) -> None:
    """Remove the placement groups of all actors that a dead actor had started, once these are dead, too.

    Args:
        actor: id of the dead actor.
        seconds: longest time to wait for the death of the actors that it had started.
    """
    end = time.monotonic() + seconds
    while True:
        actors = state.actor_table(None)
        at = actors[actor]["Address"]
        children = {name: one["State"] for name, one in actors.items() if one["OwnerAddress"] == at}
        if set(children.values()) <= {"DEAD"} or time.monotonic() > end:
            break
        time.sleep(LOOK_SECONDS)
    for child in children:
        free(child)


def may_come(bootstrap: Path = BOOTSTRAP) -> list[Resources]:
    """Return the resources of every node that the autoscaler of `ray up` may add, the largest first.

    The list is empty without such an autoscaler, and for a cluster of the user's own hosts, as its file does
    not tell their resources.
    """
    path = bootstrap.expanduser()
    if not path.is_file():
        return []
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    most = int(config.get("max_workers", 0))
    nodes: list[Resources] = []
    for name, kind in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            nodes += [kind.get("resources", {})] * int(kind.get("max_workers", most))
    return sorted(nodes, key=lambda r: (r.get("GPU", 0), r.get("CPU", 0)), reverse=True)[:most]
