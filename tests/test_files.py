"""Files and folders that are none, or that cannot be written: one line and exit code 2, and nothing hangs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.disk import filesystems
from finetune.errors import CheckpointError, WeightsError
from finetune.model import weights
from search.config.study import StudyConfig
from search.driver.checks import inputs
from search.errors import StudyError
from search.record.study_folder import StudyFolder
from search.views import predictions

ROOT = Path(__file__).parents[1]
READERS = """
import os, sys
from pathlib import Path

from finetune import model_folder
from finetune.disk import checkpoint
from finetune.datasets import decode, manifest, sources
from finetune.model import weights
from search.config import config_file

folder, place = map(Path, sys.argv[1:])
readers = {
    "config.yaml": config_file.load,
    "manifest.csv": lambda path: manifest._read(str(path), ()),
    "image.png": decode.decode,
    "sample.png": lambda path: sources.Files(str(folder)).sample(path.name),
    "weights.pth": weights._content,
    "weights.safetensors": weights._content,
    "last.safetensors": checkpoint.read,
    "model.yaml": lambda path: model_folder.load(folder),
}
for name, read in readers.items():
    if place == folder:
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(place)
    try:
        read(folder / name)
    except Exception as error:
        print(name, type(error).__name__, error)
"""
"""Reads a named pipe, or a link to a device, in place of every kind of file."""
LONG = 120
"""Seconds that nobody waits for unless a reader hangs."""


@pytest.mark.parametrize("device", ["", "/dev/zero"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(device: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READERS, str(tmp_path), device or str(tmp_path)],
        capture_output=True, text=True, timeout=LONG, cwd=ROOT, check=True,
    )  # fmt: skip
    told = done.stdout.splitlines()
    assert len(told) == 8
    for line in told:
        assert line.split()[1] in ("ConfigErrors", "DataError", "WeightsError", "CheckpointError")
        assert ("a device or socket" if device else "a named pipe") in line


def places(folder: Path) -> dict[str, Path]:
    """Paths where no folder can be made."""
    (folder / "file").write_text("x")
    return {"below a file": folder / "file" / "new", "a long name": folder / ("x" * 300)}


@pytest.mark.parametrize("where", ["below a file", "a long name"])
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_read(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places(tmp_path)[where]
    values: dict[str, Any] = {
        "study": {"name": "s"},
        "data": {"kind": "digits"},
        "model": {"weights": "none"},
    }
    values |= {"space": {"strategy": "replace"}, "results": str(tmp_path / "results")}
    for changed, told in (
        ({"results": str(place)}, "results: the folder"),
        ({"features": {"dir": str(place)}}, "features.dir: the folder"),
    ):
        with pytest.raises(StudyError, match=f"{told} .*must be writable, got"):
            inputs.scan(StudyConfig.from_dict(values | changed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    with pytest.raises(StudyError, match=r"the cache: the folder .* Choose with XDG_CACHE_HOME=DIR\."):
        inputs.scan(StudyConfig.from_dict(values))
    with pytest.raises(StudyError, match=r"results: the folder .* must be writable"):
        StudyFolder.create(place, "s")
    with pytest.raises(StudyError, match=r"--csv must be a file that can be written"):
        predictions.write_csv(iter(()), place / "x.csv")


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the kernel's answer is given here."""
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    assert filesystems.not_writable(tmp_path / "a" / "b") == f"{tmp_path}, which may not be written to"


def test_a_csv_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"path": os.fsdecode(b"/a/\xff.png"), "class": "cat", "probability": 0.5, "error": None}
        raise CheckpointError

    with pytest.raises(CheckpointError):
        predictions.write_csv(rows(), tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StudyError, match="got 'Is a directory'"):
        predictions.write_csv(iter(()), tmp_path)
    row = {"path": os.fsdecode(b"/a/\xff.png"), "class": "cat", "probability": 0.5, "error": None}
    predictions.write_csv(iter([row]), tmp_path / "out.csv")
    assert rb"/a/\udcff.png,cat,0.5" in (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize(
    "content", [b"some text\n", b"\x00" * 1000, b"PK\x03\x04broken", bytes(range(256)) * 9, b"\x80\x02."]
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_holds_no_weights_is_told_in_one_line(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        weights._read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_weights_are_taken_out_of_what_was_wrapped_around_the_model(tmp_path: Path) -> None:
    """By DataParallel, torch.compile and Lightning, one around the other."""
    torch.save({"state_dict": {"model._orig_mod.module.fc.weight": torch.ones(1)}}, tmp_path / "w.pth")
    assert list(weights._read(tmp_path / "w.pth")) == ["fc.weight"]
    torch.save({3: torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="tensors by name"):
        weights._read(tmp_path / "w.pth")


@pytest.mark.parametrize("missing", ["model.yaml", "model.safetensors"])
def test_a_model_folder_without_one_of_its_files_is_told(missing: str, tmp_path: Path) -> None:
    from finetune import model_folder

    (tmp_path / "model.yaml").write_text("format: 1")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=f"got no {missing}"):
        model_folder.load(tmp_path)
