"""Everything else that would read the private images, and what a private study makes of it."""

from dataclasses import dataclass
from typing import Literal

from search.config.study import StudyConfig

How = Literal["paid for", "off", "refused", "public"]


@dataclass(frozen=True)
class Read:
    """Something that reads the images, or that depends on them."""

    what: str
    how: How
    why: str


def reads(config: StudyConfig) -> list[Read]:
    """Return everything that would read the images of a private study, and what becomes of it."""
    study = config.study
    mean = f"{study.trials} trials on average, of a number that is drawn and kept secret"
    return [
        Read("training of heads on frozen features", "paid for", "by the noise of each trial"),
        Read("the search", "paid for", f"{mean}; independent draws; only the best is released"),
        Read("scores on validation images, which choose", "paid for", "one noisy count for each trial"),
        Read("the score on test images", "paid for", "one noisy count, of the released model alone"),
        Read("training of blocks, augmentation, class weights", "refused", "no mechanism for them"),
        Read("early stopping, patience, budget, sampler", "refused", "one trial's score would decide others"),
        Read("baselines (exact, recipe, scratch) and the verdict", "off", "they read images without noise"),
        Read("temperature of the probabilities", "off", "1; it would be fitted on validation images"),
        Read("answers, mistakes, pictures, explanations, nearest images", "off", "none is stored"),
        Read("label suspects and data.exclude", "refused", "a list made by looking at the images"),
        Read("hash of the images, class frequencies", "off", "not in the model folder"),
        Read(
            "pretrained weights and their normalisation",
            "public",
            "by your word: they saw none of these images",
        ),
        Read("class names, number of images by split, the split itself", "public", "by your word"),
        Read(
            "stored features and decoded images",
            "off",
            "they stay on this machine; `cache --clear` removes them",
        ),
    ]


def lines(config: StudyConfig) -> list[str]:
    """Return the list as lines of text."""
    return [f"  {read.how:9s} {read.what}: {read.why}" for read in reads(config)]
