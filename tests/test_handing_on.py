"""A model handed on as ONNX or a torch program answers as the model folder does, wherever it is run."""

import hashlib
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image
from torch import nn

from finetune import bill_of_materials, extras, model_card, model_folder
from finetune.errors import CheckpointError, MissingPackage
from finetune.handing_on import formats, onnx_file, parity
from finetune.model import backbones
from search.views import export as exports
from tests.here import Here
from tests.models import train
from tests.test_families import SMALLEST

ROOT = Path(__file__).parents[1]
ALONE = ("onnxruntime", "pillow")
"""Packages that the lines of docs/handing-on.md need."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without other formats; not to be changed. Its network has few kinds of layers."""
    folder = tmp_path_factory.mktemp("plain")
    model_folder.write(train(folder, backbone="squeezenet1_1", strategy="replace"), folder / "model", {})
    return folder / "model"


@pytest.fixture(scope="module")
def exported(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with all formats; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    exports.convert(plain, folder, ["onnx", "torch"])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several sizes and forms, one of them turned by its EXIF tag, one large."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    for number, size in enumerate([(40, 30), (31, 97), (500, 420), (32, 32)]):
        coarse = Image.fromarray(torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8).numpy())
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", exif=exif)
    Image.new("L", (50, 60), 90).save(folder / "grey.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_an_exported_file_answers_as_the_folder_and_says_how_closely(exported: Path, name: str) -> None:
    facts = yaml.safe_load((exported / "model.yaml").read_text())
    told = facts["formats"][name]
    assert told["parity"]["images"] == parity.IMAGES
    assert told["parity"]["largest_difference"] <= parity.MOST
    assert told["parity"]["changed_answers"] == 0
    run = formats.FORMATS[name][0].runner(exported / told["file"])
    model = model_folder.load(exported)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found = run(images.permute(0, 2, 3, 1).contiguous())
    assert torch.allclose(found, model.probabilities(images), atol=1e-5)
    assert model.calibration.temperature != 1  # so that a forgotten temperature would be seen


def lines_shown() -> str:
    """Return the program that docs/handing-on.md shows."""
    text = (ROOT / "docs" / "handing-on.md").read_text()
    found = re.search(r"<!-- classify -->\n```python\n(.*?)```\n<!-- /classify -->", text, re.S)
    assert found is not None
    return found[1]


def test_the_program_shown_has_15_lines() -> None:
    assert len([line for line in lines_shown().splitlines() if line]) == 15


def answers(output: str) -> dict[str, tuple[str, float]]:
    rows = (line.split("\t") for line in output.splitlines())
    return {path: (name, float(probability)) for path, name, probability in rows}


def expected(model: Path, pictures: list[Path]) -> dict[str, tuple[str, float]]:
    rows = model_folder.predict(model_folder.load(model), pictures)
    return {row["path"]: (row["class"], pytest.approx(row["probability"], abs=1e-4)) for row in rows}


@pytest.mark.slow
def test_the_program_shown_answers_as_predict(exported: Path, pictures: list[Path], tmp_path: Path) -> None:
    program = tmp_path / "classify.py"
    program.write_text(lines_shown())
    done = subprocess.run(
        [sys.executable, program, exported / "model.onnx", *pictures],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert answers(done.stdout) == expected(exported, pictures)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_stranger_classifies_with_onnxruntime_and_pillow_alone(
    exported: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """A fresh environment, no path to this project, and the lines that docs/handing-on.md shows."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 600}
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *ALONE]
    done = subprocess.run(install, **run)
    assert done.returncode == 0, done.stderr
    (tmp_path / "classify.py").write_text(lines_shown())
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    alone = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([python, "-c", "import torch"], env=alone, **run)
    assert done.returncode != 0
    done = subprocess.run([python, "classify.py", "model.onnx", *pictures], env=alone, **run)
    assert done.returncode == 0, done.stderr
    assert answers(done.stdout) == expected(exported, pictures)


def test_a_file_that_answers_otherwise_is_not_kept(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> parity.Run:
        run = torch_runner(path)
        return lambda images: run(images) + 2e-4

    torch_runner = formats.FORMATS["torch"][0].runner
    monkeypatch.setattr(formats.FORMATS["torch"][0], "runner", wrong)
    with pytest.raises(
        CheckpointError, match=r"model.pt2: a file must answer .* difference of 2.0e-04 and 0"
    ):
        exports.convert(plain, tmp_path / "to", ["torch"])
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted(model_folder.files.FILES)
    assert model_folder.load(tmp_path / "to").facts == model_folder.load(plain).facts
    assert (tmp_path / "to" / "bom.json").read_bytes() == (plain / "bom.json").read_bytes()


def test_a_file_that_cannot_be_written_or_run_is_told_in_one_line(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(formats.FORMATS["torch"][0], "write", fail)
    with pytest.raises(CheckpointError, match=r"got RuntimeError: no such operator and more\. Use") as caught:
        exports.convert(plain, tmp_path / "to", ["torch"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to" / "model.pt2").exists()


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "maxvit_t"])
def test_transformers_can_be_traced_for_any_number_of_images(name: str) -> None:
    side = SMALLEST[name]
    backbone = backbones.build(name, source_classes=3, image_size=side)
    example = torch.zeros(2, 3, side, side)
    first = nn.Sequential(*list(backbone.blocks)[:2]).eval()
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(first, (example,), dynamic_shapes=({**batch},))
        assert len(program.module()(torch.zeros(3, 3, side, side))) == 3


def test_nan_and_a_changed_answer_are_no_parity() -> None:
    images = torch.zeros(8, 1, 1, 3, dtype=torch.uint8)
    even = torch.tensor([[0.50001, 0.49999]]).expand(8, 2)
    assert parity.measured(lambda x: even[: len(x)], lambda x: even[: len(x)], images).holds
    changed = parity.measured(lambda x: even[: len(x)].flip(1), lambda x: even[: len(x)], images)
    assert (changed.changed_answers, changed.holds) == (8, False)
    assert changed.largest_difference < parity.MOST
    assert not parity.measured(
        lambda x: even[: len(x)] * float("nan"), lambda x: even[: len(x)], images
    ).holds


# The card and the list of parts


def scores(facts: dict[str, Any], split: str) -> dict[str, float]:
    found = facts["metrics"][split]
    return {k: v for k, v in found.items() if isinstance(v, float) and "/" not in k}


def test_the_card_begins_with_a_header_whose_scores_are_those_of_the_folder(plain: Path) -> None:
    facts = model_folder.load(plain).facts
    _, header, card = (plain / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(header)
    assert card.lstrip().startswith("# squeezenet1_1, strategy replace\n")
    assert (told["pipeline_tag"], "license" in told) == ("image-classification", False)
    assert "# license: name one" in header
    (entry,) = told["model-index"]
    assert [one["dataset"]["split"] for one in entry["results"]] == ["validation", "test"]
    for result in entry["results"]:
        metrics = {one["type"]: one["value"] for one in result["metrics"]}
        assert metrics == scores(facts, result["dataset"]["split"])
        assert {"accuracy", "ece"} <= metrics.keys()


def valid(bill: str) -> None:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill)
    assert error is None, error


def test_the_list_of_parts_follows_the_standard_and_holds_hashes_and_scores(
    plain: Path, tmp_path: Path
) -> None:
    facts = model_folder.load(plain).facts
    bill = (plain / "bom.json").read_text()
    valid(bill)
    told = json.loads(bill)
    model = told["metadata"]["component"]
    digest = hashlib.sha256((plain / "model.safetensors").read_bytes()).hexdigest()
    assert model["hashes"] == [{"alg": "SHA-256", "content": digest}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    found = {(one["slice"], one["type"]): float(one["value"]) for one in metrics}
    assert found == {(s, k): v for s in ("validation", "test") for k, v in scores(facts, s).items()}
    assert str(plain.parent) not in bill


def test_the_list_of_parts_has_libraries_weights_and_files(plain: Path) -> None:
    facts = model_folder.load(plain).facts
    named = {"torch": {"file": "model.pt2", "sha256": "a" * 64}}
    packages = {"torch": "2.15.0+cu132", "PyYAML": "6.0"}
    provenance = facts["provenance"] | {"packages": packages}
    source = facts["source"] | {"sha256": "b" * 64}
    bill = bill_of_materials.text(facts | {"formats": named, "provenance": provenance, "source": source})
    valid(bill)
    parts = {part["bom-ref"]: part for part in json.loads(bill)["components"]}
    assert parts["file-torch"]["hashes"][0]["content"] == "a" * 64
    assert parts["source"]["hashes"][0]["content"] == "b" * 64
    assert {"pkg:pypi/torch@2.15.0%2Bcu132", "pkg:pypi/pyyaml@6.0"} <= parts.keys()


def test_a_folder_of_the_first_version_gets_a_card(plain: Path) -> None:
    facts = {k: v for k, v in model_folder.load(plain).facts.items() if k != "calibration"}
    assert "expected calibration error" not in model_card.text(facts)


@pytest.mark.slow
def test_a_model_that_replaces_another_leaves_no_file_of_it(
    exported: Path, plain: Path, tmp_path: Path
) -> None:
    model_folder.copy(exported, tmp_path / "to")
    (tmp_path / "to" / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    model_folder.copy(plain, tmp_path / "to")
    assert not (tmp_path / "to" / "model.onnx").exists()


@pytest.mark.slow
def test_the_metadata_prepare_an_image_as_the_folder_does(exported: Path) -> None:
    facts = model_folder.load(exported).facts
    whole = facts | {"preprocessing": facts["preprocessing"] | {"whole_image": True, "image_size": 40}}
    centre = facts | {"preprocessing": facts["preprocessing"] | {"whole_image": False, "image_size": 224}}
    told = {name: json.loads(text) for name, text in onnx_file.metadata(whole).items()}
    assert told["whole_image"] is True
    assert (told["image_size"], told["decode"], told["classes"]) == (40, 80, ["6", "7"])
    assert json.loads(onnx_file.metadata(centre)["trim"]) == (1 - 224 / 256) / 2


def test_a_missing_extra_is_one_line_that_installs_it(
    plain: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: (name[:4] != "onnx" and find(name)) or None
    )
    with pytest.raises(MissingPackage, match="got no onnx, no onnxscript, no onnxruntime"):
        formats.check(["torch", "onnx"])
    told = here("export", plain, "--to", tmp_path / "to", "--format", "onnx")
    assert told.returncode == 2
    assert "pip install 'transfer-search[onnx]'" in told.stderr
    assert not (tmp_path / "to").exists()


def test_export_converts_a_model_folder_and_says_how_closely(plain: Path, tmp_path: Path, here: Here) -> None:
    told = here("export", plain, "--to", tmp_path / "to", "--format", "torch", "--format", "safetensors")
    assert told.returncode == 0, told.stderr
    assert "torch: model.pt2, probabilities within" in told.stdout
    assert "0 of 32 answers changed" in told.stdout
    again = here("export", tmp_path / "to", "--to", tmp_path / "to", "--json")
    assert json.loads(again.stdout)["formats"].keys() == {"torch"}
    assert here("export", plain, "--to", tmp_path / "to", "--trial", 3).returncode == 2
