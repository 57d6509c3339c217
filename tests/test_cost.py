"""The plan of a study: what it will cost, from the time that one image takes."""

import json
from pathlib import Path

import pytest

from search.config.study import StudyConfig
from search.driver.checks import check, check_text, estimate
from search.suggest import cost
from search.suggest.cost import ImageCost
from tests.small import STUDY, merged

IMAGES = {"train": 800, "val": 200, "test": 100}
COST = {"resnet18": ImageCost(decode=0.01, forward=0.01, train=0.04)}


def study_of(**options: object) -> StudyConfig:
    return StudyConfig.from_folder("/images", **options)


def seconds(**options: object) -> float:
    return cost.expected(study_of(**options), IMAGES, COST, slots=2, gpus=0).seconds


def test_the_cost_is_the_features_and_every_trials_epochs() -> None:
    """A frozen head costs next to nothing; `scratch` trains every block for every epoch."""
    heads = {"strategy": ["replace"], "trials": 10, "epochs": 5}
    assert seconds(**heads) == pytest.approx(20.0, abs=1.5)
    asked = seconds(**heads, baselines=["recipe", "scratch"]) - seconds(**heads)
    assert asked == pytest.approx(1000 * 5 * 0.04 / 2, rel=0.05)
    whole = {**heads, "strategy": ["fuse"], "frozen_layers": 0, "early_stopping": {"rule": "none"}}
    assert seconds(**whole) == pytest.approx(20 + 9 * 5 * (800 * 0.04 + 200 * 0.01) / 2, rel=0.02)


def test_early_stopping_leaves_a_part_of_the_epochs() -> None:
    assert cost.share_of_epochs(study_of(epochs=8)) == pytest.approx((2 + 4 / 3 + 2 / 9) / 8)
    assert cost.share_of_epochs(study_of(epochs=8, early_stopping={"rule": "none"})) == 1.0


def test_gpu_hours_and_money_follow_the_gpus_and_the_price() -> None:
    config = study_of(price_per_gpu_hour=2.0, trials=10)
    found = cost.expected(config, IMAGES, COST, slots=2, gpus=4)
    assert found.gpu_hours == pytest.approx(found.seconds * 4 / 3600)
    assert found.money == pytest.approx(2 * found.gpu_hours)
    assert cost.expected(study_of(), IMAGES, COST, slots=2, gpus=4).money is None


def test_a_budget_says_how_many_trials_there_will_be() -> None:
    few, many = (
        cost.expected(study_of(budget=budget), IMAGES, COST, slots=2, gpus=0) for budget in ("10m", "20m")
    )
    assert (few.seconds, many.seconds) == (600.0, 1200.0)
    assert 1 < few.trials < many.trials < 10_000
    half = cost.expected(study_of(budget="1gpuh"), IMAGES, COST, slots=2, gpus=2)
    assert (half.seconds, half.gpu_hours) == (1800.0, 1.0)


def test_the_countdown_counts_what_runs_and_what_is_left() -> None:
    ended = [("replace", 1.0), ("fuse", 9.0)]
    assert cost.remaining([], [], left=4, slots=2) is None
    assert cost.remaining(ended, [], left=4, slots=2) == 10.0
    assert cost.remaining(ended, [("fuse", 4.0), ("replace", 2.0)], left=0, slots=2) == 5.0


def test_check_times_this_machine_and_a_run_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = StudyConfig.from_dict(merged(STUDY | {"results": str(tmp_path)}, {}))
    assert check.plan(config)["cost"] is None
    assert estimate.kept(config) is None
    planned = check.plan(config, timed=True)
    assert planned["cost"]["seconds"] > 0
    assert planned["cost"]["trials"] == config.study.trials
    json.dumps(planned)
    assert any(line.startswith("cost: about ") for line in check_text.lines(planned))
    costs = estimate.kept(config)
    assert costs is not None
    assert 0 < costs["shufflenet_v2_x0_5"].forward < costs["shufflenet_v2_x0_5"].train
