"""Slots on a real cluster of several nodes: they join, get a notice, and die while trials run."""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch
from ray._private.state import state
from ray.cluster_utils import Cluster

from finetune.datasets import catalog
from finetune.messages import Effective, End, EndState, Epoch, Keep, Report, Started, TrainJob
from finetune.settings import DataSettings
from search.cluster import spot
from search.config import resolve
from search.config.study import StudyConfig
from search.driver import tuner
from search.errors import PreflightError, SlotsLost
from search.slots import nodes, preflight, slots
from search.suggest.space import Space
from tests import torchless
from tests.waiting import eventually

sys.path.insert(0, str(Path(__file__).parent))
from notices import metadata

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.thorough]
Make = Callable[..., StudyConfig]
EPOCH_SECONDS = 0.2
"""At least, so that something can happen to a trial that runs."""
QUICK = {
    # A raylet that was killed is declared dead within seconds instead of a quarter of a minute.
    "health_check_initial_delay_ms": 5000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="module")
def cluster(ray_folder: str) -> Iterator[Cluster]:
    """A head without CPUs, as in cluster.yaml; the tests add nodes. The driver is connected to it."""
    tuner.quieten()
    head = {
        "num_cpus": 0,
        "temp_dir": ray_folder,
        "include_dashboard": False,
        "_system_config": QUICK,
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def slow_and_told(log: Path) -> Callable[[dict[str, Any]], None]:
    """Return a worker that takes its time for each epoch, and logs which one it trains on which node."""

    def serve(config: dict[str, Any]) -> None:
        from finetune import worker
        from finetune.training.run import Run

        train, train_epoch = worker.loop.train, Run.train_epoch

        def named(settings: Any, *, keep: Any, **options: Any) -> Any:
            Run.trial = keep.best.stem  # type: ignore[attr-defined]
            return train(settings, keep=keep, **options)

        def told(run: Any, epoch: int, should_stop: Callable[[], bool]) -> float | None:
            node = ray.get_runtime_context().get_node_id()
            with log.open("a") as file:
                file.write(json.dumps({"trial": run.trial, "node": node, "epoch": epoch}) + "\n")
            time.sleep(EPOCH_SECONDS)
            return train_epoch(run, epoch, should_stop)

        worker.loop.train = named
        Run.train_epoch = told  # type: ignore[method-assign]
        worker.slot_loop(config)

    return serve


def slow_and_told_without_torch(log: Path) -> torchless.Train:
    """Return a training that does and logs the same with workers that train nothing."""

    def train(job: TrainJob, report: Report) -> EndState | None:
        def begin(epoch: int) -> None:
            node = ray.get_runtime_context().get_node_id()
            with log.open("a") as file:
                file.write(json.dumps({"trial": job.id, "node": node, "epoch": epoch}) + "\n")
            time.sleep(EPOCH_SECONDS)

        return torchless.go_on(job, report, begin)

    return train


def test_the_preflight_of_a_real_cluster_names_the_node_that_differs(
    cluster: Cluster, tmp_path: Path
) -> None:
    """By tasks on every node: one without GPUs that Ray counts, and one with another torchvision."""
    plain = cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=1, env_vars=another_torchvision(tmp_path))
    without = cluster.add_node(num_cpus=1, num_gpus=1)
    images = catalog.scan(DataSettings(kind="digits"))
    expected = preflight.expect(tmp_path / ".shared", images, [], gpu=True)
    up = {node.id: node for node in nodes.up()}
    good = [node for node in up.values() if node.is_head or node.id == plain.node_id]
    try:
        assert set(preflight.check(expected, good).passed) == {node.id for node in good}
        with pytest.raises(PreflightError) as refused:
            preflight.check(expected, list(up.values()))
    finally:
        for node in (plain, other, without):
            cluster.remove_node(node, allow_graceful=False)
    lines = sorted(str(refused.value).splitlines())
    assert len(lines) == 2
    assert any(other.node_id[:8] in line and "torchvision must be" in line for line in lines)
    assert any(without.node_id[:8] in line and "torch must see the 1 GPU(s)" in line for line in lines)


def another_torchvision(folder: Path) -> dict[str, str]:
    """Return the environment of a node on which torchvision has another version."""
    metadata = folder / "site" / "torchvision-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    return {"PYTHONPATH": f"{folder / 'site'}:{os.environ.get('PYTHONPATH', '')}"}


class Driver:
    """Runs single trials on slots, as Tune's trials do; `real` workers train them."""

    def __init__(
        self, config: StudyConfig, folder: Path, plan: slots.SlotPlan, *, real: bool = False, **options: Any
    ) -> None:
        self.config, self.folder, self.log = config, folder, folder / "trained.jsonl"
        serve = slow_and_told(self.log) if real else torchless.worker(slow_and_told_without_torch(self.log))
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slots, "serve", serve)
            self.warm = slots.Slots(plan, folder / "slots", **options)
        self.heard: dict[str, list[dict[str, Any]]] = {}

    def call(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self.warm.exchange, method).remote(*arguments))

    def node_of(self, slot: str) -> str:
        return str(self.call("status")["ready"][slot]["node"])

    def submit(self, name: str, **options: Any) -> None:
        """Start a trial that would run for hours."""
        self.warm.wait()
        space = Space(self.config)
        settings = space.settings(space.baseline("recipe"), number=0, cache_dir=str(resolve.cache_dir()))
        paths = {which: self.folder / f"{name}.{which}" for which in ("best", "last")}
        keep = Keep(metric="val/accuracy", **paths, **options)
        self.heard[name] = []
        job = TrainJob(
            id=name,
            settings=dataclasses.replace(settings, epochs=100_000),
            features=resolve.feature_settings(self.config),
            keep=keep,
            params={},
            data_fingerprint="",
        )
        self.call("offer", job)

    def listen(self, name: str, until: Callable[[], bool]) -> str:
        """Listen until something is so; return the slot that the trial is in."""
        told = self.heard[name]

        def heard() -> bool:
            if until():
                return True
            told.extend(self.call("receive", name, len(told)))
            assert not told or not isinstance(told[-1], End), told[-1]
            return False

        eventually(heard, lambda: (told[-3:], self.call("status"), self.trained(name)[-3:]))
        return str([message.slot for message in told if isinstance(message, Started)][-1])

    def listen_to(self, name: str, epoch: int) -> str:
        return self.listen(name, lambda: epoch in self.epochs(name))

    def listen_elsewhere(self, name: str, but: str) -> list[int]:
        """Listen until the trial has gone on on another node than that; return its epochs there."""

        def there() -> list[int]:
            return [epoch for node, epoch in self.trained(name) if node != but]

        self.listen(name, lambda: len(there()) > 3)
        self.call("cancel", name)
        heard = self.epochs(name)
        assert heard == list(range(1, len(heard) + 1))  # each of them once, in order
        return there()

    def epochs(self, name: str) -> list[int]:
        return [message.number for message in self.heard[name] if isinstance(message, Epoch)]

    def trained(self, name: str) -> list[tuple[str, int]]:
        """Return node and number of every epoch that was begun, in order."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(line["node"], line["epoch"]) for line in lines if line["trial"] == name]


@pytest.mark.every_ray
def test_slots_follow_the_nodes_and_no_trial_is_lost(
    cluster: Cluster, small_study: Make, tmp_path: Path
) -> None:
    """Nodes are asked for, used as each joins, given back, emptied on a notice, and may die.

    A trial that moves goes on from its checkpoint, and the driver hears every epoch once.
    """
    plan = slots.SlotPlan(slots=3, ask=3, workers=1, cpus=1, gpu=False)
    study = Driver(small_study(), tmp_path, plan)
    try:
        eventually(lambda: waiting_groups() == 3, "an autoscaler sees three groups that wait for a node")
        first = cluster.add_node(num_cpus=1)
        assert study.node_of(next(iter(study.warm.wait(1)))) == first.node_id
        assert waiting_groups() == 2  # not for the room of the slot that has just started
        more = [cluster.add_node(num_cpus=1) for _ in range(2)]
        added = {node.node_id: node for node in [first, *more]}
        assert {study.node_of(name) for name in study.warm.wait(3)} == added.keys()
        assert waiting_groups() == 0

        study.call("want", 2)
        eventually(lambda: len(idle(added)) == 1, "a slot without a trial to come frees its node")
        spare = idle(added)

        study.submit("noticed")
        goes = study.node_of(study.listen_to("noticed", epoch=3))
        give_notice(cluster, goes)
        there = study.listen_elsewhere("noticed", but=goes)
        here = [epoch for node, epoch in study.trained("noticed") if node == goes]
        assert here + there == list(range(1, len(here + there) + 1))  # not one was trained twice

        eventually(lambda: not idle(spare), "the lost slot starts again where there is room")
        study.warm.wait(2)
        study.submit("orphaned", every_seconds=0.0)
        dies = study.node_of(study.listen_to("orphaned", epoch=4))
        cluster.remove_node(added[dies], allow_graceful=False)
        there = study.listen_elsewhere("orphaned", but=dies)
        here = [epoch for node, epoch in study.trained("orphaned") if node == dies]
        assert here[-1] <= there[0] <= here[-1] + 1  # at most the epoch that was running is lost
    finally:
        study.warm.close()


def test_a_node_that_differs_is_neither_used_nor_kept(
    cluster: Cluster, small_study: Make, tmp_path: Path
) -> None:
    """It may idle until the autoscaler ends it; nobody is asked for another one like it."""
    remove_all(cluster)
    images = catalog.scan(DataSettings(kind="digits"))
    expected = preflight.expect(tmp_path / ".shared", images, [], gpu=False)
    expected = preflight.check(expected, nodes.up())
    plan = slots.SlotPlan(slots=2, ask=2, workers=1, cpus=1, gpu=False)
    study = Driver(small_study(), tmp_path, plan, expected=expected)
    try:
        eventually(lambda: waiting_groups() == 2, "two groups wait for a node")
        other = cluster.add_node(num_cpus=1, env_vars=another_torchvision(tmp_path))
        eventually(lambda: bool(study.call("status")["notes"]), "the node is refused")
        eventually(lambda: idle({other.node_id}) == {other.node_id}, "nothing keeps the node")
        assert waiting_groups() == 1
        good = cluster.add_node(num_cpus=1)
        told: list[str] = []
        (slot,) = study.warm.wait(1, tell=told.append)
        assert study.node_of(slot) == good.node_id
        (line,) = told
        assert "torchvision must be" in line
        assert line.endswith("It gets no slot.")
    finally:
        study.warm.close()


def test_a_slot_of_two_workers_spans_two_nodes_and_outlives_one(
    cluster: Cluster, small_study: Make, tmp_path: Path
) -> None:
    """DDP across nodes: where one dies, the trial goes on from its checkpoint when another one joins."""
    remove_all(cluster)
    pair = [cluster.add_node(num_cpus=1) for _ in range(2)]
    plan = slots.SlotPlan(slots=1, ask=1, workers=2, cpus=1, gpu=False)
    study = Driver(small_study(), tmp_path, plan, real=True)
    try:
        study.submit("pair", every_seconds=0.0)
        study.listen_to("pair", epoch=3)
        effective = next(message for message in study.heard["pair"] if isinstance(message, Effective))
        assert effective.facts["workers"] == 2
        assert {node for node, _ in study.trained("pair")} == {node.node_id for node in pair}
        cluster.remove_node(pair[1], allow_graceful=False)
        third = cluster.add_node(num_cpus=1)
        study.listen("pair", lambda: [n for n, _ in study.trained("pair")].count(third.node_id) > 3)
        heard = study.epochs("pair")
        assert heard == list(range(1, len(heard) + 1))
        joined = [epoch for node, epoch in study.trained("pair") if node == third.node_id]
        stayed = [epoch for node, epoch in study.trained("pair") if node == pair[0].node_id]
        assert joined[0] >= 3  # from the checkpoint, not from the start
        assert len(stayed) - len(set(stayed)) <= 1  # at most the epoch that was running is trained twice
    finally:
        study.warm.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_two_slots_share_a_gpu_and_one_that_torch_does_not_see_is_named(
    cluster: Cluster, small_study: Make, tmp_path: Path
) -> None:
    """Ray believes what it is told about GPUs, and torch would train on the CPU without a word."""
    remove_all(cluster)
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    plan = slots.SlotPlan(slots=2, ask=2, workers=1, cpus=1, gpu=True, gpu_per_worker=0.5)
    study = Driver(small_study(), tmp_path / "two", plan)
    try:
        assert len(study.warm.wait(2)) == 2
        assert "GPU" not in free(node)
    finally:
        study.warm.close()
    eventually(lambda: free(node).get("GPU") == 1, "no share of it stays held")
    study = Driver(small_study(), tmp_path / "one", dataclasses.replace(plan, slots=1, ask=1), real=True)
    try:
        with pytest.raises(SlotsLost, match=r"torch must see the GPU .* got none\. .* resources\.gpu: false"):
            study.warm.wait(1)
    finally:
        study.warm.close()
    eventually(lambda: free(node).get("GPU") == 1, "no share of it stays held")


def remove_all(cluster: Cluster) -> None:
    """Leave only the head."""
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    eventually(lambda: len(nodes.up()) == 1, "Ray knows that they are gone")


def waiting_groups() -> int:
    """Return how many placement groups wait for room: what an autoscaler starts nodes for."""
    groups = ray.util.placement_group_table().values()
    return sum(group["state"] == "PENDING" for group in groups)


def free(node: Any) -> dict[str, float]:
    """Return what nobody holds of a node; what is held in full is left out."""
    left: dict[str, float] = state.available_resources_per_node().get(node.node_id, {})
    return left


def idle(added: Any) -> set[str]:
    """Return those of the nodes whose CPU is free."""
    left = state.available_resources_per_node()
    return {node for node in added if left.get(node, {}).get("CPU") == 1}


def give_notice(cluster: Cluster, node_id: str) -> None:
    """Have the watcher of this node hear that its machine is to be taken back in two minutes."""
    with metadata() as server:
        words = ["--cloud", "aws", "--server", server.url, "--node-id", node_id, "--address", cluster.address]
        watcher = threading.Thread(target=spot.main, args=(words,))
        watcher.start()
        eventually(lambda: server.asked > 0, "the watcher looks")
        server.left = 120
        watcher.join()
