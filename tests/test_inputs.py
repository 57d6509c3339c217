"""Wrong input is told before Ray starts: by `check` and by `run` in the same words, leaving no folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from finetune.errors import DataError, FinetuneError, WeightsError
from search import check, runner
from search.study import StudyConfig

Make = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that gets past its checks fails the test here instead of starting."""

    def started(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", started)


def refusal(config: StudyConfig, error: type[FinetuneError]) -> str:
    """Return what `check` and `run` both say."""
    with pytest.raises(error) as checked:
        check.plan(config)
    with pytest.raises(error) as run:
        runner.run(config)
    assert not Path(config.results).exists()
    assert str(checked.value) == str(run.value)
    assert "\n" not in str(run.value)
    return str(run.value)


@pytest.mark.parametrize(
    ("metric", "classes", "known"),
    [
        ("val/top5", list("01234"), "val/accuracy"),
        ("val/recall/daisi", list("567"), "val/recall/5"),
        ("val/recall/4", list("567"), "val/recall/7"),
    ],
)
def test_a_metric_that_the_images_cannot_tell(
    small_study: Make, metric: str, classes: list[str], known: str
) -> None:
    config = small_study(study={"metric": metric}, data={"classes": classes})
    told = refusal(config, DataError)
    assert f"study.metric: must be one that these validation images tell, got '{metric}'." in told
    assert known in told


def test_a_recall_of_a_class_without_validation_images(small_study: Make, tmp_path: Path) -> None:
    from PIL import Image

    for place in ("train/cat/a", "train/cat/b", "train/dog/a", "train/dog/b", "val/cat/a"):
        path = tmp_path / "pets" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(place), 0, 0)).save(path)
    data = {"kind": "folder", "path": str(tmp_path / "pets"), "classes": None}
    config = small_study(study={"metric": "val/recall/dog"}, data=data)
    assert "got 'val/recall/dog'. Did you mean 'val/recall/cat'" in refusal(config, DataError)


@pytest.mark.parametrize(
    ("place", "got"),
    [
        ("none.pth", "no such file or directory"),
        ("file://{folder}/none.safetensors", "FileNotFoundError"),
        ("folder.pt", "a folder"),
        ("pipe.pth", "a named pipe"),
    ],
)
def test_a_weights_file_that_is_not_there(small_study: Make, tmp_path: Path, place: str, got: str) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    is_url = "://" in place
    location = place.format(folder=tmp_path) if is_url else str(tmp_path / place)
    told = refusal(small_study(model={"weights": location}), WeightsError)
    assert f"model.weights: {location} must be a readable file on every node, got {got}" in told


def test_more_workers_than_images_of_a_split(small_study: Make, tmp_path: Path) -> None:
    data = {"classes": list("567"), "validation_share": 0.01, "test_share": 0.9, "batch_size": 256}
    config = small_study(data=data, resources={"slots": 1, "workers_per_trial": 20})
    told = refusal(config, DataError)
    assert "resources.workers_per_trial: must be at most the images of 'val' (" in told


def test_a_source_task_without_images(small_study: Make, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(tmp_path / "birds")}
    told = refusal(small_study(model={"weights": {"source": source}}), DataError)
    assert f"{tmp_path / 'birds'}" in told
