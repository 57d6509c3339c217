import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.datasets import catalog
from finetune.datasets.catalog import Catalog, scan
from finetune.datasets.decode import UPRIGHT, decode
from finetune.datasets.splits import take_from_train
from finetune.errors import DataError
from finetune.settings import DataSettings


def put(root: Path, *paths: str) -> Path:
    """Write a small PNG, different for each path."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        level = sum(path.encode()) % 256
        Image.new("RGB", (4, 3), (level, 255 - level, 7)).save(file, "PNG")
    return root


def many(folder: str, count: int) -> list[str]:
    return [f"{folder}/{index:03}.png" for index in range(count)]


def folder(root: Path, **changes: object) -> DataSettings:
    return DataSettings(kind="folder", path=str(root), **changes)


def paths(found: Catalog, split: str) -> set[str]:
    return {example.path for example in found.splits[split]}


def message(data: DataSettings) -> str:
    with pytest.raises(DataError) as caught:
        scan(data)
    return str(caught.value)


# Splits


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    val=st.floats(0.01, 0.3),
    test=st.floats(0.0, 0.3),
    seed=st.integers(0, 2**31),
    shuffle=st.randoms(use_true_random=False),
)
def test_made_splits_are_disjoint_complete_stratified_and_blind_to_file_order(
    counts: list[int], val: float, test: float, seed: int, shuffle: object
) -> None:
    given_ = {"train": {f"c{c}": [f"c{c}/{i}.jpg" for i in range(n)] for c, n in enumerate(counts)}}
    shares = {"val": val, "test": test}
    splits = take_from_train(given_, shares, seed)
    for name, images in given_["train"].items():
        parts = {split: list(splits[split][name]) for split in ("train", "val", "test")}
        together = parts["train"] + parts["val"] + parts["test"]
        assert sorted(together) == sorted(images)
        assert parts["train"]
        assert parts["val"] or len(images) == 1
        assert abs(len(parts["val"]) - val * len(images)) <= 1
        assert abs(len(parts["test"]) - test * len(images)) <= 1
    mixed = {name: shuffle.sample(images, len(images)) for name, images in given_["train"].items()}
    assert take_from_train({"train": mixed}, shares, seed) == splits


def test_another_seed_makes_another_split_with_the_same_counts(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 20), *many("b", 20))
    one, two = scan(folder(tmp_path, seed=1)), scan(folder(tmp_path, seed=2))
    assert one.counts() == two.counts()
    assert paths(one, "val") != paths(two, "val")
    assert one.fingerprint != two.fingerprint


def test_scanning_again_gives_an_equal_catalog(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 9), *many("b", 5))
    assert scan(folder(tmp_path)) == scan(folder(tmp_path))


@pytest.mark.parametrize(
    ("folders", "made", "sizes"),
    [
        ([""], ("val", "test"), (14, 4, 2)),
        (["train"], ("val", "test"), (14, 4, 2)),
        (["train", "val"], (), (20, 20, 0)),
        (["train", "valid"], (), (20, 20, 0)),
        (["Training", "Validation"], (), (20, 20, 0)),
        (["train", "test"], ("val",), (16, 4, 20)),
        (["train", "validation", "test"], (), (20, 20, 20)),
    ],
)
def test_only_splits_that_were_not_given_are_made(
    tmp_path: Path, folders: list[str], made: tuple[str, ...], sizes: tuple[int, int, int]
) -> None:
    for name in folders:
        put(tmp_path / name, *many("a", 10), *many("b", 10))
    found = scan(folder(tmp_path))
    assert found.made == made
    assert tuple(len(found.splits[split]) for split in ("train", "val", "test")) == sizes


def test_a_test_share_of_zero_leaves_the_test_split_empty(tmp_path: Path) -> None:
    found = scan(folder(put(tmp_path, *many("a", 10), *many("b", 10)), test_share=0.0))
    assert (found.made, found.splits["test"]) == (("val",), ())


def test_a_class_of_one_image_stays_in_train(tmp_path: Path) -> None:
    found = scan(folder(put(tmp_path, *many("a", 2), *many("b", 1))))
    assert found.counts() == {
        "train": {"a": 1, "b": 1},
        "val": {"a": 1, "b": 0},
        "test": {"a": 0, "b": 0},
    }


def test_digits_come_with_ten_classes_and_made_splits() -> None:
    found = scan(DataSettings(kind="digits"))
    assert found.classes == tuple("0123456789")
    assert found.made == ("val", "test")
    assert sum(len(examples) for examples in found.splits.values()) == 1797
    images = [found.open(example) for example in found.splits["test"]]
    assert {(image.mode, image.size) for image in images} == {("RGB", (8, 8))}
    assert max(image.getextrema()[0] for image in images) == (0, 255)


# Folders


def test_nested_folders_are_searched_and_what_is_hidden_or_no_image_is_not(tmp_path: Path) -> None:
    put(tmp_path, "a/x/y/1.JPG", "a/2.TiFF", "b/1.png", "b/2.webp")
    put(tmp_path, "a/.hidden.png", "a/.thumbs/1.png", ".git/1.png", "loose.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = scan(folder(tmp_path))
    assert paths(found, "train") | paths(found, "val") == {"a/x/y/1.JPG", "a/2.TiFF", "b/1.png", "b/2.webp"}


def test_classes_are_sorted_by_name_or_chosen_in_the_given_order(tmp_path: Path) -> None:
    put(tmp_path / "train", *many("b", 2), *many("a", 2), *many("c", 2))
    put(tmp_path / "val", *many("a", 1), *many("b", 1), *many("stranger", 1))
    found = scan(folder(tmp_path, classes=("b", "a")))
    assert found.classes == ("b", "a")
    assert [example.label for example in found.splits["train"]] == [0, 0, 1, 1]
    assert paths(found, "val") == {"val/b/000.png", "val/a/000.png"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = scan(folder(put(tmp_path, *many("train", 3), *many("car", 3))))
    assert found.classes == ("car", "train")


def test_a_test_folder_without_class_folders_is_not_a_split(tmp_path: Path) -> None:
    put(tmp_path, *many("train/a", 10), *many("train/b", 10), *many("test", 3))
    assert scan(folder(tmp_path)).made == ("val", "test")


def test_the_fingerprint_follows_content_and_classes_but_not_place_or_time(tmp_path: Path) -> None:
    first = put(tmp_path / "first", *many("a", 3), *many("b", 3))
    before = scan(folder(first)).fingerprint
    shutil.copytree(first, tmp_path / "second", copy_function=shutil.copyfile)
    assert scan(folder(tmp_path / "second")).fingerprint == before
    assert scan(folder(first, classes=("b", "a"))).fingerprint != before
    content = bytearray((first / "a" / "000.png").read_bytes())
    content[-20] ^= 1
    (first / "a" / "000.png").write_bytes(content)
    assert scan(folder(first)).fingerprint != before


def test_a_catalog_travels_by_pickle(tmp_path: Path) -> None:
    found = scan(folder(put(tmp_path, *many("a", 3), *many("b", 3))))
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.open(again.splits["train"][0]).size == (4, 3)


def test_scanning_imports_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys; from finetune.datasets.catalog import scan; from finetune.settings import DataSettings; "
        "scan(DataSettings(kind='digits')); "
        "print(*{'torch', 'torchvision'} & set(sys.modules))"
    )
    source = str(Path(catalog.__file__).parents[2])
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env={"PYTHONPATH": source}, text=True) == "\n"


# Errors name the value and the way out


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    text = message(DataSettings(kind="foldr", path="/nowhere"))
    assert "got 'foldr'" in text
    assert "Did you mean 'folder'?" in text


def test_a_kind_that_carries_its_images_takes_no_path() -> None:
    assert "got '/some'. Remove data.path" in message(DataSettings(kind="digits", path="/some"))


def test_a_folder_needs_a_path_that_exists(tmp_path: Path) -> None:
    assert "got None" in message(DataSettings(kind="folder"))
    assert "got nothing there. Correct data.path" in message(folder(tmp_path / "absent"))
    assert "got a file" in message(folder(put(tmp_path, "x.png") / "x.png"))


def test_fewer_than_two_classes_are_refused(tmp_path: Path) -> None:
    assert "got 0 (none). Put the images into one folder per class" in message(folder(tmp_path))
    assert "got 1 (a)" in message(folder(put(tmp_path, *many("a", 3))))


def test_empty_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "'train' must hold images, got none" in message(folder(tmp_path))
    assert "got none for 'b'. Add images" in message(folder(put(tmp_path, *many("a", 3))))


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "train", *many("a", 3), *many("b", 3))
    (tmp_path / "val" / "a").mkdir(parents=True)
    assert "'val' must hold images, got none" in message(folder(tmp_path))


def test_classes_that_only_validation_has_are_named(tmp_path: Path) -> None:
    put(tmp_path / "train", *many("a", 3), *many("b", 3))
    put(tmp_path / "val", *many("a", 3), *many("bee", 3))
    assert "every class of 'val' must be one of 'train', got bee. Rename" in message(folder(tmp_path))


def test_chosen_classes_must_exist_and_differ(tmp_path: Path) -> None:
    put(tmp_path, *many("daisy", 3), *many("tulip", 3))
    text = message(folder(tmp_path, classes=("daisy", "tulp")))
    assert "got 'tulp'. Did you mean 'tulip'?" in text
    assert "got tulip again" in message(folder(tmp_path, classes=("tulip", "daisy", "tulip")))


def test_split_folders_need_train(tmp_path: Path) -> None:
    put(tmp_path, *many("val/a", 1), *many("test/a", 1))
    assert "need 'train' among them, got test, val. Add 'train'" in message(folder(tmp_path))


def test_one_image_per_class_leaves_nothing_to_validate_on(tmp_path: Path) -> None:
    assert "got one image per class. Add images" in message(folder(put(tmp_path, "a/1.png", "b/1.png")))


@pytest.mark.parametrize(
    ("shares", "fault"),
    [
        ({"validation_share": 0.0}, "validation_share: must lie between 0 and 1, got 0.0. Use 0.2"),
        ({"validation_share": 1.0}, "validation_share: must lie between 0 and 1, got 1.0. Use 0.2"),
        ({"test_share": -0.1}, "got -0.1 beside a validation_share of 0.2. Use 0.1"),
        ({"test_share": 0.8}, "got 0.8 beside a validation_share of 0.2. Use 0.1"),
    ],
)
def test_shares_must_leave_images_to_train_on(tmp_path: Path, shares: dict[str, float], fault: str) -> None:
    assert fault in message(folder(put(tmp_path, *many("a", 3), *many("b", 3)), **shares))


# Broken images


def with_broken(root: Path) -> Path:
    """Ten images of each class; of `a` three are broken: cut off, no image, empty."""
    put(root, *many("a", 10), *many("b", 10))
    (root / "a/001.png").write_bytes((root / "a/001.png").read_bytes()[:50])
    (root / "a/004.png").write_text("no image")
    (root / "a/007.png").write_bytes(b"")
    return root


def test_broken_images_are_left_out_before_the_splits_are_made(tmp_path: Path) -> None:
    found = scan(folder(with_broken(tmp_path), on_error="skip"))
    assert [skipped.path for skipped in found.skipped] == ["a/001.png", "a/004.png", "a/007.png"]
    assert all(f"{tmp_path}/{s.path}: an image must be readable, got" in s.reason for s in found.skipped)
    for name in ("a/001.png", "a/004.png", "a/007.png"):
        (tmp_path / name).unlink()
    clean = scan(folder(tmp_path))
    assert (found.splits, found.fingerprint) == (clean.splits, clean.fingerprint)
    assert found.counts()["val"] == {"a": 1, "b": 2}


def test_every_worker_leaves_out_the_same_images(tmp_path: Path) -> None:
    data = folder(with_broken(tmp_path), on_error="skip")
    assert scan(data) == scan(data)


def test_without_skipping_a_scan_keeps_broken_images_and_reading_one_fails(tmp_path: Path) -> None:
    found = scan(folder(with_broken(tmp_path)))
    assert found.skipped == ()
    assert sum(found.counts()["train"].values()) + sum(found.counts()["val"].values()) == 18
    broken = next(e for part in found.splits.values() for e in part if e.path == "a/004.png")
    with pytest.raises(DataError, match=r"a/004\.png: an image must be readable, got UnidentifiedImage"):
        found.open(broken)


def test_a_class_of_only_broken_images_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").touch()
    text = message(folder(tmp_path, on_error="skip"))
    assert "without 1 broken images: every class needs an image to train on, got none for 'b'." in text


# Image files of every kind become RGB, upright


def decoded(image: Image.Image, file: Path, **options: object) -> np.ndarray:
    image.save(file, **options)
    result = decode(file)
    assert result.mode == "RGB"
    return np.asarray(result)


RED = (255, 0, 0)


def test_one_bit(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decoded(image, tmp_path / "x.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_grey(tmp_path: Path) -> None:
    assert decoded(Image.new("L", (1, 1), 77), tmp_path / "x.png").tolist() == [[[77, 77, 77]]]


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (77, 255))
    image.putpixel((1, 0), (77, 0))
    assert decoded(image, tmp_path / "x.png").tolist() == [[[77, 77, 77], [255, 255, 255]]]


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, *RED])
    assert decoded(image, tmp_path / "x.png").tolist() == [[list(RED)]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_with_transparency_is_laid_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    pixels = decoded(image, tmp_path / "x.png", transparency=transparency)
    assert pixels.tolist() == [[[255, 255, 255], list(RED)]]


def test_rgba_is_laid_on_white(tmp_path: Path) -> None:
    pixels = decoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51)), tmp_path / "x.png")
    assert pixels.tolist() == [[[255, 204, 204]]]


def test_cmyk(tmp_path: Path) -> None:
    pixels = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "x.jpg", quality=100)
    assert np.abs(pixels[4, 4].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    pixels = decoded(Image.fromarray(levels), tmp_path / f"x.{suffix}")
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_levels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (2, 2), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: .*F levels from 0\.5 to 0\.5"):
        decode(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_rotated_photograph_is_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Stored so that the tag turns it back: the white corner comes out at the upper left."""
    upright = Image.new("RGB", (32, 16))
    upright.paste("white", (0, 0, 8, 8))
    undo = dict(UPRIGHT)
    undo[6], undo[8] = undo[8], undo[6]
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(stored, tmp_path / f"x.{suffix}", exif=exif)
    assert pixels.shape == (16, 32, 3)
    assert pixels[2, 2].min() > 200
    assert pixels[12:, 24:].max() < 50


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert decode(tmp_path / "x.jpg").size == (4, 4)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    pixels = decoded(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixels[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction_no_smaller_than_wanted(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (800, 600), RED).save(tmp_path / "x.jpg", exif=exif)
    sizes = [sorted(decode(tmp_path / "x.jpg", at_least).size) for at_least in (None, 301, 300, 75, 1)]
    assert sizes == [[600, 800], [600, 800], [300, 400], [75, 100], [75, 100]]
    Image.new("RGB", (800, 600), RED).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 75).size == (800, 600)


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "empty.jpg").touch()
    for name, reason in {
        "cut.jpg": "truncated",
        "text.jpg": "UnidentifiedImageError",
        "empty.jpg": "UnidentifiedImageError",
        "absent.jpg": "FileNotFoundError",
    }.items():
        with pytest.raises(DataError, match=rf"{name}: .*{reason}.*Replace or remove the file"):
            decode(tmp_path / name)


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int
) -> None:
    """Both above Pillow's limit, where it only warns, and above twice the limit, where it raises."""
    Image.new("1", (100, 101 * factor)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match=r"x\.png: .*DecompressionBomb"):
        decode(tmp_path / "x.png")


def test_the_catalog_names_the_broken_file(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3))
    (tmp_path / "a" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = scan(folder(tmp_path))
    broken = next(
        example for part in found.splits.values() for example in part if example.path == "a/000.png"
    )
    with pytest.raises(DataError, match=r"a/000\.png: an image must be readable"):
        found.open(broken)
