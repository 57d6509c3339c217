"""Wrong input is told before Ray starts: by `check` and by `run` in the same words, leaving no folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torchvision

from finetune.errors import DataError, WeightsError
from search.config.study import StudyConfig
from search.driver import runner
from search.driver.checks import check, check_text, inputs
from search.errors import CapacityError, PreflightError
from search.slots import nodes, preflight

Make = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that gets past its checks fails the test here instead of starting."""

    def started(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 64, "GPU": 0}')


def refusal(config: StudyConfig, error: type[Exception]) -> str:
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


@pytest.fixture
def shufflenet_file(tmp_path: Path) -> str:
    """Return the path of a file with shufflenet's weights."""
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


OTHER_WEIGHTS = "must hold exactly the weights of torchvision's squeezenet1_1, got"


def test_a_weights_file_of_another_backbone(small_study: Make, shufflenet_file: str) -> None:
    with pytest.raises(WeightsError, match=OTHER_WEIGHTS):
        inputs.check_fit(small_study(model={"backbone": "squeezenet1_1", "weights": shufflenet_file}))()


@pytest.mark.ray
@pytest.mark.thorough
def test_a_weights_file_of_another_backbone_is_refused_before_the_first_slot(
    small_study: Make, shufflenet_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` looks into the file while Ray starts."""
    monkeypatch.undo()
    right, wrong = (
        {"backbone": name, "weights": shufflenet_file} for name in ("shufflenet_v2_x0_5", "squeezenet1_1")
    )
    assert OTHER_WEIGHTS in refusal(small_study(model=wrong), WeightsError)
    inputs.check_fit(small_study(model=right))()


def test_more_workers_than_images_of_a_split(small_study: Make, tmp_path: Path) -> None:
    data = {"classes": list("567"), "validation_share": 0.01, "test_share": 0.9, "batch_size": 256}
    config = small_study(data=data, resources={"slots": 1, "workers_per_trial": 20})
    told = refusal(config, DataError)
    assert "resources.workers_per_trial: must be at most the images of 'val' (" in told


def test_check_tells_what_is_tried_in_words_and_units(small_study: Make) -> None:
    space: dict[str, Any] = {
        "learning_rate": {"replace": 0.1, "load": {"low": 1e-3, "high": 0.1, "log": True}, "fuse": 0.5},
        "frozen_layers": [3, 0.5, "all"],
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
        "warmup_epochs": [0, 1.5],
    }
    resources = {"slots": 2, "workers_per_trial": 2}
    config = small_study(space=space, resources=resources, verdict={"seeds": 3})
    lines = check_text.lines(check.plan(config))
    for line in (
        "study small: 4 trials of up to 3 epochs, best val/accuracy wins",
        "slots: 2, each 2 workers of 1 CPU, no GPU",
        "space.strategy: replace, load or fuse",
        "space.learning_rate: replace 0.1; load 0.001 to 0.1 (logarithmic); fuse 0.5",
        "space.frozen_layers: 3, 0.5 or all",
        "space.dropout: 0 to 0.5 in steps of 0.25",
        "space.warmup_epochs: 0 or 1.5 epochs",
        "data.image_size: 32 pixels",
        "data.horizontal_flip: false",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("space.", "data.")) and set(line) & set("{}[]'")]
    # There are neither texts nor clips.
    assert not [line for line in lines if line.startswith(("space.fusion", "space.pooling"))]


def test_a_source_task_without_images(small_study: Make, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(tmp_path / "birds")}
    told = refusal(small_study(model={"weights": {"source": source}}), DataError)
    assert f"{tmp_path / 'birds'}" in told


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:8265", "must be HOST:PORT of a running Ray, `auto` or `local`, got 'http://127"),
        ("ray://127.0.0.1:10001", "got 'ray://127.0.0.1:10001'. Unset it to run here"),
        ("nonsense", "got 'nonsense'."),
        ("a b:1", "got 'a b:1'."),
        ("127.0.0.1:1", "cluster 127.0.0.1:1: Ray must answer, got "),
        ("127.0.0.1:99999", "cluster 127.0.0.1:99999: Ray must answer, got "),
        ("x" * 10**6, f"got '{'x' * 80}'."),
    ],
)
def test_an_address_where_no_ray_is(
    small_study: Make, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert told in refusal(small_study(), PreflightError)


@pytest.mark.parametrize(
    ("resources", "got"),
    [
        ({"slots": 64}, "64 slot(s) of 1 worker(s) of 1 CPU(s) must fit, got room for 1 (1 CPUs, 0 GPUs)"),
        ({"slots": "auto", "workers_per_trial": 4}, "1 slot(s) of 4 worker(s) of 1 CPU(s) must fit"),
        ({"slots": 1, "gpu": True}, "1 slot(s) of 1 worker(s) of 1 CPU(s) and 1 GPU(s) each must fit"),
    ],
)
def test_slots_that_do_not_fit_on_this_machine(
    small_study: Make, monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any], got: str
) -> None:
    """`check` and `run` count what Ray would count, so they plan the same slots."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1, "GPU": 0}')
    assert f"resources: {got}" in refusal(small_study(resources=resources), CapacityError)


@pytest.mark.ray
def test_this_machine_has_for_the_plan_what_it_has_for_ray(
    monkeypatch: pytest.MonkeyPatch, ray_folder: str
) -> None:
    monkeypatch.undo()
    planned = nodes.here()
    preflight.join("local", _temp_dir=ray_folder, include_dashboard=False, log_to_driver=False)
    try:
        found = nodes.up()[0].resources
    finally:
        ray.shutdown()
    assert [planned.get(name, 0) for name in ("CPU", "GPU")] == [
        found.get(name, 0) for name in ("CPU", "GPU")
    ]


def test_a_folder_that_only_a_refused_start_has_made_is_gone(small_study: Make, tmp_path: Path) -> None:
    """Also the folder of all studies, unless something else has come to lie there."""
    config = small_study()

    def refuse(beside: str = "") -> None:
        with runner._new_folder(config) as folder:
            assert folder.config.exists()
            folder.slots.mkdir()
            (Path(config.results) / beside).mkdir(exist_ok=True)
            raise CapacityError

    for beside, left in [("", False), ("other", True)]:
        with pytest.raises(CapacityError):
            refuse(beside)
        assert not config.folder.exists()
        assert Path(config.results).exists() == left


def test_a_folder_in_which_trials_have_begun_is_kept(small_study: Make) -> None:
    config = small_study()

    def begin() -> None:
        with runner._new_folder(config) as folder:
            folder.database.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert (config.folder / "study.yaml").exists()
