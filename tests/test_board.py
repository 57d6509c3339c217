"""What the board writes is read back by TensorBoard's own readers, live and afterwards."""

import itertools
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
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from search.views.tensorboard import Board

FUSE = {"strategy": "fuse", "learning_rate": 0.0125, "frozen_layers": 3, "horizontal_flip": True}
LOAD = {"strategy": "load", "learning_rate": 0.5, "head_size": None}


def read(logdir: Path) -> EventMultiplexer:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return multiplexer


def scalars(logdir: Path, trial: str, tag: str) -> list[tuple[int, Any]]:
    events = read(logdir).Tensors(trial, tag)
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
    board = Board(tmp_path)
    yield board
    board.close()


@pytest.fixture
def two_trials(tmp_path: Path, board: Board) -> Path:
    """A finished trial and one that still runs, with different parameters and metrics."""
    board.start("trial-0000", FUSE)
    board.start("trial-0001", LOAD)
    board.epoch("trial-0000", 1, {"val/accuracy": 0.9, "train/loss": 0.5, "epoch": 1}, {"val/accuracy": 0.9})
    board.epoch("trial-0001", 1, {"val/accuracy": 0.4, "seconds": 2.0}, {"val/accuracy": 0.4, "epoch": 1})
    board.epoch("trial-0000", 2, {"val/accuracy": 0.8, "train/loss": 0.3, "epoch": 2}, {"val/accuracy": 0.9})
    board.end("trial-0000", "COMPLETE")
    return tmp_path


def test_hparams_shows_every_trial_with_every_parameter_live(two_trials: Path) -> None:
    columns, rows = hparams(two_trials)
    assert {info.name for info in columns.hparam_infos} == {*FUSE, "learning_rate", "strategy"}
    fuse, load = rows["trial-0000"], rows["trial-0001"]
    assert {name: value.WhichOneof("kind") for name, value in fuse.hparams.items()} == {
        "strategy": "string_value",
        "learning_rate": "number_value",
        "frozen_layers": "number_value",
        "horizontal_flip": "bool_value",
    }
    assert fuse.hparams["learning_rate"].number_value == 0.0125
    assert set(load.hparams) == {"strategy", "learning_rate"}
    assert load.hparams["strategy"].string_value == "load"


def test_hparams_shows_best_and_last_of_each_metric(two_trials: Path) -> None:
    columns, rows = hparams(two_trials)
    tags = {info.name.tag for info in columns.metric_infos}
    assert tags == {"val/accuracy", "best/val/accuracy", "train/loss", "seconds", "best/epoch"}
    fuse, load = metrics(rows["trial-0000"]), metrics(rows["trial-0001"])
    assert (fuse["val/accuracy"], fuse["best/val/accuracy"]) == (0.8, 0.9)
    assert (load["val/accuracy"], load["best/epoch"]) == (0.4, 1.0)


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
    first = Board(tmp_path)
    first.start("trial-0000", FUSE)
    for epoch in (1, 2, 3):
        first.epoch("trial-0000", epoch, {"loss": 10.0 + epoch}, {})
    first.close()
    second = Board(tmp_path)
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
    Board(tmp_path).end("trial-0000", "FAIL")
    assert not list(tmp_path.iterdir())


def test_an_epoch_writes_one_event_however_many_there_are(tmp_path: Path, board: Board) -> None:
    board.start("trial-0000", FUSE)
    (file,) = (tmp_path / "trial-0000").iterdir()
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


def test_the_driver_loads_no_torch() -> None:
    code = (
        "import sys, search.views.tensorboard, search.views.table, search.views.progress;"
        "sys.exit(str({'torch', 'torchvision', 'tensorflow', 'tensorboardX'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
