"""The conditional search space: the strategy is suggested first, then only the fields that it uses.

Optuna knows a parameter by its field's name (`head_size`), followed by the strategy if the config has a
domain for each (`learning_rate/fuse`), and by the backbone if its number of blocks ends the range
(`frozen_layers/fuse/vgg16`). So one name never has two ranges. Shares of blocks have one range for all
backbones.

A walk goes through FIELDS in order and asks a `Question` for each field that is used, given the answers so
far. Suggesting, checking and completing parameters are walks that answer the questions in different ways.
"""

import copy
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from finetune.settings import ALL, DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.strategy import STRATEGIES as BY_NAME
from search.config.domain import (
    ALL_WORD,
    STRATEGIES,
    Domain,
    PerStrategy,
    Range,
    Value,
    entries,
    values_of,
)
from search.config.sections import (
    DATA_FIELDS,
    EXACT,
    RANDOM_WEIGHTS,
    SETTINGS,
    Pretraining,
    SpaceSection,
    is_weights_file,
)
from search.config.setting import Asked
from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.suggest.baselines import BASELINES, EXACT_FIELDS
from search.suggest.question import Answer, Question, count_frozen, fixed_value, is_near, started

# Other fields are used or not depending on the values of these, so these are walked first.
_FIRST = ("strategy", "backbone", "optimizer", "frozen_layers", "imbalance", "mix", "l2_sp")
FIELDS = (*_FIRST, *(name for name in SETTINGS if name not in (*_FIRST, *DATA_FIELDS)), *DATA_FIELDS)
_DEFAULTS = {field.name: field.default for field in fields(DataSettings)}
MUST_FIT = ("strategy", "optimizer", "learning_rate", "head_init")
"""Fields of a setting from elsewhere without which it is another setting."""

_USUAL_INIT = SpaceSection().head_init
_NOTHING: Mapping[str, Value] = MappingProxyType({})


class Space:
    """The search space of a study."""

    def __init__(self, config: StudyConfig) -> None:
        self._config = config
        self._blocks = config.blocks
        said = {**dict(config.data), **dict(config.model), **dict(config.space)}
        self._parts = config.parts
        self._domains: dict[str, Domain] = {field: said[field] for field in FIELDS}
        weights = [config.model.weights_of(backbone) for backbone in config.backbones]
        # On features of random weights the exact solution is so large that training from it diverges.
        if RANDOM_WEIGHTS in weights and self._domains["head_init"] == _USUAL_INIT:
            self._domains["head_init"] = "random"

    @property
    def backbones(self) -> tuple[str, ...]:
        """All backbones that a trial may use."""
        return self._config.backbones

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask Optuna for every value that the trial's strategy uses.

        Returns:
            All used fields by plain name, those that the config fixes included.

        """
        return self._walk(lambda question: question.ask(trial))

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return True if `suggest` could return `params`.

        A fixed trial outside the space, such as the recipe with Adam where only SGD is searched, must be
        hidden from the sampler, which would credit its score to the values that it does know.
        """
        if "weights" in params or params.get("strategy") not in self._config.strategies:
            return False
        try:
            questions = self._questions(params)
        except KeyError:  # the config was changed since: a field that is now used has no value in `params`
            return False
        return all(
            q.held(params[q.field]) is not None if q.is_searched else params[q.field] == q.usual()
            for q in questions
        )

    def enqueue_params(self, params: Mapping[str, Any]) -> dict[str, Value]:
        """Return the arguments of `study.enqueue_trial` with which `suggest` returns `params`.

        The space must contain `params`; see `holds`.
        """
        held = {q.name: q.held(params[q.field]) for q in self._questions(params) if q.is_searched}
        return {name: value for name, value in held.items() if value is not None}

    def learned(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial of the record as this space would have suggested it.

        The two differ if the config was changed. A trial outside the space loses its parameters, so that the
        sampler learns nothing from it.
        """
        params = trial.user_attrs.get("params", {})
        asked = [q for q in self._questions(params) if q.is_searched] if self.holds(params) else []
        held = {q.name: q.held(params[q.field]) for q in asked}
        distributions = {q.name: q.distribution for q in asked}
        if (held, distributions) == (trial.params, trial.distributions):
            return trial
        now = copy.copy(trial)
        now.params, now.distributions = held, distributions
        return now

    def sampled(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `params` as the record holds them after a suggestion: 9 of 18 blocks may become 0.5."""
        if not self.holds(params):
            return params
        held = self.plain(self.enqueue_params(params))
        return {**params, **held}

    def _questions(self, params: Mapping[str, Any]) -> list[Question]:
        """Return the questions whose answers are `params`, in order."""
        asked: list[Question] = []

        def answer(question: Question) -> Any:
            asked.append(question)
            return params[question.field]

        self._walk(answer)
        return asked

    def baseline(self, name: str, backbone: str | None = None) -> dict[str, Any]:
        """Return every value of a baseline, so that nothing of it is sampled.

        The fields in DATA_FIELDS have their defaults if these are in the domain, else the first value in the
        config.

        Args:
            name: name of the baseline.
            backbone: backbone to use; None: the first one that the baseline's strategy may use.
        """
        fixed = {**BASELINES[name], **({"backbone": backbone} if backbone else {})}
        wanted = {**_DEFAULTS, "backbone": self._config.backbones[0]}
        return self._walk(lambda q: fixed.get(q.field, q.usual(wanted.get(q.field))), fixed)

    def starts(self) -> list[dict[str, Any]]:
        """Return the start of each searched strategy whose settings all lie in the space."""
        found = []
        for strategy in self._config.strategies:
            wanted = {"strategy": strategy, **BY_NAME[strategy].start}
            share = BY_NAME[strategy].start_frozen
            params = self._walk(partial(started, wanted, share))
            frozen = is_near(params, share, self._blocks[params["backbone"]])
            if frozen and all(params.get(field) == value for field, value in wanted.items()):
                found.append(params)
        return found

    def placed(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the trial of this space that is nearest to a setting from elsewhere; None if none is near.

        The fields in MUST_FIT must be in the space, and the share of frozen blocks nearly.
        Other fields take the config's value where it does not search them, or not this value.

        Args:
            wanted: values by plain name, `frozen_layers` as a share of the blocks.
        """
        if wanted.get("strategy") not in self._config.strategies:
            return None
        share = float(wanted["frozen_layers"])
        params = self._walk(partial(started, wanted, share))
        near = is_near(params, share, self._blocks[params["backbone"]])
        kept = all(params.get(name) == wanted[name] for name in MUST_FIT if name in wanted)
        return params if near and kept else None

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Return True if a trial trains blocks, False if it trains a head on frozen features."""
        return self.trained_share(params) > 0

    def trained_share(self, params: Mapping[str, Any]) -> float:
        """Return the share of the backbone's blocks that a trial trains."""
        blocks = self._blocks.get(params.get("backbone", ""), 0)
        frozen = params.get("frozen_layers", ALL_WORD)
        return 1 - min(1.0, count_frozen(frozen, blocks) / blocks) if blocks else 0.0

    @property
    def arms(self) -> dict[str, bool]:
        """Each searched strategy, and whether its trials count against `study.trials`.

        Heads on frozen features do not count, unless the space has nothing else.
        """
        arms = {name: self._may_train(name) for name in self._config.strategies}
        return arms if any(arms.values()) else dict.fromkeys(arms, True)

    def _may_train(self, strategy: str) -> bool:
        said = entries(self._domains["frozen_layers"], (strategy,))[strategy]
        least = [said.low] if isinstance(said, Range) else values_of(said)
        return any(count_frozen(n, blocks) < blocks for n in least for blocks in self._blocks.values())

    def settings(self, params: Mapping[str, Any], *, number: int, cache_dir: str) -> TrialSettings:
        """Return the complete settings of trial `number`.

        Args:
            params: by plain names, as `suggest` and `baseline` return them; those that the config
                fixes may be missing.
            number: number of the trial, from 0, from which its seed follows.
            cache_dir: absolute path of the cache on each node.

        Raises:
            KeyError: a searched field that is used has no value in `params`.

        """
        values = self._walk(lambda q: params[q.field] if q.field in params else fixed_value(q), params)
        frozen, blocks = values["frozen_layers"], self._blocks[values["backbone"]]
        if values["strategy"] == EXACT:  # nothing is trained
            values |= {"learning_rate": 0.0, "batch_size": DataSettings.batch_size}
        values["frozen_layers"] = ALL if frozen == ALL_WORD else count_frozen(frozen, blocks)
        study, said = self._config.study, self._config.data
        data = DataSettings(
            **said.samples,
            validation_share=said.validation_share,
            test_share=said.test_share,
            views=said.views,
            seed=study.seed,
            **{field: values.pop(field) for field in DATA_FIELDS},
        )
        weights = values.pop("weights", self._config.model.weights_of(values["backbone"]))
        return TrialSettings(
            data=data,
            weights=self.weights(weights, data.image_size),
            epochs=1 if values["strategy"] == EXACT else study.epochs,
            precision=self._config.model.precision,
            seed=trial_seed(study.seed, number),
            cache_dir=cache_dir,
            **values,
        )

    def settings_of(self, trial: TrialRecord, *, cache_dir: str) -> TrialSettings:
        """Return the complete settings of a trial in the record, with today's paths of data and weights."""
        first = trial.number if trial.seed_of is None else trial.seed_of
        return self.settings(trial.params, number=first, cache_dir=cache_dir)

    def settings_now(self, trial: TrialRecord, *, cache_dir: str) -> TrialSettings | None:
        """Return `settings_of`, or None if the config was changed and no longer yields this trial."""
        try:
            return self.settings_of(trial, cache_dir=cache_dir)
        except KeyError:
            return None

    @staticmethod
    def plain(params: Mapping[str, Any]) -> dict[str, Any]:
        """Return Optuna's `params` by the plain names of their fields, as the record holds them."""
        return {name.split("/")[0]: value for name, value in params.items()}

    def _walk(self, answer: Answer, fixed: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
        """Ask about each field that is used, given the answers so far, and return all answers by field.

        `fixed` may hold `weights`, which are no searched field and are passed on.
        """
        params: dict[str, Any] = {}
        for field in FIELDS:
            if self._is_used(field, params):
                params[field] = answer(self._question(field, params))
        return {**params, "weights": fixed["weights"]} if "weights" in fixed else params

    def _is_used(self, field: str, params: Mapping[str, Any]) -> bool:
        """Return whether a trial with these answers so far uses the field."""
        if params.get("strategy") == EXACT:
            return field in EXACT_FIELDS and SETTINGS[field].needs in self._parts
        own = BY_NAME.get(params.get("strategy", ""))
        if own is None:  # the strategy itself is asked for first
            return True
        if SETTINGS[field].needs not in self._parts:
            return False
        return SETTINGS[field].is_used(Asked(own, params, lambda: self.trains(params)))

    def _question(self, field: str, params: Mapping[str, Any]) -> Question:
        """Return the question about a field: its domain and Optuna's name under the answers so far."""
        name, domain = field, self._domains[field]
        if isinstance(domain, PerStrategy):
            # `exact` has no domains of its own: it takes those of the first strategy that has one.
            strategy = params["strategy"] if params["strategy"] != EXACT else _first_of(domain)
            name, domain = f"{name}/{strategy}", getattr(domain, strategy)
        blocks = self._blocks[params["backbone"]] if "backbone" in params else None
        # A range up to `all` ends at the number of blocks of the trial's backbone, or at the last step below.
        if isinstance(domain, Range) and domain.high == ALL_WORD and blocks is not None:
            step = domain.step or 1
            high = domain.low + (blocks - domain.low) // step * step
            domain = domain.model_copy(update={"high": high})
            name = f"{name}/{params['backbone']}" if len(self._config.backbones) > 1 else name
        return Question(field, name, domain, blocks)

    def weights(self, weights: str | Pretraining, image_size: int) -> WeightsSettings:
        """Return the weights of one backbone in the config, as settings for the workers."""
        if isinstance(weights, str):
            if weights == RANDOM_WEIGHTS:
                return WeightsSettings()
            return (
                WeightsSettings(file=weights) if is_weights_file(weights) else WeightsSettings(name=weights)
            )
        source, seed = weights.source, self._config.study.seed
        # All trials share these weights, so a flip that is searched cannot follow the trial: mirror then.
        flip = Question("", "", self._config.data.horizontal_flip, None).usual(True)
        data = DataSettings(**source.images, image_size=image_size, horizontal_flip=flip, seed=seed)
        epochs, rate = source.epochs, source.learning_rate
        return WeightsSettings(source=SourceSettings(data=data, epochs=epochs, learning_rate=rate, seed=seed))


def _first_of(domain: PerStrategy) -> str:
    return next(strategy for strategy in STRATEGIES if getattr(domain, strategy) is not None)


def trial_seed(study_seed: int, number: int) -> int:
    """Return the seed of trial `number`: 32 bits of NumPy's SeedSequence, whose algorithm never changes."""
    return int(np.random.SeedSequence((study_seed, number)).generate_state(1)[0])
