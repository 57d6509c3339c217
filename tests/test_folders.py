"""Kind `folder`: what lies in a folder is used or told of, never left out silently."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from finetune.datasets.catalog import Catalog, scan
from finetune.errors import DataError
from finetune.settings import DataSettings
from search.config.sections import Study
from search.config.study import StudyConfig
from search.driver import runner
from search.driver.checks import check, check_text


def put(root: Path, *folders: str, count: int = 5) -> Path:
    """Write images into each folder, each another."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            level = (sum(folder.encode()) + index) % 256
            Image.new("RGB", (40, 40), (level, 255 - level, index)).save(root / folder / f"{index}.png")
    return root


def found_in(root: Path, **changes: object) -> Catalog:
    return scan(DataSettings(kind="folder", path=str(root), **changes))


def told(found: Catalog) -> dict[str, str]:
    return {finding.check: f"{finding.grade}: {finding.text}" for finding in found.findings}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        found_in(root)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["val", "valid", "validation", "validate", "dev", "eval", "evaluation", "DEV", "Eval"]
)
def test_a_validation_split_may_have_any_of_its_names(tmp_path: Path, name: str) -> None:
    found = found_in(put(tmp_path, "train/a", "train/b", f"{name}/a", f"{name}/b", count=3))
    assert {example.path.split("/")[0] for example in found.splits["val"]} == {name}
    assert (found.made, found.findings) == ((), ())


@pytest.mark.parametrize("name", ["test", "testing", "Test"])
def test_a_test_split_may_have_any_of_its_names(tmp_path: Path, name: str) -> None:
    found = found_in(put(tmp_path, "Training/a", "Training/b", f"{name}/a", f"{name}/b"))
    assert {example.path.split("/")[0] for example in found.splits["test"]} == {name}
    assert found.findings == ()


def test_of_two_folders_for_one_split_the_plainest_name_is_taken_and_the_other_is_told(
    tmp_path: Path,
) -> None:
    root = put(tmp_path, *(f"{split}/{name}" for split in ("train", "dev", "val") for name in "ab"))
    found = found_in(root)
    assert {example.path.split("/")[0] for example in found.splits["val"]} == {"val"}
    assert (
        "warning: folders beside 'train' should be splits, got 'dev' (10 images, 'val' is 'val')"
        in (told(found)["not_used"])
    )


def test_an_unknown_folder_beside_train_is_told(tmp_path: Path) -> None:
    found = found_in(put(tmp_path, "train/a", "train/b", "extra/a"))
    assert found.made == ("val", "test")
    assert "got 'extra' (5 images). They are not used: name them" in told(found)["not_used"]


def test_a_folder_without_images_beside_train_is_of_no_interest(tmp_path: Path) -> None:
    put(tmp_path, "train/a", "train/b")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/about.txt").write_text("text")
    assert found_in(tmp_path).findings == ()


def test_a_test_split_without_class_folders_is_told(tmp_path: Path) -> None:
    found = found_in(put(tmp_path, "train/a", "train/b", "test"))
    assert found.made == ("val", "test")
    assert "got 'test' (5 images, no class folders inside)" in told(found)["not_used"]


def test_train_with_folders_beside_classes_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    """Trains by what draws them: `train` is a class here, and bus and car would vanish."""
    root = put(tmp_path, "train/steam", "train/diesel", "bus", "car")
    text = refusal(root)
    assert "got class folders inside it (diesel, steam) and folders of images beside it (bus, car)" in text
    assert f"Rename it if it is a class; if it is the training split, set data.path to {root}/train." in text
    assert found_in(root / "train").classes == ("diesel", "steam")


def test_splits_without_train_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    text = refusal(put(tmp_path, "eval/x", "eval/y", "bus"))
    assert "need 'train' among them, got eval. Add 'train', or" in text
    assert "rename them if they are classes" in text


def test_classes_that_are_named_like_splits_are_told(tmp_path: Path) -> None:
    found = found_in(put(tmp_path, "train", "test"))
    assert found.classes == ("test", "train")
    assert "got none in test, train. They are taken for classes" in told(found)["split_as_class"]


def test_what_systems_and_archivers_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    root = put(tmp_path, "a", "b")
    junk = (".git", ".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "lost+found", "a/@eaDir")
    put(root, *junk)
    for place in ("old", "new"):
        (root / place).mkdir()
    (root / "old/Thumbs.db").touch()
    (root / "new/.DS_Store").touch()
    found = found_in(root)
    assert found.classes == ("a", "b")
    assert sum(len(split) for split in found.splits.values()) == 10
    assert told(found) == {
        "no_class": "note: folders should hold images, got only hidden or system files in new, old. "
        "They are not taken for classes."
    }


def test_links_to_folders_are_classes_but_inside_a_class_they_are_told(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a", "b")
    put(tmp_path, "elsewhere/c", "elsewhere/d")
    (root / "c").symlink_to(tmp_path / "elsewhere/c")
    (root / "a/more").symlink_to(tmp_path / "elsewhere/d")
    found = found_in(root)
    assert found.classes == ("a", "b", "c")
    assert sum(count for split in found.counts().values() for count in split.values()) == 15
    assert "warning: a class folder should hold no links to folders, got a/more." in told(found)["linked"]


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a", "train/b")
    (root / "train/again").symlink_to(root)
    assert found_in(root, classes=("a", "b")).classes == ("a", "b")


def test_images_outside_class_folders_are_told(tmp_path: Path) -> None:
    found = found_in(put(tmp_path, "train/a", "train/b", "train", ".", count=2))
    assert "warning: images should lie in a class folder, got 4 outside." in told(found)["not_used"]


COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_a_class_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    root = put(tmp_path, f"train/{COMPOSED}", "train/b", f"train/{APART}", f"val/{APART}", "val/b")
    found = found_in(root)
    assert found.classes == ("b", COMPOSED)
    assert found.counts()["train"] == {"b": 5, COMPOSED: 10}
    assert found.counts()["val"] == {"b": 5, COMPOSED: 5}
    assert [finding.grade for finding in found.findings] == ["note"]
    assert f"got two of {COMPOSED}" in told(found)["two_forms"]
    for split in found.splits.values():
        for example in split:
            assert found.open(example).size == (40, 40)


def test_classes_may_be_chosen_in_either_unicode_form(tmp_path: Path) -> None:
    root = put(tmp_path, APART, "b", "c")
    for form in (COMPOSED, APART):
        assert found_in(root, classes=(form, "b")).classes == (COMPOSED, "b")


def test_labels_of_a_manifest_have_one_unicode_form(tmp_path: Path) -> None:
    put(tmp_path, "x", "y")
    rows = [f"x/{i}.png,{(COMPOSED, APART)[i % 2]}" for i in range(5)] + [f"y/{i}.png,b" for i in range(5)]
    (tmp_path / "images.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    found = scan(DataSettings(kind="manifest", path=str(tmp_path / "images.csv")))
    assert found.classes == ("b", COMPOSED)


def test_a_class_whose_name_is_no_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    """TensorBoard, YAML and JSON cannot hold it: a study died of it after its first epoch."""
    root = put(tmp_path, "a", "b")
    os.rename(root / "b", os.path.join(os.fsencode(root), b"caf\xe9"))
    text = refusal(root)
    assert r"names of classes: must be UTF-8, got 'caf\xe9'. Rename" in text
    assert text.isascii()
    text.encode()
    with pytest.raises(DataError, match=r"data\.path: must be UTF-8"):
        found_in(root / os.fsdecode(b"caf\xe9"))


def test_images_whose_names_are_no_utf8_are_images(tmp_path: Path) -> None:
    root = put(tmp_path, "a", "b")
    os.rename(root / "b/0.png", os.path.join(os.fsencode(root), b"b", b"gr\xfcn.png"))
    found = found_in(root)
    assert sum(len(split) for split in found.splits.values()) == 10


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_is_not_used_is_told_on_a_disk_and_behind_a_url(tmp_path: Path, kind: str) -> None:
    root = put(tmp_path, "train/a", "train/b", "dev/a", "dev/b", "extra", "__MACOSX/train/a", ".git", "train")
    path = str(root)
    if kind == "memory":
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.put(path, "/told", recursive=True)
        path = "memory://told"
    found = scan(DataSettings(kind="folder", path=path))
    assert {example.path.split("/")[0] for example in found.splits["val"]} == {"dev"}
    assert sorted(finding.text[:30] for finding in found.findings) == [
        "folders beside 'train' should ",
        "images should lie in a class f",
    ]


def test_run_begins_by_telling_what_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(tmp_path, "train/a", "train/b", "unlabelled")
    (root / "train/a/1.heic").touch()
    (root / "train/a/notes.txt").touch()
    runner.warn_of(found_in(root))
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(", got")[0] for line in told] == [
        "warning: data: folders beside 'train' should be splits",
        "warning: data: files in class folders should be images in a known format",
    ]


def test_a_metric_may_name_its_class_in_either_unicode_form() -> None:
    for form in (COMPOSED, APART):
        assert Study(name="s", metric=f"val/recall/{form}").metric == f"val/recall/{COMPOSED}"


def test_check_shows_what_is_not_used(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a", "train/b", "unlabelled")
    config = {
        "study": {"name": "s", "trials": 3},
        "data": {"path": str(root)},
        "model": {"backbone": "squeezenet1_1", "weights": "none"},
        "space": {"strategy": "replace"},
        "results": str(tmp_path / "results"),
    }
    lines = check_text.lines(check.plan(StudyConfig.from_dict(config)))
    assert [line for line in lines if line.startswith("warning: folders beside 'train'")] != []
