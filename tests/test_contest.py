"""Which settings are compared, and the verdict as it is worked out from a study's folder."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import synthetic_study
from search.record.ledger import read_study
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.verdict import contest
from search.views import table

IMAGES = 200


def trial(number: int, strategy: str, score: float, **more: Any) -> TrialRecord:
    facts: dict[str, Any] = {
        "state": "COMPLETE",
        "params": {"strategy": strategy, "learning_rate": 0.1 + number},
    }
    facts |= {"metrics": {"best": {"val/accuracy": score}, "last": {}}}
    return TrialRecord(number=number, id=f"trial-{number:04d}", **facts | more)


def record(folder: Path, *trials: TrialRecord, **more: Any) -> StudyRecord:
    facts: dict[str, Any] = {"name": "x", "metric": "val/accuracy", "mode": "max", "planned": 9, "epochs": 3}
    facts |= {"state": "finished", "seconds": 1.0, "folder": str(folder), "trials": trials}
    facts |= {"provenance": {"images": {"test": IMAGES}, "classes": ["a", "b"]}}
    return StudyRecord(**facts | more)


TRIALS = (
    trial(0, "replace", 0.70, baseline="recipe"),
    trial(1, "replace", 0.50, baseline="scratch"),
    trial(2, "fuse", 0.90),
    trial(3, "fuse", 0.90, params={"strategy": "fuse", "learning_rate": 2.1}),  # the setting of trial 2 again
    trial(4, "fuse", 0.88),
    trial(5, "load", 0.60),
    trial(6, "load", 0.80),
    trial(7, "fuse", 0.95, state="PRUNED"),
    trial(8, "fuse", 0.85),
)


def test_the_best_settings_the_recipe_and_the_best_of_each_strategy_are_compared(tmp_path: Path) -> None:
    study = record(tmp_path, *TRIALS)
    assert [t.number for t in contest.contestants(study, top=2)] == [2, 4, 6, 0]
    assert [t.number for t in contest.contestants(study, top=3)] == [2, 4, 8, 6, 0]
    assert contest.contestants(record(tmp_path), top=2) == []


def repeat(folder: Path, name: str, seed: int, rights: int | None) -> dict[str, Any]:
    """Write the answers of a training with another seed, and return its entry in the record."""
    told = {"id": f"{name}-seed-{seed}", "trial": name, "state": "COMPLETE", "metrics": {}, "seconds": 1.0}
    if rights is None:
        return told | {"state": "FAIL", "error": "out of memory"}
    labels = np.zeros(IMAGES, dtype=np.int32)
    content = {
        "test/labels": labels,
        "test/predicted": (np.arange(IMAGES) >= rights).astype(np.int32),
        "test/confidence": np.full(IMAGES, 0.8, dtype=np.float32),
        "test/of_label": np.full(IMAGES, 0.5, dtype=np.float32),
        "test/calibrated": np.full(IMAGES, 0.7, dtype=np.float32),
        "test/in_top5": np.ones(IMAGES, dtype=bool),
    }
    path = StudyFolder(folder).answers(told["id"])
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, **content)
    return told | {"metrics": {"val/accuracy": rights / IMAGES + 0.01, "epoch": 2.0}}


def test_the_verdict_comes_from_the_answers_of_the_folder_and_failed_seeds_are_told(tmp_path: Path) -> None:
    given = {"trial-0002": [180, 182, 181], "trial-0004": [150, 151, None], "trial-0006": [160, 161, 162]}
    repeats = [
        repeat(tmp_path, name, seed, rights)
        for name, all_rights in given.items()
        for seed, rights in enumerate(all_rights, 1)
    ]
    study = record(tmp_path, *TRIALS, repeats=tuple(repeats))
    found = contest.measured(study, top=2, seeds=3)
    told = {one.against: (one.trial, one.outcome, one.seeds) for one in found.comparisons}
    assert told == {
        "recipe": ("trial-0000", "not measured", 0),
        "runner-up": ("trial-0004", "better", 2),
        "load": ("trial-0006", "better", 3),
    }
    assert found.score == pytest.approx(181 / IMAGES)
    assert found.luck is not None
    assert found.luck.difference == pytest.approx(0.90 - (181 / IMAGES + 0.01))
    assert found.note == ("Seeds that failed or did not fit into the budget: trial-0004 (1), trial-0000 (3).")
    StudyFolder(tmp_path).answers("trial-0002-seed-1").write_bytes(b"damaged")
    StudyFolder(tmp_path).answers("trial-0002-seed-2").unlink()
    lost = contest.measured(study, top=2, seeds=3)
    assert {one.outcome for one in lost.comparisons} == {"not measured"}


def test_every_view_shows_the_verdict_of_the_record_until_another_trial_wins(tmp_path: Path) -> None:
    study = read_study(synthetic_study.write(tmp_path / "flowers", 20))
    found = contest.of(study)
    assert found.seeds == 3
    lines = table.comparison(study)
    assert f"verdict: {found.sentence}" in lines
    assert found.luck is not None
    assert found.luck.sentence in lines
    assert table.to_json(study)["verdict"] == found.to_json() | {
        "comparisons": [vars(c) for c in found.comparisons]
    }
    better = dataclasses.replace(
        study,
        trials=(*study.trials, trial(20, "fuse", 0.99, params={"strategy": "fuse", "learning_rate": 9.0})),
    )
    stale = contest.of(better)
    assert stale.winner == "trial-0020"
    assert stale.seeds == 0
    assert not [line for line in table.comparison(better) if line.startswith("verdict: ")]
