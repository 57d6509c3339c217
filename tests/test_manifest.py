"""A manifest names images wherever they lie; what is wrong with it is told at once, line by line."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from finetune.datasets.catalog import Catalog, scan
from finetune.errors import DataError
from finetune.images.batches import ImageData
from finetune.settings import DataSettings

ROWS = [
    ("a/0.png", "cat", "train", 1.0),
    ("a/1.png", "cat", "train", 0.5),
    ("b/0.png", "dog", "train", 2.0),
    ("b/1.png", "dog", "val", 1.0),
    ("a/2.png", "cat", "test", 3.0),
]
HEADER = "image,label,split,weight"


def png(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (level, 0, 0)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for level, (image, *_) in enumerate(ROWS):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).write_bytes(png(level))
    return tmp_path


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The filesystem behind `memory://`, with the images, empty again afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # this node's copies go there
    filesystem = fsspec.filesystem("memory")
    for level, (image, *_) in enumerate(ROWS):
        filesystem.pipe(f"/pets/{image}", png(level))
    yield filesystem
    filesystem.store.clear()


def as_csv(rows: list[tuple[Any, ...]], header: str = HEADER) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def read(path: object, **changes: Any) -> Catalog:
    return scan(DataSettings(kind="manifest", path=str(path), **changes))


def mistakes(path: Path, **changes: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path, **changes)
    return str(caught.value).splitlines()


def seen(found: Catalog) -> dict[str, list[tuple[str, str, float]]]:
    return {
        split: [(e.path, found.classes[e.label], e.weight) for e in examples]
        for split, examples in found.splits.items()
    }


EXPECTED = {
    "train": [("a/0.png", "cat", 1.0), ("a/1.png", "cat", 0.5), ("b/0.png", "dog", 2.0)],
    "val": [("b/1.png", "dog", 1.0)],
    "test": [("a/2.png", "cat", 3.0)],
}


def test_a_csv_says_images_labels_splits_and_weights(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv(ROWS), encoding="utf-8-sig")
    found = read(folder / "pets.csv")
    assert seen(found) == EXPECTED
    assert (found.classes, found.made) == (("cat", "dog"), ())
    pixels = np.asarray(found.open(found.splits["val"][0]))
    assert pixels[0, 0].tolist() == [3, 0, 0]


def test_a_parquet_file_says_the_same_as_a_csv(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv(ROWS))
    columns = dict(zip(HEADER.split(","), map(list, zip(*ROWS, strict=True)), strict=True))
    table = pyarrow.table(columns | {"photographer": [None] * len(ROWS)})
    pyarrow.parquet.write_table(table, folder / "pets.parquet")
    found = read(folder / "pets.parquet")
    assert seen(found) == EXPECTED
    assert found == read(folder / "pets.csv")


def test_json_lines_say_the_same_as_a_csv(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv(ROWS))
    names = HEADER.split(",")
    lines = [json.dumps(dict(zip(names, row, strict=True)) | {"tags": ["x"], "lens": None}) for row in ROWS]
    (folder / "pets.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8-sig")
    assert read(folder / "pets.jsonl") == read(folder / "pets.csv")


def test_json_lines_may_leave_cells_out(folder: Path) -> None:
    rows = [{"path": f"{name}/{n}.png", "label": n % 2} for name in "ab" for n in range(2)]
    rows[0]["text"] = "one\u2028line"
    (folder / "pets.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    found = read(folder / "pets.jsonl", text=("text",))
    assert found.classes == ("0", "1")
    texts = [one.text for examples in found.splits.values() for one in examples]
    assert sorted(texts) == ["", "", "", "one line"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"image": "a/0.png", "label": "cat"}\n{"image": ', "no JSON in line 2, column 11"),
        ("[1, 2]", "no object in line 1"),
        ('{"image": "a/0.png", "image": "a/1.png", "label": "x"}', "a name twice in line 1"),
        ('{"image": "a/0.png", "label": ["x"]}', "'label' is no text or number in line 1"),
        ('{"image": "a/0.png", "split": "train"}', "must have a column 'label', got image, split"),
        ('{"image": "a/0.png", "label": null}', "pets.jsonl:1: 'label' must be given"),
    ],
)
def test_json_lines_with_mistakes_are_told(folder: Path, text: str, told: str) -> None:
    (folder / "pets.jsonl").write_text(text)
    assert told in mistakes(folder / "pets.jsonl")[0]


def test_numbers_are_labels_too(folder: Path) -> None:
    table = pyarrow.table({"image": ["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "label": [7, 7, 10, 10]})
    pyarrow.parquet.write_table(table, folder / "pets.parquet")
    found = read(folder / "pets.parquet")
    assert (found.classes, found.made) == (("10", "7"), ("val", "test"))


@pytest.mark.parametrize("spelling", ["memory://pets/{}", "{}"])
def test_manifest_and_images_may_lie_behind_a_url(memory: Any, spelling: str) -> None:
    rows = [(spelling.format(image), *rest) for image, *rest in ROWS]
    memory.pipe("/pets/pets.csv", as_csv(rows).encode())
    found = read("memory://pets/pets.csv")
    assert {split: len(examples) for split, examples in found.splits.items()} == {
        "train": 3, "val": 1, "test": 1,
    }  # fmt: skip
    settings = DataSettings(kind="manifest", path="memory://pets/pets.csv", image_size=16)
    assert ImageData(found, settings).batch("val", torch.tensor([0]))[0, 0].unique().tolist() == [3]


def test_local_images_go_by_absolute_path_and_by_file_url_and_beside_remote_ones(
    folder: Path, memory: Any
) -> None:
    rows = [
        (folder / "a/0.png", "cat"),
        (f"file://{folder}/a/1.png", "cat"),
        ("b/0.png", "dog"),
        ("memory://pets/b/1.png", "dog"),
    ]
    (folder / "pets.csv").write_text(as_csv(rows, "image,label"))
    found = read(folder / "pets.csv")
    reds = {found.open(e).getpixel((0, 0))[0] for part in found.splits.values() for e in part}
    assert reds == {0, 1, 2, 3}


def test_the_split_may_be_named_as_folders_may_and_weights_left_empty(folder: Path) -> None:
    rows = [("a/0.png", "cat", "Training", ""), ("b/0.png", "dog", "train", "2"), ("b/1.png", "dog", "Valid")]
    (folder / "pets.csv").write_text(as_csv(rows))
    assert seen(read(folder / "pets.csv")) == {
        "train": [("a/0.png", "cat", 1.0), ("b/0.png", "dog", 2.0)],
        "val": [("b/1.png", "dog", 1.0)],
        "test": [],
    }


def test_a_changed_weight_is_another_data_set(folder: Path) -> None:
    (folder / "a.csv").write_text(as_csv(ROWS))
    (folder / "b.csv").write_text(as_csv([(*ROWS[0][:3], 1.5), *ROWS[1:]]))
    assert read(folder / "a.csv").fingerprint != read(folder / "b.csv").fingerprint


def test_weights_reach_the_loop_in_the_order_of_the_labels(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv(ROWS))
    data = ImageData(read(folder / "pets.csv"), DataSettings(kind="manifest", path=str(folder / "pets.csv")))
    weights = data.weights("train")
    assert weights is not None
    assert (weights.tolist(), weights.dtype) == ([1.0, 0.5, 2.0], torch.float32)
    assert data.weights("val") is None


# What is wrong


def test_all_mistakes_of_a_manifest_come_together_by_line(folder: Path) -> None:
    path = folder / "pets.csv"
    rows = [
        ("a/0.png", "cat", "train", "1"),
        ("", "cat", "train", "1"),
        ("a/1.png", "", "trian", "-2"),
        ("b/0.png", "dog", "", "many"),
        ("b/../a/0.png", "dog", "val", "inf"),
        ("b/9.png", "dog", "val", ""),
    ]
    path.write_text(as_csv(rows))
    told = mistakes(path)
    starts = [
        "3: 'image' must be given, got nothing. Fill it in",
        "4: 'label' must be given, got nothing. Fill it in",
        "4: 'split' must be one of train, val, test, got 'trian'. Did you mean 'train'",
        "4: 'weight' must be a number above 0, got '-2'. Correct it",
        "5: 'split' must be given in every row or in none, got nothing. Fill it in",
        "5: 'weight' must be a number above 0, got 'many'.",
        "6: 'weight' must be a number above 0, got 'inf'.",
        "6: an image may stand once, got 'b/../a/0.png' again (first in line 2). Remove one",
        f"7: an image must exist, got no file '{folder}/b/9.png'. Correct the path, remove the row",
    ]
    assert len(told) == len(starts)
    for start in starts:
        assert any(line.startswith(f"{path}:{start}") for line in told), start


def test_of_very_many_mistakes_the_first_are_told_and_the_others_counted(folder: Path) -> None:
    path = folder / "pets.csv"
    path.write_text(as_csv([(f"no/{row}.png", "cat", "train", 1) for row in range(50)]))
    told = mistakes(path)
    assert (len(told), told[-1]) == (21, f"{path}: ... and 30 mistakes more.")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("img,label", ["must have a column 'image', got img, label. Add it."]),
        (
            "image;label",
            ["'image', got image;label. Separate cells with commas, not with ';'.", "'label', got"],
        ),
        ("image", ["must have a column 'label', got image. Add it."]),
        ("image,label, Weight", ["must be spelt 'weight', got ' Weight'. Rename it."]),
        ("image,label,label", ["may stand once, got 'label' again."]),
        ("Image,LABEL", ["column 'image'", "column 'label'", "spelt 'image'", "spelt 'label'"]),
    ],
)
def test_columns_are_checked_by_name(folder: Path, header: str, told: list[str]) -> None:
    (folder / "pets.csv").write_text(as_csv([], header))
    found = mistakes(folder / "pets.csv")
    assert len(found) == len(told)
    for line, part in zip(found, told, strict=True):
        assert part in line


def test_a_manifest_must_be_a_whole_table(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv([("a/0.png", "cat", "train", 1, "and more")]))
    assert "5 cells in line 2, but 4 columns. Write it again." in mistakes(folder / "pets.csv")[0]
    (folder / "pets.parquet").write_bytes(b"no parquet")
    assert "a manifest must be a whole table, got ArrowInvalid" in mistakes(folder / "pets.parquet")[0]
    (folder / "bytes.csv").write_bytes(b"image,label\n\xff\xfe,x\n")
    told = mistakes(folder / "bytes.csv")[0]
    assert "got UnicodeDecodeError" in told
    assert told.endswith("Save it as UTF-8.")
    (folder / "bytes.csv").write_text("image,label\n")
    assert "must have rows below its header, got none." in mistakes(folder / "bytes.csv")[0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pets.json", "ends in .csv, .jsonl or .parquet, got '.json'. Rename it, or use kind 'folder'."),
        ("absent.csv", "absent.csv: the file must be readable, got FileNotFoundError"),
    ],
)
def test_what_is_no_manifest_is_told(folder: Path, name: str, told: str) -> None:
    assert told in mistakes(folder / name)[0]


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(DataError, match="the file must be readable, got ValueError: Protocol not known"):
        read("nowhere://x/pets.csv")


def test_training_images_are_needed_and_a_path(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv([("a/0.png", "cat", "val", 1)]))
    assert "'split' needs 'train' among its values, got val." in mistakes(folder / "pets.csv")[0]
    with pytest.raises(DataError, match="needs a CSV, JSON Lines or Parquet file, got None"):
        scan(DataSettings(kind="manifest"))


def test_missing_images_may_be_skipped(folder: Path) -> None:
    (folder / "pets.csv").write_text(as_csv([*ROWS, ("b/9.png", "dog", "train", 1)]))
    found = read(folder / "pets.csv", on_error="skip")
    assert seen(found) == EXPECTED
    assert [image.path for image in found.skipped] == ["b/9.png"]
    assert "FileNotFoundError" in found.skipped[0].reason


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.jpg", "nosuch://a.jpg", "gs://bucket/a.jpg", "github://a.jpg", "sftp://host/a.jpg"]
)
def test_a_url_that_cannot_be_asked_is_one_line(folder: Path, url: str) -> None:
    """Its package is missing, its kind is unknown, or it needs options."""
    (folder / "far.csv").write_text(f"image,label\na/0.png,cat\n{url},dog\n{url}2,dog\n")
    with pytest.raises(DataError) as caught:
        read(folder / "far.csv")
    assert str(caught.value).startswith(f"{url}: the file must be readable, got ")
    assert "\n" not in str(caught.value)
