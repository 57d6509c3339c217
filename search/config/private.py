"""Settings that a private study refuses, since each would read the images without being paid for."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from search.config import sections
from search.config.domain import choices, refused

ACCURACY = "val/accuracy"


def refusals(parts: Mapping[str, Any]) -> Iterable[PydanticCustomError]:
    """Yield an error for each setting that does not go with `privacy.epsilon`.

    Args:
        parts: sections of the config by name; one that was refused itself is missing.
    """
    study, data, space = parts.get("study"), parts.get("data"), parts.get("space")
    if study is not None:
        yield from _of_study(study)
    if data is not None:
        yield from _of_data(data)
    if space is not None:
        usual = sections.SpaceSection()
        for field, value in space:
            if value != getattr(usual, field):
                rule = "trials of a private study draw a mechanism and its settings, and train no blocks"
                fix = "Delete it; privacy.mechanisms says which ones are drawn."
                yield refused(rule, value, fix, ("space", field))


def _of_study(study: sections.Study) -> Iterable[PydanticCustomError]:
    if study.metric != ACCURACY:
        rule = f"a private study compares trials by {ACCURACY}, a count whose noise is known"
        yield refused(rule, study.metric, f"Write {ACCURACY}.", ("study", "metric"))
    if study.sampler not in ("auto", "random"):
        rule = "trials of a private study are independent random draws, else the search costs far more"
        yield refused(rule, study.sampler, "Write random.", ("study", "sampler"))
    if study.refit:
        rule = "a private study releases the one model that it has paid for"
        yield refused(rule, True, "Delete it.", ("study", "refit"))
    if study.goal.measured:
        rule = "a private study compares trials by accuracy alone, whose noise is known"
        field = "objectives" if study.objectives else "constraints"
        yield refused(rule, list(getattr(study, field)), "Delete it.", ("study", field))
    if study.budget is not None:
        rule = "the number of trials of a private study is drawn, and must not depend on anything else"
        yield refused(rule, study.budget, "Write study.trials, the mean number.", ("study", "budget"))
    if isinstance(study.warm_start, tuple):
        rule = "what earlier studies found on private images must not choose trials"
        yield refused(rule, list(study.warm_start), "Write none.", ("study", "warm_start"))
    if not isinstance(study.patience, str):
        rule = "scores must not end a private study"
        yield refused(rule, study.patience, "Write none.", ("study", "patience"))
    if "scratch" in study.baselines:
        rule = "baselines read the images without noise"
        yield refused(rule, list(study.baselines), "Delete it.", ("study", "baselines"))


def _of_data(data: sections.Data) -> Iterable[PydanticCustomError]:
    if choices(data.image_size) != 1:
        rule = "a private study has one size of images"
        yield refused(rule, data.image_size, "Name one size.", ("data", "image_size"))
    if data.text is not None or data.frames > 1:
        rule = "a private study reads images alone, without text or further frames"
        field = "frames" if data.text is None else "text"
        yield refused(rule, getattr(data, field), "Delete it.", ("data", field))
    if data.exclude is not None:
        rule = "a list of images to leave out was made by looking at them, which is not paid for"
        yield refused(rule, data.exclude, "Delete it.", ("data", "exclude"))
    if data.text is not None or data.frames > 1:
        rule = "a private study reads one still image of each sample"
        yield refused(rule, data.text or data.frames, "Delete text and frames.", ("data", "text"))
    if data.crop_scale != 1.0 or data.augment != "none":
        rule = "private heads read each image once, as it is"
        yield refused(rule, data.augment, "Delete crop_scale and augment.", ("data", "augment"))
