"""How many slots a study gets: from what nodes have, what may come, and what was asked for."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.driver import tuner
from search.errors import CapacityError
from search.slots import nodes, slots, supervisor

GPU_NODE = {"CPU": 4.0, "GPU": 1.0}


def plan(up: list[dict[str, float]], **options: Any) -> slots.SlotPlan:
    usual: dict[str, Any] = {
        **{"slots": "auto", "workers": 1, "cpus": 1, "gpu": "auto", "gpu_per_worker": 1.0, "trials": 100}
    }
    return slots.plan(up, **{**usual, **options})


def test_a_slot_may_span_nodes_but_a_worker_cannot() -> None:
    assert plan([{"CPU": 1.0}, {"CPU": 1.0}], workers=2).slots == 1
    assert plan([{"CPU": 3.0}, {"CPU": 3.0}], cpus=2).slots == 2
    with pytest.raises(CapacityError, match=r"1 slot\(s\) of 1 worker\(s\) of 2 CPU\(s\) must fit, got room"):
        plan([{"CPU": 1.0}, {"CPU": 1.0}], cpus=2)


def test_workers_that_share_a_gpu_are_counted_per_gpu() -> None:
    shared = plan([GPU_NODE, GPU_NODE], gpu_per_worker=0.5)
    assert (shared.slots, shared.bundle) == (4, {"CPU": 1, "GPU": 0.5})
    assert plan([{"CPU": 16.0, "GPU": 1.0}], gpu_per_worker=0.1).slots == 10
    assert plan([GPU_NODE], gpu=False).bundle == {"CPU": 1}


def test_one_machine_refuses_what_does_not_fit_and_asks_nobody() -> None:
    with pytest.raises(CapacityError, match=r"5 slot\(s\).*got room for 2"):
        plan([{"CPU": 2.0}], slots=5)
    assert plan([{"CPU": 2.0}]).ask == 0
    assert plan([{"CPU": 2.0}], trials=1).slots == 1


def test_a_cluster_without_nodes_is_asked_for_what_the_study_wants() -> None:
    named = plan([{"CPU": 0.0}], slots=3, grows=True)
    assert (named.slots, named.ask) == (3, 3)
    auto = plan([{"CPU": 0.0}], may_come=[GPU_NODE] * 4, grows=True)
    assert (auto.ask, auto.gpu) == (4, True)
    assert auto.slots == 100  # nodes that join by other ways are used, too
    assert plan([{"CPU": 0.0}], may_come=[GPU_NODE] * 4, grows=True, trials=2).ask == 2
    with pytest.raises(CapacityError, match="or name a number of slots to wait for nodes"):
        plan([{"CPU": 0.0}], grows=True)


def test_what_may_come_is_read_from_the_file_that_ray_up_leaves_on_the_head(tmp_path: Path) -> None:
    cluster = Path(__file__).parents[1] / "cluster.yaml"
    assert nodes.may_come(cluster) == [{"CPU": 4, "GPU": 1}] * 4
    assert nodes.may_come(tmp_path / "none.yaml") == []


def test_a_share_of_a_gpu_is_for_slots_of_one_worker() -> None:
    def resources(**section: Any) -> StudyConfig:
        study = {"study": {"name": "x"}, "data": {"kind": "digits"}, "resources": section}
        return StudyConfig.from_dict(study)

    assert resources(gpu_per_worker=0.5).resources.gpu_per_worker == 0.5
    with pytest.raises(ConfigErrors, match=r"workers of one trial cannot share a GPU.*got 0\.5"):
        resources(gpu_per_worker=0.5, workers_per_trial=2)
    with pytest.raises(ConfigErrors, match=r"whole number above 1, got 1\.5"):
        resources(gpu_per_worker=1.5)


def test_a_study_has_no_more_slots_than_trials_however_many_are_asked_for() -> None:
    assert plan([{"CPU": 8.0}], slots=8, trials=4).slots == 4
    assert plan([{"CPU": 0.0}], slots=8, trials=4, grows=True).slots == 4


def node(name: str, cpus: float = 1.0) -> nodes.Node:
    return nodes.Node(name, "10.0.0.1", {"CPU": cpus})


def test_a_slot_on_a_node_that_goes_is_replaced_before_it_is_gone() -> None:
    """A node is asked for at the notice, and one that joins gets a slot while the old one ends its epoch."""
    shape = slots.SlotPlan(slots=2, ask=2, workers=1, cpus=1, gpu=False)
    there = {"slot-0": ["A"], "slot-1": ["B"]}
    both, joined = [node("A"), node("B")], [node("B"), node("C")]
    assert supervisor.need(shape, 2, there, both) == supervisor.Need(start=0, ask=0)
    assert supervisor.need(shape, 2, there, [node("B")]) == supervisor.Need(start=0, ask=1)
    assert supervisor.need(shape, 2, there, joined) == supervisor.Need(start=1, ask=0)
    started = there | {"slot-2": []}  # it is not placed yet
    assert supervisor.need(shape, 2, started, joined) == supervisor.Need(start=0, ask=0)
    assert supervisor.need(shape, 2, started | {"slot-2": ["C"]}, joined) == supervisor.Need(start=0, ask=0)


def test_a_slot_that_spans_a_node_that_goes_is_replaced_as_a_whole() -> None:
    shape = slots.SlotPlan(slots=1, ask=1, workers=2, cpus=1, gpu=False)
    there = {"slot-0": ["A", "B"]}
    assert supervisor.need(shape, 1, there, [node("B")]) == supervisor.Need(start=0, ask=1)
    assert supervisor.need(shape, 1, there, [node("B"), node("C")]) == supervisor.Need(start=1, ask=0)


def test_no_more_is_started_or_asked_for_than_there_is_use_for() -> None:
    shape = slots.SlotPlan(slots=8, ask=4, workers=1, cpus=1, gpu=False)
    assert supervisor.need(shape, 8, {}, [node("A", 16)]) == supervisor.Need(start=8, ask=0)
    assert supervisor.need(shape, 1, {"slot-0": ["A"], "slot-1": ["A"]}, [node("A", 2)]) == supervisor.Need(
        0, 0
    )
    refused = [{"CPU": 1.0}]  # another one like it is not asked for
    assert supervisor.need(shape, 8, {}, [], refused) == supervisor.Need(start=0, ask=3)


class Endless(Searcher):
    """Always has another trial to suggest."""

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"x": 1}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def test_as_many_trials_run_as_slots_are_up() -> None:
    """A trial that was suggested too early would know less, and wait."""
    up = [1]
    room = tuner.Room(Endless(metric="m", mode="max"), 3, lambda: up[0])
    assert room.suggest("a") == {"x": 1}
    assert room.suggest("b") is None
    up[0] = 2
    assert room.suggest("b") == {"x": 1}
    up[0] = 1  # a node went: nothing new until both have ended
    room.on_trial_complete("a")
    assert room.suggest("c") is None
    room.on_trial_complete("b")
    assert room.suggest("c") == {"x": 1}
    up[0] = 9
    assert [room.suggest(name) is None for name in "def"] == [False, False, True]
