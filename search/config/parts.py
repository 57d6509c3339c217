"""Rules for studies whose samples have text or several frames: defaults, and what is not supported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from finetune.model.known_backbones import OUTLINES, reads_clips
from finetune.strategy import FUSE, REPLACE
from search.config.domain import ALL_WORD, Range, entries, refused, values_of
from search.config.domain import STRATEGIES as NAMES
from search.config.sections import EXACT, SETTINGS, Data, Model, Pretraining, SpaceSection, Study

ALLOWED = (REPLACE.name, FUSE.name)
"""Strategies for samples with text or several frames. `load` is none: its head is the source FC, which reads
an image and nothing else."""


def of(data: Data) -> frozenset[str]:
    """Return what a sample has: `image`, and perhaps `text` and `frames`."""
    more = {"text": data.text is not None, "frames": data.frames > 1}
    return frozenset({"image", *(name for name, there in more.items() if there)})


def with_defaults(values: Any) -> Any:
    """Return a config in which a study of text or clips has the defaults that suit it."""
    data = values.get("data") if isinstance(values, Mapping) else None
    if not isinstance(data, Mapping):
        return values
    text, frames = data.get("text"), data.get("frames", 1)
    if text is None and (not isinstance(frames, int) or frames <= 1):
        return values
    names = ["image_only", "text_only", "recipe"] if text is not None else ["recipe"]
    study, space = values.get("study"), values.get("space", {})
    found = dict(values)
    if isinstance(space, Mapping):
        found["space"] = {"strategy": REPLACE.name, "frozen_layers": ALL_WORD, **_begins(space), **space}
    if isinstance(study, Mapping):
        trials = study.get("trials")
        most = trials if isinstance(trials, int) and trials > 0 else len(names)
        found["study"] = {"baselines": [EXACT, *names[:most]], **study}
    return found


def _begins(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return how heads of `fuse` begin, if the space names it."""
    return {"head_init": "random"} if FUSE.name in str(space.get("strategy")) else {}


def not_supported(
    data: Data, model: Model | None, space: SpaceSection, study: Study | None
) -> Iterator[PydanticCustomError]:
    """Yield an error for each setting that the parts of a sample, or the backbones, do not allow."""
    parts, names = of(data), study.baselines if study is not None else ()
    yield from _without_their_part(parts, space, names)
    if model is not None:
        yield from _for_clips(data, model, space)
    if parts == {"image"}:
        return
    if wrong := [name for name in values_of(space.strategy) if name not in ALLOWED]:
        rule = (
            "must be replace or fuse for samples with text or frames, as the source FC reads an image alone"
        )
        yield refused(rule, wrong, f"Write {REPLACE.name}.", ("space", "strategy"))
    if FUSE.name in values_of(space.strategy) and values_of(space.head_init) != ("random",):
        rule = "heads for samples with text or several frames begin at random"
        yield refused(rule, list(values_of(space.head_init)), "Write random.", ("space", "head_init"))
    if "text" in values_of(space.fusion) and _trains_image(space):
        rule = "a head that reads the text alone trains no blocks"
        fix = "Leave text out, or write `strategy: replace` and `frozen_layers: all`."
        yield refused(rule, list(values_of(space.fusion)), fix, ("space", "fusion"))
    if values_of(space.mix) != ("none",):
        rule = "samples with several parts are not blended"
        yield refused(rule, space.mix, "Write none.", ("space", "mix"))
    if study is not None and study.goal.measured:
        rule = "the cost of models that read text or clips is not measured"
        yield refused(rule, list(study.goal.measured), "Delete it.", ("study", "objectives"))
    if study is not None and study.refit:
        yield refused(
            "models that read text or clips are not refitted", True, "Delete it.", ("study", "refit")
        )


def _trains_image(space: SpaceSection) -> bool:
    """Return True if a trial may train blocks of the backbone, or its source FC."""
    frozen = entries(space.frozen_layers, NAMES)[REPLACE.name]
    all_frozen = not isinstance(frozen, Range) and values_of(frozen) == (ALL_WORD,)
    return not all_frozen or values_of(space.strategy) != (REPLACE.name,)


def _for_clips(data: Data, model: Model, space: SpaceSection) -> Iterator[PydanticCustomError]:
    """Yield an error for each setting that does not go with backbones that read clips."""
    clips = [name for name in model.backbones if reads_clips(name)]
    for name in clips:
        frames = OUTLINES[name].frames
        least = 2 if frames is None else max(2, frames.least)
        if frames is not None and (data.frames < 2 or not frames.accepts(data.frames)):
            many = str(frames) if frames.most else f"at least {least}"
            fix = f"Set it to {least}, or choose a backbone that reads images."
            yield refused(
                f"must be {many} for {name}, which reads clips", data.frames, fix, ("data", "frames")
            )
        if isinstance(model.weights_of(name), Pretraining):
            rule = f"a source task has images, and {name} reads clips"
            fix = "Write DEFAULT, a weights file, or none."
            yield refused(rule, "a source", fix, ("model", "weights"))
    if clips and len(clips) == len(model.backbones):
        for key in ("pooling", "frames_used"):
            if (given := getattr(space, key)) != getattr(_DEFAULT, key):
                rule = f"{', '.join(clips)} {'reads' if len(clips) == 1 else 'read'} all frames at once"
                yield refused(rule, given, "Delete it.", ("space", key))


def _without_their_part(
    parts: frozenset[str], space: SpaceSection, baselines: Sequence[str]
) -> Iterator[PydanticCustomError]:
    """Yield an error for each setting that is written, but whose part the samples lack."""
    for name, setting in SETTINGS.items():
        given = getattr(space, name, None)
        if setting.needs not in parts and given != getattr(_DEFAULT, name, None):
            key = {"text": "data.text", "frames": "data.frames above 1"}[setting.needs]
            yield refused(f"needs {key}", given, "Set that, or delete this.", ("space", name))
    alone = [name for name in baselines if name in ("image_only", "text_only")]
    if alone and "text" not in parts:
        yield refused("needs data.text", alone, "Delete it.", ("study", "baselines"))


_DEFAULT = SpaceSection()
