"""Every option that is given is used, or refused in one line: none is ignored."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import typer.main

import search
from search.__main__ import app, guarded
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.driver import runner
from search.views.phases import Phases

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
WITH_DATA = "--data", "--backbone", "--weights", "--trials", "--budget"
CLUSTER = "--address", "--cluster"
REFUSED: dict[str, dict[str, list[str]]] = {
    "run": {
        **{option: ["CONFIG"] for option in WITH_DATA},
        "--set": ["--data DIR"],
        "--results": [],
        "--only-trial": ["--data DIR", "CONFIG --continue"],
        "--continue": ["CONFIG --only-trial 0"],
        "--json": [],
    },
    "check": {**{option: ["CONFIG"] for option in WITH_DATA}, "--set": ["--data DIR"], "--results": [],
              "--time": [], "--suspects": [], "--probe": [], "--json": []},
    "resume": {"--extend": ["DIR --cluster x.yaml"],
               "--address": ["DIR --cluster x.yaml"], "--cluster": ["DIR --address x"], "--wait": ["DIR"],
               "--json": []},
    "results": {"--address": ["DIR --cluster x.yaml"], "--cluster": ["DIR --address x"], "--json": [],
                "--history": ["DIR"]},
    "blocks": {"--image-size": [], "--json": []},
    "cache": {"--dir": [], "--clear": [], "--json": []},
    "export": {"--to": [], "--trial": [], "--format": [], "--sign": [], "--ensemble": [], "--json": []},
    "report": {"--to": [], "--shareable": []},
    "predict": {"--json": ["DIR DIR --csv x.csv"], "--csv": ["DIR DIR --json"], "--top": [], "--text": [],
                "--parquet": ["DIR DIR --json", "DIR DIR --csv x.csv"]},
    "explain": {"--text": [], "--to": [], "--method": [], "--class": [], "--train": [],
                "--probe": ["DIR DIR"], "--json": []},
    "serve": {option: [] for option in ("--host", "--port", "--replicas", "--alone", "--max-mib",
                                        "--max-megapixels", "--queue", "--batch", "--require-signature")},
    "audit": {"--data": [], "--shadows": [], "--json": []},
    "verify": {"--key": []},
    "submit": {"--set": [], "--results": [], "--address": ["CONFIG --results /x --cluster x.yaml"],
               "--cluster": ["CONFIG --results /x --address x"], "--new": [], "--wait": [], "--json": []},
    "status": {"--results": [], "--address": ["--cluster x.yaml"], "--cluster": ["--address x"],
               "--json": []},
    "stop": {"--address": ["pets --cluster x.yaml"], "--cluster": ["pets --address x"]},
    "logs": {"--follow": [], "--address": ["pets --cluster x.yaml"], "--cluster": ["pets --address x"]},
}  # fmt: skip
"""Command -> option -> command lines that it cannot be added to; with all others it is used."""
VALUES = {"--set": "study.trials=3", "--only-trial": "0", "--trials": "3", "--budget": "1m", "--cluster": "x",
          "--csv": "x.csv", "--parquet": "x.parquet", "--top": "2", "--format": "onnx"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", started)


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def call(*words: str) -> int:
    return guarded(lambda: app(list(words), prog_name="python -m search", standalone_mode=False))


def test_each_option_of_each_command_has_its_place_in_the_table() -> None:
    options = {
        name: {parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")}
        for name, command in commands().items()
    }
    assert {name: options[name] for name in REFUSED} == {name: set(row) for name, row in REFUSED.items()}
    assert options.keys() == REFUSED.keys()


@pytest.mark.parametrize(
    ("command", "option", "line"),
    [(c, option, line) for c, row in REFUSED.items() for option, lines in row.items() for line in lines],
)
def test_an_option_that_would_be_ignored_is_refused_in_one_line(
    command: str, option: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line.replace("CONFIG", str(CONFIG)).replace("DIR", str(tmp_path)))
    (parameter,) = [p for p in commands()[command].params if p.opts[0] == option]
    given = [option] if parameter.is_flag else [option, VALUES.get(option, "x")]
    before = list(tmp_path.iterdir())
    assert call(command, *words, *given) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.match(r"error: .*(go(es)? with(out)?|one of them|must be named once)", told.err)
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == before


def test_options_of_python_win_over_a_config_file_and_are_refused_beside_a_whole_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[StudyConfig] = []
    monkeypatch.setattr(runner, "run", ran.append)
    search.run(
        CONFIG, trials=3, results=tmp_path, early_stopping={"enabled": False}, learning_rate=[0.1, 1e-3]
    )
    (config,) = ran
    assert (config.study.trials, config.study.name) == (3, "quickstart")
    assert (config.results, config.early_stopping.enabled) == (str(tmp_path), False)
    assert config.space.learning_rate == (0.1, 1e-3)
    with pytest.raises(ConfigErrors, match="unknown option 'trails'"):
        search.run(CONFIG, trails=3)
    with pytest.raises(ConfigErrors, match="must stand in the StudyConfig"):
        search.run(config, trials=3)
    assert len(ran) == 1


@pytest.mark.parametrize(
    "words",
    [
        [str(CONFIG), "--set", "study.trials=3", "--set", "space.learning_rate=[0.1, 0.2]"],
        ["--data", "{pets}", "--weights", "none", "--trials", "1", "--results", "{pets} kept"],
    ],
)
def test_the_line_that_check_ends_with_runs_the_study_that_was_checked(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.driver.checks import check, check_text

    checked: list[StudyConfig] = []
    ran: list[StudyConfig] = []

    def plan(config: StudyConfig, **_: Any) -> dict[str, Any]:
        checked.append(config)
        return {}

    def run(config: StudyConfig, phases: Phases) -> None:
        ran.append(config)
        raise typer.Exit(0)

    monkeypatch.setattr(check, "plan", plan)
    monkeypatch.setattr(check_text, "lines", lambda _: [])
    monkeypatch.setattr(check, "errors", lambda _: [])
    monkeypatch.setattr(runner, "run", run)
    said = [word.format(pets=tmp_path / "my pets") for word in words]
    assert call("check", *said) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("next: python -m search run ")
    assert call(*shlex.split(line)[4:]) == 0
    assert ran == checked
