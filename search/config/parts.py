"""Rules for studies whose samples have text or several frames: defaults, and what is not supported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from finetune.strategy import REPLACE
from search.config.domain import ALL_WORD, Range, entries, refused, values_of
from search.config.domain import STRATEGIES as NAMES
from search.config.sections import EXACT, SETTINGS, Data, SpaceSection, Study

REASON = "samples with text or several frames train a head on the features of a frozen backbone"


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
        found["space"] = {"strategy": REPLACE.name, "frozen_layers": ALL_WORD, **space}
    if isinstance(study, Mapping):
        trials = study.get("trials")
        most = trials if isinstance(trials, int) and trials > 0 else len(names)
        found["study"] = {"baselines": [EXACT, *names[:most]], **study}
    return found


def not_supported(data: Data, space: SpaceSection, study: Study | None) -> Iterator[PydanticCustomError]:
    """Yield an error for each setting that the parts of a sample do not allow."""
    parts, names = of(data), study.baselines if study is not None else ()
    yield from _without_their_part(parts, space, names)
    if parts == {"image"}:
        return
    if wrong := [name for name in values_of(space.strategy) if name != REPLACE.name]:
        rule = f"{REASON}: must be {REPLACE.name}"
        yield refused(rule, wrong, f"Write {REPLACE.name}.", ("space", "strategy"))
    frozen = entries(space.frozen_layers, NAMES)[REPLACE.name]
    if isinstance(frozen, Range) or values_of(frozen) != (ALL_WORD,):
        got = "a range" if isinstance(frozen, Range) else list(values_of(frozen))
        yield refused(f"{REASON}: must be all", got, "Write all.", ("space", "frozen_layers"))
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
    if "scratch" in names:
        yield refused(
            f"{REASON}, which scratch does not", list(names), "Leave it out.", ("study", "baselines")
        )


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
