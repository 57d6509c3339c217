"""A study on Ray's own autoscaler: nodes are started while trials wait for them, replaced, and given back.

The cluster is a head without CPUs; its autoscaler is the one that `ray up` starts on a cloud, and its nodes
are processes of Ray's provider for such tests. The scenes follow each other.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import machine
from tests.lab_study import record, running, write
from tests.machine import Machine

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.ray]
WORKERS, EPOCHS = 2, 100
IDLE_SECONDS = 10.0
"""After which the autoscaler ends a node."""
HEAD_ID = "f" * 51 + "00000"
"""As the provider would name it."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
CLUSTER: dict[str, Any] = {
    "cluster_name": "lab",
    "max_workers": WORKERS,
    "idle_timeout_minutes": IDLE_SECONDS / 60,
    # By its module, as Ray's wheel lacks the defaults that go with its name.
    "provider": {
        "type": "external",
        "module": PROVIDER,
        "head_node_id": HEAD_ID,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": WORKERS},
    },
    # How hosts are set up, which these need not be; without the keys the autoscaler does not start.
    **{key: {} for key in ("auth", "file_mounts")},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands")},
    **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
}
START = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
"""The environment of the head, and so of its autoscaler: Ray's newer one, as of `ray up` on a cloud."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with Ray's head on it, whose autoscaler may start `WORKERS` nodes of one CPU each."""
    if why := machine.lacking():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    made = Machine(
        tmp_path_factory.mktemp("lab"),
        machine.SHARED_AT_MNT,
        {"RAY_ADDRESS": "127.0.0.1:6379", "RAY_AUTH_MODE": "disabled"},
    )
    bootstrap = made.home / "ray_bootstrap_config.yaml"
    bootstrap.write_text(yaml.safe_dump(CLUSTER))
    with made.running():
        options = "--head --port=6379 --num-cpus=0 --object-store-memory=80000000 --include-dashboard=false"
        made.ray("start", *options.split(), f"--autoscaling-config={bootstrap}", **START)
        yield made


@pytest.fixture(scope="module")
def study(cluster: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """A study of as many trials as nodes may come; `auto` slots."""
    config = write(cluster, "grows", study={"epochs": EPOCHS, "trials": WORKERS}, resources={"slots": "auto"})
    log = cluster.folder / "study.log"
    with cluster.background(sys.executable, "-m", "search", "run", config, log=log) as process:
        yield process


def nodes(cluster: Machine) -> list[int]:
    """Return the process ids of the nodes, the head's first: each has one raylet."""
    return sorted(int(pid) for pid in cluster.run("pidof", "raylet").stdout.split())


def test_nodes_are_started_for_slots_and_trials_run_on_all_of_them(
    cluster: Machine, study: subprocess.Popen[bytes]
) -> None:
    """The head has no CPU and each node has one, so that two trials that run are on two nodes."""
    assert len(nodes(cluster)) == 1
    cluster.wait("trials on all nodes", lambda: running(cluster, "grows") == WORKERS)
    assert len(nodes(cluster)) == 1 + WORKERS
    assert "no node has room for a slot yet" in (cluster.folder / "study.log").read_text()
    # Nor does Train ask for nodes: that would keep up an idle one as long as its run lasts.
    assert "From request_resources:\n (none)" in cluster.ray("status").stdout


def test_a_node_that_dies_is_replaced(cluster: Machine, study: subprocess.Popen[bytes]) -> None:
    *others, killed = nodes(cluster)
    cluster.run("kill", "-9", str(killed))
    cluster.wait("another node", lambda: len({*nodes(cluster)} - {*others, killed}) == 1)


def test_a_node_is_given_back_while_the_last_trial_runs(
    cluster: Machine, study: subprocess.Popen[bytes]
) -> None:
    cluster.wait("a node given back", lambda: len(nodes(cluster)) == WORKERS)
    assert running(cluster, "grows") == 1


def test_no_trial_is_lost_and_no_node_left(cluster: Machine, study: subprocess.Popen[bytes]) -> None:
    assert study.wait(timeout=machine.WATCHDOG_SECONDS) == 0
    trials = record(cluster, "grows")["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * WORKERS
    for trial in trials:
        assert [int(epoch["epoch"]) for epoch in trial["history"]] == list(range(1, EPOCHS + 1))
    cluster.wait("the head alone", lambda: len(nodes(cluster)) == 1)
