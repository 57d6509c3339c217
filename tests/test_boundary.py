"""The one-way streets: search decides, finetune trains, and within each no floor imports one above it."""

import ast
import sys
from pathlib import Path

import pytest

from tests.processes import finish

ROOT = Path(__file__).parents[1]
FINETUNE = sorted((ROOT / "src" / "finetune").rglob("*.py"))
TORCH_FREE = (
    "search.driver.runner",
    "search.driver.trial",
    "search.slots.exchange",
    "search.slots.slots",
    "search.driver.callback",
    "search.record.ledger",
    "search.views.table",
    "search.driver.checks.inputs",
    "search.__main__",
    "finetune.model.known_backbones",
    "finetune.metrics",
    "finetune.messages",
    "finetune.strategy",
)


FLOORS = {
    "search": [
        {"errors", "unforeseen"},
        {"provenance"},
        {"config"},
        {"record"},
        {"suggest", "slots", "verdict"},
        {"views"},
        {"private"},
        {"commands", "driver", "report"},
        {"cluster", "handing_on"},
        {"__main__"},
    ],
    "finetune": [
        {"bill_of_materials", "errors", "safe_text", "settings", "steps", "strategy"},
        {"extras", "metrics", "model_card"},
        {"messages", "objectives"},
        {"disk", "suspects"},
        {"datasets"},
        {"images"},
        {"model", "texts"},
        {"frozen", "exact"},
        {"evaluation"},
        {"training"},
        {"explain"},
        {"model_folder"},
        {"handing_on", "private", "serving"},
        {"worker"},
    ],
}
"""Package -> its rooms, floor by floor; a room imports its own and those of the floors below."""


def imported(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_there_is_something_to_check() -> None:
    assert len(FINETUNE) > 10


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.name)
def test_finetune_imports_no_search_no_tune_and_no_optuna(path: Path) -> None:
    wrong = [n for n in imported(path) if n.split(".")[0] in ("search", "optuna") or n.startswith("ray.tune")]
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in FINETUNE if p.name != "worker.py"], ids=lambda path: path.name)
def test_only_the_worker_imports_ray(path: Path) -> None:
    assert [name for name in imported(path) if name.split(".")[0] == "ray"] == []


def test_the_processes_that_search_start_without_torch() -> None:
    """One process imports them in turn; torch has no way out of it, so the first that brings it is named."""
    code = f"""
import importlib, sys
for module in {TORCH_FREE!r}:
    importlib.import_module(module)
    if {{"torch", "torchvision"}} & set(sys.modules):
        sys.exit(f"{{module}} imports torch")
"""
    done = finish(sys.executable, "-c", code, env={"PYTHONPATH": f"{ROOT}:{ROOT}/src"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("package", "path"),
    [
        pytest.param(package, path, id=path.relative_to(ROOT).as_posix())
        for package, folder in (("search", ROOT / "search"), ("finetune", ROOT / "src" / "finetune"))
        for path in sorted(folder.rglob("*.py"))
        if path != folder / "__init__.py"  # what users import may know everything
    ],
)
def test_no_room_imports_one_of_a_floor_above(package: str, path: Path) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    folder = next(parent for parent in path.parents if parent.name == package)
    room = path.relative_to(folder).parts[0].removesuffix(".py")
    parts = [name.split(".") for name in imported(path) if name.startswith(f"{package}.")]
    others = {names[1] for names in parts} - {room}
    assert {room, *others} <= set(floor_of), "a new room: give it a floor"
    assert [other for other in sorted(others) if floor_of[other] >= floor_of[room]] == []
