"""What every test may use: the material, a Ray of one's own, and a study small enough for seconds."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.study import StudyConfig

ROOT = Path(__file__).parents[1]
MATERIAL = ROOT.parent / "shared" / "material"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            command = f"python -m pytest --long '{item.nodeid}'"
            item.add_marker(pytest.mark.skip(reason=f"takes many minutes: {command}"))


@pytest.fixture(scope="session")
def material() -> Path:
    """Folder with real ImageNet weights and real image sets; the test is skipped where it is absent."""
    if not MATERIAL.is_dir():
        pytest.skip("no ../shared/material beside the checkout")
    return MATERIAL


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's cache of this test run: the small backbone below is pretrained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray with two CPUs, in a temp folder of its own, gone after the module's tests."""
    import ray

    from search import tuner

    tuner.quieten()
    folder = tmp_path_factory.mktemp("ray")
    ray.init(
        num_cpus=2,
        address="local",
        _temp_dir=f"/tmp/{folder.parent.name}-{folder.name}",  # sockets below it have short paths only
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def small_study(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyConfig]:
    """Return a function that makes a study on digits 5 to 7; a trial takes about a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def make(**sections: dict[str, Any]) -> StudyConfig:
        values: dict[str, Any] = {
            "study": {"name": "small", "trials": 4, "epochs": 3, "baselines": []},
            "data": {
                "kind": "digits",
                "classes": ["5", "6", "7"],
                "image_size": 32,
                "batch_size": 32,
                "validation_share": 0.4,
                "test_share": 0.3,
                "horizontal_flip": False,
            },
            "model": {
                "backbone": "shufflenet_v2_x0_5",
                "weights": {"source": {"kind": "digits", "classes": ["0", "1"], "epochs": 2}},
            },
            "resources": {"slots": 2},
            "results": str(tmp_path / "results"),
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return StudyConfig.from_dict(values)

    return make


@pytest.fixture
def command() -> list[str]:
    """The command line's first words, to be run in the checkout's root."""
    return [sys.executable, "-m", "search"]
