"""A study that goes on after its study.yaml was edited, without Ray: what it takes, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.study import StudyConfig
from search.driver import runner
from search.driver.to_do import to_do
from search.errors import StudyError
from search.record import changes, reader
from search.record.ledger import Ledger
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.sampler import Planned, make
from search.suggest.space import Space
from tests.by_hand import run_of, suggest
from tests.small import STUDY, merged

# What is planned again


FROZEN: list[Any] = [
    {"low": 0.0, "high": 1.0},
    {"low": 0.0, "high": 1.0, "step": 0.25},
    {"low": 0.1, "high": 0.9},
    {"low": 0, "high": "all"},
    {"low": 2, "high": 18, "step": 4},
    {"low": 2, "high": "all", "step": 3},
    [0, 0.5, "all"],
    [3, 9, "all"],
    ["all"],
    0.5,
    7,
    {"replace": "all", "load": {"low": 0.0, "high": 1.0}, "fuse": {"low": 0, "high": 9}},
]
OTHERS: list[dict[str, Any]] = [
    {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "head_size": [0, 64]},
    {"learning_rate": [0.003, 0.006, 0.01], "optimizer": ["adam", "sgd"], "backbone_rate": [0.1, 1.0]},
    {"learning_rate": {"low": 0.001, "high": 0.021, "step": 0.001}, "dropout": {"low": 0, "high": 0.5}},
    {"learning_rate": 0.01, "momentum": {"low": 0.8, "high": 0.99}, "head_size": {"low": 0, "high": 64}},
]


@pytest.mark.thorough(but=(OTHERS[0],))
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("frozen", FROZEN, ids=str)
def test_a_start_that_was_tried_is_not_planned_again(
    tmp_path: Path, frozen: Any, others: dict[str, Any]
) -> None:
    given = {"data": {"crop_scale": [1.0, 0.5]}, "space": {"frozen_layers": frozen} | others}
    config = StudyConfig.from_dict(merged(STUDY, given))
    # 19 blocks: the half of them is no round share.
    space = Space(config)
    planned, _ = to_do([], config.study, space, space.starts())
    book = Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=make("tpe", seed=0))
    for plan in planned:
        suggest(book, space, plan)
    book.close()
    trials, _ = reader.read(tmp_path / "optuna.db")
    assert len(trials) == len(planned)
    again, sampled = to_do(trials, config.study, space, space.starts())
    assert (again, sampled) == ([], config.study.trials - len(planned))


@pytest.mark.thorough(but=(OTHERS[0],))
@pytest.mark.parametrize("others", OTHERS)
def test_an_unchanged_space_leaves_what_the_sampler_sees_as_it_was(
    tmp_path: Path, others: dict[str, Any]
) -> None:
    for number, frozen in enumerate(FROZEN):
        config = StudyConfig.from_dict(merged(STUDY, {"space": {"frozen_layers": frozen} | others}))
        space = Space(config)
        book = Ledger(tmp_path / f"{number}.db", metric="val/accuracy", sampler=make("random", seed=number))
        suggest(book, space, Planned(params=space.baseline("recipe"), baseline="recipe"))
        for _ in range(2):
            suggest(book, space)
        book.close()
        again = Ledger(tmp_path / f"{number}.db", metric="val/accuracy", sampler=make("random", seed=0))
        assert all(space.learned(trial) is trial for trial in again.trials)
        again.close()


# An edited study.yaml


RATE = {"low": 1e-4, "high": 0.1, "log": True}
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a choice more": ({"optimizer": ["sgd", "adam"]}, {"optimizer": ["sgd", "adam", "adamw"]}),
    "a choice less": ({"optimizer": ["sgd", "adam", "adamw"]}, {"optimizer": ["sgd", "adamw"]}),
    "choices in another order": ({"head_size": [0, 8, 16]}, {"head_size": [16, 8, 0]}),
    "all choices others": ({"head_size": [0, 8]}, {"head_size": [16, 32]}),
    "a wider range": ({"dropout": {"low": 0.1, "high": 0.2}}, {"dropout": {"low": 0.0, "high": 0.6}}),
    "a narrower range": ({"dropout": {"low": 0.0, "high": 0.6}}, {"dropout": {"low": 0.1, "high": 0.2}}),
    "another scale": ({"learning_rate": RATE}, {"learning_rate": RATE | {"log": False}}),
    "steps": ({"head_size": {"low": 0, "high": 64}}, {"head_size": {"low": 0, "high": 64, "step": 16}}),
    "a list to a range": ({"dropout": [0.1, 0.3]}, {"dropout": {"low": 0.0, "high": 0.5}}),
    "a range to a list": ({"dropout": {"low": 0.0, "high": 0.5}}, {"dropout": [0.1, 0.3]}),
    "counts to shares": (
        {"frozen_layers": {"low": 0, "high": "all"}},
        {"frozen_layers": {"low": 0.0, "high": 1.0}},
    ),
    "shares to counts": (
        {"frozen_layers": {"low": 0.0, "high": 1.0}},
        {"frozen_layers": {"low": 0, "high": "all"}},
    ),
    "a key newly searched": ({"weight_decay": 0.0}, {"weight_decay": [0.0, 0.001]}),
    "a key no longer searched": ({"weight_decay": [0.0, 0.001]}, {"weight_decay": 0.001}),
    "a strategy more": ({"strategy": ["replace", "load"]}, {"strategy": ["replace", "load", "fuse"]}),
    "a strategy less": ({"strategy": ["replace", "load", "fuse"]}, {"strategy": ["load", "replace"]}),
    "one strategy": ({"strategy": ["replace", "load"]}, {"strategy": "load"}),
    "for each strategy": (
        {"learning_rate": RATE},
        {"learning_rate": {"replace": RATE, "load": [0.001, 0.003], "fuse": 0.01}},
    ),
    "a field that others hang on": ({"optimizer": "adam"}, {"optimizer": ["adam", "sgd"]}),
}


@pytest.mark.thorough(but=("tpe",))
@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("change", CHANGED)
def test_a_study_goes_on_in_a_changed_space(tmp_path: Path, change: str, sampler: str) -> None:
    """Earlier trials are learned from as far as they fit, and new ones come from the new space."""
    spaces = []
    for given in CHANGED[change]:
        config = StudyConfig.from_dict(merged(STUDY, {"space": given}))
        spaces.append(Space(config))
    before, now = spaces
    book = Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=make(sampler, seed=0))
    old = [suggest(book, before) for _ in range(14)]
    book.close()
    for _ in range(2):  # also at every later resume
        book = Ledger(
            tmp_path / "optuna.db", metric="val/accuracy", sampler=make(sampler, seed=1), learned=now.learned
        )
        assert [bool(trial.params) for trial in book.trials[:14]] == [now.holds(params) for params in old]
        assert all(now.holds(suggest(book, now)) for _ in range(12))
        book.close()


def test_backbones_may_come_and_go(tmp_path: Path) -> None:
    config = StudyConfig.from_dict(merged(STUDY, {"model": {"backbone": "resnet18", "weights": "DEFAULT"}}))
    more = StudyConfig.from_dict(
        merged(STUDY, {"model": {"backbone": ["resnet18", "vgg16"], "weights": "DEFAULT"}})
    )
    for number, (first, second) in enumerate([(config, more), (more, config)]):
        path = tmp_path / f"{number}.db"
        before, now = Space(first), Space(second)
        book = Ledger(path, metric="val/accuracy", sampler=make("tpe", seed=0))
        for _ in range(14):
            suggest(book, before)
        book.close()
        book = Ledger(path, metric="val/accuracy", sampler=make("tpe", seed=1), learned=now.learned)
        assert all(now.holds(suggest(book, now)) for _ in range(12))
        book.close()


def test_an_interrupted_trial_of_a_backbone_that_is_gone_leaves_its_place_to_another() -> None:
    spaces = []
    for names in (["vgg16", "resnet18"], ["resnet18"]):
        model = {"backbone": names, "weights": dict.fromkeys(names, "DEFAULT")}
        config = StudyConfig.from_dict(merged(STUDY, {"model": model, "study": {"warm_start": False}}))
        spaces.append(Space(config))
    both, one = spaces
    params = both.baseline("recipe")  # on the first backbone, vgg16
    cut = TrialRecord(number=0, id="trial-0000", state="FAIL", interrupted=True, params=params)
    (plan,), sampled = to_do([cut], config.study, both, [])
    assert (plan.continues, sampled) == (0, 3)
    assert to_do([cut], config.study, one, []) == ([], 4)


def test_a_changed_space_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = StudyFolder(tmp_path / "small")
    first = run_of(folder, space={"optimizer": ["sgd", "adam"]})
    for _ in range(6):
        suggest(first.ledger, first.space)
    held = [trial.params["optimizer"] for trial in first.ledger.records()].count("sgd")
    first.close(1.0)
    assert "changed" not in capsys.readouterr().err
    second = run_of(folder, space={"optimizer": ["sgd", "adamw"]})
    second.close(1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"learns from {held} earlier trials" in line
    assert f"and {6 - held} that it could not suggest" in line


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"study": {"epochs": 5}}, "study.epochs 5 instead of 3"),
        ({"study": {"metric": "val/loss"}}, "study.metric 'val/loss' instead of 'val/accuracy'"),
        ({"study": {"seed": 5}}, "study.seed 5 instead of 0"),
        ({"data": {"views": 2}}, "data.views 2 instead of 0"),
        ({"model": {"precision": "exact"}}, "model.precision 'exact' instead of 'auto'"),
        ({"model": {"weights": "DEFAULT"}}, "model.weights of shufflenet_v2_x0_5 'DEFAULT' instead of"),
    ],
)
def test_what_would_make_trials_incomparable_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = StudyFolder(tmp_path / "small")
    run_of(folder).close(1.0)
    values = yaml.safe_load(folder.config.read_text())
    folder.config.write_text(yaml.safe_dump(merged(values, change)))
    with pytest.raises(StudyError, match=r"must go on with what it began with, got .*Put that back") as error:
        runner.resume(folder.root)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_limits_and_places_may_change(tmp_path: Path) -> None:
    config = StudyConfig.from_dict(STUDY)
    other = merged(
        STUDY, {"study": {"trials": 9, "budget": "1h", "keep_checkpoints": 1, "sampler": "random"}}
    )
    other |= {"results": str(tmp_path), "resources": {"slots": 1}, "early_stopping": {"enabled": False}}
    assert changes.fixed(StudyConfig.from_dict(other)) == changes.fixed(config)
    weights = [
        changes.fixed(StudyConfig.from_dict(merged(STUDY, {"model": {"weights": f"{place}/w.pth"}})))
        for place in ("here", "there")
    ]
    assert weights[0] == weights[1]
