"""Train one model as its settings say: report epochs, keep the best weights and a resumable checkpoint."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import CheckpointError, NonFiniteLoss
from finetune.frozen import execution
from finetune.messages import Effective, Epoch, Keep, Note, Report
from finetune.metrics import check as check_metric
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import exact, limits
from finetune.training.history import History
from finetune.training.run import Run, non_finite
from finetune.training.workers import World


@dataclass(frozen=True)
class Outcome:
    """Result of `train`: `complete`, `stopped` or `moved` (to resume elsewhere), and the epochs trained."""

    state: Literal["complete", "stopped", "moved"]
    epochs: int


def train(
    settings: TrialSettings,
    *,
    keep: Keep,
    report: Report,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    should_move: Callable[[], bool] = lambda: False,
    features: FeatureSettings | None = None,
    latencies: Path | None = None,
) -> Outcome:
    """Train one model and leave its best weights at `keep.best`.

    If `keep.last` exists from an interrupted run of the same settings, its epochs are reported again and
    training resumes after them; the result equals that of an uninterrupted run. If the file cannot be used,
    a Note gives the reason and training starts from the beginning.

    If the loss diverges in the first steps, the trial begins again with a lower learning rate (limits.py),
    and a Note says so.

    Args:
        settings: settings of the trial.
        keep: the files to write, and the metric that chooses the best epoch.
        report: receives the messages.
        world: this worker and its group; None: one worker on the CPU.
        should_stop: called between batches; True ends the run as `stopped`; the best weights are saved.
        should_move: called between epochs; True writes `keep.last` and ends the run as `moved`.
        features: store for the features of frozen blocks, shared with other trials; None: no store.
        latencies: folder of the study's latencies; None: the cost of the model is not measured.

    Raises:
        NonFiniteLoss: the loss became NaN or infinite; the message says where.
        FinetuneError: data, weights or backbone are not as the settings say.
    """
    world = world or World()
    if settings.strategy == "exact":
        exact.train(Run(settings, world, features), keep, report, latencies)
        return Outcome("complete", 1)
    limit = limits.of_checkpoint(keep.last)
    while True:
        try:
            run, history = _begin(settings, limit, keep, report, world, features, latencies)
            return _train(run, history, report, should_stop, should_move)
        except limits.RateTooHigh as error:
            if world.rank == 0:
                keep.forget()
            highest = settings.learning_rate if limit is None else limit
            slow = Run(settings, world, features, limits.first_rate(highest))
            limit = limits.find(slow, highest, should_stop)
            if limit is None:
                return Outcome("stopped", 0)
            report(Note(f"learning rate limited to {limit:.3g}: {error}"))


def _begin(
    settings: TrialSettings,
    limit: float | None,
    keep: Keep,
    report: Report,
    world: World,
    features: FeatureSettings | None,
    latencies: Path | None,
) -> tuple[Run, History]:
    """Return a trial's run, and its history with the epochs of an interrupted run, which are reported."""
    run = Run(settings, world, features, limit)
    # Before the first epoch, so that a metric which these images cannot give fails at once.
    check_metric(keep.metric, run.data.classes, run.data.labels("val").tolist())
    history = _history(run, keep)
    report(Effective(run.effective() | run.costs(latencies)))
    if problem := _restore(history, run.world):
        report(Note(f"trained from its start: {problem}"))
        # The failed restore may have overwritten part of the model or optimiser, so build both again.
        run = Run(settings, run.world, features, limit)
        history = _history(run, keep)
    for past in history.epochs:
        report(Epoch(past))
        # A run that had to divide its batches for lack of memory keeps to that when it is resumed.
        run.parts = int(past.get("accumulate", run.parts))
        run.watch.is_over = True
    return run, history


def _train(
    run: Run,
    history: History,
    report: Report,
    should_stop: Callable[[], bool],
    should_move: Callable[[], bool],
) -> Outcome:
    """Train the epochs that are left.

    Raises:
        RateTooHigh: the loss diverged in the first steps; none of their epochs was reported.
    """
    settings, said = run.settings, len(history.epochs)
    for epoch in range(said + 1, settings.epochs + 1):
        begin = time.perf_counter()
        with execution.rounding(settings.precision):
            loss = run.train_epoch(epoch, should_stop)
        if loss is None:  # stopped within the epoch, which then does not count
            history.save_best()
            return Outcome("stopped", epoch - 1)
        # With averaging, the averaged weights are what is evaluated and, by `history`, saved as the best.
        with run.average.applied() if run.average else nullcontext():
            scores = {f"val/{name}": value for name, value in run.evaluate("val").items()}
        if not math.isfinite(scores["val/loss"]):
            raise _diverged(run, scores["val/loss"], epoch, said)
        seconds = time.perf_counter() - begin
        rates = {"learning_rate": run.optimizer.param_groups[0]["lr"]}
        speed = {"seconds": seconds, "images_per_second": run.data.size("train") / seconds}
        metrics = {"epoch": epoch, "train/loss": loss} | scores | rates | speed
        if run.parts != settings.accumulate:
            metrics["accumulate"] = run.parts
        history.add(metrics)
        # Only rank 0 hears of a move, so the workers agree on it. After the last epoch it is pointless, and
        # a trial whose rate may still prove too high has nothing to save.
        asked = any(run.world.agree(should_move()))
        moves = asked and run.watch.is_over and epoch < settings.epochs
        if run.watch.is_over:
            for past in history.epochs[said:]:
                report(Epoch(past))
            said = epoch
        if moves:
            history.save()
            return Outcome("moved", epoch)
    history.finish()
    return Outcome("complete", settings.epochs)


def _diverged(run: Run, loss: float, epoch: int, said: int) -> Exception:
    """Return the error for a validation loss that is not finite.

    Behind the first epochs, of which nothing was reported yet, the rate is taken for too high: the running
    statistics of batch norm can blow up while the loss of the training batches stays finite.
    """
    rate = run.settings.learning_rate if run.limit is None else run.limit
    if said == 0 and rate > limits.LEAST:
        return limits.RateTooHigh(f"at {rate:.3g} the validation loss was {loss} after epoch {epoch}")
    return NonFiniteLoss(non_finite("validation", loss, epoch, run.settings))


def _history(run: Run, keep: Keep) -> History:
    return History(
        run.model,
        run.optimizer,
        run.rates,
        run.settings,
        keep,
        average=run.average,
        read={"data": run.data.fingerprint, "weights": run.weights_sha256},
        leads=run.world.rank == 0,
        limit=run.limit,
    )


def _restore(history: History, world: World) -> str:
    """Restore an interrupted run, if there is one; return '' or the reason of a failure.

    A failure on one worker is a failure on all.
    """
    problem = ""
    try:
        history.restore()
    except CheckpointError as error:
        problem = str(error)
    # A worker that does not see the file (its node lacks the storage) has no epochs where others have some.
    (found,) = world.agree(bool(history.epochs))
    (failed,) = world.agree(bool(problem) or (found and not history.epochs))
    return (problem or "a worker could not read its checkpoint") if failed else ""
