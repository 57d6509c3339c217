"""What the search is for: from pretrained weights it finds a better model than from random ones."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.config import config_file
from search.config.study import SCHEMA_FILE
from search.driver import runner
from search.record.records import StudyRecord, TrialRecord
from search.views import table

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
CONFIGS = SCHEMA_FILE.parent


def study_of(config: str, tmp_path: Path, **values: Any) -> StudyRecord:
    """Return the record of a study without failures: a config of `configs/` with other values."""
    said = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    record = runner.run(config_file.load(CONFIGS / config, [*said, f"results={tmp_path}"]))
    assert record.state == "finished"
    assert not [trial.error for trial in record.trials if trial.state == "FAIL"]
    return record


def accuracy(trial: TrialRecord | None) -> float:
    assert trial is not None
    return trial.metrics["best"]["val/accuracy"]


def best_of(config: str, tmp_path: Path, **values: Any) -> float:
    """Return the best validation accuracy of a study."""
    return accuracy(study_of(config, tmp_path, **values).best)


@pytest.mark.thorough
def test_a_search_on_digits_is_worth_its_pretrained_weights(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 images of the digits 5 to 9; the weights have seen 0 to 4."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    said: dict[str, Any] = {"study__trials": 4, "study__baselines": "[]", "verdict__seeds": 0}
    said |= {"space__strategy": "[replace, fuse]", "resources__slots": 1}
    transferred = best_of("quickstart.yaml", tmp_path, **said)
    random = best_of("quickstart.yaml", tmp_path, model__weights="none", **said)
    print(f"digits: {transferred:.3f} from pretrained weights, {random:.3f} from random ones")
    assert transferred > random + 0.1  # standard error of either: 0.035


@pytest.mark.thorough
@pytest.mark.material
def test_a_search_on_photos_is_worth_its_imagenet_weights(tmp_path: Path, material: Path) -> None:
    """40 photos of each of 5 flowers to train on, 40 to validate, 64 pixels, the default space."""
    for split in ("train", "val"):
        for folder in (material / "data" / "flowers5" / split).iterdir():
            (tmp_path / "photos" / split / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:40]:
                (tmp_path / "photos" / split / folder.name / photo.name).symlink_to(photo)
    said = {"data__path": tmp_path / "photos", "data__image_size": 64, "study__trials": 2}
    said |= {"study__baselines": "[]", "space__strategy": "[replace, fuse]", "verdict__seeds": 0}
    imagenet = material / "weights" / "mobilenet_v2.pth"
    transferred = best_of("flowers.yaml", tmp_path, model__weights=imagenet, **said)
    random = best_of("flowers.yaml", tmp_path, model__weights="none", **said)
    print(f"flowers: {transferred:.3f} from ImageNet's weights, {random:.3f} from random ones")
    assert transferred > 0.5  # chance: 0.2, standard error 0.035
    assert random < 0.35


@pytest.mark.long
@pytest.mark.material
@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_search_on_flowers_finds_a_good_model(seed: int, tmp_path: Path, material: Path) -> None:
    """`configs/flowers.yaml` as it is: mobilenet_v2, 1,000 + 300 photos, 128 pixels, 24 trials of 5 epochs.

    A logistic regression on the same weights' features reaches .81, plain fine-tuning of the whole .88.
    """
    said = {"data__path": material / "data" / "flowers5", "study__seed": seed}
    weights = material / "weights" / "mobilenet_v2.pth"
    record = study_of("flowers.yaml", tmp_path, model__weights=weights, **said)
    assert sum(trial.counts for trial in record.trials) == 24
    table.show(record, Console(width=150))
    assert accuracy(record.best) >= 0.88


@pytest.mark.long
@pytest.mark.material
def test_the_same_search_from_random_weights_finds_a_far_worse_one(tmp_path: Path, material: Path) -> None:
    """`configs/flowers.yaml` without `load`, which needs a source FC, and with 6 trials instead of 24."""
    said = {"data__path": material / "data" / "flowers5", "model__weights": "none", "study__trials": 6}
    said |= {"study__baselines": "[]", "space__strategy": "[replace, fuse]"}
    record = study_of("flowers.yaml", tmp_path, **said)
    table.show(record, Console(width=150))
    assert accuracy(record.best) < 0.75  # .88 with ImageNet's weights; standard error: .03
