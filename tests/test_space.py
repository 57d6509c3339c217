"""The space asks only for what a trial uses, and a trial's settings say what was decided."""

import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from finetune.metrics import Objective
from finetune.settings import ALL, TrialSettings, WeightsSettings
from search.config.study import StudyConfig
from search.driver.to_do import to_do
from search.record import reader
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.suggest.chooser import Chooser
from search.suggest.models import samplers
from search.suggest.sampler import StudySearcher
from search.suggest.space import Space, trial_seed
from tests.by_hand import train_job

BLOCKS = {"vgg13": 10, "efficientnet_b0": 18}


def space_of(**sections: Any) -> Space:
    values: dict[str, Any] = {
        "study": {"name": "s"},
        "data": {"path": "/images"},
        "model": {"backbone": "vgg13"},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return Space(StudyConfig.from_dict(values))


def tpe() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=0)
    return optuna.create_study(direction="maximize", sampler=sampler)


def search(space: Space, trials: int = 60) -> list[tuple[dict[str, Any], FrozenTrial]]:
    """Run a study; the score prefers `fuse` with a rate near 0.003."""
    study, seen = tpe(), []
    for _ in range(trials):
        trial = study.ask()
        params = space.suggest(trial)
        score = (params["strategy"] == "fuse") - abs(params["learning_rate"] - 0.003)
        seen.append((params, study.tell(trial, score)))
    return seen


EVERYTHING: dict[str, Any] = {
    "data": {
        "batch_size": [16, 32],
        "crop_scale": {"low": 0.2, "high": 1.0},
        "horizontal_flip": [True, False],
    },
    "model": {"backbone": ["vgg13", "efficientnet_b0"]},
    "space": {
        "optimizer": ["sgd", "adamw"],
        "momentum": {"low": 0.5, "high": 0.99},
        "head_size": [0, 64],
        "frozen_layers": {"replace": [8, "all"], "load": "all", "fuse": {"low": 0, "high": "all", "step": 3}},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
    },
}


def test_a_trial_is_asked_only_for_what_its_strategy_uses() -> None:
    seen = search(space_of(**EVERYTHING))
    assert {params["strategy"] for params, _ in seen} == {"replace", "load", "fuse"}
    assert {params["backbone"] for params, _ in seen} == set(BLOCKS)
    for params, trial in seen:
        load = params["strategy"] == "load"
        whole = params["frozen_layers"] in ("all", BLOCKS[params["backbone"]])
        assert ("head_size" in params) == ("head_size" in trial.params) == (not load)
        assert ("dropout" in trial.params) == (not load)
        assert ("backbone_rate" in params) == ("backbone_rate" in trial.params) == (not whole)
        assert ("momentum" in trial.params) == (params["optimizer"] == "sgd")
        assert f"learning_rate/{params['strategy']}" in trial.params
        if params["strategy"] == "fuse":
            assert params["frozen_layers"] == trial.params[f"frozen_layers/fuse/{params['backbone']}"]
            assert params["frozen_layers"] % 3 == 0
        assert {**params, **Space.plain(trial.params)} == params


WAYS: dict[str, Any] = {
    "space": {
        "imbalance": ["none", "focal", "class_balanced", "logit_adjustment"],
        "focal_gamma": [0.5, 2.0],
        "class_balanced_beta": [0.9, 0.999],
        "label_smoothing": [0.0, 0.1],
        "mix": ["none", "mixup"],
        "mix_alpha": [0.2, 1.0],
        "layer_decay": {"low": 0.5, "high": 1.0},
        "unfreeze_epochs": [0, 1],
        "l2_sp": {"low": 1e-4, "high": 1e-1, "log": True},
        "frozen_layers": {"replace": [3, "all"], "load": "all", "fuse": [3, 10]},
    },
    "data": {"augment": ["none", "trivial"]},
}


def test_a_way_to_fine_tune_is_asked_for_only_where_it_does_something() -> None:
    space = space_of(**WAYS)
    for params, trial in search(space):
        trains = params["frozen_layers"] not in ("all", 10)
        used = {
            "focal_gamma": params["imbalance"] == "focal",
            "class_balanced_beta": params["imbalance"] == "class_balanced",
            "logit_adjustment_tau": params["imbalance"] == "logit_adjustment",
            "label_smoothing": params["imbalance"] != "focal",
            "mix_alpha": params["mix"] == "mixup",
            "layer_decay": trains,
            "unfreeze_epochs": trains,
            "l2_sp": trains or params["strategy"] != "replace",
        }
        assert {name: name in params for name in used} == used
        assert {name: name in trial.params for name in used} == used
        assert trial.params["augment"] in ("none", "trivial")
        settings = space.settings(params, number=0, cache_dir="/cache")
        assert (settings.imbalance, settings.data.augment) == (params["imbalance"], params["augment"])
        assert TrialSettings.from_dict(settings.to_dict()) == settings


def test_ways_to_fine_tune_are_off_by_default_and_in_baselines() -> None:
    plain, searched = space_of(), space_of(**WAYS)
    found = [(plain, plain.suggest(tpe().ask())), (searched, searched.baseline("scratch"))]
    for space, params in found:
        settings = space.settings(params, number=0, cache_dir="/cache")
        assert (settings.imbalance, settings.mix, settings.data.augment) == ("none", "none", "none")
        assert (settings.layer_decay, settings.unfreeze_epochs, settings.accumulate) == (1.0, 0, 1)
        assert (settings.l2_sp, settings.ema_decay, settings.clip_norm) == (0.0, 0.0, 0.0)


def test_one_name_has_one_distribution() -> None:
    found: dict[str, Any] = {}
    for _, trial in search(space_of(**EVERYTHING)):
        for name, distribution in trial.distributions.items():
            assert found.setdefault(name, distribution) == distribution


def test_the_sampler_learns_in_a_conditional_space() -> None:
    late = search(space_of())[30:]
    assert sum(params["strategy"] == "fuse" for params, _ in late) > 15


def test_the_default_space_freezes_all_blocks_but_for_fuse() -> None:
    frozen: dict[str, set[Any]] = {"replace": set(), "load": set(), "fuse": set()}
    for params, _ in search(space_of()):
        frozen[params["strategy"]].add(params["frozen_layers"])
    assert frozen["replace"] == frozen["load"] == {"all"}
    assert frozen["fuse"] <= set(range(11))
    assert len(frozen["fuse"]) > 3


def test_a_fixed_value_is_never_asked_for() -> None:
    trial = tpe().ask()
    params = space_of(space={"strategy": "load", "learning_rate": 0.02}).suggest(trial)
    assert trial.params == {}
    assert (params["strategy"], params["learning_rate"]) == ("load", 0.02)


@pytest.mark.parametrize(
    ("said", "vgg13", "efficientnet_b0"),
    [(0.5, 5, 9), (0.25, 3, 5), (0.05, 1, 1), (0.04, 0, 1), (0.99, 10, 18), (1.0, ALL, ALL), (0.0, 0, 0)],
)
def test_a_share_of_the_blocks_becomes_a_number_of_each_backbones_own(
    said: float, vgg13: int, efficientnet_b0: int
) -> None:
    """Rounded, a half up: a quarter of 10 blocks are 3."""
    backbones = {"backbone": ["vgg13", "efficientnet_b0"]}
    space = space_of(model=backbones, space={"strategy": "fuse", "frozen_layers": said})
    params = {"strategy": "fuse", "learning_rate": 0.01, "head_size": 0, "head_init": "random",
              "backbone_rate": 1.0}  # fmt: skip
    for backbone, count in (("vgg13", vgg13), ("efficientnet_b0", efficientnet_b0)):
        settings = space.settings({**params, "backbone": backbone}, number=0, cache_dir="/cache")
        assert settings.frozen_layers == count


SHARES: dict[str, Any] = {
    "model": {"backbone": ["vgg13", "efficientnet_b0"]},
    "space": {
        "strategy": ["replace", "fuse"],
        "frozen_layers": {"replace": [0.97, "all", 3], "fuse": {"low": 0.0, "high": 1.0}},
    },
}


def test_a_range_of_shares_is_one_for_all_backbones_and_decides_what_else_is_asked() -> None:
    space = space_of(**SHARES)
    for params, trial in search(space):
        settings = space.settings(params, number=0, cache_dir="/cache")
        blocks = BLOCKS[params["backbone"]]
        frozen = blocks if settings.frozen_layers == ALL else settings.frozen_layers
        assert 0 <= frozen <= blocks
        assert ("backbone_rate" in params) == (frozen < blocks)
        if params["strategy"] == "fuse":
            assert params["frozen_layers"] == trial.params["frozen_layers/fuse"]
            assert abs(frozen - params["frozen_layers"] * blocks) <= 0.5


def test_trials_with_shares_come_back_when_enqueued_and_baselines_take_their_ends() -> None:
    space, study = space_of(**SHARES), tpe()
    for params, _ in search(space, trials=20):
        assert space.holds(params)
        study.enqueue_trial(space.enqueue_params(params))
        assert space.suggest(study.ask()) == params
    whole = space_of(
        space={"frozen_layers": {"low": 0.0, "high": 1.0}, "optimizer": ["sgd", "adam"],
               "schedule": ["cosine", "constant"], "weight_decay": [0.0, 1e-4]},
    )  # fmt: skip
    recipe = whole.baseline("recipe")
    assert whole.holds(recipe)
    assert whole.enqueue_params(recipe)["frozen_layers"] == 1.0
    one_block = {**whole.baseline("scratch"), **recipe, "frozen_layers": 1}
    del one_block["weights"]
    assert whole.holds(one_block)
    assert whole.enqueue_params(one_block)["frozen_layers"] == 0.1  # of vgg13's 10: not 1.0, which is all
    counted = space_of(space={"frozen_layers": {"low": 0, "high": "all"}, "optimizer": "adam",
                              "schedule": "constant", "weight_decay": 0.0})  # fmt: skip
    assert counted.holds(recipe)
    assert not counted.holds({**one_block, "frozen_layers": 0.5})


def test_each_backbone_has_its_own_weights() -> None:
    given = {"vgg13": "/w/r.pth", "efficientnet_b0": {"source": {"kind": "digits", "epochs": 2}}}
    space = space_of(model={"backbone": ["vgg13", "efficientnet_b0"], "weights": given})
    recipe = space.baseline("recipe")
    found = {}
    for backbone in BLOCKS:
        settings = space.settings({**recipe, "backbone": backbone}, number=0, cache_dir="/cache")
        found[backbone] = settings.weights
    assert found["vgg13"] == WeightsSettings(file="/w/r.pth")
    assert found["efficientnet_b0"].file is None
    assert found["efficientnet_b0"].source is not None
    assert found["efficientnet_b0"].source.epochs == 2
    scratch = space.settings(space.baseline("scratch"), number=1, cache_dir="/cache")
    assert scratch.weights == WeightsSettings()


def test_weight_decay_is_not_asked_for_where_l2_sp_pulls_everything() -> None:
    space = space_of(space={"strategy": ["load", "fuse"], "l2_sp": [0.0, 0.1], "weight_decay": [1e-4, 1e-2]})
    seen = search(space, trials=30)
    for params, _ in seen:
        assert ("weight_decay" in params) == (params["strategy"] == "fuse" or params["l2_sp"] == 0)
    assert len({"weight_decay" in params for params, _ in seen}) == 2


def test_a_trial_that_the_space_holds_is_enqueued_whole() -> None:
    searched = {"optimizer": ["sgd", "adam"], "schedule": ["cosine", "constant"], "weight_decay": [0.0, 1e-4]}
    space, study = space_of(space={"frozen_layers": {"low": 0, "high": "all"}, **searched}), tpe()
    recipe = space.baseline("recipe")
    assert space.holds(recipe)
    enqueued = space.enqueue_params(recipe)
    assert enqueued["frozen_layers"] == 10
    study.enqueue_trial(enqueued)
    trial = study.ask()
    assert space.suggest(trial) == recipe | {"frozen_layers": 10}
    assert trial.params == enqueued
    study.tell(trial, 1.0)
    space.suggest(study.ask())


def test_a_suggestion_is_held_and_comes_back_when_enqueued() -> None:
    space, study = space_of(**EVERYTHING), tpe()
    for params, _ in search(space, trials=20):
        assert space.holds(params)
        study.enqueue_trial(space.enqueue_params(params))
        assert space.suggest(study.ask()) == params


def test_the_recipe_is_kept_from_a_sampler_that_knows_no_adam() -> None:
    space = space_of()
    assert not space.holds(space.baseline("recipe"))


def test_from_scratch_is_no_point_of_the_space_and_is_kept_from_the_sampler() -> None:
    space = space_of()
    scratch = space.baseline("scratch")
    assert not space.holds(scratch)
    settings = space.settings(scratch, number=1, cache_dir="/cache")
    assert settings.weights == WeightsSettings()
    assert (settings.frozen_layers, settings.head_size) == (0, 0)


def test_baselines_take_the_usual_images_where_the_study_allows_them() -> None:
    recipe = space_of(data={"batch_size": [16, 32], "image_size": [64, 128]}).baseline("recipe")
    assert (recipe["batch_size"], recipe["image_size"]) == (32, 64)
    assert (recipe["optimizer"], recipe["head_size"], recipe["frozen_layers"]) == ("adam", 1024, "all")
    assert "momentum" not in recipe
    assert "backbone_rate" not in recipe


def test_baselines_are_whole_where_their_strategy_is_not_searched() -> None:
    space = space_of(
        data={"batch_size": {"fuse": [8, 64]}},
        model={"backbone": {"fuse": "efficientnet_b0"}},
        space={"strategy": "fuse", "learning_rate": {"fuse": 0.1}},
    )
    recipe = space.baseline("recipe")
    assert (recipe["backbone"], recipe["batch_size"], recipe["learning_rate"]) == (
        "efficientnet_b0",
        32,
        1e-3,
    )
    assert not space.holds(recipe)
    assert space.settings(recipe, number=0, cache_dir="/cache").strategy == "replace"


def test_settings_say_what_was_decided_and_survive_json() -> None:
    space = space_of(**EVERYTHING)
    for number, (params, trial) in enumerate(search(space, trials=20)):
        settings = space.settings(params, number=number, cache_dir="/cache")
        assert TrialSettings.from_dict(settings.to_dict()) == settings
        assert settings == space.settings(Space.plain(trial.params), number=number, cache_dir="/cache")
        flat = {**settings.to_dict(), **settings.to_dict()["data"], "seed": settings.seed}
        for name, value in params.items():
            assert flat[name] == (ALL if value == "all" else value)
        assert settings.data.seed == 0


def test_seeds_differ_between_trials_and_between_studies_and_never_change() -> None:
    seeds = {trial_seed(study, number) for study in range(3) for number in range(100)}
    assert len(seeds) == 300
    assert trial_seed(0, 0) == 2968811710


@pytest.mark.parametrize(
    ("weights", "name", "file"), [("DEFAULT", "DEFAULT", None), ("/w.safetensors", None, "/w.safetensors")]
)
def test_weights_are_named_or_read_from_a_file(weights: str, name: str | None, file: str | None) -> None:
    space = space_of(model={"weights": weights})
    settings = space.settings(space.baseline("recipe"), number=0, cache_dir="/cache").weights
    assert (settings.name, settings.file, settings.source) == (name, file, None)


def test_a_source_task_sees_its_images_as_the_trial_does() -> None:
    source = {"kind": "digits", "classes": ["0", "1"], "epochs": 3, "learning_rate": 0.02}
    data = {"kind": "digits", "image_size": 32, "horizontal_flip": False}
    space = space_of(data=data, model={"weights": {"source": source}}, study={"seed": 4})
    settings = space.settings(space.baseline("recipe"), number=0, cache_dir="/cache").weights.source
    assert settings is not None
    assert (settings.epochs, settings.learning_rate, settings.seed) == (3, 0.02, 4)
    assert (settings.data.classes, settings.data.image_size) == (("0", "1"), 32)
    assert not settings.data.horizontal_flip


def test_settings_name_the_images_as_the_config_does() -> None:
    said = {"kind": "torchvision", "name": "DTD", "path": "/sets", "download": True, "on_error": "skip"}
    source = {"kind": "manifest", "path": "s3://b/x.csv", "on_error": "skip"}
    space = space_of(data=said, model={"weights": {"source": source}})
    settings = space.settings(space.baseline("recipe"), number=0, cache_dir="/cache")
    assert {name: getattr(settings.data, name) for name in said} == said
    assert settings.weights.source is not None
    assert {name: getattr(settings.weights.source.data, name) for name in source} == source
    assert TrialSettings.from_dict(settings.to_dict()) == settings


def test_each_strategy_starts_with_a_setting_that_the_sampler_learns_from() -> None:
    space, study = space_of(), tpe()
    starts = space.starts()
    assert [start["strategy"] for start in starts] == ["replace", "load", "fuse"]
    assert starts[2]["frozen_layers"] == BLOCKS["vgg13"] // 2
    for start in starts:
        assert space.holds(start)
        study.enqueue_trial(space.enqueue_params(start))
        assert space.suggest(study.ask()) == start
        assert space.settings(start, number=0, cache_dir="/c").learning_rate == start["learning_rate"]


@pytest.mark.parametrize(
    ("space", "left"),
    [
        ({"optimizer": "adam"}, []),
        ({"optimizer": ["adam", "sgd"], "strategy": "load"}, ["load"]),
        ({"learning_rate": {"low": 0.008, "high": 0.1, "log": True}}, ["replace"]),
        ({"frozen_layers": "all"}, ["replace", "load"]),
        ({"frozen_layers": [0, 0.5, "all"]}, ["replace", "load", "fuse"]),
        ({"frozen_layers": [0, 1]}, []),
        ({"frozen_layers": {"low": 0, "high": "all", "step": 3}}, ["fuse"]),
        ({"frozen_layers": {"low": 0.0, "high": 0.9}}, ["fuse"]),
        ({"frozen_layers": {"low": 6, "high": "all"}}, ["replace", "load", "fuse"]),
        ({"frozen_layers": {"low": 7, "high": "all"}}, ["replace", "load"]),
    ],
)
def test_a_start_is_left_out_where_the_space_does_not_reach_it(
    space: dict[str, Any], left: list[str]
) -> None:
    assert [start["strategy"] for start in space_of(space=space).starts()] == left


@pytest.mark.parametrize(
    ("said", "frozen"),
    [
        ([0, 0.5, "all"], ["all", "all", 0.5]),
        ({"low": 0, "high": "all"}, [10, 10, 5]),
        ({"low": 0, "high": "all", "step": 2}, [10, 10, 4]),
        ({"low": 0.0, "high": 1.0}, [1.0, 1.0, 0.5]),
        ({"low": 0.0, "high": 1.0, "step": 0.2}, [1.0, 1.0, 0.4]),
    ],
)
def test_starts_freeze_all_blocks_but_for_fuse_wherever_the_number_is_searched(
    said: Any, frozen: list[Any]
) -> None:
    """In the sampler's units, so that a start is known again in the record."""
    space, study = space_of(space={"frozen_layers": said}), tpe()
    starts = space.starts()
    assert [start["frozen_layers"] for start in starts] == frozen
    for start in starts:
        study.enqueue_trial(space.enqueue_params(start))
        assert space.suggest(study.ask()) == start


def test_what_is_suggested_is_offered_to_the_slots_once_the_record_on_disk_has_it(tmp_path: Path) -> None:
    """Tune starts a process for the trial only later, which takes a second or two.

    A driver that dies would lose all that a slot had trained of a trial that only its memory knew.
    """
    config = StudyConfig.from_dict({"study": {"name": "s", "trials": 2}, "data": {"path": "/images"}})
    ledger, offered = (
        Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=samplers.make("random", seed=0)),
        [],
    )
    searcher = StudySearcher(
        ledger,
        Chooser(ledger, Space(config), planned=[], sampled=2),
        objective=Objective("val/accuracy"),
        make_job=lambda number, params, plan: train_job(f"trial-{number}", params),
        offer=lambda job: offered.append((job.id, len(reader.read(tmp_path / "optuna.db")[0]))),
    )
    for number in range(2):
        assert searcher.suggest(f"tune-{number}") == {"id": f"trial-{number}"}
    ledger.flush()
    assert offered == [("trial-0", 1), ("trial-1", 2)] or offered == [("trial-0", 2), ("trial-1", 2)]
    assert searcher.suggest("tune-2") == StudySearcher.FINISHED
    assert len(offered) == 2
    ledger.close()


def test_a_study_begins_with_baselines_and_starts_and_a_resumed_one_does_not_repeat_them() -> None:
    config = StudyConfig.from_dict({"study": {"name": "s", "trials": 8}, "data": {"path": "/images"}})
    space = Space(config)
    starts = space.starts()
    planned, sampled = to_do([], config.study, space, starts)
    names = list(config.study.baselines)
    assert [plan.baseline for plan in planned] == [*names, None, None, None]
    assert [plan.params for plan in planned[len(names) :]] == starts
    assert sampled == 8 - len(names), "neither heads nor the exact one count"
    before = [
        TrialRecord(number=n, id=f"trial-{n}", state="COMPLETE", params=plan.params, baseline=plan.baseline,
                    counted=plan.counted)
        for n, plan in enumerate(planned[:-1])
    ]  # fmt: skip
    planned, sampled = to_do(before, config.study, space, starts)
    assert [plan.params["strategy"] for plan in planned] == ["fuse"]
    assert sampled == 8 - len(names)
    assert [plan.baseline for plan in to_do([], config.study, space, [])[0]] == names


def test_exact_uses_the_backbone_and_how_images_are_seen_and_nothing_else() -> None:
    space = space_of(data={"image_size": [64, 128], "crop_scale": [0.5, 1.0], "horizontal_flip": False})
    exact = space.baseline("exact")
    assert exact == {
        "strategy": "exact",
        "backbone": "vgg13",
        "frozen_layers": "all",
        "image_size": 64,
        "crop_scale": 1.0,
        "horizontal_flip": False,
        "augment": "none",
    }
    assert not space.holds(exact)
    settings = space.settings(exact, number=0, cache_dir="/cache")
    assert (settings.strategy, settings.epochs, settings.frozen_layers) == ("exact", 1, -1)


def test_exact_is_planned_for_every_backbone_first_and_beside_the_trials() -> None:
    study = {"name": "s", "trials": 3, "baselines": ["exact", "recipe"]}
    config = StudyConfig.from_dict(
        {"study": study, "data": {"path": "/images"}, "model": {"backbone": ["mobilenet_v2", "resnet18"]}}
    )
    planned, sampled = to_do([], config.study, Space(config), [])
    assert [plan.params["backbone"] for plan in planned[:2]] == ["mobilenet_v2", "resnet18"]
    assert [plan.baseline for plan in planned[:3]] == ["exact", "exact", "recipe"]
    assert len(planned) + sampled == 2 + 3
    done = TrialRecord(number=0, id="0", state="COMPLETE", params=planned[0].params, baseline="exact")
    planned, sampled = to_do([done], config.study, Space(config), [])
    assert [plan.params["backbone"] for plan in planned if plan.baseline == "exact"] == ["resnet18"]
    assert len(planned) + sampled == 1 + 3


def test_a_head_begins_with_the_solution_only_where_it_is_one_layer() -> None:
    space = space_of(space={"strategy": "fuse", "head_size": 0, "head_init": ["random", "exact"]})
    trial = optuna.create_study().ask()
    assert space.suggest(trial)["head_init"] in ("random", "exact")
    wide = space_of(space={"strategy": "fuse", "head_size": 64, "head_init": "exact"})
    assert "head_init" not in wide.suggest(optuna.create_study().ask())
