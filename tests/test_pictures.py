"""The pictures of a trial in TensorBoard, drawn from what a worker kept of its answers."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.views.tensorboard import Board, pictures

CLASSES = ["daisy", "rose", "tulip"]
CONFIG = StudyConfig.from_folder("flowers", backbone="mobilenet_v2")
TRIAL = TrialRecord(
    number=0,
    id="trial-0000",
    state="COMPLETE",
    params={"strategy": "fuse", "learning_rate": 0.01, "backbone": "mobilenet_v2"},
)
RUN = "0000-fuse-lr.01-mobilenet_v2"


def coded(colour: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    Image.new("RGB", (96, 96), colour).save(file, "WEBP")
    return base64.b64encode(file.getvalue()).decode()


def kept(folder: StudyFolder, split: str = "test") -> None:
    trial = folder.trial(TRIAL.id)
    trial.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Any] = {
        "labels": np.array([0, 0, 1, 2, 2]),
        "predicted": np.array([0, 1, 1, 2, 0]),
        "confidence": np.array([0.9, 0.8, 0.7, 0.95, 0.99]),
        "calibrated": np.array([0.8, 0.7, 0.6, 0.85, 0.9]),
    }
    np.savez_compressed(
        trial / "answers.npz", **{f"{split}/{name}": value for name, value in answers.items()}
    )
    mistake = {"label": "tulip", "predicted": "daisy", "probability": 0.9, "picture": coded((255, 0, 0))}
    (trial / "mistakes.json").write_text(json.dumps([mistake] * 8))
    (trial / "batch.json").write_text(json.dumps([{"label": "rose", "picture": coded((0, 255, 0))}]))


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path)
    board = Board(folder.tensorboard, CONFIG)
    board.start(TRIAL.id, TRIAL.params)
    board.close()
    return folder


def images(folder: StudyFolder) -> dict[str, list[Image.Image]]:
    """Return the pictures of the trial's run, as TensorBoard's own reader finds them, by tag."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder.tensorboard))
    multiplexer.Reload()
    found = {}
    for tag in multiplexer.Runs()[RUN]["tensors"]:
        if tag.startswith("pictures/"):
            texts = [event.tensor_proto.string_val for event in multiplexer.Tensors(RUN, tag)]
            found[tag.removeprefix("pictures/")] = [Image.open(io.BytesIO(text[2])) for text in texts]
            assert [text[0] for text in texts] == [str(found[tag[9:]][0].width).encode()]
    return found


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_trial_whose_answers_were_kept_has_its_pictures_once(folder: StudyFolder, split: str) -> None:
    kept(folder, split)
    for _ in range(2):
        assert pictures.add(folder, CONFIG, TRIAL, CLASSES)
    found = images(folder)
    assert set(found) == {
        f"confusion on {split}",
        f"reliability on {split}",
        "most confident mistakes",
        "a training batch as seen",
    }
    assert {len(several) for several in found.values()} == {1}
    mistakes = found["most confident mistakes"][0].convert("RGB")
    assert mistakes.getpixel((68, 50)) == pytest.approx((255, 0, 0), abs=4)
    assert found["a training batch as seen"][0].convert("RGB").getpixel((68, 50)) == pytest.approx(
        (0, 255, 0), abs=4
    )


def test_the_map_of_an_explained_mistake_stands_beside_it(folder: StudyFolder) -> None:
    kept(folder)
    trial = folder.trial(TRIAL.id)
    mistake = {"label": "tulip", "predicted": "daisy", "probability": 0.9, "picture": coded((255, 0, 0))}
    (trial / "mistakes.json").write_text(json.dumps([mistake | {"image": i} for i in (3, 5, 7, 8)]))
    explained = [{"image": i, "map": coded((0, 0, 255)), "neighbours": []} for i in (5, 7)]
    (trial / "explained.json").write_text(json.dumps({"mistakes": explained, "suspects": []}))
    assert pictures.add(folder, CONFIG, TRIAL, CLASSES)
    sheet = images(folder)["most confident mistakes"][0].convert("RGB")
    wide = 2 * pictures.TILE + 4 + 40
    assert sheet.width == 3 * wide
    red, blue = (255, 0, 0), (0, 0, 255)
    for place, at in (((120, 50), red), ((wide + 68, 50), red), ((wide + 168, 50), blue)):
        assert sheet.getpixel(place) == pytest.approx(at, abs=4)


def test_a_trial_without_answers_has_no_pictures(folder: StudyFolder) -> None:
    assert not pictures.add(folder, CONFIG, TRIAL, CLASSES)
    assert images(folder) == {}


@pytest.mark.parametrize("damaged", ["answers.npz", "mistakes.json", "batch.json", "explained.json"])
def test_a_damaged_file_costs_its_own_pictures_alone(folder: StudyFolder, damaged: str) -> None:
    kept(folder)
    (folder.trial(TRIAL.id) / damaged).write_bytes(b"PK\x03\x04 {")
    assert pictures.add(folder, CONFIG, TRIAL, CLASSES)
    assert 2 <= len(images(folder)) <= 3 + (damaged == "explained.json")


def test_the_confusion_matrix_colours_each_row_by_its_share() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1])
    small = pictures.confusion(labels, predicted, [f"class {i}" for i in range(2)])
    left, right = small.getpixel((140, 140)), small.getpixel((130 + 265, 140))
    assert left == right  # half of the first class is answered rightly, half as the second class
    assert small.getpixel((140, 630)) == (255, 255, 255)
    assert small.getpixel((630, 630)) == (25, 103, 210)


@pytest.mark.parametrize("count", [2, 30, 31, 1000])
def test_any_number_of_classes_gives_a_chart_of_bounded_size(count: int) -> None:
    labels = np.arange(count)
    names = [f"a class with a name of many letters, number {i}" for i in range(count)]
    assert pictures.confusion(labels, labels, names).size == (pictures.SIDE, pictures.SIDE)


def test_a_reliability_chart_shows_answers_of_one_confidence() -> None:
    right = np.array([True, True])
    chart = pictures.reliability(right, np.array([1.0, 1.0]), np.array([0.5, 0.5]))
    assert chart.size == (pictures.SIDE, pictures.SIDE)
    assert chart.getpixel((600, 40)) == (227, 116, 0)  # confidence 1, all right, before the temperature
