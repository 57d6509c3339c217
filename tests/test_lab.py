"""From a laptop to a cluster and back, on two hosts: `ray up`, submit, stop, resume, node loss, `ray down`.

One lab and one cluster for the whole module; the scenes follow each other, as a user's would.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from finetune.disk import checkpoint
from finetune.model_folder.files import FILES
from search.provenance import code_hash
from tests import lab as labs
from tests import machine
from tests.lab_study import both_up, record, resources, row, running, write

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.ray]
EPOCHS = 300
"""Enough for the study to run still when it is followed, stopped and loses a host: .15 s each when idle."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """The laptop with its cluster up, and a tunnel to it at RAY_ADDRESS."""
    if why := labs.lacking():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    lab = labs.Lab(tmp_path_factory.mktemp("lab"))
    with lab.running():
        lab.ray("up", "-y", "--no-config-cache", str(lab.cluster_file))
        lab.wait("both hosts", lambda: both_up(lab))
        with lab.tunnel():
            yield lab


# The cluster


def test_a_client_without_the_token_or_with_a_wrong_one_is_refused(lab: labs.Lab) -> None:
    for changes, got in [
        ({"RAY_AUTH_TOKEN": "wrong"}, "got a wrong one"),
        ({"RAY_AUTH_MODE": "disabled"}, "got none"),
        ({"HOME": "/nowhere"}, "got no such file or directory"),
    ]:
        done = lab.search("status", check=False, **changes)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert got in done.stderr
    answer = "curl --silent --output /dev/null --write-out %{http_code} " + labs.ADDRESS + "/api/jobs/"
    assert lab.on("head", answer) == "401"


def test_the_watcher_for_spot_notices_outlives_the_session_that_started_it(lab: labs.Lab) -> None:
    assert "python" in lab.on("worker", "pgrep --list-full --full '[s]pot.py'")
    assert "Asking on." in lab.on("worker", "cat /tmp/ray/spot.log")


def test_the_token_is_private_on_every_host_and_the_dashboard_listens_on_loopback_only(lab: labs.Lab) -> None:
    for host in labs.HOSTS:
        assert lab.on(host, "stat -c %a ~/.ray/auth_token").strip() == "600"
    assert lab.on("worker", f"curl --silent --max-time 5 http://{labs.HOSTS['head']}:8265/; echo $?") == "7\n"


# One study of two slots, from submit to resume


def test_submit_runs_a_study_on_both_hosts_and_a_second_submit_joins_it(lab: labs.Lab) -> None:
    config = write(lab, "long", study={"epochs": EPOCHS, "trials": 2}, resources={"slots": 2})
    first = lab.search("submit", config)
    assert "no images, results or caches" in first.stderr
    again = lab.search("submit", config, "--json", "--cluster", str(lab.cluster_file), RAY_ADDRESS="")
    assert json.loads(again.stdout)["joined"] is True
    lab.wait("two running trials", lambda: running(lab, "long") == 2)
    now = row(lab, "long")
    assert (now["state"], now["planned"], now["failed"]) == ("running", 2, 0)
    assert json.loads(again.stdout)["job"] == now["job"]


def test_what_was_sent_is_code_and_one_config(lab: labs.Lab) -> None:
    folder = "/tmp/ray/session_latest/runtime_resources/working_dir_files"
    found = lab.on("head", f"find {folder} -type f ! -name '*.pyc' -printf '%P\\n'").split()
    inside = {path.partition("/")[2] for path in found if not path.endswith((".lock", ".zip"))}
    assert "study.yaml" in inside
    assert {path for path in inside if not path.startswith(("search/", "src/finetune/"))} <= {"study.yaml"}


def test_ctrl_c_ends_the_following_and_leaves_the_study(lab: labs.Lab) -> None:
    words = [sys.executable, "-m", "search", "logs", "long", "--follow"]
    with subprocess.Popen(
        lab.words(*words), env=lab.environment(), cwd=labs.ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as follower:  # fmt: skip
        assert follower.stdout is not None
        assert follower.stderr is not None
        follower.stdout.readline()
        os.kill(machine.child(follower.pid), signal.SIGINT)
        assert "goes on without you" in follower.stderr.read()
    assert follower.returncode == 130
    assert running(lab, "long") > 0


def test_stop_saves_what_was_trained_and_frees_the_cluster(lab: labs.Lab) -> None:
    lab.search("stop", "long")
    now = row(lab, "long")
    assert (now["state"], now["running"]) == ("interrupted", 0)
    lab.wait("free CPUs", lambda: "0.0/2.0 CPU" in resources(lab))
    trials = record(lab, "long")["trials"]
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "FAIL"}
    interrupted = [trial for trial in trials if trial["interrupted"]]
    assert len(interrupted) == 2
    for trial in interrupted:
        last = lab.shared / "results" / "long" / "trials" / trial["id"] / "last.safetensors"
        saved = checkpoint.read(last)[1]["history"]
        assert len(saved) >= trial["epochs"]
        lab.saved[trial["number"]] = [epoch["seconds"] for epoch in saved]


def test_resume_goes_on_from_the_saved_epochs_and_survives_the_loss_of_a_host(lab: labs.Lab) -> None:
    """The raylet of the worker host is killed in mid-study: its trial goes on in another slot."""
    lab.search("resume", "/mnt/results/long", "--address", labs.ADDRESS)
    lab.wait("two running trials", lambda: running(lab, "long") == 2)
    (raylet,) = lab.pids("worker", "raylet")
    lab.on("worker", f"kill -9 {raylet}")
    code = lab.search("logs", "long", "--follow", check=False).returncode
    assert code == 0
    ended = record(lab, "long")
    complete = [trial for trial in ended["trials"] if trial["state"] == "COMPLETE"]
    assert len(complete) == 2
    for trial in complete:
        assert [int(epoch["epoch"]) for epoch in trial["history"]] == list(range(1, EPOCHS + 1))
        if trial["continues"] is not None:  # the saved epochs are those of before the stop, to the digit
            saved = lab.saved.pop(trial["continues"])
            assert [epoch["seconds"] for epoch in trial["history"][: len(saved)]] == saved
    assert lab.saved == {}
    assert all(trial["interrupted"] for trial in ended["trials"] if trial["state"] == "FAIL")


def test_the_host_comes_back(lab: labs.Lab) -> None:
    lab.wait("both hosts again", lambda: both_up(lab))


# Two workers of one slot, across hosts


def test_one_slot_of_two_workers_spans_both_hosts(lab: labs.Lab) -> None:
    config = write(lab, "pair", study={"trials": 2}, resources={"slots": 1, "workers_per_trial": 2})
    done = lab.search("submit", config, "--wait", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "study pair: finished, 2 of 2 trials (2 COMPLETE)" in done.stdout
    (slot,) = record(lab, "pair")["study"]["provenance"]["slots"].values()
    assert slot["workers"] == 2


def test_an_older_copy_that_is_installed_on_the_nodes_is_not_used(lab: labs.Lab) -> None:
    for host in labs.HOSTS:
        assert labs.OLD_COPY in lab.on(host, "cd /; python -c 'import finetune' 2>&1", check=False)
    (slot,) = record(lab, "pair")["study"]["provenance"]["slots"].values()
    assert "/runtime_resources/working_dir_files/" in slot["finetune"]
    provenance = record(lab, "pair")["study"]["provenance"]
    assert provenance["code"] == code_hash()
    assert provenance["job"].startswith("pair-")


def test_wait_ends_with_the_exit_code_of_the_study(lab: labs.Lab) -> None:
    config = write(lab, "nodata", data={"kind": "folder", "classes": None, "path": "/mnt/nothing"})
    done = lab.search("submit", config, "--wait", check=False)
    assert done.returncode == 2
    assert "error: /mnt/nothing" in done.stdout


def test_a_results_folder_that_the_hosts_do_not_share_is_refused_before_the_first_trial(
    lab: labs.Lab,
) -> None:
    config = write(lab, "apart", resources={"slots": 2})
    done = lab.search("submit", config, "--results", f"{labs.OWN}/results", "--wait", check=False)
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert labs.HOSTS["worker"] in line
    assert f"{labs.OWN}/results/apart" in line


# What comes back to the laptop


def test_images_go_to_the_cluster_and_results_and_the_best_model_come_back(lab: labs.Lab) -> None:
    flowers = lab.home / "flowers" / "rose"
    flowers.mkdir(parents=True)
    (flowers / "1.png").write_bytes(b"x")
    lab.ray("rsync-up", str(lab.cluster_file), f"{flowers.parent}/", "/mnt/flowers/")
    assert (lab.shared / "flowers" / "rose" / "1.png").read_bytes() == b"x"
    shown = lab.search("results", "/mnt/results/pair", "--address", labs.ADDRESS, "--json")
    assert json.loads(shown.stdout)["study"]["state"] == "finished"
    to = lab.home / "best"
    lab.ray("rsync-down", str(lab.cluster_file), "/mnt/results/pair/best/", f"{to}/")
    assert {path.name for path in to.iterdir()} == set(FILES)


def test_tensorboard_on_the_cluster_is_seen_on_the_laptop(lab: labs.Lab) -> None:
    board = "tensorboard --logdir /mnt/results/pair/tensorboard --port 6006"
    with lab.background(machine.RAY, "exec", str(lab.cluster_file), board, "-p", "6006"):
        url = "http://127.0.0.1:6006/data/runs"
        lab.wait("runs", lambda: "0000-fuse" in lab.run("curl", "-s", url, check=False).stdout)


def test_ray_down_ends_ray_on_the_head_and_the_record_stays(lab: labs.Lab) -> None:
    lab.ray("down", "-y", str(lab.cluster_file))
    assert lab.pids("head", "raylet") == []
    assert (
        lab.search("status", "--cluster", str(lab.cluster_file), check=False, RAY_ADDRESS="").returncode == 2
    )
    rows = json.loads(
        lab.search("status", "--results", str(lab.shared / "results"), "--json", RAY_ADDRESS="").stdout
    )
    assert {row["study"]: row["state"] for row in rows} == {"long": "finished", "pair": "finished"}
