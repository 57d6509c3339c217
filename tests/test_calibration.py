"""The temperature of a model, and what it answered on every image, kept beside the record."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from finetune import model_folder
from finetune.evaluation import calibration
from finetune.evaluation.calibration import Calibration
from finetune.messages import Keep
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.training import loop


def sample(images: int, temperature: float, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, generator=draw)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=draw)[:, 0]
    return logits, labels


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(true: float) -> None:
    assert calibration.fit(*sample(20_000, true)).temperature == pytest.approx(true, rel=0.03)


def test_a_model_that_is_too_sure_is_calibrated_on_images_that_it_was_not_fitted_on() -> None:
    fitted = calibration.fit(*sample(3000, 2.5))
    told = calibration.facts(fitted, {"test": sample(3000, 2.5, seed=1)})
    assert told["test"]["ece_before"] > 0.15
    assert told["test"]["ece_after"] < 0.03
    assert told["test"]["loss_after"] < told["test"]["loss_before"]


def test_without_a_mistake_the_temperature_is_1() -> None:
    logits = torch.eye(3).repeat(4, 1)
    assert calibration.fit(logits, logits.argmax(1)) == Calibration(1.0)
    assert calibration.fit(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)) == Calibration(1.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `model` and its answers in `record`."""
    folder = tmp_path_factory.mktemp("calibrated")
    data = DataSettings(
        kind="digits", classes=("5", "6", "7", "8"), image_size=32, validation_share=0.4, test_share=0.3
    )
    settings = TrialSettings(
        data=data,
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(),
        strategy="replace",
        epochs=2,
        learning_rate=0.05,
        cache_dir=str(folder / "cache"),
    )
    keep = Keep(metric="val/accuracy", best=folder / "best", last=folder / "last")
    loop.train(settings, keep=keep, report=lambda _: None)
    model_folder.write(folder / "best", folder / "model", {}, answers=folder / "record")
    return folder


def test_the_answers_of_the_record_give_the_metrics_of_the_model(exported: Path) -> None:
    facts = yaml.safe_load((exported / "model/model.yaml").read_text())
    with np.load(exported / "record/answers.npz") as kept:
        for name, split in (("validation", "val"), ("test", "test")):
            labels, predicted = kept[f"{split}/labels"], kept[f"{split}/predicted"]
            told = facts["metrics"][name]
            assert len(labels) == told["images"]
            assert (labels == predicted).mean() == pytest.approx(told["accuracy"])
            assert -np.log(kept[f"{split}/of_label"]).mean() == pytest.approx(told["loss"], rel=1e-4)
            assert facts["calibration"][name]["ece_before"] == pytest.approx(told["ece"], abs=1e-6)
    assert facts["calibration"]["fitted_on"] == "validation"
    assert facts["format"] == 2


def test_predict_uses_the_temperature_and_an_older_folder_answers_as_before(exported: Path) -> None:
    model = model_folder.load(exported / "model")
    images = torch.randint(
        0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    calibrated = model.probabilities(images)
    warmth = model.facts["calibration"]["temperature"]
    assert warmth != 1.0
    del model.facts["calibration"]  # as in version 1
    plain = model.probabilities(images)
    assert (calibrated.argmax(1) == plain.argmax(1)).all()
    assert torch.allclose((plain.log() / warmth).softmax(1), calibrated, atol=1e-6)


@pytest.mark.parametrize("warmth", [0.0, -1.0, float("nan"), "hot"])
def test_a_temperature_that_nobody_fitted_is_refused(exported: Path, tmp_path: Path, warmth: object) -> None:
    import shutil

    from finetune.errors import CheckpointError

    folder = Path(shutil.copytree(exported / "model", tmp_path / "model"))
    facts = yaml.safe_load((folder / "model.yaml").read_text())
    facts["calibration"]["temperature"] = warmth
    (folder / "model.yaml").write_text(yaml.safe_dump(facts))
    with pytest.raises(CheckpointError, match="calibration with temperature"):
        model_folder.load(folder)


def test_the_mistakes_are_the_most_confident_wrong_answers_with_a_picture_without_metadata(
    exported: Path,
) -> None:
    told = json.loads((exported / "record/mistakes.json").read_text())
    with np.load(exported / "record/answers.npz") as kept:
        wrong = kept["test/labels"] != kept["test/predicted"]
        sure = np.sort(kept["test/calibrated"][wrong])[::-1]
    assert len(told) == min(24, wrong.sum())
    assert [one["probability"] for one in told] == pytest.approx(sure[: len(told)].tolist())
    assert all(one["label"] != one["predicted"] for one in told)
    picture = Image.open(io.BytesIO(base64.b64decode(told[0]["picture"])))
    assert picture.format == "WEBP"
    assert max(picture.size) <= 96
    assert not picture.getexif()


def test_a_record_that_cannot_be_written_does_not_stop_an_export(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model_folder.write(exported / "best", tmp_path / "model", {}, answers=tmp_path / "file" / "record")
    assert (tmp_path / "model/README.md").exists()
    assert "expected calibration error on test images" in (tmp_path / "model/README.md").read_text()
