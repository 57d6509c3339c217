"""`check` tells near-duplicates and shortcuts that were planted, and nothing about clean sets."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from finetune.datasets import inspection
from finetune.datasets.catalog import scan
from finetune.settings import DataSettings
from finetune.suspects import duplicates, heads, shortcuts
from finetune.suspects.looks import Look, look

CLASSES = 3
EACH = 24
COLOURS = ("red", "lime", "blue")


def scene(seed: int, side: int = 96) -> Image.Image:
    """Return a smooth random picture, as unlike others as photographs are."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **how)
    return file.getvalue()


def described(image: Image.Image, content: bytes | None = None) -> Look:
    content = jpeg(image) if content is None else content
    return look(Image.open(io.BytesIO(content)).convert("RGB"), content)


def captioned(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((5, 5), "copyright", fill="white")
    return image


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda image: Image.open(io.BytesIO(jpeg(image, quality=20))).convert("RGB"),
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "smaller": lambda image: image.resize((40, 40)),
    "captioned": captioned,
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_found_among_other_images(how: str) -> None:
    images = [scene(seed) for seed in range(40)]
    looks = [described(image) for image in [*images, ALTERED[how](scene(17))]]
    assert [(pair.first, pair.second) for pair in duplicates.near(looks)] == [(17, 40)]


def test_features_find_a_copy_that_the_hash_does_not() -> None:
    looks = [described(scene(seed)) for seed in range(4)]
    features = np.eye(4, 8, dtype=np.float32)
    features[3] = features[1] + 0.1
    assert duplicates.near(looks) == []
    found = duplicates.near(looks, features)
    assert [(pair.first, pair.second) for pair in found] == [(1, 3)]
    assert found[0].cosine == pytest.approx(0.977, abs=0.005)


def test_pairs_are_found_across_the_blocks_in_which_images_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = [described(scene(seed)) for seed in (0, 1, 2, 3, 0, 2)]
    whole = [(pair.first, pair.second) for pair in duplicates.near(looks)]
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    assert [(pair.first, pair.second) for pair in duplicates.near(looks)] == whole == [(0, 4), (2, 5)]


def test_images_without_contrast_are_no_copies_of_one_another() -> None:
    looks = [described(Image.new("RGB", (50, 50), colour)) for colour in ("white", "black", "white")]
    assert duplicates.near(looks) == []


def test_images_with_the_same_outline_and_other_content_are_no_copies() -> None:
    """The hash alone takes a dark object on white paper for its own negative in other places."""
    one, other = described(scene(1)), described(scene(2))
    same_hash = Look(**{**vars(other), "phash": one.phash, "mirrored": one.mirrored})
    assert duplicates.near([one, same_hash]) == []


def bordered(image: Image.Image, label: int) -> bytes:
    ImageDraw.Draw(image).rectangle(
        (0, 0, image.width - 1, image.height - 1), outline=COLOURS[label], width=3
    )
    return jpeg(image)


def marked(image: Image.Image, label: int) -> bytes:
    """Put a watermark on the images of class 1 only."""
    if label == 1:
        ImageDraw.Draw(image).rectangle((60, 80, 95, 95), fill="white")
    return jpeg(image)


def resized(image: Image.Image, label: int) -> bytes:
    return jpeg(image.resize((90 + 20 * label,) * 2))


def photographed(image: Image.Image, label: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", f"Model {label}"
    return jpeg(image, exif=exif)


def found_in(plant: Callable[[Image.Image, int], bytes]) -> dict[str, tuple[int, ...]]:
    labels = [label for label in range(CLASSES) for _ in range(EACH)]
    images = [scene(seed) for seed in range(len(labels))]
    looks = [described(image, plant(image, label)) for image, label in zip(images, labels, strict=True)]
    return {found.name: found.classes for found in shortcuts.find(looks, labels)}


@pytest.mark.parametrize(
    ("plant", "name", "classes"),
    [
        pytest.param(bordered, "border", (0, 1, 2), id="border"),
        pytest.param(marked, "border", (1,), id="watermark"),
        pytest.param(resized, "file", (0, 1, 2), id="resolution"),
        pytest.param(photographed, "camera", (0, 1, 2), id="camera"),
    ],
)
def test_a_planted_shortcut_is_found(
    plant: Callable[[Image.Image, int], bytes], name: str, classes: tuple[int, ...]
) -> None:
    assert found_in(plant)[name] == classes


def test_nothing_is_said_about_images_without_a_shortcut() -> None:
    assert found_in(lambda image, label: jpeg(image)) == {}


def test_nothing_is_said_about_classes_of_few_images() -> None:
    labels = [0] * 5 + [1] * 5
    looks = [described(Image.new("RGB", (20, 20), COLOURS[label])) for label in labels]
    assert shortcuts.find(looks, labels) == []


def test_outputs_out_of_fold_equal_those_of_heads_solved_without_the_fold() -> None:
    """One decomposition serves all folds; the plain way solves for each fold what is left."""
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    x = draws.normal(size=(30, 4)) + labels[:, None]
    folds = heads.stratified(labels, 5, seed=0)
    found = heads.out_of_fold(x, labels, folds)
    kernel = heads._kernel(x)
    y = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)

    def plainly(penalty: float) -> np.ndarray:
        outputs = np.empty_like(y)
        for fold in range(5):
            held, used = folds == fold, folds != fold
            solved = np.linalg.solve(kernel[np.ix_(used, used)] + penalty * np.eye(used.sum()), y[used])
            outputs[held] = kernel[np.ix_(held, used)] @ solved
        return outputs

    assert any(np.allclose(found, plainly(penalty), atol=1e-8) for penalty in heads.PENALTIES)


def test_folds_hold_each_class_alike() -> None:
    labels = np.repeat(np.arange(4), 15)
    folds = heads.stratified(labels, 5, seed=3)
    assert all(((folds == fold) & (labels == label)).sum() == 3 for fold in range(5) for label in range(4))


def test_check_names_near_copies_across_splits_and_shortcuts(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        for split, count in (("train", 20), ("val", 5)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                image = scene(1000 * label + 100 * (split == "val") + number)
                (tmp_path / split / name / f"{number}.jpg").write_bytes(bordered(image, label))
    (tmp_path / "val/cat/copy.jpg").write_bytes(jpeg(Image.open(tmp_path / "train/cat/7.jpg"), quality=30))
    (tmp_path / "val/dog/strange.jpg").write_bytes(jpeg(Image.open(tmp_path / "val/cat/1.jpg"), quality=30))
    report = inspection.inspect(scan(DataSettings(kind="folder", path=str(tmp_path))))
    found = {finding["check"]: finding for finding in report["findings"]}
    assert found["near_copies"]["images"] == ("train/cat/7.jpg (train) = val/cat/copy.jpg (val)",)
    assert "8.3% of val" in found["near_copies"]["text"]
    assert found["near_labels"]["images"] == ("val/cat/1.jpg (val) = val/dog/strange.jpg (val)",)
    assert "'cat', 'dog' among them" in found["shortcut_border"]["text"]


@pytest.mark.material
def test_real_photographs_have_the_known_copy_and_no_shortcut(material: Path) -> None:
    """In flowers5 one flower stands twice; nothing beside the flower tells its class."""
    report = inspection.inspect(scan(DataSettings(kind="folder", path=str(material / "data/flowers5"))))
    told = {found["check"] for found in report["findings"] if found["grade"] == "warning"}
    assert not told & {
        "shortcut_border",
        "shortcut_file",
        "shortcut_thumbnail",
        "shortcut_colour",
        "near_labels",
    }
    (twice,) = [found for found in report["findings"] if found["check"] == "nearly_twice"]
    names = {Path(place.split(" (")[0]).name for place in twice["images"][0].split(" = ")}
    assert names == {"19177263840_6a316ea639.jpg", "19178753159_a471bf4b6b.jpg"}
