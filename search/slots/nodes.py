"""List the nodes of a Ray cluster that are up, are being drained, or may be added by its autoscaler."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from finetune.disk.filesystems import text_of
from search.slots import ray_private

HEAD = "node:__internal_head__"
"""A resource that only Ray's head node has."""
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""File on the head node to which `ray up` writes the cluster's whole config, for the autoscaler."""

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
    """Return this machine's resources, without Ray."""
    return ray_private.machine()


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
    return ray_private.draining()


def may_come(bootstrap: Path = BOOTSTRAP) -> list[Resources]:
    """Return the resources of every node that the autoscaler of `ray up` may add, the largest first.

    The list is empty without such an autoscaler, and for a cluster of the user's own hosts, as its file does
    not tell their resources.
    """
    path = bootstrap.expanduser()
    if not path.is_file():
        return []
    config: dict[str, Any] = yaml.safe_load(text_of(path))
    most = int(config.get("max_workers", 0))
    nodes: list[Resources] = []
    for name, kind in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            nodes += [kind.get("resources", {})] * int(kind.get("max_workers", most))
    return sorted(nodes, key=lambda r: (r.get("GPU", 0), r.get("CPU", 0)), reverse=True)[:most]
