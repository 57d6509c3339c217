"""Write TensorBoard logs while trials run: one run folder per trial, with scalars and a row in HParams.

    <logdir>/<trial id>/events.out.tfevents.<nanoseconds>.<pid>        scalars, hyperparameters
    <logdir>/<trial id>/events.out.tfevents.<nanoseconds>.<pid>.end    how the trial ended

The records are written with TensorBoard's own protos, which needs no torch and no threads: one write and
flush per epoch. No run has an HParams EXPERIMENT tag: TensorBoard takes the columns of the first such tag for
all runs, while without one it shows the union of all trials' parameters and metrics, which a conditional
space needs. The ending has a separate file because TensorBoard believes the first ending that it finds in a
run. If a trial continues after a failure, that file is removed; a TensorBoard that has already read it shows
the new ending only after a restart.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

_FILE_VERSION = "brain.Event:2"
"""With this version TensorBoard discards later steps at a session start only, not whenever a step is lower
than the last one."""

_STATUS = {
    "COMPLETE": api_pb2.STATUS_SUCCESS,
    "PRUNED": api_pb2.STATUS_SUCCESS,
    "FAIL": api_pb2.STATUS_FAILURE,
}


class Board:
    """Write the logs of running trials; after every call the files can be read at once."""

    def __init__(self, logdir: Path) -> None:
        self._logdir = logdir
        self._runs: dict[str, _Run] = {}

    def start(self, trial_id: str, params: Mapping[str, Any]) -> None:
        """Open the trial's run and write its hyperparameters, without those that are None.

        A trial that was started before continues in a new file, which replaces the steps of the earlier files
        from its next epoch on.
        """
        self._close(trial_id)
        self._runs[trial_id] = _Run(self._logdir / trial_id, trial_id, params)

    def epoch(
        self, trial_id: str, epoch: int, metrics: Mapping[str, float], best: Mapping[str, float]
    ) -> None:
        """Write one scalar per metric at step `epoch`, and the best epoch's values as `best/<metric>`."""
        scalars = {tag: value for tag, value in metrics.items() if tag != "epoch"}
        self._runs[trial_id].scalars(epoch, {**scalars, **{f"best/{tag}": v for tag, v in best.items()}})

    def end(self, trial_id: str, state: str) -> None:
        """Close the trial's run and, if the state is an ending, write it.

        A trial that never started, for example because its process could not be placed, has no run to close.
        """
        if trial_id in self._runs and state in _STATUS:
            self._runs[trial_id].ended(_STATUS[state])
        self._close(trial_id)

    def close(self) -> None:
        """Close every open run without an ending, as those trials were interrupted and may continue."""
        for trial_id in list(self._runs):
            self._close(trial_id)

    def _close(self, trial_id: str) -> None:
        if trial_id in self._runs:
            self._runs.pop(trial_id).close()


class _Run:
    """The open event file of one trial."""

    def __init__(self, folder: Path, trial_id: str, params: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._fresh = True
        for ending in folder.glob("events.out.tfevents.*.end"):
            ending.unlink()
        self._folder = folder
        self._writer = _open(folder)
        start = plugin_data_pb2.SessionStartInfo(group_name=trial_id, start_time_secs=time.time())
        for name, value in params.items():
            if value is not None:
                _set(start.hparams[name], value)
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        _write(self._writer, 0, summary=_hparams(metadata.SESSION_START_INFO_TAG, data))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # At every session start but a run's first, TensorBoard discards this step and later ones.
        if self._fresh:
            _write(self._writer, step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            self._fresh = False
        value = summary_pb2.Summary.Value
        summary = summary_pb2.Summary(value=[value(tag=t, simple_value=v) for t, v in values.items()])
        _write(self._writer, step, summary=summary)

    def ended(self, status: int) -> None:
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        writer = _open(self._folder, ".end")
        _write(writer, 0, summary=_hparams(metadata.SESSION_END_INFO_TAG, data))
        writer.close()

    def close(self) -> None:
        self._writer.close()


def _open(folder: Path, suffix: str = "") -> RecordWriter:
    """Open a new event file, named by time: TensorBoard reads a run's files in the order of their names."""
    name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}{suffix}"
    writer = RecordWriter((folder / name).open("xb"))
    _write(writer, 0, file_version=_FILE_VERSION)
    return writer


def _write(writer: RecordWriter, step: int, **content: Any) -> None:
    writer.write(event_pb2.Event(wall_time=time.time(), step=step, **content).SerializeToString())
    writer.flush()


def _hparams(tag: str, data: plugin_data_pb2.HParamsPluginData) -> summary_pb2.Summary:
    value = summary_pb2.Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return summary_pb2.Summary(value=[value])


def _set(slot: Any, value: Any) -> None:
    """Fill a protobuf Value; `bool` is tested first because Python's bool is an int."""
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, (int, float)) and math.isfinite(value):
        slot.number_value = value
    else:
        slot.string_value = str(value)
