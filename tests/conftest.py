"""What every test may use: the material, a Ray of one's own, and a study small enough for seconds."""

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import __main__
from search.config.study import StudyConfig
from search.record.study_folder import StudyFolder
from tests import durations, time_limit
from tests.here import Here, Told
from tests.small import STUDY, merged
from tests.written import Make, write

ROOT = Path(__file__).parents[1]
MATERIAL = ROOT.parent / "shared" / "material"
TIERS = {
    "thorough": "one of the tests that only CI runs each time",
    "long": "takes many minutes",
    "lab": "needs machines in namespaces and some minutes",
}
"""Tests with these markers run only with the option of the same name."""

LIMITS = {"slow": 900, "ray": 900, "lab": 1800, "long": 7200}
"""Seconds for tests with these markers, unless --timeout says others; pyproject.toml says those of others."""

# Small tensors gain nothing from a second thread, and lose much where other processes want the core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray gives its workers the niceness 15. Beside other work, such as the second half of the tests, they would
# hardly get the processor.
os.environ.setdefault("RAY_worker_niceness", "0")


# A shell starts its background jobs with Ctrl-C ignored, and nohup ignores hang-ups; so would all that the
# tests start. Programs inherit what is ignored, but no handler.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, why in TIERS.items():
        parser.addoption(f"--{name}", action="store_true", help=f"also run the tests marked {name}: {why}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(time_limit)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker("thorough")) and _is_everyday(item, mark):
            item.own_markers.remove(mark)
        for name, why in TIERS.items():
            if item.get_closest_marker(name) and not config.getoption(f"--{name}"):
                command = f"python -m pytest --{name} '{item.nodeid}'"
                item.add_marker(pytest.mark.skip(reason=f"{why}: {command}"))
        limits = [seconds for name, seconds in LIMITS.items() if item.get_closest_marker(name)]
        if limits and config.getoption("--timeout") is None:
            item.add_marker(pytest.mark.timeout(max(limits)))
    # `pytest -n 2` deals out files: the longest first, so that none is left for the end.
    seconds = _seconds_of_files(items)
    items.sort(key=lambda item: -seconds[item.path])


def _seconds_of_files(items: list[pytest.Item]) -> Counter[Path]:
    """Return how long the tests of each file take that are not skipped, as known from an earlier run."""
    known = durations.read()
    running = [item for item in items if not item.get_closest_marker("skip")]
    seconds: Counter[Path] = Counter()
    for path, name in {(item.path, item.nodeid.partition("[")[0]) for item in running}:
        seconds[path] += known.get(name, 0.0)
    for item in running:
        seconds[item.path] += durations.OTHERS_SECONDS
    return seconds


def _is_everyday(item: pytest.Item, mark: pytest.Mark) -> bool:
    """True if `thorough(but=...)` leaves out this case, by a value of its parameters."""
    given = getattr(item, "callspec", None)
    return given is not None and any(value in mark.kwargs.get("but", ()) for value in given.params.values())


@pytest.fixture(scope="session")
def material() -> Path:
    """Folder with real ImageNet weights and real image sets; the test is skipped where it is absent."""
    if not MATERIAL.is_dir():
        pytest.skip("no ../shared/material beside the checkout")
    return MATERIAL


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's cache of this test run, one for all its processes: the backbone below is pretrained once."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.getbasetemp().parent / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[str]:
    """A temp folder for a Ray of one's own: the sockets below it want a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def local_ray(ray_folder: str) -> Iterator[None]:
    """A Ray with two CPUs, in a temp folder of its own, gone after the module's tests."""
    import ray

    from search.driver import tuner
    from search.slots import preflight

    tuner.quieten()
    preflight.join(
        "local",
        num_cpus=2,
        _temp_dir=ray_folder,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def small_study(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyConfig]:
    """Return a function that makes a study on digits 5 to 7; a trial takes about a second.

    It has one slot: on two cores the processes of a second one cost more than its trials.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def make(**sections: dict[str, Any]) -> StudyConfig:
        own = {"resources": {"slots": 1}, "results": str(tmp_path / "results")}
        return StudyConfig.from_dict(merged(STUDY | own, sections))

    return make


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return write(tmp_path_factory.mktemp("results"))


@pytest.fixture
def written(_written: StudyFolder) -> Make:
    """Return a function that copies an interrupted study, which no trial wrote, into a folder of results."""

    def make(results: Path, name: str = "pets") -> StudyFolder:
        return StudyFolder(Path(shutil.copytree(_written.root, results / name)))

    return make


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Here:
    """Return a function that runs a command in this process, which has imported all that it needs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["search", *map(str, words)])
        capsys.readouterr()
        code = __main__.main()
        told = capsys.readouterr()
        return Told(code, told.out, told.err)

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that starts fails the test."""

    def refuse() -> None:
        raise AssertionError("nothing is to do: Ray must not start")

    from search.driver import runner

    monkeypatch.setattr(runner, "connected", refuse)


@pytest.fixture
def command() -> list[str]:
    """The command line's first words, to be run in the checkout's root."""
    return [sys.executable, "-m", "search"]
