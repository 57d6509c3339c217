"""A config file: what it may say, and how its mistakes are told."""

import os
from pathlib import Path
from typing import Any

import pytest

from search.config.budget import Budget
from search.config.config_file import load
from search.config.domain import PerStrategy, Range
from search.config.problems import ConfigErrors
from search.config.sections import Pretraining
from search.config.study import StudyConfig

MINIMAL: dict[str, Any] = {"study": {"name": "flowers"}, "data": {"path": "./flowers"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "pets.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def said(**sections: Any) -> dict[str, Any]:
    """The minimal config with keys of its sections added or replaced."""
    return {**MINIMAL, **{name: {**MINIMAL.get(name, {}), **keys} for name, keys in sections.items()}}


def refusal(**sections: Any) -> str:
    with pytest.raises(ConfigErrors) as caught:
        StudyConfig.from_dict(said(**sections))
    return str(caught.value)


def test_a_name_and_a_folder_are_enough(tmp_path: Path) -> None:
    config = load(write(tmp_path, "study: {name: pets}\ndata: {path: ./images}\nspace:\n"))
    assert (config.study.trials, config.study.objective.mode, config.grace) == (24, "max", 2)
    assert config.data.path == str(tmp_path / "images")
    assert config.backbones == ("resnet18",)
    assert config.folder == Path("results").absolute() / "pets"


def test_all_mistakes_come_at_once_in_the_order_of_the_file_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """study:
  name: pets
  trials: 0
data:
  path: ./pets
  classes: [cat, 1]
space:
  learnig_rate: 0.01
  head_size:
    low: 64
    high: 8
modle: {}
""",
    )
    told = mistakes(path)
    places = [line.split(": ")[0] for line in told]
    assert places == [f"{path}:{at}" for at in ("3:11", "6:18", "8:3", "9:3", "12:1")]
    assert "study.trials: must be at least 1, got 0. Raise it." in told[0]
    assert "data.classes[1]: must be text, got 1. Put it in quotes: '1'." in told[1]
    assert "`low` must be below `high`, got 64 and 8." in told[3]
    assert "unknown key 'modle'. Did you mean 'model'?" in told[4]
    assert told[2].startswith(
        f"{path}:8:3: unknown key 'learnig_rate' in 'space'. Did you mean 'learning_rate'? Known: "
    )
    assert told[2].endswith("    8 |   learnig_rate: 0.01\n      |   ^^^^^^^^^^^^")


def test_mistakes_across_sections_are_told_with_the_others(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "study: {name: pets, epochs: 4}\ndata: {path: x, batch_size: 0}\n"
        "model: {weights: none}\nspace: {dropout: {load: 0.1}}\nearly_stopping: {grace: 9}\n",
    )
    told = "\n".join(mistakes(path))
    assert f"{path}:2:29: data.batch_size: must be at least 1, got 0." in told
    assert "a mapping must name every searched strategy, got none for replace, fuse. Add `replace:`." in told
    assert (
        "space.strategy: the strategy `load` needs pretrained weights, got model.weights none for resnet18."
        in told
    )
    assert f"{path}:5:25: early_stopping.grace: must be at most study.epochs (4), got 9." in told


def test_set_overrides_the_file_and_is_named_in_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, "study: {name: pets, trials: 5}\ndata: {path: x}\n")
    config = load(path, ["study.trials=7", "space.learning_rate={low: 1e-3, high: 0.1, log: true}"])
    assert config.study.trials == 7
    assert (
        config.space.learning_rate
        == load(
            path,
            ["space.learning_rate.low=1e-3", "space.learning_rate.high=.1", "space.learning_rate.log=true"],
        ).space.learning_rate
    )
    told = mistakes(
        path, "study.trials=x", "study.trails=3", "foo", "study.name.x=1", "spaces.x=1", "results=["
    )
    assert told[0] == (
        "--set study.trials=x: study.trials: must be a whole number, got 'x'. "
        "Write a number without quotes or decimals, such as 8."
    )
    assert "--set study.trails=3: unknown key 'trails' in 'study'. Did you mean 'trials'" in told[1]
    assert told[2] == "--set foo: must be key=value, got 'foo'. Write --set study.trials=10."
    assert "study.name: must be a mapping to set a key in, got 'pets'." in told[3]
    assert "unknown key 'spaces'. Did you mean 'space'?" in told[4]
    assert told[5].startswith("--set results=[: must be valid YAML")


def test_paths_start_at_the_file_and_those_of_set_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    text = "study: {name: a}\ndata: {path: ../x}\nmodel: {weights: w.pth}\nresults: ../out\n"
    path = write(folder, text + "features: {dir: kept}\n")
    config = load(path.relative_to(tmp_path))
    assert config.features.dir == str(folder / "kept")
    assert config.data.path == str(tmp_path / "x")
    assert config.model.weights == str(folder / "w.pth")
    assert config.results == str(tmp_path / "out")
    assert load(path, ["data.path=mine"]).data.path == str(tmp_path / "mine")
    assert load(path, ["data.path=~/mine"]).data.path == os.path.expanduser("~/mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("study: {name: a}\nstudy: {name: b}\n", ":2:1: a key must stand once in its mapping, got 'study'"),
        ("study: {name: a\n", "must be valid YAML"),
        ("a: *b\n", ":1:4: must be valid YAML, got an alias"),
        ("a: !!python/object:os.system x\n", ":1:4: must be a plain value"),
        ("? [a]\n: 3\n", "a key must be a word, got a collection"),
        ("a: \x07\n", "got the character #x0007"),
        ("[" * 5000, "must be nested less"),
        ("", "must be a mapping of sections, got nothing"),
        ("- 1\n", "must be a mapping of sections, got [1]"),
        ("data: {path: x}\n", "study: must be given, got nothing. Add this key."),
        ("study: 3\ndata: {path: x}\n", ":1:8: study: must be a mapping of keys, got 3."),
        ("study: {name: x}\ndata: {}\n", ":2:1: data.path: must be given for kind 'folder', got nothing."),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in "\n".join(mistakes(write(tmp_path, text)))


def test_a_word_that_is_read_as_a_number_is_quoted_as_it_is_written(tmp_path: Path) -> None:
    told = mistakes(write(tmp_path, "study: {name: a}\ndata: {path: x, classes: [1e3, 010, true]}\n"))
    for line, word in zip(told, ("1e3", "010", "true"), strict=True):
        assert f"must be text, got {word}. Put it in quotes: '{word}'." in line
    values = {"study": {"name": "a"}, "data": {"path": "x", "classes": [1e3, "b"]}}
    with pytest.raises(ConfigErrors, match=r"got 1000\.0\. Put it in quotes\.$"):
        StudyConfig.from_dict(values)


@pytest.mark.parametrize("ends", ["min: 0.1, max: 0.2", "from: 0.1, to: 0.2", "lower: 0.1, upper: 0.2"])
def test_a_range_with_the_words_of_another_program_is_told_ours(tmp_path: Path, ends: str) -> None:
    text = f"study: {{name: a}}\ndata: {{path: x}}\nspace: {{dropout: {{{ends}}}}}\n"
    told = "\n".join(mistakes(write(tmp_path, text)))
    low, high = (end.split(":")[0] for end in ends.split(", "))
    assert f"unknown key '{low}' in 'space.dropout'. Write `low`: a range has low and high." in told
    assert f"unknown key '{high}' in 'space.dropout'. Write `high`" in told


@pytest.mark.parametrize(
    "text",
    [
        "study: {{name: {long}}}\ndata: {{path: x}}\n",
        "study: {{name: a}}\ndata: {{path: x}}\nspace: {{dropout: {long}, {long}: 1}}\n",
        "study: {{name: a}}\ndata: {{path: x}}\nmodel: {{weights: {{{long}: {long}}}, backbone: {long}}}\n",
        "study: {{name: a}}\n{long}: 1\n{long}: 2\n",
        "study: {{name: a, metric: {long}}}\ndata: {{path: x, classes: [[{long}], {long}]}}\n",
        "a: *{long}\n",
    ],
)
def test_a_message_is_short_however_long_the_value_is(tmp_path: Path, text: str) -> None:
    told = mistakes(write(tmp_path, text.format(long="x" * 100_000)), f"study.name={'[' * 10_000}")
    assert max(map(len, told)) < 2000


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "got no such file or directory. Check the path." in mistakes(tmp_path / "none.yaml")[0]
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"study: {name: \xe9}")
    assert "must be UTF-8 text, got byte 0xe9." in mistakes(path)[0]


def test_plain_values_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    text = "study: {name: 2024-01-01}\ndata: {path: no, classes: [on, off, 10:30, yes]}\n"
    config = load(write(tmp_path, text + "space: {learning_rate: 1e-3, head_size: 010}\n"))
    assert config.data.classes == ("on", "off", "10:30", "yes")
    assert config.study.name == "2024-01-01"
    assert config.space.learning_rate == 1e-3
    assert config.space.head_size == 10


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"study": {"metric": "val/acuracy"}}, "got 'val/acuracy'. Did you mean 'val/accuracy'"),
        (
            {"study": {"metric": "val/recall/"}},
            "study.metric: must be a metric that every epoch reports, got",
        ),
        ({"study": {"metric": "val/ece", "mode": "max"}}, "val/ece cannot be optimised this way, got 'max'"),
        ({"space": {"imbalance": "focl"}}, "got 'focl'. Did you mean 'focal'"),
        ({"space": {"mix": "mixupp"}}, "must be one of none, mixup, cutmix, got 'mixupp'."),
        ({"space": {"layer_decay": 1.5}}, "space.layer_decay: must be at most 1, got 1.5."),
        ({"space": {"accumulate": 0}}, "space.accumulate: must be at least 1, got 0."),
        ({"data": {"augment": "trivia"}}, "data.augment: must be one of none, trivial, got 'trivia'."),
        (
            {"study": {"metric": "val/loss", "mode": "max"}},
            "study.mode: val/loss cannot be optimised this way",
        ),
        (
            {"study": {"budget": "10"}},
            "study.budget: must be a number above 0 with s, m, h, gpuh or usd, got '10'.",
        ),
        ({"study": {"budget": 10}}, "got 10. Write 90s, 10m, 2h, 3gpuh or 5usd."),
        ({"study": {"name": "a/b"}}, "got 'a/b'. Rename it"),
        (
            {"study": {"trials": 1, "baselines": ["recipe", "scratch"]}},
            "must be at most as many as study.trials (1)",
        ),
        (
            {"data": {"batch_size": [8, 3]}, "resources": {"workers_per_trial": 4}},
            "data.batch_size: must be at least resources.workers_per_trial (4), got 3. Raise it, or lower",
        ),
        ({"study": {"trials": True}}, "study.trials: must be a whole number, got True."),
        ({"data": {"classes": ["a"]}}, "data.classes: must be a list of at least 2, got ['a']."),
        (
            {"data": {"kind": "torchvision", "name": "CIFAR1O"}},
            "data.name: must name one of torchvision's sets, got 'CIFAR1O'. Did you mean 'CIFAR10'",
        ),
        ({"data": {"kind": "torchvision"}}, "data.name: must name one of torchvision's sets, got nothing."),
        ({"data": {"name": "MNIST"}}, "data.name: goes with kind 'torchvision', got 'MNIST'. Delete it"),
        ({"data": {"download": True}}, "data.download: goes with kind 'torchvision', got true. Delete it"),
        (
            {"data": {"kind": "torchvision", "name": "ImageNet", "download": True}},
            "data.download: torchvision cannot download ImageNet, got true. Put its files below `path`.",
        ),
        ({"data": {"kind": "manifest", "path": None}}, "must be given for kind 'manifest', got nothing."),
        (
            {"data": {"kind": "torchvision", "name": "CIFAR10", "path": "s3://b/x"}},
            "for kind 'torchvision', got 's3://b/x'. Write a path, or use kind",
        ),
        ({"data": {"on_error": "skipp"}}, "data.on_error: must be one of fail, skip, got 'skipp'. Did you"),
        ({"data": {"validation_share": 0.5, "test_share": 0.5}}, "together must be below 1, got 1."),
        ({"data": {"horizontal_flip": "yes"}}, "must be true or false, got 'yes'."),
        ({"model": {"weights": "defualt"}}, "got 'defualt'. Write DEFAULT"),
        (
            {"model": {"weights": "w.pt", "backbone": ["vgg11", "vgg13"]}},
            "got one for vgg11, vgg13. Give each its own: `weights: {vgg11: FILE, vgg13: DEFAULT}`.",
        ),
        (
            {
                "model": {
                    "weights": {"resnet18": "DEFAULT", "vgg61": "w.pt"},
                    "backbone": ["resnet18", "vgg16"],
                }
            },
            "weights to each backbone of the study, got some for 'vgg61'. Did you mean 'vgg16'?",
        ),
        (
            {"model": {"weights": {"resnet18": "w.pt"}, "backbone": ["resnet18", "vgg16"]}},
            "got none for vgg16. Add `vgg16: DEFAULT`, or a file.",
        ),
        (
            {"model": {"weights": {"resnet18": "default"}}},
            "model.weights.resnet18: must be `none`, a torchvision weights name in capitals or a",
        ),
        (
            {"model": {"weights": {"vgg11": "none", "vgg13": "DEFAULT"}, "backbone": ["vgg11", "vgg13"]}},
            "the strategy `load` needs pretrained weights, got model.weights none for vgg11.",
        ),
        ({"model": {"weights": {"source": {"kind": "digit"}}}}, "model.weights.source.kind: must be one of"),
        (
            {"model": {"weights": {"sorce": {}}}},
            "got some for 'sorce'. Did you mean 'source'",
        ),
        (
            {"model": {"backbone": "resnet81"}},
            "model.backbone: must be a torchvision classifier that can be cut, got 'resnet81'. Did you mean",
        ),
        ({"model": {"backbone": ["vgg16", ""]}}, "model.backbone[1]: must be a torchvision classifier"),
        (
            {"model": {"weights": "IMAGENET1K_V3"}},
            "model.weights: must name some of torchvision's weights for resnet18, got 'IMAGENET1K_V3'. Did",
        ),
        (
            {"model": {"backbone": ["resnet50", "vgg16"], "weights": "IMAGENET1K_V2"}},
            "model.weights: must name some of torchvision's weights for vgg16, got 'IMAGENET1K_V2'.",
        ),
        (
            {"model": {"weights": {"resnet18": "V1"}}},
            "model.weights.resnet18: must name some of torchvision's weights for resnet18, got 'V1'.",
        ),
        (
            {"space": {"frozen_layers": 99}},
            "space.frozen_layers: must be at most the blocks of resnet18 (9), got 99. Write at most 9, a sha",
        ),
        (
            {
                "space": {"frozen_layers": {"replace": [2, 12], "load": 0, "fuse": 0}},
                "model": {"backbone": ["resnet18", "vgg16"]},
            },
            "space.frozen_layers: must be at most the blocks of resnet18 (9), got 12.",
        ),
        (
            {"space": {"frozen_layers": {"low": 10, "high": "all"}}},
            "space.frozen_layers: must be at most the blocks of resnet18 (9), got 10.",
        ),
        (
            {"data": {"image_size": [96, 64]}, "model": {"backbone": ["resnet18", "inception_v3"]}},
            "data.image_size: must be at least 75 pixels for inception_v3, got 64. Set it to 75.",
        ),
        (
            {
                "data": {"image_size": {"low": 64, "high": 128, "step": 16}},
                "model": {"backbone": "vit_b_32"},
            },
            "data.image_size: must be a multiple of 32 pixels for vit_b_32, got 80. Set it to 96.",
        ),
        (
            {"data": {"image_size": {"low": 224, "high": 10**12}}, "model": {"backbone": "maxvit_t"}},
            "data.image_size: must be 224 pixels for maxvit_t, got 225. Set it to 224.",
        ),
        ({"space": {"learning_rate": 0}}, "space.learning_rate: must be above 0, got 0. Raise it."),
        ({"space": {"learning_rate": float("nan")}}, "must be a finite number, got nan"),
        ({"space": {"head_size": []}}, "space.head_size: must be a list of at least 1, got []."),
        ({"space": {"head_size": [8, 8]}}, "a list must name each value once, got 8."),
        ({"space": {"weight_decay": {"low": 0, "high": 1, "log": True}}}, "must be above 0, got 0"),
        ({"space": {"dropout": {"low": 0, "high": 0.5, "step": 0.2}}}, "a whole number of steps above `low`"),
        ({"space": {"dropout": {"lo": 0, "high": 0.5}}}, "unknown key 'lo' in 'space.dropout'."),
        ({"space": {"dropout": {"lo": 0, "high": 0.5}}}, "space.dropout.low: must be given"),
        (
            {"space": {"frozen_layers": "al"}},
            "must be a number of blocks, a share of them from 0.0 to 1.0, or 'all', got 'al'. Write 3,",
        ),
        ({"space": {"frozen_layers": 1.5}}, "from 0.0 to 1.0, or 'all', got 1.5. Write 3, 0.5 or all."),
        ({"space": {"frozen_layers": [0.5, -1]}}, "space.frozen_layers[1]: must be a number of blocks"),
        (
            {"space": {"frozen_layers": {"low": 0, "high": 0.5}}},
            "`high` must be a number of blocks, as `low` is, got 0.5. Write shares, such as 0.0 and 1.0",
        ),
        (
            {"space": {"frozen_layers": {"low": 0.0, "high": "all"}}},
            "`high` must be a share of blocks, as `low` is, got all.",
        ),
        (
            {"space": {"frozen_layers": {"low": 0.0, "high": 1.0, "step": 1}}},
            "`step` must be a share of blocks, as `low` is, got 1.",
        ),
        ({"space": {"frozen_layers": {"low": "all", "high": 3}}}, "`low` must be a number, got all."),
        ({"space": {"frozen_layers": {"fusee": 3}}}, "unknown key 'fusee' in 'space.frozen_layers'."),
        ({"space": {"optimizer": "adm"}}, "got 'adm'. Did you mean 'adam' or 'adamw'?"),
        ({"space": {"optimizer": {"low": 1}}}, "unknown key 'low' in 'space.optimizer'."),
        ({"space": {"strategy": ["replace", "lode"]}}, "space.strategy[1]: must be one of"),
        ({"resources": {"gpu": "fast"}}, "must be true or false or 'auto', got 'fast'."),
        ({"resources": {"slots": 0}}, "resources.slots: must be at least 1 or 'auto', got 0. Raise it."),
    ],
)
def test_a_wrong_value_is_told_with_the_fix(sections: dict[str, Any], told: str) -> None:
    assert told in refusal(**sections)


def test_a_field_takes_a_value_a_list_a_range_or_those_per_strategy() -> None:
    space = {
        "learning_rate": {"replace": 0.1, "load": [0.1, 0.2], "fuse": {"low": 1e-4, "high": 1, "log": True}},
        "head_size": {"low": 8, "high": 64, "step": 8},
        "frozen_layers": {"low": 0, "high": "all"},
        "optimizer": ["sgd", "adam"],
    }
    config = StudyConfig.from_dict(said(space=space))
    rate, size = config.space.learning_rate, config.space.head_size
    assert isinstance(rate, PerStrategy)
    assert (rate.replace, rate.load) == (0.1, (0.1, 0.2))
    assert isinstance(rate.fuse, Range)
    assert isinstance(size, Range)
    assert (size.low, type(size.low)) == (8, int)
    assert config.space.optimizer == ("sgd", "adam")


def test_one_block_and_all_blocks_are_told_apart() -> None:
    """1 is one block and 1.0 is all; Python and Optuna would take them for equal."""
    config = StudyConfig.from_dict(said(space={"frozen_layers": [1, 1.0, 0.5, 0.0]}))
    assert config.space.frozen_layers == (1, "all", 0.5, 0)


def test_weights_of_each_backbone_start_at_the_file_and_survive_a_round(tmp_path: Path) -> None:
    weights = "{vgg11: w.pth, vgg13: {source: {path: ../src}}, vgg16: DEFAULT}"
    model = f"{{backbone: [vgg11, vgg13, vgg16], weights: {weights}}}"
    text = f"study: {{name: a}}\ndata: {{path: x}}\nmodel: {model}\n"
    config = load(write(tmp_path, text), ["model.weights.vgg16=IMAGENET1K_V1"])
    source = config.model.weights_of("vgg13")
    assert config.model.weights_of("vgg11") == str(tmp_path / "w.pth")
    assert isinstance(source, Pretraining)
    assert source.source.path == str(tmp_path.parent / "src")
    assert config.model.weights_of("vgg16") == "IMAGENET1K_V1"
    assert load(write(tmp_path, config.to_yaml())) == config


def test_load_needs_weights_only_of_the_backbones_that_it_uses() -> None:
    backbone = {"replace": "vgg11", "load": "vgg13", "fuse": "vgg11"}
    config = StudyConfig.from_dict(
        said(model={"backbone": backbone, "weights": {"vgg11": "none", "vgg13": "DEFAULT"}})
    )
    assert config.backbones == ("vgg11", "vgg13")


@pytest.mark.parametrize("fuse", [{"low": 20, "high": 10**12, "step": 20}, [40, 20]])
def test_the_least_image_size_is_that_of_all_strategies(fuse: Any) -> None:
    sizes = {"replace": [64, 32], "load": 96, "fuse": fuse}
    assert StudyConfig.from_dict(said(data={"image_size": sizes})).least_image_size == 20


def test_mode_follows_the_metric_and_grace_the_epochs() -> None:
    config = StudyConfig.from_dict(said(study={"metric": "val/loss", "epochs": 17, "budget": "1.5m"}))
    assert (config.study.objective.mode, config.grace, config.study.spending) == ("min", 3, Budget(90.0))


@pytest.mark.parametrize(("epochs", "grace"), [(1, 1), (2, 2), (5, 2), (16, 2), (17, 3), (80, 10)])
def test_every_trial_gets_two_epochs_or_an_eighth_of_them(epochs: int, grace: int) -> None:
    assert StudyConfig.from_dict(said(study={"epochs": epochs})).grace == grace


@pytest.mark.parametrize(
    ("metric", "mode"), [("val/ece", "min"), ("val/recall/no tail", "max"), ("val/top5", "max")]
)
def test_every_metric_may_be_optimised_and_has_its_direction(metric: str, mode: str) -> None:
    config = StudyConfig.from_dict(said(study={"metric": metric}))
    assert (config.study.metric, config.study.objective.mode) == (metric, mode)


def test_a_config_written_as_yaml_loads_to_the_same_config(tmp_path: Path) -> None:
    config = StudyConfig.from_dict(
        said(
            data={"classes": ["no", "1e-3", "7", "true", "null"], "image_size": [32, 64]},
            model={"weights": {"source": {"kind": "digits"}}, "backbone": ["vgg11", "vgg13"]},
            space={"learning_rate": {"low": 1e-7, "high": 1e-5, "log": True}},
        )
    )
    text = config.to_yaml()
    assert text.startswith("# yaml-language-server: $schema=/")
    assert load(write(tmp_path, text)) == config


def test_a_manifest_may_lie_behind_a_url(tmp_path: Path) -> None:
    text = "study: {name: a}\ndata: {kind: manifest, path: s3://bucket/pets.parquet}\n"
    assert load(write(tmp_path, text)).data.path == "s3://bucket/pets.parquet"


def test_a_config_of_an_earlier_version_may_have_the_mode_that_its_metric_has() -> None:
    """The study.yaml that it wrote has every key."""
    older = StudyConfig.from_dict(said(study={"metric": "val/loss", "mode": "min"}))
    assert older == StudyConfig.from_dict(said(study={"metric": "val/loss"}))
    assert "mode" not in older.model_dump(mode="json")["study"]


def test_the_cheap_baselines_run_unless_others_are_named() -> None:
    assert StudyConfig.from_dict(said(study={"trials": 1})).study.baselines == ("exact", "recipe")
    assert StudyConfig.from_folder("/pets", baselines=["scratch"]).study.baselines == ("scratch",)


def test_options_of_python_are_those_of_the_study_where_two_sections_have_the_key() -> None:
    config = StudyConfig.from_folder("/pets", name="x", metric="val/loss")
    assert (config.study.name, config.study.metric, config.data.path) == ("x", "val/loss", "/pets")
    config = StudyConfig.from_folder("/pets", features={"mode": "off"}, data={"views": 3}, epochs=2)
    assert (config.features.mode, config.data.views, config.study.epochs) == ("off", 3, 2)


def test_what_follows_from_a_folder_alone_fits_the_study() -> None:
    """There is no other way to say it with `--data`."""
    config = StudyConfig.from_folder("/data/my pets (2024)", weights="none")
    assert (config.study.name, config.space.strategy) == ("my-pets-2024", ("replace", "fuse"))
    assert StudyConfig.from_folder("/data/été").study.name == "t"
    assert StudyConfig.from_folder("/").study.name == "study"


def test_an_option_of_python_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"study\.trials: must be given once"):
        StudyConfig.from_folder("/pets", trials=3, study={"trials": 4})
    with pytest.raises(ConfigErrors, match=r"data\.path: must be given once"):
        StudyConfig.from_folder("/pets", data={"path": "/cats"})


def test_a_study_without_a_config_file_takes_keys_of_all_sections(tmp_path: Path) -> None:
    config = StudyConfig.from_folder(
        tmp_path / "pets", trials=3, backbone="vgg16", learning_rate=0.1, early_stopping={"enabled": False}
    )
    assert (config.study.name, config.data.path) == ("pets", str(tmp_path / "pets"))
    assert (config.study.trials, config.model.backbone, config.space.learning_rate) == (3, "vgg16", 0.1)
    assert not config.early_stopping.enabled
    with pytest.raises(ConfigErrors, match=r"unknown option 'trails'\. Did you mean 'trials'"):
        StudyConfig.from_folder(tmp_path, trails=3)


@pytest.mark.parametrize("url", ["s3://bucket/flowers", "memory://flowers/", "file:///data/flowers"])
def test_a_folder_without_a_config_file_may_lie_behind_a_url(url: str) -> None:
    config = StudyConfig.from_folder(url, results="/tmp")
    assert (config.study.name, config.data.path) == ("flowers", url)
