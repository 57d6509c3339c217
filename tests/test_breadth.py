"""Studies on what users bring: a manifest, a set of torchvision's, backbones with weights of their own."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.datasets import catalog
from finetune.errors import WeightsError
from finetune.settings import DataSettings
from search.config.study import StudyConfig
from search.driver import runner
from search.driver.checks import check, check_text
from search.record.study_folder import StudyFolder
from search.views import table
from tests.here import Here
from tests.torchvision_copies import eurosat

Make = Callable[..., StudyConfig]

CLASSES = 24
"""More than search.record.records.RECALLS_OF_AN_EPOCH."""
BLOCKS = {"shufflenet_v2_x0_5": 18, "squeezenet1_1": 9}
FROZEN = {("shufflenet_v2_x0_5", 0.5): 9, ("shufflenet_v2_x0_5", 0.97): 17,
          ("squeezenet1_1", 0.5): 5, ("squeezenet1_1", 0.97): 9}  # fmt: skip


def manifest(folder: Path) -> Path:
    """A CSV file of grey squares: three images per class, one of them for validation, one file broken."""
    rows = ["image,label,split,weight"]
    for label in range(CLASSES):
        for number, split in enumerate(("train", "train", "val")):
            name = f"{label:02}-{number}.png"
            Image.new("L", (40, 40), 10 * label + number).save(folder / name)
            rows.append(f"{name},kind {label:02},{split},{1 + number}")
    (folder / "00-1.png").write_bytes(b"no image at all")
    path = folder / "images.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of random weights for each backbone, for a source of 7 classes."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in BLOCKS:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=7)
        files[name] = folder / f"{name}.safetensors"
        save_file(model.state_dict(), files[name])
    return files


def by_backbone(make: Make, weights: dict[str, Path], **sections: Any) -> StudyConfig:
    model = {"backbone": list(BLOCKS), "weights": {name: str(file) for name, file in weights.items()}}
    return make(**{"model": model, **sections})


def test_check_names_the_weights_of_each_backbone(small_study: Make, weights: dict[str, Path]) -> None:
    planned = check.plan(by_backbone(small_study, weights, resources={"slots": 1}))
    found = {name: (model["blocks"], model["weights"]) for name, model in planned["model"].items()}
    assert found == {name: (BLOCKS[name], str(file)) for name, file in weights.items()}
    lines = check_text.lines(planned)
    assert f"squeezenet1_1: 9 blocks, {weights['squeezenet1_1']}" in lines


def test_check_says_whose_weights_do_not_fit(small_study: Make, weights: dict[str, Path]) -> None:
    swapped = {"shufflenet_v2_x0_5": weights["squeezenet1_1"], "squeezenet1_1": weights["squeezenet1_1"]}
    told = r"must hold exactly the weights of torchvision's shufflenet_v2_x0_5, got .* missing keys"
    with pytest.raises(WeightsError, match=told):
        check.plan(by_backbone(small_study, swapped, resources={"slots": 1}))


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_study_of_a_torchvision_set_with_two_backbones_and_shares_of_their_blocks(
    small_study: Make, weights: dict[str, Path], tmp_path: Path
) -> None:
    """Each trial trains its own backbone from its own file, half of its own blocks frozen."""
    eurosat(tmp_path / "sets")
    config = by_backbone(
        small_study,
        weights,
        study={"trials": 6, "epochs": 1, "sampler": "random"},
        data={"kind": "torchvision", "name": "EuroSAT", "path": str(tmp_path / "sets"), "classes": None,
              "image_size": 64, "validation_share": 0.4, "test_share": 0.1},
        space={"strategy": ["replace", "fuse"], "frozen_layers": [0.5, 0.97]},
    )  # fmt: skip
    record = runner.run(config)
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 6
    for trial in record.trials:
        name, share = trial.params["backbone"], trial.params["frozen_layers"]
        digest = hashlib.sha256(weights[name].read_bytes()).hexdigest()
        assert trial.effective["weights_sha256"] == digest
        assert trial.effective["frozen_blocks"] == FROZEN[name, share]
        assert table.cell(trial, "frozen_layers") == f"{trial.effective['frozen_blocks']} ({share})"
    assert {trial.params["backbone"] for trial in record.trials} == set(BLOCKS)
    assert {trial.params["frozen_layers"] for trial in record.trials} == {0.5, 0.97}


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_study_with_objectives_and_a_limit_measures_its_models_and_refits_the_best(
    small_study: Make, weights: dict[str, Path]
) -> None:
    """One of two backbones is above the limit: it ends after its first epoch and is not the best."""
    sizes = {"shufflenet_v2_x0_5": 345_000, "squeezenet1_1": 724_000}
    config = by_backbone(
        small_study,
        weights,
        study={"trials": 4, "epochs": 3, "objectives": ["latency_ms"], "refit": True,
               "constraints": ["parameters <= 500000"], "sampler": "random"},
        space={"strategy": "replace", "frozen_layers": "all", "head_size": 0},
    )  # fmt: skip
    record = runner.run(config)
    assert {trial.params["backbone"] for trial in record.trials} == set(BLOCKS)
    latencies: dict[str, set[float]] = {}
    for trial in record.trials:
        name = trial.params["backbone"]
        assert trial.measured["parameters"] == pytest.approx(sizes[name], rel=0.05)
        latencies.setdefault(name, set()).add(trial.measured["latency_ms"])
        wide = name == "squeezenet1_1"
        assert record.breaks(trial) is wide
        assert not wide or (trial.state, trial.epochs) == ("PRUNED", 1)
    assert {len(found) for found in latencies.values()} == {1}, "equal models have equal latencies"
    assert record.best is not None
    assert record.best.number in record.front
    final = yaml.safe_load((Path(record.folder) / "final" / "model.yaml").read_text())
    images = record.provenance["images"]
    assert final["refit"]["images"] == images["train"] + images["val"]
    assert final["provenance"]["trial"] == record.best.id


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_study_of_a_manifest_counts_what_it_left_out_and_bounds_the_recalls(
    small_study: Make, tmp_path: Path
) -> None:
    """Recalls of 24 classes are whole in the JSON for best and last, and nowhere one by one per epoch."""
    data = {"kind": "manifest", "path": str(manifest(tmp_path)), "on_error": "skip", "classes": None}
    config = small_study(
        study={"trials": 2, "epochs": 2, "metric": "val/recall/kind 03"},
        data={**data, "image_size": 32},
        model={"weights": "none"},
        space={"strategy": "replace", "head_size": 0},
        early_stopping={"enabled": False},
    )
    record = runner.run(config)
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 2
    skipped = record.provenance["skipped"]
    assert [entry["path"] for entry in skipped] == ["00-1.png"]
    assert "an image must be readable" in skipped[0]["reason"]
    assert record.provenance["images"] == {"train": 47, "val": 24, "test": 0}
    recalls = {f"val/recall/kind {label:02}" for label in range(CLASSES)}
    folder = StudyFolder(Path(record.folder))
    for trial in table.to_json(record, history=True)["trials"]:
        for which in ("best", "last"):
            assert {name for name in trial["metrics"][which] if "recall" in name} == recalls
        for epoch in trial["history"]:
            assert {name for name in epoch if "recall" in name} == {"val/recall/kind 03"}
        (run,) = folder.tensorboard.glob(f"{trial['number']:04d}-*")
        board = EventAccumulator(str(run)).Reload()
        tags = {tag for tag in board.Tags()["scalars"] if "recall" in tag}
        assert tags == {"val/recall/kind 03", "work/best val/recall/kind 03"}
    with folder.table.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert [name for name in row if "recall" in name] == ["best.val/recall", "last.val/recall"]
    assert set(json.loads(row["best.val/recall"])) == {name.removeprefix("val/recall/") for name in recalls}


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_founding_recipe_runs_on_a_folder_of_images(here: Here, tmp_path: Path) -> None:
    """`configs/vgg16-recipe.yaml` as a user runs it, but for fewer pixels, epochs and no download."""
    images = catalog.scan(DataSettings(kind="digits", classes=("5", "6", "7")))
    examples = images.splits["train"]  # class by class
    for number, example in enumerate(examples[:: len(examples) // 60]):
        place = tmp_path / "pictures" / f"digit {images.classes[example.label]}"
        place.mkdir(parents=True, exist_ok=True)
        images.open(example).resize((48, 40)).save(place / f"{number}.png")
    said = {"data.path": tmp_path / "pictures", "data.image_size": 32, "study.epochs": 2}
    said |= {"model.weights": "none", "verdict.seeds": 0}
    changes = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
    done = here("run", "configs/vgg16-recipe.yaml", *changes, "--results", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (trial,) = json.loads(done.stdout)["trials"]
    assert (trial["state"], trial["baseline"], trial["epochs"]) == ("COMPLETE", "recipe", 2)
    used = trial["effective"]
    assert (used["blocks"], used["frozen_blocks"], used["head"]) == (13, 13, [[512, 1024], [1024, 3]])
    assert (used["optimizer"], used["learning_rates"]["head"]) == ("adam", 1e-3)
    picture = next((tmp_path / "pictures").rglob("*.png"))
    answer = here("predict", tmp_path / "vgg16-recipe" / "best", picture)
    assert answer.stdout.split("\t")[1].startswith("digit ")
