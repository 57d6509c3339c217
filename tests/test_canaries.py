"""Nothing of a training image leaves with a model: planted names, tags and pixels are sought everywhere."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image
from sklearn.datasets import load_digits

from benchmarks import synthetic_study
from finetune import model_folder
from finetune.handing_on import parity
from finetune.settings import DataSettings
from search.report import page
from search.views import explanations
from tests import models
from tests.test_serving import asked

NAME, TAG, PLACE = "canary-name", "CANARYTAG", "canary-place"
PATCH = np.random.default_rng(7).integers(1, 255, (8, 8, 3), dtype=np.uint8)
SLOTS = {"slot-0": {"host": "canary-host", "finetune": f"/home/{PLACE}/code"}}


def photo(path: Path, digit: np.ndarray) -> None:
    """Write a PNG with a planted patch, and a TIFF-like set of tags with a place and a text."""
    pixels = np.repeat(np.kron(digit * 15, np.ones((4, 4))).astype(np.uint8)[:, :, None], 3, 2)
    pixels[4:12, 4:12] = PATCH
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = TAG
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = TAG
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] = TAG
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, icc_profile=TAG.encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Photos, a model that was trained on them, and the private answers of its study."""
    root = tmp_path_factory.mktemp(PLACE)
    digits = load_digits()
    for label in (6, 7):
        own = digits.images[digits.target == label]
        for split, (begin, end) in {"train": (0, 20), "val": (20, 32), "test": (32, 40)}.items():
            for number in range(begin, end):
                photo(root / "photos" / split / str(label) / f"{NAME}-{number}.png", own[number])
    data = DataSettings(kind="folder", path=str(root / "photos"), image_size=32)
    skipped = [{"path": f"{NAME}-broken.png", "reason": "torn"}]
    best = models.train(root, data=data)
    provenance: dict[str, Any] = {"skipped": skipped, "slots": SLOTS}
    model_folder.write(best, root / "model", provenance, answers=root / "trial")
    return root / "photos", root / "model", root / "trial"


def found(content: bytes) -> list[str]:
    """Return what of a training image a file holds."""
    marks = {text: text.encode() for text in (NAME, TAG, PLACE, "canary-host")}
    for number, row in enumerate(PATCH):
        marks[f"row {number}"] = row.tobytes()
        marks[f"red of row {number}"] = row[:, 0].tobytes()
        marks[f"floats of row {number}"] = (row[:, 0] / 255).astype(np.float32).tobytes()
    return [what for what, mark in marks.items() if mark in content or mark.hex().encode() in content]


def test_a_canary_is_found_where_it_is(made: tuple[Path, Path, Path]) -> None:
    first = next((made[0] / "train" / "6").iterdir())
    assert TAG in found(first.read_bytes())
    with Image.open(first) as image:
        assert "row 3" in found(np.asarray(image).tobytes())


def test_nothing_of_an_image_leaves_in_a_model_folder(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    told = {path.name: found(path.read_bytes()) for path in made[1].iterdir()}
    assert set(told) == {"model.safetensors", "model.yaml", "bom.json", "README.md"}
    assert not any(told.values()), told
    facts = yaml.safe_load((made[1] / "model.yaml").read_text())
    assert facts["settings"]["data"]["path"] is None
    assert facts["provenance"]["skipped"] == 1
    copied = Path(shutil.copytree(made[1], tmp_path / "copy"))
    assert model_folder.load(copied).facts == model_folder.load(made[1]).facts


def test_pictures_of_the_record_have_no_metadata(made: tuple[Path, Path, Path]) -> None:
    pictures = []
    for name in ("mistakes.json", "batch.json", "explained.json"):
        text = (made[2] / name).read_text()

        def look(value: Any) -> None:
            for one in value.values() if isinstance(value, dict) else value:
                if isinstance(one, (dict, list)):
                    look(one)
                elif isinstance(one, str) and len(one) > 100:
                    pictures.append(base64.b64decode(one))

        look(json.loads(text))
    assert pictures
    for coded in pictures:
        assert TAG.encode() not in coded
        with Image.open(io.BytesIO(coded)) as image:
            assert (len(image.getexif()), image.info.get("icc_profile")) == (0, None)


def test_pictures_of_explain_have_no_metadata(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    photos = sorted((made[0] / "train" / "6").iterdir())[:2]
    list(explanations.explain(made[1], photos, tmp_path / "to", method="random", about=None))
    written = [path for path in (tmp_path / "to").rglob("*") if path.suffix == ".png"]
    assert written
    assert not any(TAG.encode() in path.read_bytes() for path in written)


def test_a_served_answer_says_nothing_of_the_images(made: tuple[Path, Path, Path]) -> None:
    async def ask(one: httpx.AsyncClient) -> list[bytes]:
        body = next((made[0] / "train" / "6").iterdir()).read_bytes()
        answers = [await one.post("/predict", content=body)]
        answers += [await one.get(path) for path in ("/metadata", "/healthz", "/openapi.json")]
        return [answer.content + str(answer.headers).encode() for answer in answers]

    assert [found(content) for content in asked(made[1], ask)] == [[], [], [], []]


def test_a_shareable_report_says_nothing_of_the_images(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    provenance = {
        "images": {"train": 40, "val": 24, "test": 16},
        "skipped": [{"path": f"{NAME}.png", "reason": TAG}],
        "slots": SLOTS,
    }
    folder = synthetic_study.write(tmp_path / PLACE, 5, provenance=provenance)
    for trial in folder.trial("").iterdir():
        shutil.copytree(made[2], trial, dirs_exist_ok=True)
    whole = page.write(folder).read_bytes()
    assert NAME in found(whole)
    shared = page.write(folder, tmp_path / "shared.html", shareable=True).read_bytes()
    assert found(shared) == []
    assert b"data:image" not in shared.split(b"<script>")[0].replace(b"img-src data:", b"")


def test_parity_is_measured_on_generated_images_where_there_is_no_place(
    made: tuple[Path, Path, Path],
) -> None:
    facts = model_folder.load(made[1]).facts
    images = parity.validation_images(facts)
    assert images.shape == (parity.IMAGES, 32, 32, 3)
    assert (images == parity.validation_images(facts)).all()
    assert len({one.numpy().tobytes() for one in images}) == parity.IMAGES
    real = parity.validation_images(facts, {"path": str(made[0])})
    assert len(real) == 24
    hidden = parity.validation_images(facts | {"privacy": {"epsilon": 1.0}}, {"path": str(made[0])})
    assert (hidden == images).all()
