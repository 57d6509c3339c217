"""Every cluster file passes Ray's own offline check, and its nodes run what the tests ran with."""

import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "configs" / "clusters").glob("*.yaml"))]
CLOUD = [path for path in FILES if path.name != "onprem.yaml"]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def test_there_is_a_file_for_aws_google_and_given_hosts() -> None:
    types = {path.relative_to(ROOT).as_posix(): read(path)["provider"]["type"] for path in FILES}
    assert types == {
        "cluster.yaml": "aws",
        "configs/clusters/gcp.yaml": "gcp",
        "configs/clusters/onprem.yaml": "local",
    }


@every_file
def test_ray_accepts_every_cluster_file(path: Path) -> None:
    validate_config(prepare_config(read(path)))


def test_the_check_refuses_an_unknown_key_a_missing_resource_and_a_wrong_head() -> None:
    good = read(FILES[0])
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config({**good, "idle_timeout_minute": 5}))
    with pytest.raises(jsonschema.ValidationError, match="'resources' is a required property"):
        validate_config(prepare_config({**good, "available_node_types": {"head": {"node_config": {}}}}))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**good, "head_node_type": "haed"}))


@pytest.mark.parametrize("path", CLOUD, ids=lambda path: path.name)
def test_workers_are_kept_off_the_head_and_gpu_nodes_start_from_none(path: Path) -> None:
    config = read(path)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    for node in types.values():
        assert node["resources"]["GPU"] >= 1
        assert node["min_workers"] == 0
        assert 1 <= node["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize("path", CLOUD, ids=lambda path: path.name)
def test_gpu_nodes_are_spot_the_head_is_not_and_idle_nodes_end(path: Path) -> None:
    config = read(path)
    types = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    spot = {
        name
        for name, node in types.items()
        if node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or {"preemptible": True} in node.get("scheduling", [])
    }
    assert spot == set(types) - {config["head_node_type"]}
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("path", CLOUD, ids=lambda path: path.name)
def test_spot_workers_watch_for_the_notice(path: Path) -> None:
    config = read(path)
    (local,) = [local for remote, local in config["file_mounts"].items() if remote.endswith("/spot.py")]
    assert (ROOT / local).is_file()
    assert "nohup python ~/transfer/spot.py" in config["worker_start_ray_commands"][-1]
    assert not any("spot.py" in command for command in config["head_start_ray_commands"])


def test_given_hosts_start_all_at_once_and_workers_are_kept_off_the_head() -> None:
    path = ROOT / "configs" / "clusters" / "onprem.yaml"
    config = read(path)
    hosts = len(config["provider"]["worker_ips"])
    assert config["min_workers"] == config["max_workers"] == hosts
    assert "--num-cpus=0 --num-gpus=0" in config["head_start_ray_commands"][-1]
    # Ray 2.60's autoscaler v2 starts no worker with this provider.
    assert "RAY_UP_enable_autoscaler_v2=0 ray up" in path.read_text(encoding="utf-8")


@every_file
def test_every_ray_starts_with_a_token_and_the_job_s_own_finetune(path: Path) -> None:
    config = read(path)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "PYTHONPATH=src RAY_AUTH_MODE=token ray start" in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0]
    (token,) = [remote for remote in config["file_mounts"] if remote.endswith("/.ray/auth_token")]
    assert config["file_mounts"][token] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@every_file
def test_every_file_says_how_to_start_use_and_end_it(path: Path) -> None:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    for words in (f"ray up {name}", f"ray down {name}", "(umask 077; ray get-auth-token --generate)"):
        assert words in text
    cluster = "" if name == "cluster.yaml" else f" --cluster {name}"
    assert f"python -m search submit CONFIG{cluster} (docs/cluster.md" in text
    assert "EDIT" in text


@every_file
def test_nodes_install_one_fitting_version_of_every_dependency(path: Path) -> None:
    text = " ".join(read(path)["setup_commands"])
    pins = [Requirement(word) for word in shlex.split(text) if re.fullmatch(r"[\w.\[\],-]+==[\w.]+", word)]
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(pinned) == len(pins)
    needed = [Requirement(line) for line in importlib.metadata.requires("transfer-search") or []]
    needed = [need for need in needed if need.marker is None]
    assert {canonicalize_name(need.name) for need in needed} == set(pinned)
    for need in needed:
        pin = pinned[canonicalize_name(need.name)]
        (version,) = pin.specifier
        assert need.specifier.contains(version.version), f"{pin} does not fit {need}"
        assert need.extras == pin.extras
