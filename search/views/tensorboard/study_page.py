"""TensorBoard's run for the whole study: how the search goes, what it costs, and its best trials.

    <run>/events.out.tfevents.<nanoseconds>.<pid>            a point of every curve for each ended trial
    <run>/events.out.tfevents.<nanoseconds>.<pid>.columns    columns of HParams, layout of Custom Scalars
    <run>/events.out.tfevents.<nanoseconds>.<pid>.best       curves of the best trials, time of each phase

The last two are written anew by each run of the study.
A curve's step is the number of ended trials, the seconds or the worker seconds, as its tag says, because
TensorBoard has no other axis with a unit of its own.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.plugins.text import metadata as text_metadata

from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.views.tensorboard import events
from search.views.tensorboard.columns import Columns
from search.views.tensorboard.events import EventFile
from search.views.terminal import clean

STUDY_RUN = "0-all-trials"
"""Name of the run: sorted before those of trials on every page (two of them compare numbers as numbers)."""
SHOWN = 5
"""Number of best trials whose curves are in the study's run."""
BY_TRIALS, BY_SECONDS, BY_COST = (
    f"whole study/best so far, step = {unit}" for unit in ("trials", "seconds", "worker seconds")
)
_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_STATES = {state: f"whole study/trials {state}" for state in _ENDED}
TRAINING_SHARE = "whole study/share of slot time that trained"
STORED, COMPUTED = "whole study/trials that read stored features", "whole study/feature arrays computed"
_COLUMNS, _BEST = ".columns", ".best"


class StudyPage:
    """The study's run.

    Args:
        folder: the run's folder.
        config: the study's config.
        columns: the columns of the trials.
    """

    def __init__(self, folder: Path, config: StudyConfig, columns: Columns) -> None:
        self._folder, self._columns = folder, columns
        self._metric, self._objective = config.study.metric, config.study.objective
        self._goal = config.study.goal
        self._workers = config.resources.workers_per_trial
        self._states: Counter[str] = Counter()
        self._trained = 0.0
        """Seconds of all epochs of all trials."""
        self._stored = 0
        self._best: list[tuple[float, str]] = []
        """Value and run of the best complete trials, the best first."""
        self._searched: Callable[[], float | None] = lambda: None
        self._computed: Callable[[], int | None] = lambda: None
        self._slots = 1
        self._points: EventFile | None = None
        self._curves: EventFile | None = None

    def open(
        self,
        earlier: Iterable[TrialRecord] = (),
        *,
        searched: Callable[[], float | None] = lambda: None,
        slots: int = 1,
        computed: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Write columns and layout, and take up the counts of earlier trials.

        Args:
            earlier: ended trials of earlier runs, with every epoch. The points that the study's run lacks of
                them are written, against trials and cost: an older version wrote none, and of those of a
                machine that has lost its power the last may be missing.
            searched: returns the seconds that the study has searched, over all of its runs.
            slots: number of slots.
            computed: returns the number of feature arrays computed in this run.
        """
        events.remove(self._folder, _COLUMNS)
        events.remove(self._folder, _BEST)
        known = max(events.steps(self._folder).get(_STATES["COMPLETE"], {0}))
        about = EventFile(self._folder, _COLUMNS)
        data = plugin_data_pb2.HParamsPluginData(experiment=self._columns.experiment())
        about.hparams(metadata.EXPERIMENT_TAG, data)
        layout = self._layout().SerializeToString()
        kind = layout_metadata.create_summary_metadata()
        about.write(0, summary=_text(layout_metadata.CONFIG_SUMMARY_TAG, layout, kind))
        about.close()
        # Both are closed between two trials: a study may run for days, and a test may forget it.
        self._points, self._curves = EventFile(self._folder), EventFile(self._folder, _BEST)
        for file in (self._points, self._curves):
            file.close()
        for trial in earlier:
            if trial.state in _ENDED and not trial.interrupted:
                self._count(trial)
                if self._states.total() > known:
                    self._point()
        self._searched, self._slots, self._computed = searched, slots, computed

    def ended(self, trial: TrialRecord) -> None:
        """Add a point for a trial that has ended, given with every epoch."""
        self._count(trial)
        self._point()

    def answer(self, lines: Iterable[str]) -> None:
        """Write the lines that compare the best trial with the others, verdict included, on the page Text."""
        self._tell("answer", "\n".join(f"- {clean(line)}" for line in lines))  # TensorBoard removes all HTML

    def phases(self, seconds: Mapping[str, float]) -> None:
        """Write the seconds of each phase of this run, as a table on the page Text."""
        rows = [f"| {name} | {value:.1f} |" for name, value in seconds.items()]
        self._tell("time per phase", "\n".join(["| phase | seconds |", "|---|---:|", *rows]))

    def _tell(self, name: str, text: str) -> None:
        """Write a text in Markdown on the page Text."""
        if self._curves is not None:
            kind = text_metadata.create_summary_metadata(display_name=name, description="")
            with self._curves.reopened():
                self._curves.write(0, summary=_text(f"whole study/{name}", text.encode(), kind))

    def _count(self, trial: TrialRecord) -> None:
        self._states[trial.state] += 1
        self._trained += sum(epoch.get("seconds", 0.0) for epoch in trial.history)
        self._stored += trial.effective.get("stored_cut") is not None
        value = trial.metrics["best"].get(self._metric, math.nan)
        if trial.state != "COMPLETE" or not math.isfinite(value) or self._goal.excess(trial.measured):
            return
        run = self._columns.run_name(trial.id, trial.params, trial.baseline)
        this = (value, run)
        # `sorted` is stable: the earlier one of equals stays the better one.
        self._best = sorted([*self._best, this], key=lambda best: self._objective.key(best[0]))[:SHOWN]
        if this in self._best:
            self._draw(run, trial.history)

    def _draw(self, run: str, history: Sequence[Mapping[str, float]]) -> None:
        """Write a best trial's curves. One that is no longer among the best keeps them until the next run."""
        assert self._curves is not None
        with self._curves.reopened():
            for epoch in history:
                names = {name: epoch[name] for name in (self._metric, "train/loss") if name in epoch}
                curves = {f"winners/{name}/{run}": value for name, value in names.items()}
                self._curves.scalars(int(epoch["epoch"]), curves)

    def _point(self) -> None:
        assert self._points is not None
        seconds, computed = self._searched(), self._computed()
        ended, cost = self._states.total(), self._trained * self._workers
        counts: dict[str, float] = {tag: self._states[state] for state, tag in _STATES.items()}
        counts[STORED] = self._stored
        if computed is not None:
            counts[COMPUTED] = computed
        if seconds:
            counts[TRAINING_SHARE] = self._trained / (seconds * self._slots)
        points = []
        if self._best:
            best = self._best[0][0]
            points = [(round(cost), {BY_COST: best})]
            points += [] if seconds is None else [(round(seconds), {BY_SECONDS: best})]
            counts[BY_TRIALS] = best
        points.append((ended, counts))  # last, since `open` takes it for a sign that the others are there
        with self._points.reopened():
            for step, values in points:
                self._points.scalars(step, values)

    def _layout(self) -> layout_pb2.Layout:
        """Return the layout of the page Custom Scalars: the study, its best trials, all trials."""
        states = [f"^{re.escape(tag)}$" for tag in _STATES.values()]
        study = [
            *(_chart(tag.removeprefix("whole study/"), f"^{re.escape(tag)}$") for tag in _CURVES),
            _chart("trials by state", *states),
            _chart("share of slot time that trained", f"^{re.escape(TRAINING_SHARE)}$"),
            _chart("stored features", f"^{re.escape(STORED)}$", f"^{re.escape(COMPUTED)}$"),
        ]
        names = (self._metric, "train/loss")
        best = [_chart(name, f"^winners/{re.escape(name)}/") for name in names]
        every = [_chart(name, f"^{re.escape(name)}$") for name in names]
        parts = {"study": study, "best trials": best, "all trials": every}
        pages = [
            layout_pb2.Category(title=title, chart=charts, closed=title == "all trials")
            for title, charts in parts.items()
        ]
        return layout_pb2.Layout(category=pages)


_CURVES = (BY_TRIALS, BY_SECONDS, BY_COST)


def _chart(title: str, *tags: str) -> layout_pb2.Chart:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))


def _text(tag: str, text: bytes, about: summary_pb2.SummaryMetadata) -> summary_pb2.Summary:
    """Return a summary with one text, for the plugin that its metadata names."""
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, tensor_shape=tensor_shape_pb2.TensorShapeProto(), string_val=[text]
    )
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=tensor)])
