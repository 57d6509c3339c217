"""The product as `pip install` leaves it: a command and an importable package in any folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from search import provenance
from search.cluster import upload

ROOT = Path(__file__).parents[1]
SECONDS = 600
"""A watchdog for one command, far above what it takes."""


def run(words: list[str | Path], folder: Path, installed: Path, **environment: str) -> str:
    """Return what a command prints in a folder outside the checkout, where only the wheel is to be found."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the wheel of this checkout, without the packages that it needs."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in ("search", "src"):  # a build leaves files in its folder
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run([*pip, *build], check=True, timeout=SECONDS)
    install = ["install", "--no-deps", "--no-compile", "--target", target, *wheels.glob("*.whl")]
    subprocess.run([*pip, *install], check=True, timeout=SECONDS)
    return target


def test_a_wheel_holds_the_code_of_the_checkout_and_submits_the_same(installed: Path) -> None:
    assert list(provenance.code_files(installed)) == list(provenance.code_files())
    with upload.upload(None, installed) as sent:
        there = {
            path.relative_to(sent.folder).as_posix() for path in sent.folder.rglob("*") if path.is_file()
        }
    assert there == set(provenance.code_files())


def test_an_installed_package_is_found_anywhere_and_names_no_commit(installed: Path, tmp_path: Path) -> None:
    """The folder of packages may lie below somebody else's checkout, whose commit is not ours."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    inside = tmp_path / "site-packages"
    shutil.copytree(installed, inside)
    code = (
        "import search; from search import provenance as p; p.check_code(); print(p.code_hash(), p.commit())"
    )
    told = run([sys.executable, "-c", code], tmp_path, inside)
    assert told.split() == [provenance.code_hash(), "None"]


def test_the_command_lists_the_same_verbs_as_the_module(installed: Path, tmp_path: Path) -> None:
    command = run([installed / "bin" / "transfer-search", "--help"], tmp_path, installed)
    module = run([sys.executable, "-m", "search", "--help"], tmp_path, installed)
    assert command.startswith("Usage: transfer-search")
    assert command.partition("Commands:")[2] == module.partition("Commands:")[2] != ""


def test_a_shell_completes_the_verbs(installed: Path, tmp_path: Path) -> None:
    asked = {
        "_TRANSFER_SEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "transfer-search re",
        "COMP_CWORD": "1",
    }
    offered = run([installed / "bin" / "transfer-search"], tmp_path, installed, **asked)
    assert offered.split() == ["resume", "results", "report"]


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.slow
def test_a_search_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    import torch
    from torchvision.models import shufflenet_v2_x0_5

    for label, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 40), tuple(c + number for c in colour)).save(folder / f"{number}.png")
    weights = tmp_path / "shufflenet.pth"
    torch.save(shufflenet_v2_x0_5(weights=None).state_dict(), weights)
    words = ["run", "--data", "photos", "--backbone", "shufflenet_v2_x0_5", "--weights", weights]
    words += ["--trials", "2", "--budget", "10m", "--json"]
    told = run([installed / "bin" / "transfer-search", *words], tmp_path, installed)
    # `--trials` counts the recipe and those that train blocks; heads on frozen features come on top.
    fused = [trial for trial in json.loads(told)["trials"] if trial["params"]["strategy"] == "fuse"]
    assert len(fused) == 1
    study = tmp_path / "results" / "photos"
    assert {"study.yaml", "optuna.db", "trials.csv", "best"} <= {path.name for path in study.iterdir()}
    kept = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
    assert (kept["model"]["weights"], kept["study"]["budget"]) == (str(weights), "10m")
    # A config names the schema only where there is one.
    assert "$schema" not in (study / "study.yaml").read_text(encoding="utf-8")
