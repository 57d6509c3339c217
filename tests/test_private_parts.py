"""docs/private-parts.md lists every private part of the frameworks that the code uses, and no other."""

import ast
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.cloudpickle

from search.config.study import StudyConfig
from search.driver import runner
from search.slots import ray_private, slots, train_run
from tests import torchless

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "private-parts.md").read_text(encoding="utf-8")
FILES = sorted([*(ROOT / "search").rglob("*.py"), *(ROOT / "src" / "finetune").rglob("*.py")])
OURS = ("search", "finetune")


DOCUMENTED = {"_exit"}
"""Names of Python's documented library that begin with an underscore all the same: os._exit."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def made_here(tree: ast.AST) -> set[str]:
    """Return the names of the functions, classes, variables and attributes that a file makes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def calls(tree: ast.AST, name: str) -> bool:
    """True if a file uses a method by name, other than to reach that of a base class."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == name
        and not (isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super")
        for node in ast.walk(tree)
    )


def private_parts(source: str) -> Iterator[str]:
    """Yield the private names of others that a file imports, reads, or overrides."""
    tree = ast.parse(source)
    own = made_here(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from filter(is_private, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from imported(node)
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ClassDef):
            yield from overridden(node, tree)


def imported(node: ast.ImportFrom) -> Iterator[str]:
    """Yield the private names of others in one import."""
    path = (node.module or "").split(".")
    if path[0] in OURS:
        return
    inside = list(filter(is_private, path))
    for alias in node.names:
        if is_private(alias.name):
            yield alias.name
        elif inside:  # the name says more than the module, unless it is a module itself
            yield inside[-1] if path[0] == "torch" else alias.name


def overridden(made: ast.ClassDef, tree: ast.AST) -> Iterator[str]:
    """Yield the private methods of a class that its file never calls: somebody else's base class does."""
    for method in made.body:
        if (
            isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
            and is_private(method.name)
            and not method.decorator_list  # pydantic's validators have one
            and not calls(tree, method.name)
        ):
            yield method.name


def used() -> dict[str, set[str]]:
    """Return the private parts that the code uses -> the files that do."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        for name in private_parts(path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(path.name)
    return found


def listed() -> set[str]:
    """Return the private parts in the first columns of the page's tables, but the last one's."""
    tables = PAGE.partition("\n## Public, but")[0]
    cells = re.findall(r"^\| (`.*?) \|", tables, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("from ray._private.state import state", ["state"]),
        ("from ray.train.torch.config import _TorchBackend", ["_TorchBackend"]),
        ("controller._actor_id.hex()", ["_actor_id"]),
        ("class A(B):\n    def _hook(self): ...", ["_hook"]),
        ("class A(B):\n    def _hook(self):\n        return super()._hook()", ["_hook", "_hook"]),
        ("class A:\n    def _own(self): ...\n    def go(self):\n        self._own()", []),
        ("self._x = 1\nother._x", []),
        ("import ray\nray.get(x.__name__)", []),
    ],
)
def test_private_parts_are_found(source: str, parts: list[str]) -> None:
    assert [name for name in private_parts(source) if name != "_hook"] == [p for p in parts if p != "_hook"]
    assert ("_hook" in parts) == ("_hook" in set(private_parts(source)))


def test_the_page_lists_the_private_parts_that_the_code_uses_and_no_other() -> None:
    assert {name: sorted(files) for name, files in used().items() if name not in listed()} == {}
    assert listed() - used().keys() == set()


def test_what_the_page_says_is_beyond_the_documentation_is_in_the_code() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    last = PAGE.partition("\n## Public, but")[2]
    names = [
        name
        for cell in re.findall(r"^\| (`.*?) \|", last, flags=re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cell)
    ]
    assert len(names) > 10
    assert [name for name in names if name.rstrip(".").split(".")[-1] not in text] == []


def test_private_ways_of_train_are_taken_on_their_own_release_of_ray_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ray_private.VARIABLE, raising=False)
    assert [
        v for v in ("2.55.1", "2.59.0", "2.60.0", "2.60.3", "2.61.0", "3.0.0") if ray_private.fits(v)
    ] == [
        "2.60.0",
        "2.60.3",
    ]
    monkeypatch.setenv(ray_private.VARIABLE, "public")
    assert not ray_private.fits("2.60.0")
    assert ray_private.environment() == {ray_private.VARIABLE: "public"}


def test_without_ray_s_own_count_the_cpus_that_this_process_may_use_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray._private.resource_and_label_spec", None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert ray_private.machine() == {"CPU": 3.0, "GPU": 2.0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ray_private.machine() == {"CPU": 3.0}


class Told:
    """An exchange that notes what it is told."""

    def __init__(self, places: dict[str, tuple[str, ...]]) -> None:
        self.heard: list[Any] = []
        self.place, self.bury = self.method("place"), self.method("bury")
        self.places = SimpleNamespace(remote=lambda: places)

    def method(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given, **options: self.heard.append((name, *given, options)))


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(("nodes", "lost"), [(("here",), False), (("here", "there"), True)])
def test_the_death_of_workers_is_told_alike_by_both_kinds_of_callback(
    monkeypatch: pytest.MonkeyPatch, lean: bool, nodes: tuple[str, ...], lost: bool
) -> None:
    """A worker that does not answer is lost with its node, unless that node is the head."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    exchange = Told({"slot-0": nodes})
    witness = train_run._witness(exchange, "slot-0", restarts=not lost, lean=lean)
    silent = ray.exceptions.ActorUnavailableError("The actor is unavailable", None)
    if lean:
        workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
        witness.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))
        assert exchange.heard.pop() == ("place", "slot-0", list(nodes), {})
        witness.after_worker_group_poll_status(SimpleNamespace(errors={}))
        witness.after_worker_group_poll_status(SimpleNamespace(errors={1: silent}))
    else:
        witness.after_exception(run_context=None, worker_exceptions={1: silent})
    (_, name, reason, how), *later = exchange.heard
    assert (name, how) == ("slot-0", {"lost": lost, "parted": False, "raised": False})
    assert reason.startswith("worker 1: ")
    assert later == ([] if lean or lost else [("place", "slot-0", ["here"], {})])
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(witness))


def test_a_run_that_train_does_not_end_is_left_when_the_study_is_over() -> None:
    over, ended = threading.Event(), threading.Event()
    train_run._until(over, lambda: None)
    with pytest.raises(ZeroDivisionError):
        train_run._until(over, lambda: 1 / 0)
    over.set()
    with pytest.raises(TimeoutError, match="must end with their study"):
        train_run._until(over, ended.wait)
    ended.set()


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_study_runs_by_the_public_ways_of_this_ray_and_survives_a_dead_worker(
    small_study: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On releases without `lean_trainer` there is no other way, and CI has only the one release."""
    died = tmp_path / "died"

    def die_once(job: torchless.Job, report: torchless.Report) -> None:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        torchless.train(job, report)

    monkeypatch.setenv(ray_private.VARIABLE, "public")
    monkeypatch.setattr(slots, "serve", torchless.worker(die_once))
    record = runner.run(
        small_study(study={"trials": 2}, resources={"slots": 1}, early_stopping={"enabled": False})
    )
    assert [(trial.state, trial.retries) for trial in record.trials] == [("COMPLETE", 1), ("COMPLETE", 0)]
