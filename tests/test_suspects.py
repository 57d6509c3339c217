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


@pytest.mark.parametrize("mirrored", [False, True])
def test_features_find_a_crop_that_the_hash_does_not(mirrored: bool) -> None:
    images = [scene(seed) for seed in range(3)]
    crop = images[1].crop((10, 2, 90, 82))
    looks = [described(image) for image in [*images, ImageOps.mirror(crop) if mirrored else crop]]
    features = np.eye(4, 8, dtype=np.float32)
    features[3] = features[1] + 0.1
    assert duplicates.near(looks) == []
    found = duplicates.near(looks, features)
    assert [(pair.first, pair.second) for pair in found] == [(1, 3)]
    assert found[0].cosine == pytest.approx(0.977, abs=0.005)
    assert found[0].correlation > duplicates.CROPPED


@pytest.mark.parametrize("apart", [0.2, 0.6])
def test_features_much_nearer_than_is_usual_make_a_pair_of_images_that_differ(apart: float) -> None:
    """Two photographs of one thing have other outlines, and features that stand out by how near they are."""
    chance = np.random.default_rng(0)
    features = chance.normal(1, 0.5, (30, 256)).astype(np.float32)
    features[1] = features[0] + apart * (features[1] - features[0])
    found = duplicates.near([described(scene(seed)) for seed in range(30)], features)
    assert [(pair.first, pair.second) for pair in found] == ([(0, 1)] if apart < 0.5 else [])


def test_features_alone_make_no_copy_and_an_image_without_features_is_compared_by_its_hash() -> None:
    looks = [described(image) for image in (scene(0), scene(1), scene(0))]
    alike = np.ones((3, 8), dtype=np.float32)
    assert [(pair.first, pair.second) for pair in duplicates.near(looks, alike)] == [(0, 2)]
    assert [(pair.first, pair.second) for pair in duplicates.near(looks, 0 * alike)] == [(0, 2)]


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


def test_what_the_images_of_a_group_share_tells_nothing_about_other_groups() -> None:
    """Three cameras of each class: one by one each tells its class, but a new camera would tell none."""
    labels = [label for label in range(CLASSES) for _ in range(EACH)]
    groups = [f"camera {label} {number % 3}" for label in range(CLASSES) for number in range(EACH)]
    images = [scene(seed) for seed in range(len(labels))]
    looks = []
    for image, group in zip(images, groups, strict=True):
        exif = Image.Exif()
        exif[0x0110] = group
        looks.append(described(image, jpeg(image, exif=exif)))
    assert [one.name for one in shortcuts.find(looks, labels)] == ["camera"]
    assert shortcuts.find(looks, labels, groups) == []


def test_a_fold_holds_all_of_a_group_or_nothing_and_images_without_a_group_are_spread() -> None:
    labels = np.repeat(np.arange(2), 20)
    groups = [f"group {place // 4}" if place % 20 < 12 else "" for place in range(40)]
    folds = heads.stratified(labels, 5, 0, groups)
    for name in set(groups) - {""}:
        assert len({int(folds[place]) for place, group in enumerate(groups) if group == name}) == 1
    alone = [int(folds[place]) for place, group in enumerate(groups) if not group]
    assert len(set(alone)) > 2
    one = heads.stratified(labels, 5, 0, ["the same"] * 40)  # nothing to keep apart
    assert (one == heads.stratified(labels, 5, 0)).all()


def test_check_reads_the_groups_of_a_manifest(tmp_path: Path) -> None:
    rows = ["image,label,split,group"]
    for place in range(CLASSES * EACH):
        label, group = place // EACH, f"{place // EACH} {place % 3}"
        exif = Image.Exif()
        exif[0x0110] = group
        (tmp_path / f"{place}.jpg").write_bytes(jpeg(scene(place), exif=exif))
        rows.append(f"{place}.jpg,{label},train,{group}")
        (tmp_path / f"v{place}.jpg").write_bytes(jpeg(scene(1000 + place)))
        rows.append(f"v{place}.jpg,{label},val,v{group}")
    (tmp_path / "grouped.csv").write_text("\n".join(rows))
    (tmp_path / "alone.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    told = {}
    for name in ("grouped", "alone"):
        found = scan(DataSettings(kind="manifest", path=str(tmp_path / f"{name}.csv")))
        told[name] = {one["check"] for one in inspection.inspect(found)["findings"]}
    assert "shortcut_camera" in told["alone"]
    assert "shortcut_camera" not in told["grouped"]


def test_folds_hold_each_class_alike() -> None:
    labels = np.repeat(np.arange(4), 15)
    folds = heads.stratified(labels, 5, seed=3)
    assert all(((folds == fold) & (labels == label)).sum() == 3 for fold in range(5) for label in range(4))


def test_check_finds_crops_once_there_are_features(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                image = scene(1000 * label + 100 * (split == "val") + number)
                (tmp_path / split / name / f"{number}.jpg").write_bytes(jpeg(image))
    crop = Image.open(tmp_path / "train/cat/1.jpg").crop((10, 2, 90, 82))
    (tmp_path / "val/cat/crop.jpg").write_bytes(jpeg(crop))
    catalog = scan(DataSettings(kind="folder", path=str(tmp_path)))
    paths = [example.path for examples in catalog.splits.values() for example in examples]
    # One image lacks features, as if it could not be read.
    vectors = dict(zip(paths[1:], np.eye(len(paths), dtype=np.float32)[1:], strict=True))
    vectors["val/cat/crop.jpg"] = vectors["train/cat/1.jpg"] + 0.01
    without, found = (inspection.inspect(catalog, given)["findings"] for given in ({}, vectors))
    assert "near_copies" not in {one["check"] for one in without}
    (copies,) = [one for one in found if one["check"] == "near_copies"]
    assert copies["images"] == ("train/cat/1.jpg (train) = val/cat/crop.jpg (val)",)


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
