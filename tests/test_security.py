"""Nothing from outside a study is unpickled, and no YAML makes objects: read off the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "search").rglob("*.py"), *(ROOT / "src" / "finetune").rglob("*.py")])
PICKLES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "ray.cloudpickle"}
YAML_MAKERS = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
ALLOWED = {
    # What Tune wrote a moment ago, in this session, about our own trial function's failure.
    ("search/driver/callback.py", "cloudpickle.loads"),
}


def findings(source: str) -> list[str]:
    """Return every call in a source that could run code from a file, as it is written there."""
    found = []
    tree = ast.parse(source)
    names = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        module, _, function = names.get(called, resolved(called, names)).rpartition(".")
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unpickles = module in PICKLES and function in ("load", "loads", "Unpickler", "open")
        torch_loads = module in ("torch", "torch.serialization") and function == "load"
        if (
            unpickles
            or (torch_loads and options.get("weights_only") != "True")
            or (module == "yaml" and function in YAML_MAKERS and "Safe" not in options.get("Loader", ""))
            or (
                (module, function) in {("numpy", "load"), ("np", "load")}
                and options.get("allow_pickle", "False") != "False"
            )
            or called in ("eval", "exec", "compile", "__import__")
        ):
            found.append(called)
    return found


def aliases(tree: ast.AST) -> dict[str, str]:
    """Return local name -> full name of everything imported."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def resolved(called: str, names: dict[str, str]) -> str:
    first, dot, rest = called.partition(".")
    return f"{names.get(first, first)}{dot}{rest}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle\npickle.loads(b)", ["pickle.loads"]),
        ("import pickle as p\np.load(f)", ["p.load"]),
        ("from pickle import load\nload(f)", ["load"]),
        ("from ray import cloudpickle\ncloudpickle.loads(b)", ["cloudpickle.loads"]),
        ("import joblib\njoblib.load(f)", ["joblib.load"]),
        ("import torch\ntorch.load(f)", ["torch.load"]),
        ("import torch\ntorch.load(f, weights_only=False)", ["torch.load"]),
        ("import torch\ntorch.load(f, weights_only=True)", []),
        ("from torch import load as read\nread(f)", ["read"]),
        ("import yaml\nyaml.load(t, Loader=yaml.Loader)", ["yaml.load"]),
        ("import yaml\nyaml.safe_load(t)", []),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", ["np.load"]),
        ("import numpy as np\nnp.load(f, allow_pickle=False)", []),
        ("import json\njson.loads(t)", []),
        ("eval(t)", ["eval"]),
    ],
)
def test_the_check_finds_what_it_looks_for(source: str, found: list[str]) -> None:
    assert findings(source) == found


def test_nothing_of_the_product_unpickles_data_from_outside_a_study() -> None:
    assert len(SOURCES) > 50
    found = {
        (path.relative_to(ROOT).as_posix(), call)
        for path in SOURCES
        for call in findings(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED
