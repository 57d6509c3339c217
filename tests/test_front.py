"""Several objectives: the front, limits, early stopping by both, and what people see of it."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from finetune.frozen import latency
from finetune.model import backbones, strategies
from finetune.objectives import Constraint, Goal, fronts, ordered
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.record.kept import Kept
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.report import page
from search.suggest.models.constrained import seen_by_model
from search.suggest.stopping import EarlyStopping
from search.verdict import contest
from search.views.table import comparison, ranked, show, to_csv, to_json
from tests import written
from tests.test_board import hparams
from tests.test_stopping import epochs_of

METRIC = "val/accuracy"
GOAL = Goal(METRIC, ("latency_ms",), (Constraint("latency_ms", 5.0),))


def trial(number: int, score: float, latency_ms: float | None, **more: Any) -> TrialRecord:
    measured = {} if latency_ms is None else {"latency_ms": latency_ms, "train_seconds": 1.0}
    best = {METRIC: score, "epoch": 2.0}
    params = {"strategy": "fuse", "learning_rate": 0.01 + number / 100}
    facts = {"state": "COMPLETE", "params": params, "metrics": {"best": best, "last": best}, "epochs": 3}
    return TrialRecord(
        number=number, id=f"trial-{number:04}", **{**facts, "measured": measured, "seconds": 1.0, **more}
    )


TRIALS = (
    trial(0, 0.90, 4.0),
    trial(1, 0.95, 6.0),
    trial(2, 0.85, 2.0),
    trial(3, 0.84, 1.97),
    trial(4, 0.80, 3.0),
    trial(5, 0.99, 1.0, state="PRUNED"),
    trial(6, 0.99, None),
)


def record(trials: tuple[TrialRecord, ...] = TRIALS, goal: Goal | None = GOAL) -> StudyRecord:
    return StudyRecord(
        name="pets", metric=METRIC, planned=7, epochs=3, state="finished", seconds=9.0, provenance={},
        trials=trials, folder="results/pets", goal=goal,
    )  # fmt: skip


def shown(study: StudyRecord) -> str:
    out = Console(file=io.StringIO(), width=180, highlight=False)
    show(study, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_fronts_are_those_that_no_other_dominates_and_small_differences_of_cost_count_as_none() -> None:
    points = [(-0.9, 4.0), (-0.95, 6.0), (-0.85, 2.0), (-0.84, 1.97), (-0.8, 3.0)]
    assert fronts(points) == [[0, 1, 2], [3], [4]]
    assert fronts([(-0.9, 4.0), (-0.9, 4.1)]) == [[0, 1]]
    assert fronts([]) == []


def test_the_order_begins_with_the_best_score_and_spreads_over_the_front() -> None:
    points = [(-0.90, 4.0), (-0.89, 3.5), (-0.5, 1.0), (-0.4, 2.0), (-0.7, 2.5)]
    assert ordered(points) == [0, 2, 4, 1, 3]


def test_three_objectives() -> None:
    points = [(-0.9, 4.0, 10.0), (-0.9, 4.0, 20.0), (-0.8, 5.0, 5.0), (-0.7, 1.0, 30.0)]
    assert fronts(points) == [[0, 2, 3], [1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latency_ms < 5", "NAME <= NUMBER"),
        ("latency <= 5", "latency_ms"),
        ("latency_ms <= 0", "above 0"),
        ("latency_ms <= 1e", "NAME <= NUMBER"),
    ],
)
def test_a_constraint_that_is_none_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigErrors, match=r"study\.constraints") as caught:
        StudyConfig.from_folder(".", constraints=[text])
    assert words in str(caught.value)
    assert str(Constraint.parse(" latency_ms<=5.0 ")) == "latency_ms <= 5"


def test_objectives_are_named_once_and_not_with_text_or_privacy() -> None:
    for wrong in (
        {"objectives": ["size_mb", "size_mb"]},
        {"objectives": ["speed"]},
        {"objectives": ["size_mb"], "frames": 4},
        {"objectives": ["size_mb"], "epsilon": 1.0},
    ):
        with pytest.raises(ConfigErrors, match=r"study\.objectives"):
            StudyConfig.from_folder(".", **wrong)
    config = StudyConfig.from_folder(".", objectives=["latency_ms"], constraints=["size_mb <= 10"])
    assert config.study.goal.measured == ("latency_ms", "size_mb")
    assert not StudyConfig.from_folder(".").study.goal.measured


def test_the_best_keeps_the_limits_and_the_front_leaves_out_who_breaks_them() -> None:
    study = record()
    assert study.best is not None
    assert study.best.number == 0
    assert study.front == {0, 2}
    assert [t.number for t in ranked(study)] == [0, 2, 3, 4, 6, 1, 5]
    assert [t.number for t in contest.contestants(study, 5)] == [0, 2, 3, 4]
    assert dataclasses.replace(study, goal=None).best.number == 6  # type: ignore[union-attr]


def test_the_table_shows_costs_and_marks_the_front() -> None:
    text = shown(record())
    head = next(line for line in text.splitlines() if line.startswith("rank"))
    assert head.split()[-5:] == ["latency", "ms", "front", "epochs", "seconds"]
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line[:4].strip() in "-12345"}
    assert rows["trial-0000"][-4:-2] == ["4", "yes"]
    assert rows["trial-0003"][-4:-2] == ["1.97", "no"]
    assert rows["trial-0001"][0] == "-"
    assert rows["trial-0001"][-5:-2] == ["6", "breaks", "latency_ms"]
    assert "front of val/accuracy, latency_ms: trial-0000 (0.9000, 4); trial-0002 (0.8500, 2)" in text


def test_one_line_says_that_no_trial_keeps_the_limits() -> None:
    slow = record((trial(0, 0.9, 7.0), trial(1, 0.8, 6.0)))
    assert comparison(slow) == ["best: none, each of the 2 complete trials breaks latency_ms <= 5"]
    assert slow.best is None
    assert contest.contestants(slow, 2) == []
    assert comparison(record(())) == ["best: none, no trial completed within latency_ms <= 5"]


def test_json_and_csv_have_costs_only_where_the_study_measures_them(tmp_path: Path) -> None:
    told = json.loads(json.dumps(to_json(record())))
    assert told["study"]["front"] == [0, 2]
    assert told["study"]["constraints"] == ["latency_ms <= 5"]
    assert told["best"]["measured"] == {"latency_ms": 4.0, "train_seconds": 1.0}
    assert [one["on_front"] for one in told["trials"]] == [True, False, True, False, False, False, False]
    assert told["trials"][1]["breaks"] == ["latency_ms <= 5"]
    to_csv(record(), tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert (rows[0]["measured.latency_ms"], rows[0]["measured.on_front"]) == ("4.0", "True")
    plain = tuple(dataclasses.replace(one, measured={}) for one in TRIALS)
    assert not {"front", "goal", "objectives"} & to_json(record(plain, None))["study"].keys()
    to_csv(record(plain, None), tmp_path / "p.csv")
    assert "measured" not in (tmp_path / "p.csv").read_text()


def stopping(**changes: Any) -> EarlyStopping:
    values: dict[str, Any] = {
        "objective": GOAL.objective, "epochs": 5, "grace": 2, "factor": 3, "rule": "asha",
        "strategy_of": lambda name: None if name.startswith("baseline") else "fuse", "goal": GOAL,
    }  # fmt: skip
    return EarlyStopping(**values | changes)


def trained(rule: EarlyStopping, name: str, score: float, latency_ms: float) -> int:
    """Return how many epochs a trial trains."""
    told = json.dumps({"measured": {"latency_ms": latency_ms}})
    return epochs_of(rule, name, *[score] * 5, first={"effective": told})


def test_a_trial_that_is_worse_but_faster_goes_on_and_one_that_is_neither_ends() -> None:
    rule = stopping()
    assert trained(rule, "a", 0.9, 4.0) == 5
    assert trained(rule, "b", 0.8, 4.0) == 2
    assert trained(rule, "c", 0.7, 4.1) == 2
    assert trained(rule, "d", 0.6, 1.0) == 5
    alone = stopping(goal=Goal(METRIC))
    assert [trained(alone, n, s, 4.0) for n, s in (("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6))] == [
        *(5, 2, 2, 2)
    ]


@pytest.mark.parametrize("rule", ["asha", "median", "hyperband", "none"])
def test_a_trial_above_a_limit_ends_after_its_first_epoch_unless_it_is_a_baseline(rule: str) -> None:
    early = stopping(rule=rule)
    assert trained(early, "slow", 0.9, 6.0) == 1
    assert trained(early, "baseline", 0.9, 6.0) == 5
    assert trained(early, "fast", 0.1, 4.0) == 5


def test_a_resumed_study_judges_by_the_costs_of_its_record() -> None:
    early = stopping()
    history = [{"epoch": epoch, METRIC: 0.9, "seconds": 1.0} for epoch in (1, 2, 3, 4, 5)]
    early.replay([trial(0, 0.9, 4.0, history=history), trial(1, 0.95, 6.0, history=history)])
    assert [trained(early, name, 0.8, 4.0) for name in ("b", "c")] == [2, 2]
    assert trained(early, "d", 0.7, 1.0) == 5


def test_a_model_of_the_sampler_sees_a_trial_above_a_limit_below_all_others() -> None:
    def made(value: float, latency_ms: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
        return create_trial(
            state=state, value=value if state == TrialState.COMPLETE else None,
            intermediate_values={1: value}, user_attrs={"measured": {"latency_ms": latency_ms}},
        )  # fmt: skip

    trials = [made(0.9, 4.0), made(0.5, 4.0), made(0.99, 6.0), made(0.99, 50.0, TrialState.PRUNED)]
    for number, one in enumerate(trials):
        one.number = number
    seen = [one.intermediate_values[1] for one in seen_by_model(trials, GOAL)]
    assert seen[:2] == [0.9, 0.5]
    assert seen[3] < seen[2] < 0.5
    assert trials[2].intermediate_values == {1: 0.99}, "the record keeps the score"


def test_weights_of_the_front_are_kept_besides_the_best(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    kept = Kept(folder, objective=GOAL.objective, count=1, earlier=[], goal=GOAL)
    for one in TRIALS[:5]:
        path = folder.best_weights(one.id)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        kept.add(one.number, one.id, complete=True, value=one.metrics["best"][METRIC], measured=one.measured)
    assert [folder.best_weights(one.id).exists() for one in TRIALS[:5]] == [True, False, True, False, False]


def test_a_head_on_a_known_backbone_costs_no_pass_of_the_backbone(tmp_path: Path) -> None:
    def model(head_size: int, frozen: int = -1) -> strategies.TransferModel:
        backbone = backbones.build("shufflenet_v2_x0_5")
        return strategies.build(
            "replace", backbone, classes=("a", "b"), head_size=head_size, dropout=0.0, frozen_layers=frozen,
            relation=None, source_names=None, seed=0,
        )  # fmt: skip

    def measured(one: strategies.TransferModel) -> tuple[dict[str, float], int]:
        passes: list[int] = []
        every = [*one.prefix, *one.trunk]
        every[0].register_forward_hook(lambda *_: passes.append(1))
        return latency.measured(one, 64, 8, torch.device("cpu"), tmp_path), len(passes)

    first, passes = measured(model(0))
    again, none = measured(model(0, frozen=4))
    larger, few = measured(model(512))
    assert passes > 2 * latency.WARM
    assert none == 0, "the same architecture is not measured twice, whatever is frozen"
    assert few == 2, "a new head needs one pass of each batch, for its input"
    assert again == first
    assert larger["parameters"] - first["parameters"] == 1024 * 512 + 512 + 512 * 2 + 2 - (1024 * 2 + 2)
    assert larger["size_mb"] > first["size_mb"] > 4 * first["parameters"] / 1e6
    assert min(first["latency_ms"], first["latency_batch_ms"]) > 0


def written_with_costs(results: Path) -> StudyFolder:
    """Write a study of six trials with latencies, the best of which is too slow."""
    folder = written.write(
        results,
        study={"objectives": ["latency_ms"], "constraints": ["latency_ms <= 5"]},
        facts=lambda number: {"measured": {"latency_ms": 1.0 + number, "train_seconds": 1.0}},
    )
    return folder


def test_record_report_and_board_show_the_front(tmp_path: Path) -> None:
    from search.record import reader
    from search.views.tensorboard import Board

    folder = written_with_costs(tmp_path)
    study = reader.read_study(folder)
    assert study.best is not None
    assert study.best.number == 4
    assert study.front == {0, 1, 2, 3, 4}
    text = page.write(folder).read_text()
    assert 'id="front"' in text
    assert "breaks latency_ms" in text
    board = Board(folder.tensorboard, StudyConfig.from_dict(json.loads(json.dumps(_values(folder)))))
    board.study.open()
    board.take_up(study.trials)
    board.front(study)
    board.close()
    _, rows = hparams(folder.tensorboard)
    found = {m.name.tag: m.value for m in rows["trial-0005"].sessions[0].metric_values}
    assert (found["objective/latency_ms"], found["objective/on the front"]) == (6.0, 0.0)
    found = {m.name.tag: m.value for m in rows["trial-0004"].sessions[0].metric_values}
    assert found["objective/on the front"] == 1.0


def _values(folder: StudyFolder) -> dict[str, Any]:
    from search.config import config_file

    return config_file.load(folder.config).model_dump(mode="json", exclude_none=True)
