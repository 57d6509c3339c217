"""Write TensorBoard logs while trials run: one run for each trial, with scalars and a row in HParams.

    <run>/events.out.tfevents.<nanoseconds>.<pid>        scalars, hyperparameters
    <run>/events.out.tfevents.<nanoseconds>.<pid>.end    how the trial ended
    <run>/events.out.tfevents.<nanoseconds>.<pid>.front  whether it is on the Pareto front, if there is one

The columns of HParams are in the study's run (columns.py): TensorBoard takes them from there for all trials.
The ending has a separate file because TensorBoard believes the first ending that it finds in a run. If a
trial continues after a failure, that file is removed; a TensorBoard that has already read it shows the new
ending only after a restart.
"""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from search.config.study import StudyConfig
from search.record.records import StudyRecord, TrialRecord, standing
from search.record.study_folder import trial_id
from search.views.tensorboard import events
from search.views.tensorboard.columns import BEST, BEST_EPOCH, OBJECTIVE, OF_WORK, ON_FRONT, TRAINED, Columns
from search.views.tensorboard.events import EventFile
from search.views.tensorboard.study_page import STUDY_RUN, StudyPage

_ENDING, _FRONT = ".end", ".front"
_STATUS = {
    "COMPLETE": api_pb2.STATUS_SUCCESS,
    "PRUNED": api_pb2.STATUS_SUCCESS,
    "FAIL": api_pb2.STATUS_FAILURE,
}


class Board:
    """Write the logs of running trials; after every call the files can be read at once.

    Args:
        logdir: the folder of all runs.
        config: the study's config.
    """

    def __init__(self, logdir: Path, config: StudyConfig) -> None:
        self._logdir = logdir
        self._columns = Columns(config)
        self._runs: dict[str, _Run] = {}
        self.study = StudyPage(logdir / STUDY_RUN, config, self._columns)

    def take_up(self, earlier: Iterable[TrialRecord]) -> None:
        """Make the runs of a study's earlier trials whole, before the study goes on.

        Runs that an older version wrote get today's names and columns. A run that lacks an epoch or its
        ending is written anew from the record: event files are not synced, so they may be cut after a loss of
        power or an error of the disk. An interrupted trial that another one continues has no run, since the
        other reports all of its epochs.

        Args:
            earlier: the trials of the record, with every epoch.
        """
        earlier = list(earlier)
        shown = {trial.id for trial in standing(earlier)}
        for trial in earlier:
            _remove(self._logdir / trial.id)
            run = self._folder(trial.id, trial.params, trial.baseline)
            if trial.id not in shown:
                _remove(run)
            elif trial.history and not self._is_whole(run, trial):
                _remove(run)
                self.start(trial.id, trial.params, trial.baseline)
                for epoch in trial.history:
                    self.epoch(trial.id, int(epoch["epoch"]), epoch, trial.metrics["best"])
                self.end(trial.id, "RUNNING" if trial.interrupted else trial.state, trial.measured)

    def start(
        self,
        trial: str,
        params: Mapping[str, Any],
        baseline: str | None = None,
        continues: int | None = None,
    ) -> None:
        """Open a trial's run and write its hyperparameters, without those that are None.

        A trial that was started before continues in a new file, which replaces the steps of the earlier files
        from its next epoch on.

        Args:
            trial: the trial's id.
            params: its parameters by field.
            baseline: `recipe` or `scratch` for a baseline.
            continues: number of the interrupted trial that it continues, whose run is removed.
        """
        self._close(trial)
        if continues is not None:
            _remove(self._folder(trial_id(continues), params, baseline))
        folder = self._folder(trial, params, baseline)
        self._runs[trial] = _Run(folder, trial, self._columns.values(params))

    def epoch(
        self, trial_id: str, epoch: int, metrics: Mapping[str, float], best: Mapping[str, float]
    ) -> None:
        """Write one scalar per metric at step `epoch`, and the best epoch so far with its value.

        Args:
            trial_id: the trial.
            epoch: its epoch, from 1.
            metrics: metrics of the epoch.
            best: metrics of the best epoch so far.
        """
        values = {OF_WORK.get(tag, tag): value for tag, value in metrics.items()}
        seconds = values.pop("seconds", None)
        values.pop("epoch", None)
        run, name = self._runs[trial_id], self._columns.metric
        if seconds is not None:
            run.seconds += seconds
            values[TRAINED] = run.seconds
        if name in best:
            values[f"{BEST}{name}"] = best[name]
        if "epoch" in best:
            values[BEST_EPOCH] = best["epoch"]
        run.scalars(epoch, values)

    def end(self, trial_id: str, state: str, measured: Mapping[str, float] | None = None) -> None:
        """Close the trial's run and, if the state is an ending, write it and what the trial costs.

        A trial that never started, for example because its process could not be placed, has no run to close.
        """
        if trial_id in self._runs and state in _STATUS:
            if measured:
                shown = {f"{OBJECTIVE}{name}": measured[name] for name in self._columns.measured}
                self._runs[trial_id].scalars(0, shown)
            self._runs[trial_id].ended(_STATUS[state])
        self._close(trial_id)

    def front(self, record: StudyRecord) -> None:
        """Write for each complete trial whether it is on the Pareto front, which later trials may change."""
        if record.goal is None or not record.goal.objectives:
            return
        for trial in record.trials:
            folder = self._folder(trial.id, trial.params, trial.baseline)
            if trial.state == "COMPLETE" and folder.is_dir():
                events.remove(folder, _FRONT)
                file = EventFile(folder, _FRONT)
                file.scalars(0, {ON_FRONT: float(trial.number in record.front)})
                file.close()

    def close(self) -> None:
        """Close every open run without an ending, as those trials were interrupted and may continue."""
        for trial in list(self._runs):
            self._close(trial)

    def _is_whole(self, run: Path, trial: TrialRecord) -> bool:
        """Return True if a run has all that the record knows of its trial."""
        found = events.steps(run)
        tags = {metadata.SESSION_START_INFO_TAG}
        if not trial.interrupted:
            tags.add(metadata.SESSION_END_INFO_TAG)
        epochs = {int(epoch["epoch"]) for epoch in trial.history}
        return tags <= found.keys() and epochs <= found.get(self._columns.metric, set())

    def _folder(self, trial: str, params: Mapping[str, Any], baseline: str | None) -> Path:
        return self._logdir / self._columns.run_name(trial, params, baseline)

    def _close(self, trial: str) -> None:
        if trial in self._runs:
            self._runs.pop(trial).close()


class _Run:
    """The open event file of one trial."""

    def __init__(self, folder: Path, trial: str, params: Mapping[str, bool | float | str]) -> None:
        self._fresh = True
        self.seconds = 0.0
        """Seconds of all epochs so far."""
        events.remove(folder, _ENDING)
        self._folder = folder
        self._file = EventFile(folder)
        start = plugin_data_pb2.SessionStartInfo(group_name=trial, start_time_secs=time.time())
        for name, value in params.items():
            events.fill(start.hparams[name], value)
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        self._file.hparams(metadata.SESSION_START_INFO_TAG, data)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # At every session start but a run's first, TensorBoard discards this step and later ones.
        if self._fresh:
            self._file.write(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            self._fresh = False
        self._file.scalars(step, values)

    def ended(self, status: int) -> None:
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        file = EventFile(self._folder, _ENDING)
        file.hparams(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))
        file.close()

    def close(self) -> None:
        self._file.close()


def _remove(run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
