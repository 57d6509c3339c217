"""A study as a job: what is sent, what its id is, which paths it may have, and how far it is."""

import dataclasses
import json
import os
import stat
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from search import provenance
from search.cluster import connect, jobs, status, submit, upload
from search.cluster.jobs import Job
from search.config import config_file
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.errors import ClusterError
from search.record import ledger, reader, studies
from search.record.study_folder import StudyFolder, write_text
from search.suggest import sampler
from tests.processes import finish

ROOT = Path(__file__).parents[1]
STUDY = {"study": {"name": "pets", "trials": 4, "baselines": []}, "data": {"path": "../pets"}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "pets.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return path


SHARED = ("data.path=/shared/pets", "results=/shared/results")


def job(number: int, **changes: Any) -> Job:
    known = Job(f"pets-0000000{number}", "RUNNING", "pets", f"/shared/results/pets{number}", "c", number)
    return dataclasses.replace(known, **changes)


def test_paths_that_only_the_laptop_knows_are_refused_all_at_once_with_their_fix(config: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        submit.from_config(str(config), [])
    text = str(caught.value)
    assert f"{config}: data.path: must be a path from the root" in text
    assert "got '../pets'. Add for example `--set data.path=/shared/pets`." in text
    assert "results: must be a path from the root" in text
    assert "`--results /shared/results`" in text


@pytest.mark.parametrize("given", ["pets", "~/pets", "./pets", "../pets"])
def test_a_relative_path_given_on_the_command_line_is_refused_too(config: Path, given: str) -> None:
    with pytest.raises(ConfigErrors, match=rf"data\.path: .*got '{given}'"):
        submit.from_config(str(config), [f"data.path={given}", SHARED[1]])


def test_the_folder_of_features_is_every_nodes_own_and_is_named_from_the_root(config: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"features\.dir: .* every node of the cluster has, got 'kept'"):
        submit.from_config(str(config), [*SHARED, "features.dir=kept"])
    sent = submit.from_config(str(config), [*SHARED, "features.dir=/tmp/kept"])
    assert "dir: /tmp/kept" in str(sent.config)


def test_the_config_travels_with_every_override_and_loads_to_the_same_study(
    config: Path, tmp_path: Path
) -> None:
    sent = submit.from_config(str(config), [*SHARED, "study.trials=9"])
    assert sent.config is not None
    with upload.upload(sent.config) as folder:
        loaded = config_file.load(folder.folder / "study.yaml")
    assert loaded == config_file.load(config, [*SHARED, "study.trials=9"])
    assert (loaded.study.trials, loaded.data.path) == (9, "/shared/pets")
    assert str(tmp_path) not in sent.config


def test_the_same_study_has_the_same_id_wherever_its_file_lies(config: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.read_text(encoding="utf-8"), encoding="utf-8")
    first = submit.from_config(str(config), SHARED)
    assert submit.from_config(str(copy), SHARED).base == first.base
    assert first.base.startswith("pets-")
    others = [["study.seed=1"], ["study.trials=5"], ["results=/shared/other"]]
    bases = {submit.from_config(str(config), [*SHARED, *other]).base for other in others}
    assert len(bases | {first.base}) == 4


def test_a_folder_on_the_cluster_must_be_named_from_the_root() -> None:
    assert submit.from_folder("/shared/results/pets").words == ("resume", "/shared/results/pets")
    with pytest.raises(
        ClusterError, match=r"results/pets: .* got a relative path\. `python -m search status`"
    ):
        submit.from_folder("results/pets")


def test_the_upload_is_the_code_and_nothing_else_of_the_checkout() -> None:
    with upload.upload("study: {}\n") as sent:
        there = {p.relative_to(sent.folder).as_posix() for p in sent.folder.rglob("*") if p.is_file()}
        assert sent.size == sum((sent.folder / name).stat().st_size for name in there)
        assert sent.files == len(there)
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "search", "src/finetune"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert there == {*tracked, "study.yaml"}
    assert len(there) > 50


def test_images_results_and_caches_in_the_checkout_stay_there(tmp_path: Path) -> None:
    code = ["search/run.py", "src/finetune/training/loop.py", "src/finetune/backbones/parts.py"]
    rest = ["data/cat.jpg", "results/pets/optuna.db", "cache/w.safetensors", "src/finetune.egg-info/x"]
    rest += ["search/__pycache__/run.cpython-311.pyc", ".git/config", ".venv/bin/python", "tests/t.py"]
    for name in code + rest:
        write_text(tmp_path / name, "x")
    with upload.upload(None, tmp_path) as sent:
        there = {p.relative_to(sent.folder).as_posix() for p in sent.folder.rglob("*") if p.is_file()}
    assert there == set(code)


def test_an_upload_above_the_limit_is_refused_and_names_the_largest_files(tmp_path: Path) -> None:
    write_text(tmp_path / "search" / "run.py", "x")
    (tmp_path / "search" / "weights.pth").write_bytes(bytes(9_000_000))
    (tmp_path / "search" / "cats.zip").write_bytes(bytes(2_500_000))
    largest = r"largest: search/weights\.pth 9\.00 MB, search/cats\.zip 2\.50 MB, search/run\.py"
    with (
        pytest.raises(ClusterError, match=rf"at most 10\.00 MB, got 11\.50 MB \({largest}"),
        upload.upload(None, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_a_job_ends_with_the_exit_code_of_its_study(state: str, code: int | None, expected: int) -> None:
    assert jobs.exit_code(job(1, status=state, exit_code=code)) == expected


def test_rays_own_lines_are_taken_out_of_an_answer() -> None:
    first, ours = "2026 INFO Runtime env is setting up.\n", "-- search begins --\n[1]\n"
    running = 'Running entrypoint for job x: echo "-- search begins --"; python\n'
    lines = ours.splitlines(keepends=True)
    for log in (first + running + ours, first + lines[0] + running + lines[1]):
        assert jobs._written(log) == "[1]\n"
    assert jobs._written(first + running) == ""


def begin(root: Path, name: str, trials: int = 4, state: str = "interrupted") -> StudyFolder:
    """Write a study's folder as a run that was interrupted after two trials leaves it."""
    folder = StudyFolder.create(root, name)
    study = {**STUDY["study"], "name": folder.root.name, "trials": trials}
    config = StudyConfig.from_dict({"study": study, "data": {"path": "/shared/pets"}, "results": str(root)})
    write_text(folder.config, config.to_yaml())
    book = ledger.Ledger(folder.database, metric="val/accuracy", sampler=sampler.make("random", seed=0))
    for number, (ending, value) in enumerate([("COMPLETE", 0.75), ("FAIL", None)]):
        book.ask()
        metrics = {"best": {"val/accuracy": value, "epoch": 1.0}} if value else {"best": {}}
        book.end(number, ending, value, {"metrics": {**metrics, "last": {}}, "seconds": 3.0})
    book.set_fact("state", state)
    book.set_fact("provenance", {"job": "pets-00000001"})
    book.close()
    return folder


def test_a_config_finds_the_study_that_it_has_begun_and_no_other(tmp_path: Path) -> None:
    begin(tmp_path, "pets", trials=7)
    mine = begin(tmp_path, "pets")
    StudyFolder.create(tmp_path, "pets")  # one that died before its first trial
    values = {"study": STUDY["study"], "data": {"path": "/shared/pets"}, "results": str(tmp_path)}
    config = StudyConfig.from_dict(values)
    assert mine.root.name == "pets-2"
    assert studies.find(config) == mine
    later = begin(tmp_path, "pets")
    os.utime(later.database, (2e9, 2e9))
    assert studies.find(config) == later
    begin(tmp_path, "petsv2")  # a study of its own, although its config differs by the name alone
    os.utime((tmp_path / "petsv2" / "optuna.db"), (3e9, 3e9))
    assert studies.find(config) == later
    other = {**values, "study": {**STUDY["study"], "seed": 5}}
    assert studies.find(StudyConfig.from_dict(other)) is None


def test_a_study_that_is_not_gone_on_with_is_named_with_the_reason(tmp_path: Path) -> None:
    mine = begin(tmp_path, "pets")
    begin(tmp_path, "cats")
    values = {"study": STUDY["study"], "data": {"path": "/shared/pets"}, "results": str(tmp_path)}
    line = studies.near(StudyConfig.from_dict({**values, "study": {**STUDY["study"], "trials": 7}}))
    trials = STUDY["study"]["trials"]
    assert line == (
        f"{mine.root}: this study was begun with study.trials {trials} instead of 7, so a new "
        f"one begins. To go on with it, change its study.yaml and run `python -m search resume {mine.root}`"
    )
    other = {**values, "data": {"kind": "digits"}, "resources": {"slots": 1}, "space": {"dropout": 0.1}}
    line = studies.near(StudyConfig.from_dict({**other, "study": {**STUDY["study"], "seed": 5}}))
    assert line is not None
    assert "study.seed 0 instead of 5, data.kind 'folder' instead of 'digits'" in line
    assert "2 more, so a new one begins" in line
    unknown = {**values, "study": {**STUDY["study"], "name": "dogs"}}
    assert studies.near(StudyConfig.from_dict(unknown)) is None


def test_status_reads_how_far_each_study_of_a_folder_is(tmp_path: Path, command: list[str]) -> None:
    begin(tmp_path, "pets")
    begin(tmp_path, "cats", state="finished")
    damaged = StudyFolder.create(tmp_path, "dogs")
    write_text(damaged.config, "study: [\n")
    write_text(damaged.database, "x")
    done = finish(*command, "status", "--results", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["study"]: row for row in json.loads(done.stdout)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "cats": "finished",
        "dogs": "unreadable",
        "pets": "interrupted",
    }
    pets = rows["pets"]
    assert (pets["done"], pets["planned"], pets["failed"], pets["running"]) == (2, 4, 1, 0)
    assert (pets["best"], pets["best_trial"], pets["job"]) == (0.75, "trial-0000", "pets-00000001")
    assert "study.yaml" in rows["dogs"]["reason"]


def test_status_joins_records_and_jobs_and_shows_a_study_once(tmp_path: Path) -> None:
    begin(tmp_path, "pets", state="finished")
    rows = status.to_json(status.in_folder(tmp_path))
    new = job(2, id="cats-00000002-3", study="cats")
    old = job(1, id="cats-00000002", study="cats", status="STOPPED")
    merged = status.merged(rows, [job(1, status="SUCCEEDED"), old, new])
    assert [(row.study, row.state, row.job) for row in merged] == [
        ("pets", "finished", "pets-00000001"),
        ("cats", "starting", "cats-00000002-3"),
    ]
    again = job(3, id="pets-00000001-2", folder=rows[0]["folder"])
    assert [(row.state, row.job) for row in status.merged(rows, [again])] == [("starting", "pets-00000001-2")]


class Head:
    """What a cluster's head answers about one job, whose study found its own folder."""

    def __init__(self, log: str, status: str = "RUNNING") -> None:
        metadata = {"search.study": "pets", "search.folder": "/shared/results/pets", "search.code": "c"}
        self.log = log
        self.job = types.SimpleNamespace(
            submission_id="pets-00000001", status=status, metadata=metadata, start_time=1,
            driver_exit_code=None,
        )  # fmt: skip

    def list_jobs(self) -> list[Any]:
        return [self.job]

    def get_job_info(self, _: str) -> Any:
        return self.job

    def get_job_logs(self, _: str) -> str:
        return self.log

    def stop_job(self, _: str) -> None:
        self.job.status = "STOPPED"


TOLD = "2026 INFO Runtime env\nstudy: /shared/results/pets-2\n[ 1/4] trial-0000 study: /no\n"


def test_a_job_has_the_folder_that_its_study_really_has() -> None:
    """A second study of a config, or one whose name was taken, lies in pets-2 where pets was asked for."""
    head = Head(TOLD)
    (running,) = jobs.jobs(head)
    assert running.folder == jobs.find(head, "pets").folder == "/shared/results/pets-2"
    assert jobs.find(head, "/shared/results/pets-2") == running
    assert jobs.stop(head, running).folder == "/shared/results/pets-2"
    assert jobs.jobs(Head("not begun\n"))[0].folder == "/shared/results/pets"


def test_resume_joins_the_job_of_its_folder_and_no_other() -> None:
    (running,) = jobs.jobs(Head(TOLD))
    joined = {name: submit._is_same(running, submit.from_folder(f"/shared/results/{name}")) for name in
              ("pets", "pets-2")}  # fmt: skip
    assert joined == {"pets": False, "pets-2": True}


def test_time_left_is_shared_by_the_trials_that_run(tmp_path: Path) -> None:
    record = reader.read_study(begin(tmp_path, "pets"))
    running = [dataclasses.replace(record.trials[0], number=n, state="RUNNING") for n in (2, 3)]
    record = dataclasses.replace(record, state="running", planned=10, trials=(*record.trials, *running))
    found = status.of_record(record)
    assert (found.running, found.done) == (2, 2)
    assert found.seconds_left == pytest.approx(3.0 * 8 / 2)


def test_the_token_is_read_where_ray_reads_it_and_its_file_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    with pytest.raises(ClusterError, match=r"auth_token: .*got no such file.*umask 077; ray get-auth-token"):
        connect.token()
    write_text(path, "secret\n")
    path.chmod(0o644)
    assert connect.token() == "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    assert connect.token() == "other"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert connect.token() is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "--address", "http://127.0.0.1:9"], "a Ray dashboard must answer"),
        (["logs", "pets", "--address", "http://x", "--cluster", "c.yaml"], "must be named once"),
        (["stop", "pets", "--cluster", "no.yaml"], "no.yaml: --cluster must name a cluster file of Ray"),
        (["resume", "pets", "--wait"], "--wait goes with --cluster or --address"),
    ],
)
def test_what_keeps_a_command_from_the_cluster_is_said_in_one_line(
    words: list[str], message: str, command: list[str]
) -> None:
    done = finish(*command, *words, env={"RAY_AUTH_TOKEN": "x"})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_job_records_the_commit_and_the_id_it_was_submitted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "abc123")
    monkeypatch.setenv(provenance.JOB_VARIABLE, "pets-1")
    facts = provenance.collect(seed=0, data_fingerprint="f")
    assert (facts["commit"], facts["job"]) == ("abc123", "pets-1")
