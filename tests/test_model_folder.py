"""Model folders: written where nothing is lost by it, read without harm, and told in safe words."""

import shutil
from pathlib import Path

import pytest
import torch

from finetune import loop, model_folder
from finetune.errors import CheckpointError
from finetune.history import Keep
from finetune.settings import DataSettings, TrialSettings, WeightsSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small trial."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    data = DataSettings(
        kind="digits", classes=("6", "7"), image_size=32, validation_share=0.8, test_share=0.1
    )
    settings = TrialSettings(
        data=data,
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(),
        strategy="replace",
        epochs=1,
        learning_rate=0.01,
        cache_dir=str(folder / "cache"),
    )
    keep = Keep(metric="val/loss", mode="min", best=folder / "best", last=folder / "last")
    loop.train(settings, keep=keep, report=lambda _: None)
    return folder / "best"


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
