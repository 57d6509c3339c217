"""Show a study's record: ranked table, comparison with the baselines, failures, JSON and CSV."""

import csv
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune import safe_text
from finetune.disk.atomic import replacing
from search.config.sections import SETTINGS
from search.record.records import (
    EXACT,
    RECALL,
    RECALLS_OF_AN_EPOCH,
    StudyRecord,
    TrialRecord,
    standing,
)
from search.verdict import contest
from search.verdict.words import Scale
from search.views import analysis, front
from search.views.analysis import best_model, trials
from search.views.ranking import Failures, cause, failures, has_rank, ranked, score, state_of
from search.views.terminal import clean, print_line, print_table, seconds_text

_SHOWN = tuple(name for name, setting in SETTINGS.items() if setting.shown)
_HEADER = ("rank", "trial", "state")
_RIGHT = frozenset({"rank", *(name.replace("_", " ") for name in _SHOWN[1:]), "epochs", "seconds"})
_CSV_FIRST = ("number", "id", "state", "baseline", "epochs", "seconds")
_CSV_LAST = ("slot", "error", "log")
_ALL_BLOCKS = -1
"""Copy of `finetune.settings.ALL`, the value of `frozen_layers` for which every block is frozen."""


def comparison(study: StudyRecord) -> list[str]:
    """Return lines on the best trial, its gain over each baseline, and how far to trust that gain."""
    best = study.best
    if best is None:
        return [front.no_best(study)]
    metrics = best.metrics["best"]
    epoch = f" at epoch {metrics['epoch']:.0f}" if "epoch" in metrics else ""
    strategy = f" ({cell(best, 'strategy')})"
    lines = [f"best: {best.id}{strategy}, {study.metric} {_number(metrics[study.metric])}{epoch}"]
    if (found := contest.of(study)).seeds:
        lines += [f"verdict: {found.sentence}", *[one.sentence for one in [found.luck] if one]]
        lines += [found.note][: bool(found.note)]
    if study.privacy:
        return [*lines, *_private(study.privacy, best)]
    lines += [_against(study, best, trial) for trial in _baselines(study)]
    lines += _backbones(study)
    if study.refit and study.state == "finished":
        lines.append(
            f"final model: 'final' has the settings of {best.id}, trained on training and validation images "
            "together; the scores here are those before"
        )
    lines += front.lines(study, ranked(study))
    complete = sum(trial.state == "COMPLETE" for trial in study.trials)
    lines.append(
        f"caution: chosen on validation as the best of {complete}, so expect less on new images; "
        + _test_split(study)
    )
    return lines


def _private(privacy: Mapping[str, Any], best: TrialRecord) -> list[str]:
    """Return lines on what a private study has spent."""
    return [
        f"privacy: epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:.2g} for each "
        f"{privacy['unit']}, the search included ({privacy['trials']['mean']:g} trials on average)",
        f"note: {clean(best.note or 'the released trial')}",
    ]


def show(study: StudyRecord, out: Console) -> None:
    """Print the ranked table, the comparison with the baselines and the failures."""
    print_line(
        out,
        f"study {study.name}: {study.state}, {_counted(study)}, {seconds_text(study.seconds)}",
        style="bold",
    )
    if study.plan and study.state == "finished":
        planned = study.plan["seconds"]
        off = round(100 * (study.seconds / planned - 1)) if planned else 0
        told = f"{seconds_text(planned)} for {study.plan['trials']} trials"
        print_line(out, f"planned: {told}; it took {seconds_text(study.seconds)} ({off:+d} %)")
    if study.ended:
        print_line(out, f"ended early: {study.ended}")
    title = f"best {study.metric}"
    names = (name.replace("_", " ") for name in _columns(study))
    costs = front.titles(study)
    header = (*_HEADER, *names, title, *costs, "epochs", "seconds")
    rows = [_row(study, rank, trial) for rank, trial in enumerate(ranked(study), start=1)]
    print_table(out, header, rows, _RIGHT | {title, *costs[:-1]})
    for line in comparison(study):
        print_line(out, line)
    for group in failures(study):
        _show_failures(study, group, out)


def _counted(study: StudyRecord) -> str:
    """Return how many trials there are: `22 of 22 trials and 1 exact head (11 COMPLETE, 12 PRUNED)`."""
    found = trials.counts(study)
    solved = found["exact"]
    more = f" and {solved} exact head{'s'[: solved > 1]}" if solved else ""
    of = "" if study.is_open else f" of {study.planned}"
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    return f"{found['trials']}{of} trials{more} ({states or 'none started'})"


def to_json(study: StudyRecord, *, history: bool = False) -> dict[str, Any]:
    """Return the record as plain JSON values; a number that is not finite becomes null.

    `analysis` holds what the report works out from the record; see `search.views.analysis`.

    Args:
        study: The record.
        history: Include each trial's `history`, the metrics of every epoch.

    """
    told = {trial.number: _trial_json(study, trial, history) for trial in study.trials}
    best = study.best
    facts = {
        name: value
        for name, value in vars(study).items()
        if name not in ("trials", "verdict", "repeats", "goal", "front", "refit")
    } | {"mode": study.objective.mode}
    facts |= front.facts(study) | ({"refit": True} if study.refit else {})
    facts_of_model = best_model.model_facts(study)
    return {
        "study": _plain(facts),
        "verdict": _plain(contest.of(study).to_json()),
        "repeats": _plain(study.repeats),
        "model": _plain(facts_of_model),
        "best": None if best is None else told[best.number],
        "trials": list(told.values()),
        "analysis": _plain(analysis.of(study, facts_of_model)),
    }


def to_csv(study: StudyRecord, path: Path) -> None:
    """Write a CSV file with a row per trial and a column per parameter and metric.

    Interrupted trials that a later trial continues are left out. The file is replaced in one step, so a
    reader never sees a part of it.
    """
    rows = [_csv_row(trial) for trial in standing(study.trials)]
    if study.goal is not None and study.goal.objectives:
        for row in rows:
            row["measured.on_front"] = row["number"] in study.front
    seen = dict.fromkeys(column for row in rows for column in row)
    spread = [
        c for prefix in ("params.", "best.", "last.", "measured.") for c in seen if c.startswith(prefix)
    ]
    with (
        replacing(path, durable=True) as temporary,  # `resume` takes a newer table for a whole one
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, [*_CSV_FIRST, *spread, *_CSV_LAST])
        writer.writeheader()
        writer.writerows(rows)


def _number(value: float) -> str:
    return f"{value:.4f}"


def cell(trial: TrialRecord, name: str) -> str:
    """Return a parameter as text: the searched value, else the value that the worker used, else `-`."""
    value = trial.params.get(name, trial.effective.get(name))
    if value is None:
        return "-"
    if name == "frozen_layers" and value == _ALL_BLOCKS:
        return "all"
    if name == "frozen_layers" and isinstance(value, float) and "frozen_blocks" in trial.effective:
        return f"{trial.effective['frozen_blocks']} ({value:.3g})"  # blocks, and the share searched
    if name == "learning_rate" and "learning_rate_limit" in trial.effective:
        return f"{trial.effective['learning_rate_limit']:.3g} ({value:.3g})"  # used, and the one searched
    return f"{value:.3g}" if isinstance(value, float) else clean(value)


def _columns(study: StudyRecord) -> list[str]:
    """Return the settings that the table shows; those of texts and clips only where trials have them."""
    return [
        name
        for name in _SHOWN
        if SETTINGS[name].needs == "image"
        or any(name in trial.params or name in trial.effective for trial in study.trials)
    ]


def _row(study: StudyRecord, rank: int, trial: TrialRecord) -> list[str]:
    found = score(study, trial)
    return [
        str(rank) if has_rank(study, trial) else "-",
        f"{trial.id} {trial.baseline}" if trial.baseline else trial.id,
        state_of(trial),
        *(cell(trial, name) for name in _columns(study)),
        "-" if found is None else _number(found),
        *front.cells(study, trial),
        str(trial.epochs),
        f"{trial.seconds:.1f}",
    ]


def _baselines(study: StudyRecord) -> list[TrialRecord]:
    """Return the trial of each baseline; of `exact` that of the best backbone."""
    found = [trial for trial in ranked(study) if trial.baseline]
    first = {trial.baseline: trial for trial in reversed(found)}
    return sorted(first.values(), key=lambda trial: trial.number)


def _backbones(study: StudyRecord) -> list[str]:
    """Return a line with the backbones in the order of their exact heads, if there are several."""
    exact = [
        trial for trial in standing(study.trials) if trial.baseline == EXACT and trial.state == "COMPLETE"
    ]
    if len(exact) < 2:
        return []
    held_out = [(trial.metrics["best"].get("train/held_out_accuracy", 0.0), trial) for trial in exact]
    held_out.sort(key=lambda pair: -pair[0])
    told = [
        f"{clean(trial.params['backbone'])} {100 * score:.1f} ± "
        f"{100 * trial.metrics['best'].get('train/held_out_error', 0.0):.1f} %"
        for score, trial in held_out
    ]
    return [f"backbones by exact head, accuracy on training images left out: {', '.join(told)}"]


def _against(study: StudyRecord, best: TrialRecord, trial: TrialRecord) -> str:
    baseline = trial.baseline
    if trial.number == best.number:
        return f"against {baseline}: the best is the {baseline} itself; the search found nothing better"
    value = score(study, trial)
    if trial.state == "FAIL" and not trial.interrupted:
        return f"against {baseline}: it failed ({trial.id}: {cause(trial)}), so there is nothing to compare"
    if trial.state != "COMPLETE" or value is None:
        return f"against {baseline}: it has no final score ({trial.id}: {state_of(trial)})"
    if study.is_at_chance(trial):
        return f"against {baseline}: it is at chance ({trial.id}, {_number(value)}): the gain says nothing"
    gain = _gain(study, best.metrics["best"][study.metric], value)
    return f"against {baseline}: {gain} ({trial.id}, {_number(value)})"


def _test_split(study: StudyRecord) -> str:
    """Return a clause on the test split: whether it exists, and how often it has been read."""
    if study.provenance.get("images", {}).get("test") == 0:
        return "there is no test split to measure it on"
    if not study.test_reads:
        return f"'{_command('export', study.folder)}' measures it on the test split, which was not read yet"
    for_verdict = sum(read.get("why") == "verdict" for read in study.test_reads)
    others = [read for read in study.test_reads if read.get("why") != "verdict"]
    models = ", ".join(dict.fromkeys(read["trial"] or "unknown" for read in others))
    told = [f"the test split was read {_times(len(others))}, for {clean(models)}"] if others else []
    if for_verdict:
        told.append(
            f"{'' if others else 'the test split was read '}{_times(for_verdict)}"
            f"{' more' if others else ''} for the verdict, which chooses nothing"
        )
    return " and ".join(told)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _gain(study: StudyRecord, best: float, other: float) -> str:
    """Return as text how much better the best value is than another one."""
    if best == other:
        return "no difference"
    return Scale(study.metric).gain(study.objective.gain(best, other))


def _command(*words: str) -> str:
    return shlex.join(["python", "-m", "search", *words])


def _show_failures(study: StudyRecord, group: Failures, out: Console) -> None:
    first, count = group.trials[0], len(group.trials)
    rerun = _command("run", str(Path(study.folder) / "study.yaml"), "--only-trial", str(first.number))
    print_line(out, f"{count} trial{'s'[: count > 1]} failed: {group.cause}", style="red")
    print_line(out, f"  trials  {', '.join(str(trial.number) for trial in group.trials)}")
    print_line(out, f"  log     {clean(first.log or 'none kept')}")
    print_line(out, f"  rerun   {rerun}")


def _trial_json(study: StudyRecord, trial: TrialRecord, history: bool) -> dict[str, Any]:
    facts = {name: value for name, value in vars(trial).items() if history or name != "history"}
    facts = {name: value for name, value in facts.items() if name != "measured"}
    facts |= {"at_chance": study.is_at_chance(trial)} | front.facts_of(study, trial)
    plain: dict[str, Any] = _plain(facts)
    return plain


def _plain(value: Any) -> Any:
    """Return a value as JSON types: other objects become text, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _csv_row(trial: TrialRecord) -> dict[str, Any]:
    row = {name: safe_text.cell(getattr(trial, name)) for name in _CSV_FIRST + _CSV_LAST}
    spread: Iterable[tuple[str, Mapping[str, Any]]] = [
        ("params", trial.params),
        *trial.metrics.items(),
        ("measured", trial.measured),
    ]
    for prefix, values in spread:
        row |= {f"{prefix}.{name}": _csv_cell(value) for name, value in _few(values).items()}
    return row


def _few(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values, with the recalls of many classes replaced by one dict, class -> recall."""
    recalls = {name.removeprefix(RECALL): value for name, value in values.items() if name.startswith(RECALL)}
    if len(recalls) <= RECALLS_OF_AN_EPOCH:
        return values
    rest = {name: value for name, value in values.items() if not name.startswith(RECALL)}
    return rest | {RECALL.rstrip("/"): recalls}


def _csv_cell(value: Any) -> Any:
    return json.dumps(_plain(value)) if isinstance(value, (Mapping, list, tuple)) else safe_text.cell(value)
