"""Model folders: written where nothing is lost by it, read without harm, and told in safe words."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from finetune import model_card, model_folder
from finetune.errors import CheckpointError
from search.__main__ import app, guarded
from search.errors import StudyError
from search.views import predictions
from tests.here import Here
from tests.models import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small trial."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "model"
    model_folder.write(trained, folder, {})
    return folder


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    """A copy of the model folder."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Where it is written


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": "mine"},
        {"study.yaml": "study: {}", "optuna.db": ""},
        {"model.yaml": "layers: 3", "README.md": "mine"},
        {"model.yaml": "[", "model.safetensors": "", "README.md": "mine"},
        {"notes/a.txt": "mine"},
    ],
    ids=lambda files: ", ".join(files),
)
def test_a_folder_that_is_no_model_folder_is_refused_and_left_as_it_is(
    trained: Path, tmp_path: Path, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / "to" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "to" / name).write_text(text)
    before = contents(tmp_path / "to")
    with pytest.raises(CheckpointError, match="must be new, empty or a model folder, got one with"):
        model_folder.write(trained, tmp_path / "to", {})
    assert contents(tmp_path / "to") == before


def test_a_model_folder_and_what_is_left_of_an_interrupted_export_are_replaced(
    trained: Path, model: Path, tmp_path: Path
) -> None:
    expected = contents(model)
    (model / "README.md").write_text("old")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"half")
    (begun / "model.yaml.tmp").write_text("half")
    (begun / ".DS_Store").touch()
    for folder in (model, begun, tmp_path / "not/there"):
        model_folder.write(trained, folder, {})
        assert contents(folder).items() >= expected.items()


def test_a_place_that_cannot_be_a_folder_is_told_in_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/model", tmp_path / ("x" * 300), Path("/proc/model")):
        with pytest.raises(CheckpointError, match="must be a folder that can be written, got") as caught:
            model_folder.write(trained, place, {})
        assert "\n" not in str(caught.value)


# What is told of it


HOSTILE = ("=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a\n# Heading\n[x](http://evil)", "\x1b[2J`b`")


def test_names_of_classes_are_plain_text_in_the_card(model: Path, written: Path) -> None:
    facts = model_folder.load(written).facts | {"classes": list(HOSTILE)}
    card = model_card.text(facts)
    assert "\x1b" not in card
    listed = next(line for line in card.splitlines() if line.startswith("Classifies images"))
    assert listed == (
        "Classifies images into 4 classes: `=cmd|' /C calc'!A0`, `<script>alert(1)</script>`, "
        r"`a\x0a# Heading\x0a[x](http://evil)`, `` \x1b[2J`b` ``."
    )


def test_a_picture_that_cannot_be_read_does_not_cost_the_others(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    Image.new("RGB", (40, 30), "black").save(tmp_path / "c.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    loaded = model_folder.load(model)
    alone = [next(iter(model_folder.predict(loaded, [path]))) for path in (paths[0], paths[2])]
    one, broken, other = model_folder.predict(loaded, paths)
    assert [row["class"] for row in (one, other)] == [row["class"] for row in alone]
    assert [row["path"] for row in (one, broken, other)] == [str(path) for path in paths]
    assert (one["error"], broken["class"], broken["probability"], broken["top"]) == (None, None, None, [])
    assert f"{paths[1]}: an image must be readable, got" in broken["error"]
    (only,) = model_folder.predict(loaded, [paths[1]])
    assert only == broken


def test_a_folder_named_like_a_picture_is_searched_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "all.jpg").mkdir()
    Image.new("RGB", (40, 30), "white").save(tmp_path / "all.jpg/a.png")
    assert model_folder.find_images([tmp_path]) == [tmp_path / "all.jpg/a.png"]


@pytest.mark.parametrize("way", [[], ["--json"], ["--csv"]], ids=str)
def test_predict_tells_of_every_picture_and_ends_with_1_where_one_cannot_be_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: list[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "white").save(images / "good.png")
    (images / "bad\x1b[2J\t.png").write_bytes(b"broken")
    to = tmp_path / "out.csv"
    words = ["predict", str(model), str(images), *way, *([str(to)] if way == ["--csv"] else [])]
    assert guarded(lambda: app(words, standalone_mode=False)) == 1
    out, err = capsys.readouterr()
    assert "every image must be readable, got 1 of 2 that are not" in err
    assert "\x1b" not in out + err
    if way == ["--json"]:
        assert [row["error"] is None for row in json.loads(out)] == [False, True]
    elif way == ["--csv"]:
        with to.open(newline="") as file:
            bad, good = csv.DictReader(file)
        assert bad["class"] == bad["probability"] == ""
        assert "an image must be readable" in bad["error"]
        assert good["class"] in ("6", "7")
    else:
        bad, good = out.splitlines()
        assert bad.split("\t")[0] == str(images / r"bad\x1b[2J\x09.png")
        assert bad.split("\t")[1] == "unreadable"
        assert good.split("\t")[1] in ("6", "7")


def test_formulas_are_text_in_a_csv_file_of_predictions(tmp_path: Path) -> None:
    rows = [
        {"path": os.fsdecode(b"caf\xe9.png"), "class": name, "probability": 0.5, "error": None}
        for name in ("=1+1", "@SUM(A1)", "-cmd", "+cmd", "\t=1", "-5", "a=b")
    ]
    predictions.write_csv(rows, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        found = [row["class"] for row in csv.DictReader(file)]
    assert found == ["'=1+1", "'@SUM(A1)", "'-cmd", "'+cmd", "'\t=1", "-5", "a=b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_predict_tells_as_many_classes_as_are_asked_for(model: Path, tmp_path: Path, here: Here) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes(b"broken")
    images = (tmp_path / "good.png", tmp_path / "torn.png")
    told = here("predict", model, *images, "--top", 9)
    _, first, p1, second, p2 = told.stdout.splitlines()[0].split("\t")
    assert {first, second} == {"6", "7"}
    assert float(p1) + float(p2) == pytest.approx(1, abs=2e-4)
    assert told.stdout.splitlines()[1].split("\t")[1] == "unreadable"
    assert here("predict", model, *images, "--csv", tmp_path / "a.csv", "--top", 2).returncode == 1
    with (tmp_path / "a.csv").open(newline="") as file:
        good, torn = csv.DictReader(file)
    assert (good["class"], good["class_2"], torn["class_2"]) == (first, second, "")
    assert float(good["probability_2"]) == pytest.approx(float(p2), abs=1e-4)
    assert here("predict", model, *images, "--csv", "a", "--parquet", "b").returncode == 2


def test_a_parquet_file_holds_what_predict_says(model: Path, tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    strange = folder / os.fsdecode(b"=caf\xe9.png")  # no UTF-8, which Parquet's text must be
    Image.new("RGB", (40, 30), "white").save(strange)
    (folder / "torn.png").write_bytes(b"broken")
    told = here("predict", model, folder, "--parquet", tmp_path / "out.parquet")
    assert (told.returncode, told.stdout) == (1, "")
    good, torn = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    (expected,) = model_folder.predict(model_folder.load(model), [strange])
    assert good["path"] == str(folder / r"=caf\udce9.png")
    assert (good["class"], good["error"]) == (expected["class"], None)
    assert good["probability"] == pytest.approx(expected["probability"])
    assert [one["class"] for one in good["top"]] == [one["class"] for one in expected["top"]]
    assert (torn["class"], torn["probability"], torn["top"]) == (None, None, [])
    assert "an image must be readable" in torn["error"]
    told = here("predict", model, folder, "--parquet", tmp_path / "no/out.parquet")
    assert told.returncode == 2
    assert "--parquet must be a file that can be written" in told.stderr


def test_a_csv_file_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file/x.csv", tmp_path / "folder", tmp_path / ("x" * 300), Path("/proc/x.csv")):
        with pytest.raises(StudyError, match="--csv must be a file that can be written, got"):
            predictions.write_csv([], place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# What a stranger's folder may hold


def changed(facts: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        known = yaml.safe_load((folder / "model.yaml").read_text())
        (folder / "model.yaml").write_text(yaml.safe_dump(known | facts))

    return write


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def pipe(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return write


def not_a_number(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in state.items()}, folder / "model.safetensors")


STEPS = {"whole_image": True, "image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
STRANGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (without("model.safetensors"), r"got no model\.safetensors\. Make one"),
    "no facts": (without("model.yaml"), r"got no model\.yaml\. Make one"),
    "another format": (
        changed({"format": 999}),
        "got format 999 in model.yaml, where this version knows 1 and 2",
    ),
    "no format": (text("model.yaml", b"a: 1"), "got a model.yaml without a format"),
    "a list": (text("model.yaml", b"[1, 2]"), "got a model.yaml without a format"),
    "no text": (text("model.yaml", b"\xff\xfe"), "must be whole and fit together"),
    "empty": (text("model.yaml", b""), "must be whole and fit together"),
    "torn weights": (text("model.safetensors", b"torn"), "must be whole and fit together"),
    "NaN": (not_a_number, "got weights that are NaN or infinite"),
    "no steps": (changed({"preprocessing": None}), "must be whole and fit together"),
    "two means": (changed({"preprocessing": STEPS | {"mean": [0, 0]}}), "got preprocessing with mean"),
    "words": (changed({"preprocessing": STEPS | {"std": ["a", "b", "c"]}}), "three numbers each"),
    "zero": (changed({"preprocessing": STEPS | {"std": [0.5, 0, 0.5]}}), "got preprocessing with mean"),
    "no size": (
        changed({"preprocessing": STEPS | {"image_size": "large"}}),
        "got preprocessing with image_size",
    ),
    "huge": (
        changed({"preprocessing": STEPS | {"image_size": 10**9}}),
        "got preprocessing with image_size 1000000000",
    ),
    "no classes": (changed({"classes": []}), "got classes that are no list of names"),
    "other weights": (
        changed({"provenance": {"model_sha256": "0" * 64}}),
        r"got weights of SHA-256 \w{12}\.\.\., where model\.yaml names 000000000000",
    ),
    "too small": (changed({"preprocessing": STEPS | {"image_size": -1}}), "must be whole and fit together"),
    "numbers": (changed({"classes": [1, 2]}), "got classes that are no list of names"),
    "three": (changed({"classes": ["a", "b", "c"]}), "must be whole and fit together"),
    "backbone": (changed({"backbone": "resnet81"}), "must be whole and fit together, got .*resnet81"),
    "a pipe of weights": (pipe("model.safetensors"), "a named pipe, not a file"),
    "a pipe of facts": (pipe("model.yaml"), "a named pipe, not a file"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_model_folder_that_is_not_whole_is_one_line(model: Path, case: str) -> None:
    spoil, told = STRANGE[case]
    spoil(model)
    with pytest.raises(CheckpointError, match=told) as caught:
        model_folder.load(model)
    assert str(caught.value).startswith(f"{model}: ")
    assert "\n" not in str(caught.value)
