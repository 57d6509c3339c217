"""The views of a handmade record with every state: table, verdict, failures, JSON, CSV."""

import csv
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.cluster.status import of_record
from search.driver.trial import compact
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import write_text
from search.views.table import comparison, failures, ranked, show, to_csv, to_json
from search.views.terminal import clean, print_line, seconds_text

METRIC = "val/accuracy"
RECIPE = {"strategy": "replace", "learning_rate": 0.001, "head_size": 1024, "frozen_layers": -1}
FUSE = {"strategy": "fuse", "learning_rate": 0.012345, "head_size": 256, "frozen_layers": 3}
LOAD = {"strategy": "load", "learning_rate": 0.1, "frozen_layers": -1, "classes": ("cat", "dog")}


def trial(
    number: int, state: str, params: dict[str, Any], score: float | None = None, **more: Any
) -> TrialRecord:
    best = {} if score is None else {METRIC: score, "epoch": 2.0}
    last = {} if score is None else {METRIC: score - 0.01, "epoch": 3.0}
    facts = {"epochs": 0 if score is None else 3, "seconds": 1.25, "metrics": {"best": best, "last": last}}
    return TrialRecord(
        number=number, id=f"trial-{number:04}", state=state, params=params, **{**facts, **more}
    )


def out_of_memory(number: int, size: int) -> TrialRecord:
    error = f"OutOfMemoryError: CUDA out of memory in /tmp/worker-{number}/x.py, tried {size} MiB [GPU 0]"
    return trial(number, "FAIL", FUSE, error=error, log=f"results/pets/trials/trial-{number:04}/error.txt")


TRIALS = (
    trial(0, "COMPLETE", RECIPE, 0.941, baseline="recipe"),
    trial(1, "FAIL", FUSE, baseline="scratch", error="loss is NaN at epoch 1", log="logs/1.txt"),
    trial(2, "COMPLETE", LOAD, 0.9),
    trial(3, "COMPLETE", FUSE, 0.962, slot="slot-1"),
    trial(4, "PRUNED", LOAD, 0.97),
    trial(5, "COMPLETE", FUSE, 0.962),
    out_of_memory(6, 512),
    trial(7, "RUNNING", FUSE, 0.5),
    out_of_memory(8, 1024),
    trial(9, "WAITING", {}),
)


def record(trials: tuple[TrialRecord, ...] = TRIALS, **more: Any) -> StudyRecord:
    facts: dict[str, Any] = {"name": "pets", "metric": METRIC, "planned": 12, "epochs": 3}
    facts |= {"state": "interrupted", "seconds": 125.0, "provenance": {"seed": 0}, "folder": "results/pets"}
    return StudyRecord(**{**facts, **more}, trials=trials)


def shown(study: StudyRecord) -> str:
    out = Console(file=io.StringIO(), width=160, highlight=False)
    show(study, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


EXPECTED = """\
study pets: interrupted, 10 of 12 trials (4 COMPLETE, 1 PRUNED, 3 FAIL, 1 RUNNING, 1 WAITING), 2 min 05 s
rank  trial               state     strategy  learning rate  head size  frozen layers  best val/accuracy  epochs  seconds
   1  trial-0003          COMPLETE  fuse             0.0123        256              3             0.9620       3      1.2
   2  trial-0005          COMPLETE  fuse             0.0123        256              3             0.9620       3      1.2
   3  trial-0000 recipe   COMPLETE  replace           0.001       1024            all             0.9410       3      1.2
   4  trial-0002          COMPLETE  load                0.1          -            all             0.9000       3      1.2
   -  trial-0004          PRUNED    load                0.1          -            all             0.9700       3      1.2
   -  trial-0001 scratch  FAIL      fuse             0.0123        256              3                  -       0      1.2
   -  trial-0006          FAIL      fuse             0.0123        256              3                  -       0      1.2
   -  trial-0008          FAIL      fuse             0.0123        256              3                  -       0      1.2
   -  trial-0007          RUNNING   fuse             0.0123        256              3             0.5000       3      1.2
   -  trial-0009          WAITING   -                     -          -              -                  -       0      1.2
best: trial-0003 (fuse), val/accuracy 0.9620 at epoch 2
against recipe: +2.10 points (trial-0000, 0.9410)
against scratch: it failed (trial-0001: loss is NaN at epoch 1), so there is nothing to compare
caution: chosen on validation as the best of 4, so expect less on new images; \
'python -m search export results/pets' measures it on the test split, which was not read yet
2 trials failed: OutOfMemoryError: CUDA out of memory in /tmp/worker-6/x.py, tried 512 MiB [GPU 0]
  trials  6, 8
  log     results/pets/trials/trial-0006/error.txt
  rerun   python -m search run results/pets/study.yaml --only-trial 6
1 trial failed: loss is NaN at epoch 1
  trials  1
  log     logs/1.txt
  rerun   python -m search run results/pets/study.yaml --only-trial 1
"""  # noqa: E501 - a table is as wide as it is


def test_everything_a_person_needs_stands_in_plain_lines() -> None:
    assert shown(record()) == EXPECTED


def test_a_terminal_gets_colour_and_rules_and_the_same_facts() -> None:
    out = Console(file=io.StringIO(), width=160, force_terminal=True, color_system="standard")
    show(record(), out)
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert "\x1b[31m" in text
    assert "─" in text
    for fact in ("trial-0000 recipe", "0.9620", "--only-trial 6", "[GPU 0]"):
        assert fact in text


def test_no_cell_of_the_table_is_cut_on_80_columns() -> None:
    out = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    show(record(), out)
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert "…" not in text
    assert " 3 trial-0000 COMPLETE replace     0.001 1024    all   0.9410      3     1.2" in text


def test_an_errors_escape_sequences_do_not_reach_the_reader() -> None:
    bad = trial(
        0, "FAIL", FUSE, error="\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 [bold]kept[/bold] :smile:\nmore"
    )
    text = shown(record((bad,)))
    assert "1 trial failed: red bell [bold]kept[/bold] :smile:\n" in text
    assert not [c for c in text if ord(c) < 32 and c != "\n"]


def test_the_smallest_is_best_when_the_metric_is_minimised() -> None:
    def scored_by_loss(one: TrialRecord) -> TrialRecord:
        metrics = {when: {"val/loss": v[METRIC]} if METRIC in v else {} for when, v in one.metrics.items()}
        return dataclasses.replace(one, metrics=metrics)

    study = record(tuple(map(scored_by_loss, TRIALS)), metric="val/loss")
    assert [t.number for t in ranked(study)[:4]] == [2, 0, 3, 5]
    assert comparison(study)[1] == "against recipe: +0.0410 (trial-0000, 0.9410)"


def test_a_score_that_is_nan_or_missing_ranks_last_among_its_state() -> None:
    study = record(
        (trial(0, "COMPLETE", FUSE, math.nan), trial(1, "COMPLETE", FUSE), trial(2, "COMPLETE", FUSE, 0.1))
    )
    assert [t.number for t in ranked(study)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("trials", "line"),
    [
        (
            (trial(0, "COMPLETE", RECIPE, 0.26, baseline="scratch"), TRIALS[2]),
            "against scratch: it is at chance (trial-0000, 0.2600): the gain says nothing",
        ),
        (
            (TRIALS[0], TRIALS[2]),
            "against recipe: the best is the recipe itself; the search found nothing better",
        ),
        (
            (trial(0, "PRUNED", RECIPE, 0.9, baseline="recipe"), TRIALS[2]),
            "against recipe: it has no final score (trial-0000: PRUNED)",
        ),
        (
            (TRIALS[3], trial(5, "COMPLETE", RECIPE, 0.962, baseline="recipe")),
            "against recipe: no difference (trial-0005, 0.9620)",
        ),
    ],
)
def test_the_comparison_says_plainly_what_it_cannot_say(trials: tuple[TrialRecord, ...], line: str) -> None:
    provenance = {"chance": {METRIC: 0.2}, "images": {"val": 100}}
    assert comparison(record(trials, provenance=provenance))[1] == line


def test_a_baseline_that_was_not_asked_for_is_not_mentioned() -> None:
    assert comparison(record(TRIALS[2:3]))[1].startswith("caution")


def test_chance_reaches_two_standard_errors_above_the_most_frequent_class() -> None:
    study = record(provenance={"chance": {METRIC: 0.2}, "images": {"val": 100}})
    assert study.is_at_chance(trial(0, "COMPLETE", RECIPE, 0.28))
    assert not study.is_at_chance(trial(0, "COMPLETE", RECIPE, 0.281))
    assert [told["at_chance"] for told in to_json(study)["trials"]] == [False] * len(TRIALS)
    assert not record(metric="val/loss").is_at_chance(trial(0, "COMPLETE", RECIPE, 0.1))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"provenance": {"images": {"test": 0}}}, "there is no test split to measure it on"),
        ({"provenance": {"images": {"test": 9}}}, "which was not read yet"),
        ({"test_reads": ({"trial": "trial-0003"},)}, "the test split was read once, for trial-0003"),
        (
            {"test_reads": ({"trial": "trial-0003"}, {"trial": None}, {"trial": "trial-0003"})},
            "the test split was read 3 times, for trial-0003, unknown",
        ),
    ],
)
def test_the_caution_says_how_often_the_test_split_was_read(facts: dict[str, Any], words: str) -> None:
    assert comparison(record(**facts))[-1].endswith(words)


def test_a_study_without_a_complete_trial_has_no_best() -> None:
    study = record(TRIALS[6:7])
    assert comparison(study) == ["best: none, no trial completed with val/accuracy"]
    assert to_json(study)["best"] is None
    assert "0 of 12 trials (none started)" in shown(record(()))


def test_failures_of_one_cause_stand_together_whatever_the_numbers_and_paths() -> None:
    silent = trial(10, "FAIL", FUSE)
    groups = failures(record((*TRIALS, silent)))
    assert [[t.number for t in group.trials] for group in groups] == [[6, 8], [1], [10]]
    assert groups[2].cause == "no reason recorded"


INTERRUPTED = {"error": "interrupted", "interrupted": True}
RESUMED = (
    trial(0, "FAIL", RECIPE, 0.5, baseline="recipe", **INTERRUPTED),
    trial(1, "FAIL", FUSE, baseline="scratch", **INTERRUPTED),
    trial(2, "COMPLETE", FUSE, 0.962),
    trial(3, "FAIL", RECIPE, 0.7, baseline="recipe", continues=0, seed_of=0, **INTERRUPTED),
    trial(4, "COMPLETE", FUSE, 0.5, baseline="scratch", continues=1, seed_of=1),
    trial(5, "COMPLETE", RECIPE, 0.941, baseline="recipe", continues=3, seed_of=0),
)
"""The recipe was interrupted twice, scratch once."""


def test_after_a_resume_the_retry_counts_and_not_the_interrupted_trial(tmp_path: Path) -> None:
    study = record(RESUMED, planned=3, state="finished")
    text = shown(study)
    assert text.startswith("study pets: finished, 3 of 3 trials (3 COMPLETE), ")
    assert "against recipe: +2.10 points (trial-0005, 0.9410)\n" in text
    assert "against scratch: +46.20 points (trial-0004, 0.5000)\n" in text
    assert "interrupted" not in text
    assert "failed" not in text
    assert [t.number for t in ranked(study)] == [2, 5, 4]
    to_csv(study, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["2", "4", "5"]
    status = of_record(study)
    assert (status.done, status.failed) == (3, 0)
    told = to_json(study)["trials"]  # the record itself: numbers are places in it
    assert [t["number"] for t in told] == list(range(6))
    assert [t["interrupted"] for t in told] == [t.interrupted for t in RESUMED]


def test_a_trial_that_resume_will_go_on_with_is_told_as_interrupted_and_not_as_a_failure() -> None:
    text = shown(record(RESUMED[:4], planned=3))
    assert text.startswith("study pets: interrupted, 3 of 3 trials (1 COMPLETE, 2 interrupted), ")
    assert "against recipe: it has no final score (trial-0003: interrupted)\n" in text
    assert "failed" not in text


def test_the_rerun_command_survives_a_folder_with_blanks() -> None:
    assert "run 'my results/pets/study.yaml' --only-trial 6" in shown(record(folder="my results/pets"))


def test_json_is_valid_and_complete_even_with_nan() -> None:
    broken = trial(
        2, "COMPLETE", LOAD, 0.5, effective={"rates": [math.inf, 0.1]}, history=[{"loss": math.nan}]
    )
    study = record((*TRIALS[:2], broken), provenance={"loss": math.nan, "path": Path("x")})
    told = json.loads(json.dumps(to_json(study, history=True), allow_nan=False))
    assert set(told) == {"study", "verdict", "repeats", "model", "best", "trials", "analysis"}
    assert told["best"] == told["trials"][0]
    assert told["study"]["provenance"] == {"loss": None, "path": "x"}
    assert set(told["trials"][2]) == {
        *(field.name for field in dataclasses.fields(TrialRecord) if field.name != "measured"),
        "at_chance",
    }  # costs are told only where the study has a goal for them
    assert told["trials"][2]["effective"] == {"rates": [None, 0.1]}
    assert told["trials"][2]["history"] == [{"loss": None}]
    assert told["trials"][2]["params"]["classes"] == ["cat", "dog"]
    assert "history" not in to_json(study)["trials"][2]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("provenance: {trial: TRIAL}\nclasses: [cat, dog]\nmetrics: {test: {accuracy: 0.5}}", True),
        ("provenance: {trial: TRIAL}\nclasses: [cat, dog]", False),
        ("provenance: {trial: TRIAL}\nmetrics: {}", False),
        ("provenance: {trial: TRIAL}\nclasses: 2\nmetrics: 7", False),
        ("provenance: {trial: another}\nclasses: [cat, dog]\nmetrics: {}", False),
    ],
)
def test_a_damaged_model_folder_is_none_in_the_json(tmp_path: Path, text: str, read: bool) -> None:
    study = record(folder=str(tmp_path))
    assert study.best is not None
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.yaml").write_text(text.replace("TRIAL", study.best.id))
    told = to_json(study)
    assert (told["model"] is not None) == (told["analysis"]["model"] is not None) == read


def test_csv_has_a_row_per_trial_and_a_column_per_parameter_and_metric(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    path.write_text("old")
    to_csv(record(), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(TRIALS)
    assert rows[0]["params.head_size"] == "1024"
    assert rows[2]["params.head_size"] == ""
    assert rows[2]["params.classes"] == '["cat", "dog"]'
    assert (rows[3]["best.val/accuracy"], rows[3]["last.epoch"], rows[3]["slot"]) == (
        "0.962",
        "3.0",
        "slot-1",
    )
    assert rows[1]["error"] == "loss is NaN at epoch 1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_csv_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    path.write_text("old")

    class Unwritable:
        def __str__(self) -> str:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        to_csv(record((trial(0, "COMPLETE", {"strategy": Unwritable()}, 0.5),)), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_formulas_and_names_that_are_no_utf8_are_text_in_the_table_and_the_log(tmp_path: Path) -> None:
    """A broken image of such a name fails its trial, and must not end the study that writes this down."""
    failed = trial(0, "FAIL", {"strategy": "=1+1"}, error="@SUM(caf\udce9.png): must be readable")
    to_csv(record((failed,)), tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["params.strategy"] == "'=1+1"
    assert row["error"] == r"'@SUM(caf\udce9.png): must be readable"
    write_text(tmp_path / "log.txt", "caf\udce9.png")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == r"caf\udce9.png"


def test_a_pipe_gets_no_control_characters_whatever_the_environment_says() -> None:
    code = "from search.views.terminal import *; out = console(); print_line(out, 'x' * 300, style='red'); "
    code += "print_table(out, ['a', 'b'], [['1', '22']], frozenset('a'))"
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "40"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "x" * 300 + "\na  b\n1  22\n"


def test_no_color_means_no_colour_on_a_terminal() -> None:
    script = "import sys; sys.stdout.isatty = lambda: True; from search.views.terminal import *; "
    script += "print_line(console(), 'plain', style='bold red')"
    for no_color, expected in (("1", "plain\n"), ("", "\x1b[1;31mplain\x1b[0m\n")):
        env = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
        )
        assert done.stdout == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"), (3840, "1 h 04 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_text_from_elsewhere_becomes_one_harmless_line() -> None:
    assert clean("a\r\n\tb\x1b[2Jc\x9b") == "a bc"
    out = Console(file=io.StringIO(), width=10)
    print_line(out, "longer than ten columns")
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue() == "longer than ten columns\n"


def epoch_of(classes: int) -> dict[str, Any]:
    recalls = {f"val/recall/class {i:04}": i / classes for i in range(classes)}
    return {"epoch": 1, "val/accuracy": 0.5, **recalls}


def test_an_epoch_of_a_thousand_classes_is_a_handful_of_values() -> None:
    """All recalls are in one text, exactly; the one that the study optimises stays a value, too."""
    epoch, metric = epoch_of(1000), "val/recall/class 0333"
    told = compact(epoch, metric)
    assert set(told) == {"epoch", "val/accuracy", metric, "recalls"}
    text = json.loads(told["recalls"])
    assert {**told, **text} == {**epoch, "recalls": told["recalls"]}
    assert compact(epoch_of(20), METRIC) == epoch_of(20)
    assert set(compact(epoch_of(21), METRIC)) == {"epoch", "val/accuracy", "recalls"}


def test_recalls_of_many_classes_are_one_column_and_of_few_a_column_each(tmp_path: Path) -> None:
    for classes, columns in (
        (1000, ["best.val/recall"]),
        (2, ["best.val/recall/class 0000", "best.val/recall/class 0001"]),
    ):
        one = trial(0, "COMPLETE", RECIPE, metrics={"best": epoch_of(classes), "last": {}})
        to_csv(record((one,)), tmp_path / "trials.csv")
        with (tmp_path / "trials.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert [name for name in row if "recall" in name] == columns
    assert len(to_json(record((one,)))["trials"][0]["metrics"]["best"]) == 2 + 2


def test_a_share_of_the_blocks_is_shown_with_what_it_came_to() -> None:
    shared = trial(0, "COMPLETE", {**FUSE, "frozen_layers": 0.5271}, 0.9, effective={"frozen_blocks": 10})
    assert " 10 (0.527) " in shown(record((shared,)))
    failed = trial(0, "FAIL", {**FUSE, "frozen_layers": 0.5271}, error="no model was built")
    assert " 0.527 " in shown(record((failed,)))


def test_a_study_whose_budget_decides_names_no_number_of_trials() -> None:
    study = record(is_open=True, planned=10_000, ended="study.budget: 10m are used up")
    assert shown(study).startswith("study pets: interrupted, 10 trials (4 COMPLETE, ")
    assert "ended early: study.budget: 10m are used up\n" in shown(study)
    assert (of_record(study).planned, of_record(study).seconds_left) == (0, None)


def test_a_finished_study_says_how_far_its_plan_was_off() -> None:
    plan = {"trials": 12, "seconds": 100.0, "gpu_hours": 0.0, "money": None}
    assert "planned: 1 min 40 s for 12 trials; it took 2 min 05 s (+25 %)\n" in shown(
        record(plan=plan, state="finished")
    )
