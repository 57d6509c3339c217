"""What the board writes is read back by TensorBoard's own readers, live and afterwards."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from benchmarks.board import study as study_of
from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.views.tensorboard import Board
from search.views.tensorboard.study_page import BY_COST, BY_TRIALS, COMPUTED, STORED, STUDY_RUN

CONFIG = StudyConfig.from_folder("flowers", backbone="mobilenet_v2")
FUSE = {
    "strategy": "fuse",
    "learning_rate": 0.0125,
    "head_size": 64,
    "frozen_layers": 3,
    "horizontal_flip": True,
    "backbone": "mobilenet_v2",
}
LOAD = {"strategy": "load", "learning_rate": 0.5, "head_size": None, "frozen_layers": "all"} | {
    "backbone": "mobilenet_v2"
}
RUNS = {"trial-0000": "0000-fuse-lr.013-mobilenet_v2", "trial-0001": "0001-load-lr.5-mobilenet_v2"}


def read(logdir: Path) -> EventMultiplexer:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return multiplexer


def scalars(logdir: Path, trial: str, tag: str) -> list[tuple[int, Any]]:
    events = read(logdir).Tensors(RUNS.get(trial, trial), tag)
    return [(e.step, pytest.approx(e.tensor_proto.float_val[0], abs=1e-6)) for e in events]


def hparams(logdir: Path) -> tuple[Any, dict[str, Any]]:
    """Return what the HParams page asks its backend for: the columns, and the rows by trial."""
    provider = MultiplexerDataProvider(read(logdir), str(logdir))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(logdir)))
    none = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=api_pb2.Status.values(), slice_size=100, start_index=0
    )
    ctx = RequestContext()
    response = list_session_groups.Handler(ctx, context, "", none).run()
    tags = context.hparams_metadata(ctx, "")
    columns = context.experiment_from_metadata(ctx, "", True, tags, [])
    return columns, {group.name: group for group in response.session_groups}


def metrics(group: Any) -> dict[str, Any]:
    return {m.name.tag: pytest.approx(m.value, abs=1e-6) for m in group.metric_values}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path, CONFIG)
    board.study.open()
    yield board
    board.close()


@pytest.fixture
def two_trials(tmp_path: Path, board: Board) -> Path:
    """A finished trial and one that still runs, with different parameters and metrics."""
    board.start("trial-0000", FUSE)
    board.start("trial-0001", LOAD)
    first = {"val/accuracy": 0.9, "train/loss": 0.5, "epoch": 1}
    board.epoch("trial-0000", 1, first, first)
    board.epoch("trial-0001", 1, {"val/accuracy": 0.4, "seconds": 2.0}, {"val/accuracy": 0.4, "epoch": 1})
    board.epoch("trial-0000", 2, {"val/accuracy": 0.8, "train/loss": 0.3, "epoch": 2}, first)
    board.end("trial-0000", "COMPLETE")
    return tmp_path


def values(group: Any) -> dict[str, Any]:
    """Return a row's parameters by the field that the column shows."""
    kinds = {name.partition(".")[2]: value for name, value in group.hparams.items()}
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in kinds.items()}


def test_hparams_opens_with_what_people_look_for(two_trials: Path) -> None:
    """TensorBoard sorts the parameters by `differs` and name, and shows five of them and five metrics."""
    columns, _ = hparams(two_trials)
    first = [info.display_name for info in columns.hparam_infos[:4]]
    assert first == ["strategy", "learning rate", "head size", "frozen layers"]
    assert [info.display_name for info in columns.metric_infos[:2]] == ["best val/accuracy", "best epoch"]
    assert {info.display_name for info in columns.hparam_infos} >= {"horizontal flip", "weight decay"}
    kinds = {info.display_name: api_pb2.DataType.Name(info.type) for info in columns.hparam_infos}
    assert kinds["frozen layers"] == kinds["head size"] == "DATA_TYPE_FLOAT64"
    assert (kinds["strategy"], kinds["horizontal flip"]) == ("DATA_TYPE_STRING", "DATA_TYPE_BOOL")
    (strategies,) = (info for info in columns.hparam_infos if info.display_name == "strategy")
    assert list(strategies.domain_discrete) == ["exact", "fuse", "load", "replace"]


def test_hparams_shows_every_trial_with_every_parameter_live(two_trials: Path) -> None:
    _, rows = hparams(two_trials)
    assert values(rows["trial-0000"]) == FUSE
    assert values(rows["trial-0001"]) == {
        "strategy": "load",
        "learning_rate": 0.5,
        "frozen_layers": CONFIG.blocks["mobilenet_v2"],
        "backbone": "mobilenet_v2",
    }


def test_a_share_of_frozen_layers_is_shown_as_a_number_of_blocks(tmp_path: Path, board: Board) -> None:
    blocks = CONFIG.blocks["mobilenet_v2"]
    for number, (said, shown) in enumerate(
        [(0.5, (blocks + 1) // 2), (0, 0), ("all", blocks), (1.0, blocks)]
    ):
        board.start(f"trial-{number:04}", FUSE | {"frozen_layers": said})
        assert values(hparams(tmp_path)[1][f"trial-{number:04}"])["frozen_layers"] == shown


@pytest.mark.parametrize(
    ("rate", "told"), [(0.0354, "lr.035"), (1e-05, "lr1e-05"), (0.5, "lr.5"), (1.0, "lr1"), (0.001, "lr.001")]
)
def test_the_name_of_a_run_says_what_the_trial_is(
    board: Board, rate: float, told: str, tmp_path: Path
) -> None:
    board.start("trial-0008", FUSE | {"learning_rate": rate})
    board.start("trial-0009", FUSE | {"learning_rate": rate}, "recipe")
    runs = sorted(path.name for path in tmp_path.iterdir())
    assert runs == [STUDY_RUN, f"0008-fuse-{told}-mobilenet_v2", f"0009-recipe-{told}-mobilenet_v2"]


def test_hparams_shows_best_and_last_of_the_metric_and_no_twins(two_trials: Path) -> None:
    columns, rows = hparams(two_trials)
    named = {info.name.tag: info.display_name for info in columns.metric_infos}
    shown = {
        trial: {named[tag]: value for tag, value in metrics(rows[trial]).items()}
        for trial in ("trial-0000", "trial-0001")
    }
    assert shown["trial-0000"] == {
        "best val/accuracy": 0.9,
        "best epoch": 1.0,
        "last val/accuracy": 0.8,
        "last train/loss": pytest.approx(0.3),
    }
    assert shown["trial-0001"] == {
        "best val/accuracy": pytest.approx(0.4),
        "best epoch": 1.0,
        "last val/accuracy": pytest.approx(0.4),
        "seconds trained": 2.0,
    }
    tags = {tag for run in RUNS.values() for tag in read(two_trials).Runs()[run]["tensors"]}
    assert [tag for tag in tags if tag.startswith("best")] == []


def test_scalars_have_the_epoch_as_their_step(two_trials: Path) -> None:
    assert scalars(two_trials, "trial-0000", "val/accuracy") == [(1, 0.9), (2, 0.8)]
    assert scalars(two_trials, "trial-0000", "train/loss") == [(1, 0.5), (2, 0.3)]


def status(logdir: Path, trial: str) -> str:
    _, rows = hparams(logdir)
    name: str = api_pb2.Status.Name(rows[trial].sessions[0].status)
    return name


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("COMPLETE", "STATUS_SUCCESS"),
        ("PRUNED", "STATUS_SUCCESS"),
        ("FAIL", "STATUS_FAILURE"),
        ("RUNNING", "STATUS_UNKNOWN"),
    ],
)
def test_the_status_says_how_a_trial_ended(tmp_path: Path, board: Board, state: str, expected: str) -> None:
    board.start("trial-0000", FUSE)
    board.end("trial-0000", state)
    assert status(tmp_path, "trial-0000") == expected


def test_a_resumed_trial_replaces_the_epochs_it_repeats(tmp_path: Path) -> None:
    first = Board(tmp_path, CONFIG)
    first.start("trial-0000", FUSE)
    for epoch in (1, 2, 3):
        first.epoch("trial-0000", epoch, {"loss": 10.0 + epoch}, {})
    first.close()
    second = Board(tmp_path, CONFIG)
    second.start("trial-0000", FUSE)
    assert scalars(tmp_path, "trial-0000", "loss") == [(1, 11.0), (2, 12.0), (3, 13.0)]
    for epoch in (2, 3, 4):
        second.epoch("trial-0000", epoch, {"loss": 20.0 + epoch}, {})
    second.close()
    assert scalars(tmp_path, "trial-0000", "loss") == [(1, 11.0), (2, 22.0), (3, 23.0), (4, 24.0)]
    assert len(hparams(tmp_path)[1]) == 1


def test_a_failed_trial_that_is_run_again_can_succeed(tmp_path: Path, board: Board) -> None:
    board.start("trial-0000", FUSE)
    board.end("trial-0000", "FAIL")
    board.start("trial-0000", FUSE)
    assert status(tmp_path, "trial-0000") == "STATUS_UNKNOWN"
    board.end("trial-0000", "COMPLETE")
    assert status(tmp_path, "trial-0000") == "STATUS_SUCCESS"


def test_a_trial_that_never_started_has_no_run(tmp_path: Path) -> None:
    Board(tmp_path, CONFIG).end("trial-0000", "FAIL")
    assert not list(tmp_path.iterdir())


def record(number: int, state: str = "COMPLETE", *accuracies: float, **more: Any) -> TrialRecord:
    history = [
        {"epoch": epoch, "val/accuracy": value, "train/loss": 1.0, "seconds": 3.0}
        for epoch, value in enumerate(accuracies, 1)
    ]
    best = max(history, key=lambda epoch: epoch["val/accuracy"]) if history else {}
    return TrialRecord(
        number=number,
        id=f"trial-{number:04}",
        state=state,
        params=FUSE,
        metrics={"best": best, "last": history[-1] if history else {}},
        history=history,
        **more,
    )


def test_after_resume_nothing_is_doubled(tmp_path: Path) -> None:
    """The run of an interrupted trial gives way to that of the trial that continues it."""
    first = Board(tmp_path, CONFIG)
    first.study.open()
    for trial in (record(0, "COMPLETE", 0.5), record(1, "FAIL", 0.6, interrupted=True)):
        first.start(trial.id, trial.params)
        first.epoch(trial.id, 1, trial.history[0], trial.history[0])
        if not trial.interrupted:
            first.end(trial.id, trial.state)
            first.study.ended(trial)
    first.close()
    past = [record(0, "COMPLETE", 0.5), record(1, "FAIL", 0.6, interrupted=True)]
    second = Board(tmp_path, CONFIG)
    second.take_up(past)
    second.study.open(past)
    assert set(hparams(tmp_path)[1]) == {"trial-0000", "trial-0001"}
    second.start("trial-0002", FUSE, continues=1)
    assert set(hparams(tmp_path)[1]) == {"trial-0000", "trial-0002"}
    again = record(2, "COMPLETE", 0.6, 0.7)
    for epoch in again.history:
        second.epoch(again.id, int(epoch["epoch"]), epoch, epoch)
    second.end(again.id, again.state)
    second.study.ended(again)
    second.close()
    assert scalars(tmp_path, STUDY_RUN, BY_TRIALS) == [(1, 0.5), (2, 0.7)]
    assert scalars(tmp_path, STUDY_RUN, BY_COST) == [(3, 0.5), (9, 0.7)]
    curves = [tag for tag in read(tmp_path).Runs()[STUDY_RUN]["tensors"] if "winners/val/" in tag]
    assert len(curves) == 2
    third = Board(tmp_path, CONFIG)
    third.take_up([*past, record(2, "COMPLETE", 0.6, 0.7, continues=1)])
    assert set(hparams(tmp_path)[1]) == {"trial-0000", "trial-0002"}


def undisturbed(logdir: Path) -> list[TrialRecord]:
    """Write two ended trials and return them."""
    trials = [record(0, "COMPLETE", 0.5, 0.4), record(1, "PRUNED", 0.6)]
    board = Board(logdir, CONFIG)
    board.study.open()
    for trial in trials:
        board.start(trial.id, trial.params)
        for epoch in trial.history:
            board.epoch(trial.id, int(epoch["epoch"]), epoch, trial.metrics["best"])
        board.end(trial.id, trial.state)
        board.study.ended(trial)
    board.close()
    return trials


@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
def test_event_files_that_a_lost_power_has_cut_are_written_anew_from_the_record(
    tmp_path: Path, share: float
) -> None:
    past = undisturbed(tmp_path)
    before = hparams(tmp_path)[1]
    for path in tmp_path.glob("*/events.*"):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    board = Board(tmp_path, CONFIG)
    board.take_up(past)
    board.study.open(past)
    board.close()
    assert scalars(tmp_path, "trial-0000", "val/accuracy") == [(1, 0.5), (2, 0.4)]
    assert scalars(tmp_path, STUDY_RUN, BY_TRIALS) == [(1, 0.5), (2, 0.5)]
    rows = hparams(tmp_path)[1]
    assert rows.keys() == before.keys()
    for name, row in rows.items():
        assert (values(row), metrics(row)) == (values(before[name]), metrics(before[name]))
        assert status(tmp_path, name) == "STATUS_SUCCESS"


def test_event_files_that_are_whole_stay_as_they_are(tmp_path: Path) -> None:
    past = undisturbed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("0*-fuse*/events.*")}
    assert len(before) == 4
    board = Board(tmp_path, CONFIG)
    board.take_up(past)
    board.close()
    assert {path: path.read_bytes() for path in tmp_path.glob("0*-fuse*/events.*")} == before


def test_runs_of_an_earlier_version_get_todays_names_and_columns(tmp_path: Path) -> None:
    (tmp_path / "trial-0000").mkdir()
    (tmp_path / "trial-0000" / "events.out.tfevents.1.1").write_bytes(b"")
    board = Board(tmp_path, CONFIG)
    past = [record(0, "COMPLETE", 0.5, 0.4), record(1, "PRUNED", 0.6), record(2, "FAIL")]
    board.take_up(past)
    board.study.open(past)
    board.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        STUDY_RUN,
        "0000-fuse-lr.013-mobilenet_v2",
        "0001-fuse-lr.013-mobilenet_v2",
    ]
    assert scalars(tmp_path, "trial-0000", "val/accuracy") == [(1, 0.5), (2, 0.4)]
    assert scalars(tmp_path, "trial-0000", "work/seconds trained") == [(1, 3.0), (2, 6.0)]
    assert scalars(tmp_path, STUDY_RUN, BY_TRIALS) == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert status(tmp_path, "trial-0000") == "STATUS_SUCCESS"


def test_the_page_of_the_study_says_how_the_search_went(tmp_path: Path) -> None:
    board = Board(tmp_path, CONFIG)
    seconds = iter([10.0, 20.0, 30.0])
    arrays = iter([2, 2, 3])
    board.study.open(searched=lambda: next(seconds), slots=2, computed=lambda: next(arrays))
    found = {"stored_cut": 19}
    board.study.ended(record(0, "COMPLETE", 0.5, effective=found))
    board.study.ended(record(1, "PRUNED", 0.9, effective=found))
    board.study.ended(record(2, "COMPLETE", 0.4, 0.7, effective={"stored_cut": None}))
    board.study.phases({"images": 1.26, "Ray": 4.0})
    board.study.answer(["best: trial-0002", "verdict: it cannot be told apart from \x1b[2Jtrial-0000"])
    board.close()
    by_seconds = scalars(tmp_path, STUDY_RUN, "whole study/best so far, step = seconds")
    assert by_seconds == [(10, 0.5), (20, 0.5), (30, 0.7)]
    assert scalars(tmp_path, STUDY_RUN, "whole study/trials PRUNED") == [(1, 0), (2, 1), (3, 1)]
    share = scalars(tmp_path, STUDY_RUN, "whole study/share of slot time that trained")
    assert share == [(1, 3 / 20), (2, 6 / 40), (3, 12 / 60)]
    assert scalars(tmp_path, STUDY_RUN, STORED) == [(1, 1), (2, 2), (3, 2)]
    assert scalars(tmp_path, STUDY_RUN, COMPUTED) == [(1, 2), (2, 2), (3, 3)]
    (table,) = read(tmp_path).Tensors(STUDY_RUN, "whole study/time per phase")
    assert b"| images | 1.3 |" in table.tensor_proto.string_val[0]
    (answer,) = read(tmp_path).Tensors(STUDY_RUN, "whole study/answer")
    said = answer.tensor_proto.string_val[0].decode()
    assert said == "- best: trial-0002\n- verdict: it cannot be told apart from trial-0000"
    winners = scalars(tmp_path, STUDY_RUN, "winners/val/accuracy/0002-fuse-lr.013-mobilenet_v2")
    assert winners == [(1, 0.4), (2, 0.7)]


def test_custom_scalars_opens_with_the_study_then_the_best_trials(tmp_path: Path, board: Board) -> None:
    (event,) = read(tmp_path).Tensors(STUDY_RUN, layout_metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [page.title for page in layout.category] == ["study", "best trials", "all trials"]
    board.study.ended(record(0, "COMPLETE", 0.5))
    tags = read(tmp_path).Runs()[STUDY_RUN]["tensors"]
    shown = [tag for page in layout.category[:2] for chart in page.chart for tag in chart.multiline.tag]
    without = [tag for tag in shown if not any(re.match(tag, known) for known in tags)]
    # These two need a clock and workers, which this study has not.
    assert len(without) == 3, without


def test_an_epoch_writes_one_event_however_many_there_are(tmp_path: Path, board: Board) -> None:
    board.start("trial-0000", FUSE)
    (file,) = (tmp_path / RUNS["trial-0000"]).iterdir()
    values = {f"metric/{i}": float(i) for i in range(12)}
    sizes = []
    for epoch in range(1, 101):
        board.epoch("trial-0000", epoch, values, values)
        sizes.append(file.stat().st_size)
    assert len({after - before for before, after in itertools.pairwise(sizes[1:])}) == 1
    events = [
        event for event in event_file_loader.EventFileLoader(str(file)).Load() if event.HasField("summary")
    ]
    assert len(events) == 1 + 100  # the hyperparameters come first


def test_logs_grow_by_a_few_kilobytes_for_each_trial(tmp_path: Path) -> None:
    """So do the curves of the study, with a point for each trial: 1,000 trials stay a few megabytes."""
    sizes = []
    for count in (20, 40):
        config, trials = study_of(count)
        board = Board(tmp_path / str(count), config)
        board.take_up(trials)
        board.study.open(trials)
        board.close()
        sizes.append(sum(f.stat().st_size for f in (tmp_path / str(count)).rglob("*") if f.is_file()))
    assert sizes[1] - sizes[0] < 20 * 10_000


def test_the_driver_loads_no_torch() -> None:
    code = (
        "import sys, search.views.tensorboard, search.views.table, search.views.progress;"
        "sys.exit(str({'torch', 'torchvision', 'tensorflow', 'tensorboardX'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
