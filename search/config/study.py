"""StudyConfig: the contents of a config file, with the rules that concern more than one section."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.disk.filesystems import is_url
from finetune.errors import did_you_mean
from finetune.model.known_backbones import OUTLINES
from finetune.strategy import STRATEGIES as BY_NAME
from search.config import parts, private, problems, sections, yaml_text
from search.config.domain import (
    ALL_WORD,
    STRATEGIES,
    Domain,
    PerStrategy,
    Range,
    Section,
    entries,
    refused,
    values_of,
)
from search.config.sections import SETTINGS

FROM_RANDOM = tuple(name for name, strategy in BY_NAME.items() if not strategy.needs_pretrained)
"""Strategies that can use random weights of the source."""
SCHEMA_FILE = Path(__file__).parents[2] / "configs" / "schema.json"


class StudyConfig(Section):
    """One study. `search/config/sections/` defines every key with its meaning and default."""

    study: sections.Study
    """Name, goal and limits of the study."""
    data: sections.Data
    """Images of the new task."""
    model: sections.Model = sections.Model()
    """Pretrained model to transfer."""
    space: sections.SpaceSection = sections.SpaceSection()
    """Strategies and hyperparameters that are searched."""
    features: sections.Features = sections.Features()
    """Storage for the outputs of frozen blocks."""
    early_stopping: sections.EarlyStopping = sections.EarlyStopping()
    """Rule that stops trials which lag behind."""
    verdict: sections.Verdict = sections.Verdict()
    """Trainings with other seeds that tell whether the winner is really better."""
    privacy: sections.Privacy = sections.Privacy()
    """Differential privacy of the images."""
    resources: sections.Resources = sections.Resources()
    """Slots, processes, cores and GPUs that train the trials."""
    results: sections.FilePath = "results"
    """Folder of all studies; if it is left out, `results` in the current folder."""

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, values: Any) -> Any:
        """Read a section without keys, such as a lone `space:`, as one with all defaults."""
        if not isinstance(values, Mapping):
            return values
        return {key: {} if value is None and key != "results" else value for key, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _parts_have_defaults(cls, values: Any) -> Any:
        return parts.with_defaults(values)

    @field_validator("space")
    @classmethod
    def _space_fits(cls, space: sections.SpaceSection, info: ValidationInfo) -> sections.SpaceSection:
        """Check the rules that connect the space with data and model, and raise all errors at once."""
        errors = list(_missing_strategies(space, info.data))
        # A section that is itself refused is missing here; its own errors are reported instead.
        model, data = info.data.get("model"), info.data.get("data")
        if model is not None and data is not None:
            errors += _sizes_not_read(model.backbones, data.image_size)
        if data is not None:
            errors += parts.not_supported(data, model, space, info.data.get("study"))
        if model is not None:
            errors += _blocks_not_there(model.backbones, space.frozen_layers)
            errors += _weights_not_there(model, space)
        if errors:
            details = [InitErrorDetails(type=error, input=space) for error in errors]
            raise ValidationError.from_exception_data("space", details)
        return space

    @field_validator("early_stopping")
    @classmethod
    def _grace_fits(cls, early: sections.EarlyStopping, info: ValidationInfo) -> sections.EarlyStopping:
        study = info.data.get("study")
        if study is not None and early.grace != "auto" and early.grace > study.epochs:
            rule = f"must be at most study.epochs ({study.epochs})"
            raise refused(rule, early.grace, "Lower it, or write auto.", ("early_stopping", "grace"))
        return early

    @field_validator("privacy")
    @classmethod
    def _nothing_goes_unpaid(cls, privacy: sections.Privacy, info: ValidationInfo) -> sections.Privacy:
        errors = list(private.refusals(info.data)) if privacy.is_on else []
        if errors:
            details = [InitErrorDetails(type=error, input=privacy) for error in errors]
            raise ValidationError.from_exception_data("privacy", details)
        return privacy

    @field_validator("resources")
    @classmethod
    def _workers_get_images(cls, resources: sections.Resources, info: ValidationInfo) -> sections.Resources:
        data = info.data.get("data")
        if data is not None and (least := min(_least(data.batch_size))) < resources.workers_per_trial:
            rule = f"must be at least resources.workers_per_trial ({resources.workers_per_trial})"
            fix = "Raise it, or lower workers_per_trial."
            raise refused(rule, least, fix, ("data", "batch_size"))
        return resources

    @property
    def backbones(self) -> tuple[str, ...]:
        """All backbones that a trial may use."""
        return self.model.backbones

    @property
    def parts(self) -> frozenset[str]:
        """Parts that a sample of the study has: `image`, and perhaps `text` and `frames`."""
        return parts.of(self.data)

    @property
    def blocks(self) -> dict[str, int]:
        """Number of blocks of each backbone."""
        return {name: OUTLINES[name].blocks for name in self.backbones}

    @property
    def least_image_size(self) -> int:
        """Smallest image size that a trial may use, in pixels."""
        return min(_least(self.data.image_size))

    @property
    def strategies(self) -> tuple[str, ...]:
        """All strategies that a sampled trial may use."""
        return tuple(str(name) for name in values_of(self.space.strategy))

    @property
    def grace(self) -> int:
        """Epochs that every trial may run; `auto`: an eighth of all epochs, at least two if there are two."""
        grace, epochs = self.early_stopping.grace, self.study.epochs
        return min(epochs, max(2, math.ceil(epochs / 8))) if grace == "auto" else grace

    @property
    def folder(self) -> Path:
        """The study's results folder."""
        return Path(self.results) / self.study.name

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], locate: problems.Locate = problems.nowhere
    ) -> "StudyConfig":
        """Check `values`, laid out as in a config file; relative paths start at the current folder.

        Args:
            values: sections by name.
            locate: returns the place of a value in the config file or on the command line.

        Raises:
            ConfigErrors: with every mistake.

        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = problems.problems(error, values, known_keys, locate)
        raise problems.ConfigErrors(found)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], **options: Any) -> "StudyConfig":
        """Make a study on a folder of images without a config file.

        Args:
            path: the folder or its URL; the study is named after it unless `name` is given.
            **options: any key of any section (`trials=10, backbone="vgg16"`), or a whole section. `name`
                sets the key of `study`; write `data={"name": ...}` for the key of the same name there.

        Raises:
            ConfigErrors: with every mistake.

        """
        where = os.fspath(path)
        name = where.rstrip("/").rpartition("/")[2] if is_url(where) else Path(where).resolve().name
        values = _by_section({"path": where, **options})
        values.setdefault("study", {}).setdefault("name", _as_name(name))
        if values.get("model", {}).get("weights") == sections.RANDOM_WEIGHTS:
            values.setdefault("space", {}).setdefault("strategy", FROM_RANDOM)
        return cls.from_dict(values)

    def to_yaml(self) -> str:
        """Return a config file with every key, defaults included, that loads to an equal config."""
        text = yaml_text.dump(self.model_dump(mode="json", exclude_none=True))
        # Editors find the schema by this line; an installed copy has no schema to name.
        return f"# yaml-language-server: $schema={SCHEMA_FILE}\n{text}" if SCHEMA_FILE.exists() else text


def _as_name(folder: str) -> str:
    """Return a valid study name made from the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("._-")[:64] or "study"


def overrides(options: Mapping[str, Any]) -> list[str]:
    """Return the options of `search.run` in the form that `--set` takes.

    Raises:
        ConfigErrors: no section has a key of that name, or a key is given twice.
    """
    found = []
    for section, said in _by_section(options).items():
        if isinstance(said, Mapping):
            found += [f"{section}.{key}={json.dumps(value, default=str)}" for key, value in said.items()]
        else:
            found.append(f"{section}={json.dumps(said, default=str)}")
    return found


def _by_section(options: Mapping[str, Any]) -> dict[str, Any]:
    """Group options by section; a key that occurs in two sections belongs to the first one."""
    fields = StudyConfig.model_fields
    homes = {key: name for name in reversed(fields) for key in known_keys((name,))}
    values: dict[str, Any] = {}
    wrong = []
    for key, value in options.items():
        if key not in homes and not (key in fields and (key == "results" or isinstance(value, Mapping))):
            wrong.append(f"unknown option '{key}'. {did_you_mean(key, [*homes, *fields])}")
        elif key == "results":
            values[key] = value
        else:
            section, said = (homes[key], {key: value}) if key in homes else (key, value)
            twice = values.get(section, {}).keys() & said.keys()
            wrong += [f"{section}.{name}: must be given once, got it twice. Leave one out." for name in twice]
            values[section] = {**values.get(section, {}), **said}
    if wrong:
        raise problems.ConfigErrors(problems.Problem(problems.Place(), text) for text in wrong)
    return values


def _sizes_not_read(backbones: Iterable[str], sizes: Domain) -> Iterable[PydanticCustomError]:
    """Yield one error, for the first size over all strategies that one of the backbones cannot read."""
    for backbone in backbones:
        sides = OUTLINES[backbone].sides
        for size in _sizes_to_try(sizes):
            if sides.nearest(size) != size:
                rule, fix = f"must be {sides} for {backbone}", f"Set it to {sides.nearest(size)}."
                yield refused(rule, size, fix, ("data", "image_size"))
                return


def _blocks_not_there(backbones: Iterable[str], frozen: Domain) -> Iterable[PydanticCustomError]:
    """Yield an error if the space asks for more frozen blocks than some backbone has."""
    named = [
        value
        for entry in entries(frozen, STRATEGIES).values()
        for value in ((entry.low, entry.high) if isinstance(entry, Range) else values_of(entry))
    ]
    most = max((value for value in named if isinstance(value, int)), default=0)
    blocks = {name: OUTLINES[name].blocks for name in backbones if OUTLINES[name].blocks < most}
    if blocks:
        rule = "must be at most the blocks of " + ", ".join(f"{name} ({n})" for name, n in blocks.items())
        fix = f"Write at most {min(blocks.values())}, a share such as 0.5, or '{ALL_WORD}'."
        yield refused(rule, most, fix, ("space", "frozen_layers"))


def _sizes_to_try(sizes: Domain) -> Iterable[int]:
    """Yield every size to check; for a range the first, second and last, since the others then fit too."""
    for entry in entries(sizes, STRATEGIES).values():
        if isinstance(entry, Range):
            numbers = range(entry.low, entry.high + 1, entry.step or 1)
            yield from (numbers[0], numbers[1], numbers[-1])
        else:
            yield from (int(value) for value in values_of(entry))


def _least(domain: Domain) -> Iterable[int]:
    """Yield the whole numbers of a domain, over all strategies; for a range only its lower end."""
    for entry in entries(domain, STRATEGIES).values():
        if isinstance(entry, Range):
            yield entry.low
        else:
            yield from (int(value) for value in values_of(entry))


def _weights_not_there(model: sections.Model, space: sections.SpaceSection) -> list[PydanticCustomError]:
    """Return the errors about strategies that need pretrained weights, with backbones that have none."""
    errors = []
    for name in (str(one) for one in values_of(space.strategy)):
        used = values_of(entries(model.backbone, (name,))[name]) if BY_NAME[name].needs_pretrained else ()
        untrained = [str(b) for b in used if model.weights_of(str(b)) == sections.RANDOM_WEIGHTS]
        if untrained:
            fix = f"Choose weights, or write `strategy: [{', '.join(FROM_RANDOM)}]`."
            rule = f"the strategy `{name}` needs pretrained weights"
            got = f"model.weights none for {', '.join(untrained)}"
            errors.append(refused(rule, got, fix, ("space", "strategy")))
    return errors


def _missing_strategies(space: sections.SpaceSection, data: dict[str, Any]) -> list[PydanticCustomError]:
    """Return an error for each mapping that leaves out a searched strategy which uses the field."""
    searched = tuple(str(name) for name in values_of(space.strategy))
    parts = {"data": data.get("data"), "model": data.get("model"), "space": space}
    errors = []
    for section, part in parts.items():
        for field, domain in part or ():
            if not isinstance(domain, PerStrategy):
                continue
            said = entries(domain, searched)
            lacking = [s for s in searched if said[s] is None and SETTINGS[field].by(BY_NAME[s])]
            if lacking:
                rule = "a mapping must name every searched strategy"
                got = f"none for {', '.join(lacking)}"
                errors.append(refused(rule, got, f"Add `{lacking[0]}:`.", (section, field)))
    return errors


_KEYS: dict[str, tuple[str, ...]] = {
    **{
        name: tuple(field.annotation.model_fields)
        for name, field in StudyConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    },
    "source": tuple(sections.Source.model_fields),
    "<pretraining>": tuple(sections.Pretraining.model_fields),
    "<range>": tuple(Range.model_fields),
    "<strategies>": STRATEGIES,
}


def known_keys(location: problems.Path) -> tuple[str, ...]:
    """Return the keys that the mapping at one of pydantic's locations may have."""
    return _KEYS.get(str(location[-1]), ()) if location else tuple(StudyConfig.model_fields)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file, for editors (draft 2020-12)."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**head, **StudyConfig.model_json_schema()}
