"""The command line as a machine and as a person meet it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from search import __main__
from search.record import reader
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from tests.files import changed, contents
from tests.here import Here
from tests.processes import finish, started

ROOT = Path(__file__).parents[1]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def call(
    command: list[str], *words: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return finish(*command, *words, env=env)


def test_ctrl_c_ends_any_command_with_a_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second Ctrl-C ends a study's search itself, so that its own last lines do not come."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.views.blocks.listing", interrupted)
    monkeypatch.setattr(sys, "argv", ["search", "blocks", "resnet18"])
    assert __main__.main() == 130
    assert capsys.readouterr().err.splitlines()[-1:] == [__main__.INTERRUPTED]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on digits that takes seconds once its slots are up."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    values = {
        "study": {"name": "tiny", "trials": 4, "epochs": 3, "sampler": "random", "baselines": ["recipe"]},
        "data": {
            "kind": "digits",
            "classes": ["5", "6", "7"],
            "image_size": 32,
            "horizontal_flip": False,
            "validation_share": 0.4,
            "test_share": 0.3,
        },
        "model": {
            "backbone": "shufflenet_v2_x0_5",
            "weights": {
                "source": {"kind": "digits", "classes": ["0", "1"], "epochs": 2, "learning_rate": 0.05}
            },
        },
        "resources": {"slots": 1},
        "verdict": {"seeds": 0},
        "results": "results",
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def env(cache: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(cache)}


# Bad input: exit code 2, one message, no trace


def test_every_mistake_of_a_config_is_told_at_once_with_its_place(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("study:\n  name: x\n  trails: 3\ndata:\n  kind: digits\nspace:\n  dropout: [2.0]\n")
    done = call(command, "check", path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{path}:3:3: unknown key 'trails' in 'study'. Did you mean 'trials'" in done.stderr
    assert f"{path}:7:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "give a config file or --data FOLDER, one of them"),
        (["run", "configs/quickstart.yaml", "--trials", "3"], "with a config file use --set"),
        (["run", "--data", "file:///no/such/flowers"], "file:///no/such/flowers: data.path must hold"),
        (["results", "no-such-folder"], "must hold study.yaml"),
        (["resume", "no-such-folder"], "must hold study.yaml"),
        (["predict", "no-such-model", "README.md"], "must hold model.yaml"),
        (
            ["check", "configs/quickstart.yaml", "--set", "data.path=x", "--set", "data.kind=folder"],
            "must be an existing folder",
        ),
        (["check", "configs/quickstart.yaml", "--set", "model.backbone=resnet81"], "resnet18"),
        (["check", "configs/quickstart.yaml", "--set", "resources.slots=4096"], "4096 slot"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["search", *words])
    code = __main__.main()
    told = capsys.readouterr()
    assert code == 2, told.err
    assert message in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_check_names_the_package_that_a_set_needs_in_one_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)  # as where it is not installed
    config = tmp_path / "pcam.yaml"
    values = {
        "study": {"name": "pcam", "trials": 2},
        "data": {"kind": "torchvision", "name": "PCAM", "path": str(tmp_path)},
        "model": {"backbone": "mobilenet_v2", "weights": "none"},
        "space": {"strategy": "replace"},
    }
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = here("check", config)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.rstrip().splitlines()[-1]  # a slow machine also tells what takes so long
    assert line.startswith(f"error: {tmp_path}: must hold torchvision's PCAM (split train), got")
    assert line.endswith("please run pip install h5py. Install it on every node.")


def test_check_prints_the_plan_and_trains_nothing(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["check", "configs/quickstart.yaml", "--set", "data.copies_gib=2", "--json"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (
        plan["study"]["trials"]
        == yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text(encoding="utf-8"))["study"]["trials"]
    )
    assert plan["model"]["shufflenet_v2_x0_5"]["blocks"] == 18
    assert plan["kept"] == {
        "features": {"dir": str(tmp_path / "finetune" / "features"), "bytes": 10 * 2**30},
        "copies": {"dir": str(tmp_path / "finetune" / "files"), "bytes": 2 * 2**30},
    }
    left = [path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["finetune/findings"]  # what it says about copies, for the report of a study
    assert "next: python -m search run configs/quickstart.yaml" in done.stderr


# A study from start to use, through the command line only


@pytest.fixture(scope="module")
def study(config: Path, env: dict[str, str]) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = call([sys.executable, "-m", "search"], "run", config, env=env)
    return config.parent / "results" / "tiny", done


@pytest.mark.ray
@pytest.mark.slow
class TestStudy:
    """One study, run once; every reading command is tried on it."""

    Study = tuple[Path, subprocess.CompletedProcess[str]]

    def test_run_prints_the_table_on_stdout_and_the_rest_on_stderr(self, study: Study) -> None:
        folder, done = study
        assert done.returncode == 0, done.stderr
        assert re.search(r"^study tiny: finished, 4 of 4 trials", done.stdout, re.MULTILINE)
        assert "against recipe:" in done.stdout
        assert len(re.findall(r"^\[ ?\d/4\] trial-\d{4} ", done.stderr, re.MULTILINE)) == 4
        assert (
            f"tensorboard --logdir {os.path.relpath(folder, ROOT)}" in done.stderr
            or str(folder) in done.stderr
        )
        assert done.stderr.strip().splitlines()[-1].startswith("next: python -m search predict ")
        assert not CONTROL.search(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
        assert "tune.py" not in done.stderr

    def test_results_is_one_json_object_that_others_build_on(self, here: Here, study: Study) -> None:
        done = here("results", study[0], "--json")
        assert done.returncode == 0
        record = json.loads(done.stdout)
        assert record.keys() == {"study", "best", "trials", "model", "verdict", "repeats", "analysis"}
        assert record["study"]["state"] == "finished"
        keys = {
            "number",
            "id",
            "state",
            "params",
            "metrics",
            "epochs",
            "seconds",
            "error",
            "slot",
            "effective",
        }
        assert all(keys <= trial.keys() for trial in record["trials"])
        assert record["best"]["state"] == "COMPLETE"
        assert record["best"]["metrics"].keys() == {"best", "last"}
        with (study[0] / "trials.csv").open(newline="") as file:
            assert [row["number"] for row in csv.DictReader(file)] == [str(n) for n in range(4)]

    def test_results_prints_the_table_of_the_run_again(self, command: list[str], study: Study) -> None:
        assert call(command, "results", study[0]).stdout == study[1].stdout

    def test_the_best_model_predicts_what_validation_said_to_the_image(
        self, here: Here, study: Study, tmp_path: Path
    ) -> None:
        from finetune.datasets import catalog
        from search.config import config_file, resolve

        folder = study[0]
        images = catalog.scan(resolve.data_settings(config_file.load(folder / "study.yaml")))
        for number, example in enumerate(images.splits["val"]):
            place = tmp_path / "val" / images.classes[example.label]
            place.mkdir(parents=True, exist_ok=True)
            images.open(example).save(place / f"{number:04d}.png")
        done = here("predict", folder / "best", tmp_path / "val", "--json")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        assert all(row.keys() == {"path", "class", "probability", "top", "error"} for row in rows)
        right = sum(Path(row["path"]).parent.name == row["class"] for row in rows)
        card = yaml.safe_load((folder / "best" / "model.yaml").read_text())
        record = json.loads(here("results", folder, "--json").stdout)
        reported = record["best"]["metrics"]["best"]["val/accuracy"]
        assert right == round(reported * len(rows))
        assert card["metrics"]["validation"]["accuracy"] == pytest.approx(reported, abs=1e-7)
        assert card["metrics"]["test"]["images"] == len(images.splits["test"])
        assert card["classes"] == ["5", "6", "7"]

    def test_predict_writes_csv_and_plain_lines(self, here: Here, study: Study, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (40, 30), "white").save(tmp_path / "a.png")
        done = here("predict", study[0] / "best", tmp_path / "a.png", "--csv", tmp_path / "out.csv")
        assert done.returncode == 0, done.stderr
        with (tmp_path / "out.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["path"] == str(tmp_path / "a.png")
        plain = here("predict", study[0] / "best", tmp_path / "a.png").stdout
        assert plain.split("\t")[:2] == [str(tmp_path / "a.png"), row["class"]]

    def test_another_trial_can_be_exported(self, here: Here, study: Study, tmp_path: Path) -> None:
        done = here("export", study[0], "--trial", "0", "--to", tmp_path / "model", "--json")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["strategy"] == "replace"
        assert {p.name for p in (tmp_path / "model").iterdir()} == {
            "model.safetensors",
            "model.yaml",
            "bom.json",
            "README.md",
        }

    def test_one_trial_runs_again_alone_with_the_same_result(self, here: Here, study: Study) -> None:
        done = here("run", study[0] / "study.yaml", "--only-trial", "2")
        assert done.returncode == 0, done.stderr
        record = json.loads(here("results", study[0], "--json", "--history").stdout)
        history = record["trials"][2]["history"]
        assert history
        for epoch in history:
            assert f"val/loss {epoch['val/loss']:.4g}" in done.stderr

    def test_tensorboard_shows_every_parameter_of_every_trial(self, study: Study) -> None:
        from tensorboard.backend.event_processing import event_accumulator

        folders = sorted((study[0] / "tensorboard").glob("00*"))
        assert len(folders) == 4
        for folder in folders:
            events = event_accumulator.EventAccumulator(str(folder)).Reload()
            tags = set(events.Tags()["scalars"])
            wanted = {
                "train/loss",
                "val/loss",
                "val/accuracy",
                "work/learning rate",
                "work/seconds trained",
                "work/images per second",
                "work/best val/accuracy",
            }
            assert wanted <= tags

    def test_resuming_a_finished_study_changes_no_file_and_a_lost_model_is_made_again(
        self, here: Here, study: Study
    ) -> None:
        folder = study[0]
        shown = here("results", folder, "--json").stdout
        before = contents(folder)
        for _ in range(2):
            done = here("resume", folder, "--json")
            assert (done.returncode, done.stdout) == (0, shown), done.stderr
            assert contents(folder) == before
        shutil.rmtree(folder / "best")
        done = here("resume", folder, "--json")
        assert done.returncode == 0, done.stderr
        earlier, told = json.loads(shown), json.loads(done.stdout)
        assert told["study"]["test_reads"].pop()["trial"] == told["best"]["id"]
        assert all(told[part] == earlier[part] for part in ("study", "best", "trials"))
        after = contents(folder)
        assert {path.split("/")[0] for path in changed(before, after)} <= {
            "best",
            "optuna.db",
            "tensorboard",
            "test_reads.jsonl",
        }
        assert after["best/model.safetensors"] == before["best/model.safetensors"]


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.slow
def test_a_study_that_is_interrupted_and_hung_up_on_loses_no_trial(
    config: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """One study is interrupted, hung up on and resumed each time; its workers train nothing.

    For a driver that is killed, see test_chaos.py.
    """
    program, folder = [sys.executable, "-m", "tests.torchless"], tmp_path / "tiny"
    words: list[object] = ["run", config, "--results", tmp_path, "--set", "resources.slots=2"]
    words += ["--set", "study.trials=10", "--set", "early_stopping.enabled=false"]
    complete: dict[int, TrialRecord] = {}
    for how in (signal.SIGINT, signal.SIGHUP):
        ended, code, rest = cut_off(how, *program, *words, env=env | {"TORCHLESS_EPOCH_SECONDS": "0.3"})
        assert_left_in_peace(folder, code, rest)
        record = reader.read_study(StudyFolder(folder))
        assert record.state == "interrupted"
        assert {number: record.trials[number] for number in complete} == complete
        now = {trial.number: trial for trial in record.trials if trial.state == "COMPLETE"}
        assert len(now) >= len(complete) + len(ended)
        complete, words = now, ["resume", folder]
    done = finish(*program, *words, env=env)
    assert done.returncode == 0, done.stderr
    record = reader.read_study(StudyFolder(folder))
    assert {number: record.trials[number] for number in complete} == complete
    assert_whole(record, trials=10)


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.slow
def test_a_study_that_is_terminated_goes_on_in_another_place_where_its_trials_were(
    config: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """Real workers save the epoch that they are in; the folder is moved, and the user's cache is another."""
    program, folder = [sys.executable, "-m", "search"], tmp_path / "tiny"
    words: list[object] = ["run", config, "--results", tmp_path, "--set", "study.epochs=6"]
    words += ["--set", "early_stopping.enabled=false"]
    _, code, rest = cut_off(signal.SIGTERM, *program, *words, env=env)
    assert_left_in_peace(folder, code, rest)
    folder = folder.rename(tmp_path / "moved")
    before = reader.read_study(StudyFolder(folder))
    assert before.state == "interrupted"
    done = finish(*program, "resume", folder, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    after = reader.read_study(StudyFolder(folder))
    for trial in before.trials:
        assert trial.interrupted or after.trials[trial.number] == trial
    cut = {trial.number: trial.history for trial in before.trials if trial.interrupted}
    for trial in after.trials:
        if not trial.interrupted and trial.continues is not None:
            known = cut.pop(trial.continues)
            assert trial.history[: len(known)] == known, "times and all: no epoch is trained twice"
    assert not cut
    assert_whole(after, trials=4)


def cut_off(how: signal.Signals, *words: object, env: dict[str, str]) -> tuple[list[str], int, str]:
    """Start a study and cut it off once a trial has ended; return its lines, exit code and last words."""
    with started(*words, env=env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        ended = until(process.stderr, count=1)
        if how == signal.SIGHUP:
            os.killpg(process.pid, how)  # a closed terminal tells all processes that belong to it
        else:
            process.send_signal(how)
        rest = process.stderr.read()
        return ended, process.wait(), rest


def assert_left_in_peace(folder: Path, code: int, rest: str) -> None:
    assert code == 130, rest
    assert f"next: python -m search resume {folder}" in rest
    assert " FAIL " not in rest


def assert_whole(record: StudyRecord, trials: int) -> None:
    """Hold a study that was resumed to as many trials as it was asked for, and to the weights of the best."""
    assert record.state == "finished"
    counted = [trial for trial in record.trials if not trial.interrupted]
    assert len(counted) == trials
    scores = {t.id: t.metrics["best"]["val/accuracy"] for t in counted if t.state == "COMPLETE"}
    best = sorted(scores, key=lambda name: (-scores[name], name))[:5]  # study.keep_checkpoints
    files = Path(record.folder).glob("trials/*/best.safetensors")
    assert sorted(path.parent.name for path in files) == sorted(best)


def until(stream: Any, *, count: int) -> list[str]:
    """Read lines until `count` trials have ended; return those lines."""
    found: list[str] = []
    read: list[str] = []
    while len(found) < count:
        read.append(stream.readline())
        assert read[-1], f"{count} trials must end, got:\n{''.join(read)}"
        if re.match(r"\[ ?\d+/\d+\] trial-", read[-1]):
            found.append(read[-1])
    return found


def test_cache_lists_what_a_node_keeps_and_clears_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.disk.array_file import Layout
    from finetune.disk.array_store import Store

    layout = Layout(rows=4, shape=(3,), dtype="float32")
    facts = {"backbone": "resnet18", "blocks": 9, "view": "plain", "split": "val", "images": 4, "data": "ab"}
    Store(tmp_path, 2**20).get(
        24 * "a", layout, lambda a, b: torch.ones(b - a, 3), worth=1, facts=facts, step="a"
    )
    copies = tmp_path / "node" / "finetune" / "files"
    copies.mkdir(parents=True)
    (copies / f"{64 * 'b'}.jpg").write_bytes(bytes(1000))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    listed = json.loads(here("cache", "--dir", tmp_path, "--json").stdout)
    assert listed["bytes"] == layout.bytes
    there = {"dir": str(copies), "bytes": 1000, "files": 1}
    assert listed["copies"] == there
    assert [entry["key"] for entry in listed["entries"]] == [24 * "a"]
    table = here("cache", "--dir", tmp_path).stdout
    assert "resnet18 behind 9 blocks" in table
    assert f"{copies}: 1 copies of far files" in table
    cleared = here("cache", "--dir", tmp_path, "--clear", "--json")
    assert json.loads(cleared.stdout) == {"dir": str(tmp_path), "bytes": 0, "entries": [], "copies": there}
    assert "MiB freed" in cleared.stderr
    whole = json.loads(here("cache", "--clear", "--json").stdout)
    assert whole["copies"] == {"dir": str(copies), "bytes": 0, "files": 0}


@pytest.mark.parametrize("words", [["--clear"], []])
def test_a_folder_that_is_no_cache_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from search.__main__ import app, guarded

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    mine = {"package.json": "{}", "pytorch_model.bin": "x", f"{24 * 'a'}.bin": "y", "x.part": "z"}
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in mine.items():
        (folder / name).write_text(text)
    for place in (folder, tmp_path / "absent", folder / "package.json"):
        arguments = ["cache", "--dir", str(place), *words]
        assert guarded(lambda a=arguments: app(a, standalone_mode=False)) == 2
        assert f"{place}: --dir must be the features.dir of a study" in " ".join(
            capsys.readouterr().err.split()
        )
    assert {path.name: path.read_text() for path in folder.iterdir()} == mine
