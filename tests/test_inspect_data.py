"""`check` reads the data as a careful colleague: each finding once, on real files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import inspection
from finetune.datasets.catalog import scan
from finetune.errors import DataError
from finetune.settings import DataSettings
from search.__main__ import check as check_command
from search.__main__ import guarded
from search.config.study import StudyConfig
from search.driver.checks import check, check_text, findings
from search.record import reader
from search.record.study_folder import StudyFolder
from tests.by_hand import run_of

SIDE = 40
noise = np.random.default_rng(0)


def put(root: Path, folder: str, count: int, side: int = SIDE) -> None:
    """Write images of noise, each another."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    start = len(list((root / folder).iterdir()))
    for index in range(start, start + count):
        pixels = noise.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / folder / f"{index}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clean set: two classes in three splits."""
    for split, count in (("train", 6), ("val", 4), ("test", 3)):
        put(tmp_path, f"{split}/cat", count)
        put(tmp_path, f"{split}/dog", count)
    return tmp_path


def report(root: Path, **changes: Any) -> dict[str, Any]:
    return inspection.inspect(scan(DataSettings(kind="folder", path=str(root), **changes)))


def copy(root: Path, one: str, other: str) -> None:
    (root / other).parent.mkdir(parents=True, exist_ok=True)
    (root / other).write_bytes((root / one).read_bytes())


def huge(root: Path) -> None:
    Image.new("1", (7100, 7100)).save(root / "train/cat/huge.png")


def broken(root: Path) -> None:
    (root / "train/cat/0.png").write_bytes(b"broken")


def similar(root: Path) -> None:
    for split in ("train", "val", "test"):
        put(root, f"{split}/Ca t", 3)


def single(root: Path) -> None:
    for split in ("val", "test"):
        copy(root, "train/cat/0.png", f"{split}/one/0.png")
        (root / split / "one/0.png").unlink()
    put(root, "train/one", 1)


FINDINGS: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("unreadable", "error", broken, "every image must be readable, got 1 that are not."),
    (
        "in_two_splits",
        "error",
        lambda root: copy(root, "train/cat/0.png", "val/cat/copy.png"),
        "got 1 in two or more, by the bytes of the file (11.1% of val). Remove the copies",
    ),
    (
        "two_labels",
        "warning",
        lambda root: copy(root, "train/cat/0.png", "train/dog/copy.png"),
        "an image must have one label, got 1 under two or more. Keep the right one.",
    ),
    ("twice", "note", lambda root: copy(root, "train/cat/0.png", "train/cat/copy.png"), "got 1 more than"),
    (
        "missing_class",
        "warning",
        lambda root: [file.unlink() for file in (root / "val/dog").iterdir()],
        "'val' should hold every class, got none of dog.",
    ),
    ("imbalance", "warning", lambda root: put(root, "train/cat", 60), "got 11 : 1 (cat : dog). Choose"),
    ("single_image", "warning", single, "got one for one. Add images, or leave the class out"),
    ("similar_names", "warning", similar, "got 'Ca t' and 'cat'. Merge them if they are one class."),
    ("tiny", "note", lambda root: put(root, "train/cat", 1, side=31), "32 pixels or more, got 1 images"),
    (
        "passed_over",
        "warning",
        lambda root: [(root / "train/cat" / name).touch() for name in ("1.HEIC", "2.heic", "Thumbs.db")],
        "in a known format, got 3 passed over: .db (1), .heic (2). Convert them to JPEG or PNG",
    ),
    (
        "passed_over",
        "note",
        lambda root: (root / "val/dog/notes").touch(),
        "got 1 passed over: no suffix (1).",
    ),
    ("huge", "warning", huge, "50 megapixels or less, got 1 with more. Shrink them once"),
]


@pytest.mark.parametrize(
    ("check", "grade", "spoil", "told"), FINDINGS, ids=[f"{case[0]}-{case[1]}" for case in FINDINGS]
)
def test_each_finding_is_told_with_its_grade(
    root: Path, check: str, grade: str, spoil: Callable[[Path], object], told: str
) -> None:
    spoil(root)
    found = {finding["check"]: finding for finding in report(root)["findings"]}
    assert found[check]["grade"] == grade
    assert told in found[check]["text"]
    others = {"missing_class"} if check == "single_image" else set()
    assert set(found) - {check} == others


def test_clean_data_has_no_findings_and_is_described(root: Path) -> None:
    found = report(root)
    assert found["findings"] == []
    assert found["images"]["val"] == {"cat": 4, "dog": 4}
    assert (found["imbalance"], found["sides"]) == (1.0, {"shortest": 40, "median": 40, "longest": 40})
    assert json.loads(json.dumps(found))["classes"] == ["cat", "dog"]
    assert inspection.lines(found)[0] == "train: 12 images: cat 6, dog 6"


def test_one_copy_among_many_is_a_warning_and_not_an_error(root: Path) -> None:
    put(root, "val/cat", 100)
    copy(root, "train/cat/0.png", "val/cat/copy.png")
    assert [(f["check"], f["grade"]) for f in report(root)["findings"]] == [("in_two_splits", "warning")]


def test_skipped_images_are_a_warning_and_named(root: Path) -> None:
    broken(root)
    found = report(root, on_error="skip")["findings"]
    assert [(f["check"], f["grade"], f["count"]) for f in found] == [("skipped", "warning", 1)]
    assert "train/cat/0.png: an image must be readable" in found[0]["images"][0]


def test_check_lists_links_to_nothing_with_the_other_broken_files(root: Path) -> None:
    """A study refuses to start on one; `check` goes on and lists them all."""
    broken(root)
    (root / "val/dog/gone.png").symlink_to("/nowhere.png")
    data = DataSettings(kind="folder", path=str(root))
    with pytest.raises(DataError, match=r"gone\.png: the file must be readable, got FileNotFoundError"):
        scan(data)
    found = inspection.inspect(scan(data, lenient=True))["findings"]
    assert [(f["check"], f["count"]) for f in found] == [("unreadable", 2)]
    assert [image.split(": ")[0].removeprefix(f"{root}/") for image in found[0]["images"]] == [
        "train/cat/0.png",
        "val/dog/gone.png",
    ]


def test_weights_of_a_manifest_are_told(root: Path) -> None:
    rows = [f"train/{label}/{i}.png,{label},{2**i}" for label in ("cat", "dog") for i in range(6)]
    (root / "images.csv").write_text("\n".join(["image,label,weight", *rows]))
    settings = DataSettings(
        kind="manifest", path=str(root / "images.csv"), validation_share=0.1, test_share=0.1
    )
    found = inspection.inspect(scan(settings))
    weights = [example.weight for example in scan(settings).splits["train"]]
    assert found["weights"] == {"smallest": min(weights), "largest": max(weights)}
    assert f"weights of training images: {min(weights):g} to {max(weights):g}" in inspection.lines(found)


def test_errors_come_first_and_long_lists_are_cut(root: Path) -> None:
    put(root, "train/cat", 25, side=8)
    broken(root)
    found = report(root)
    assert [f["grade"] for f in found["findings"]] == ["error", "note"]
    text = inspection.lines(found)
    assert text[-1] == "  ... and 22 more"
    assert text[-2].startswith("  train/cat/")
    assert text[-2].endswith(": 8 x 8")


def test_inspecting_imports_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys; from finetune.datasets import catalog, inspection; "
        "from finetune.settings import DataSettings as S; "
        "inspection.inspect(catalog.scan(S(kind='digits'))); "
        "print(*{'torch', 'torchvision'} & set(sys.modules))"
    )
    source = str(Path(inspection.__file__).parents[2])
    assert (
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": source}, text=True) == "\n"
    )


def config_of(root: Path, **data: Any) -> dict[str, Any]:
    return {
        "study": {"name": "s", "trials": 3},
        "data": {"path": str(root), **data},
        "model": {"backbone": "squeezenet1_1", "weights": "none"},
        "space": {"strategy": "replace"},
        "results": str(root.parent / "results"),
    }


def test_the_plan_holds_the_report(root: Path) -> None:
    planned = check.plan(StudyConfig.from_dict(config_of(root)))
    assert planned["data"] == report(root)
    assert check.errors(planned) == []
    assert "val: 8 images: cat 4, dog 4" in check_text.lines(planned)


def test_studies_on_the_same_images_know_what_check_has_found_about_copies(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere / "cache"))
    put(root, "val/cat", 100)
    copy(root, "train/cat/0.png", "val/cat/copy.png")
    (root / "val/cat/odd.png").write_bytes(b"")
    assert findings.kept(report(root)["fingerprint"]) is None
    planned = check.plan(StudyConfig.from_dict(config_of(root, on_error="skip")))
    kept = findings.kept(planned["data"]["fingerprint"])
    assert kept is not None
    assert [one["check"] for one in kept] == ["in_two_splits"]  # and not that an image was skipped
    assert kept[0]["images"] == ["train/cat/0.png (train) = val/cat/copy.png (val)"]
    folder = StudyFolder(elsewhere / "study")
    first = run_of(folder)
    first.close(0.0)
    assert reader.read_study(folder).findings is None
    findings.keep({"fingerprint": first.images.fingerprint, "findings": kept})
    run_of(folder).close(0.0)
    assert reader.read_study(folder).findings == kept


@pytest.mark.parametrize("as_json", [True, False])
def test_check_ends_with_2_and_the_reason_where_data_has_an_error(
    root: Path, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(root)
    file = root / "study.yaml"
    file.write_text(json.dumps(config_of(root)))
    assert guarded(lambda: check_command(file, as_json=as_json)) == 2
    out, err = capsys.readouterr()
    assert "error: data: every image must be readable, got 1 that are not." in " ".join(err.split())
    if as_json:
        assert json.loads(out)["data"]["findings"][0]["check"] == "unreadable"
    else:
        assert "error: every image must be readable" in " ".join(out.split())
    assert guarded(lambda: check_command(file, overrides=["data.on_error=skip"])) == 0
