"""Train the settings of a chosen trial once more, on training and validation images together."""

from finetune.frozen import execution
from finetune.messages import Refit
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import exact
from finetune.training.run import Run
from finetune.training.workers import World


def train(
    settings: TrialSettings, epochs: int, how: Refit, *, world: World, features: FeatureSettings | None
) -> Run:
    """Return a run that was trained on training and validation images for as many epochs as were best.

    The rates are those of the trial's schedule over all of its epochs, so that the last one is as low as it
    was at the best epoch. An exact head is solved for again.

    Args:
        settings: settings of the chosen trial.
        epochs: its best epoch.
        how: what else the trial decided.
        world: this worker and its group; all must call this.
        features: store for the features of frozen blocks; None: no store.

    Raises:
        NonFiniteLoss: the loss became NaN or infinite.
        DataError: an image cannot be read.
    """
    if settings.strategy == "exact":
        first = Run(settings, world, features, together=True)
        best = exact.solve(first, by_class=how.metric.startswith(exact.BY_CLASS)).best
        final = Run(settings, world, features, shape=best.shape, together=True)
        final.model.head.new.load_state_dict(dict(best.state))
        final.model.to(world.device)
        return final
    run = Run(settings, world, features, how.limit, together=True)
    run.watch.is_over = True  # the trial has found a rate at which the loss does not diverge
    for epoch in range(1, epochs + 1):
        with execution.rounding(settings.precision):
            run.train_epoch(epoch, lambda: False)
    if run.average:
        run.model.load_trained_state(run.average.state)
    return run
