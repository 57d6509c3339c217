"""Which trial comes next: bandit, samplers and the chooser, on spaces as studies have them, without Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from finetune.metrics import Objective
from search.config.study import StudyConfig
from search.driver.to_do import to_do
from search.record import reader
from search.record.ledger import Ledger
from search.suggest import portfolio
from search.suggest.bandit import SHARE, TRIES, Bandit
from search.suggest.chooser import Chooser
from search.suggest.models import gaussian, samplers
from search.suggest.portfolio import Portfolio
from search.suggest.recorded import Recorded, Situation, read_study
from search.suggest.space import Space

EPOCHS = 4


def space_of(**sections: Any) -> Space:
    values: dict[str, Any] = {"study": {"name": "s"}, "data": {"path": "/i"}, "model": {"backbone": "vgg13"}}
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return Space(StudyConfig.from_dict(values))


def score(params: dict[str, Any]) -> float:
    """Return a score that is best for `fuse` with a rate near .01 and few frozen blocks."""
    near = 0.5 - 0.1 * abs(np.log10(params["learning_rate"] / 0.01))
    if params["strategy"] != "fuse" or params["frozen_layers"] == "all":
        return float(near)
    return float(near + 0.3 - 0.02 * params["frozen_layers"])


def run(
    path: Path,
    space: Space,
    name: str,
    trials: int,
    *,
    seed: int = 0,
    slots: int = 1,
    until: int | None = None,
) -> list[dict[str, Any]]:
    """Run a study of so many counted trials without training; return the parameters of all, in order.

    Every third trial is stopped after its second epoch. `until` ends the process after so many trials.
    """
    earlier = reader.read(path)[0] if path.exists() else []
    book = Ledger(
        path,
        metric="val/accuracy",
        sampler=samplers.make(name, seed=seed + len(earlier)),
        learned=space.learned,
    )
    arms = space.arms if samplers.by_bandit(name) else None
    done = sum(trial.counted for trial in earlier)
    chooser = Chooser(book, space, planned=[], sampled=trials - done, epochs=EPOCHS, arms=arms)
    running: list[Any] = []
    count = 0
    while count != until:
        if len(running) < slots and (chosen := chooser.take()) is not None:
            book.suggested(chosen.trial.number, chosen.facts)
            running.append(chosen)
            chooser.prepare()
            continue
        if not running:
            break
        ended = running.pop(0)
        end(book, ended.trial.number, ended.params)
        count += 1
    book.close()
    return [trial.params for trial in reader.read(path)[0] if trial.state != "RUNNING"]


def end(book: Ledger, number: int, params: dict[str, Any]) -> None:
    value = score(params)
    epochs = 2 if number % 3 == 2 else EPOCHS
    for epoch in range(1, epochs + 1):
        book.report(number, epoch, value - 0.05 / epoch)
    best = {"epoch": float(epochs), "val/accuracy": value}
    facts = {"metrics": {"best": best, "last": best}, "epochs": epochs, "history": []}
    book.end(number, "COMPLETE" if epochs == EPOCHS else "PRUNED", value, facts)


def test_heads_do_not_use_up_the_trials_that_train_blocks(tmp_path: Path) -> None:
    space = space_of()
    found = run(tmp_path / "a.db", space, "auto", 24)
    trained = [params for params in found if space.trains(params)]
    assert len(trained) == 24
    assert {params["strategy"] for params in found} == {"replace", "load", "fuse"}
    assert len(found) - len(trained) <= 3 * TRIES


def test_where_nothing_trains_blocks_heads_are_counted(tmp_path: Path) -> None:
    space = space_of(space={"frozen_layers": "all"})
    assert set(space.arms.values()) == {True}
    assert len(run(tmp_path / "a.db", space, "auto", 9)) == 9


@pytest.mark.parametrize("name", ["random", "grid"])
def test_random_search_and_a_grid_count_every_trial(tmp_path: Path, name: str) -> None:
    assert len(run(tmp_path / "a.db", space_of(), name, 12)) == 12


@pytest.mark.parametrize("name", ["auto", "tpe", "gp", "cmaes", "random", "grid"])
def test_a_seed_gives_the_same_trials_to_the_bit(tmp_path: Path, name: str) -> None:
    space = space_of(space={"optimizer": ["sgd", "adam"], "momentum": {"low": 0.5, "high": 0.99}})
    one, same, other = (
        run(tmp_path / f"{i}.db", space, name, 16, seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    assert one == same != other


@pytest.mark.parametrize("name", ["auto", "tpe", "cmaes"])
def test_models_find_better_trials_than_random_search(tmp_path: Path, name: str) -> None:
    space = space_of(space={"strategy": "fuse"})
    late = [score(p) for p in run(tmp_path / "a.db", space, name, 30)[15:]]
    drawn = [score(p) for p in run(tmp_path / "b.db", space, "random", 30)[15:]]
    assert np.mean(late) > np.mean(drawn) + 0.03


@pytest.mark.parametrize("name", ["auto", "tpe", "cmaes"])
def test_trials_that_run_at_once_do_not_repeat_each_other(tmp_path: Path, name: str) -> None:
    """The space has 32 trials; models that liked one of them would ask for it again."""
    small = {"strategy": "fuse", "learning_rate": [0.003, 0.01, 0.03, 0.1], "head_size": [0, 64],
             "frozen_layers": [2, 5], "backbone_rate": [0.1, 1.0]}  # fmt: skip
    found = run(tmp_path / "a.db", space_of(space=small), name, 28, slots=4)
    assert len({tuple(sorted(params.items())) for params in found[1:]}) == len(found) - 1


def test_a_grid_visits_every_combination_once_also_in_a_conditional_space(tmp_path: Path) -> None:
    small = {"strategy": ["load", "fuse"], "learning_rate": {"low": 0.001, "high": 0.008, "log": True},
             "frozen_layers": {"load": "all", "fuse": [5]}, "head_size": {"fuse": [0, 64, 128]},
             "backbone_rate": 1.0}  # fmt: skip
    found = run(tmp_path / "a.db", space_of(space=small), "grid", 16, slots=3)
    assert len({tuple(sorted(params.items())) for params in found}) == 4 + 4 * 3
    rates = sorted({params["learning_rate"] for params in found})
    assert rates == pytest.approx([0.001, 0.002, 0.004, 0.008])


def test_models_wait_for_the_start_up_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = gaussian.GaussianModel.suggest

    def suggest(self: Any, trials: Any, *rest: Any, **more: Any) -> Any:
        asked.append(sum(trial.state.is_finished() for trial in trials))
        return original(self, trials, *rest, **more)

    monkeypatch.setattr(gaussian.GaussianModel, "suggest", suggest)
    run(tmp_path / "a.db", space_of(space={"strategy": "fuse"}), "auto", samplers.START_UP + 4, slots=2)
    assert asked
    assert min(asked) == samplers.START_UP


def test_a_study_that_goes_on_keeps_its_counts(tmp_path: Path) -> None:
    """Bandit and start-up count earlier trials: a new start would try each strategy's heads again."""
    space = space_of()
    run(tmp_path / "a.db", space, "auto", 24, until=20)
    before = reader.read(tmp_path / "a.db")[0]
    found = run(tmp_path / "a.db", space, "auto", 24)
    ended = [trial for trial in reader.read(tmp_path / "a.db")[0] if trial.state in ("COMPLETE", "PRUNED")]
    assert sum(trial.counted for trial in ended) == 24
    assert sum(not trial.counted for trial in ended) <= 3 * TRIES
    assert len(found) >= len(before)


def test_the_next_trial_is_chosen_before_a_slot_asks_for_it(tmp_path: Path) -> None:
    space = space_of(space={"strategy": "fuse"})
    book = Ledger(tmp_path / "a.db", metric="val/accuracy", sampler=samplers.make("random", seed=0))
    chooser = Chooser(book, space, planned=[], sampled=2)
    first = chooser.take()
    chooser.prepare()
    waiting = len(book.trials)
    second = chooser.take()
    assert first is not None
    assert second is not None
    assert (waiting, len(book.trials), second.trial.number) == (2, 2, 1), "it was there already"
    assert chooser.take() is None
    assert chooser.left == 0
    book.suggested(first.trial.number, first.facts)
    book.close()
    assert len(reader.read(tmp_path / "a.db")[0]) == 1, "what was not handed out is not in the record"


def test_the_bandit_leaves_an_arm_that_has_given_all_and_returns_where_it_may_gain() -> None:
    bandit = Bandit({"a": True, "b": True}, Objective("val/accuracy"))
    draw = np.random.default_rng(0)
    chosen = []
    for number in range(40):
        arm = bandit.choose()
        assert arm is not None
        chosen.append(arm)
        bandit.begin(number, arm, 1.0)
        bandit.end(number, float(draw.normal(0.9 if arm == "b" else 0.5, 0.05)), 1.0)
    assert 2 <= chosen.count("a") <= 12
    assert chosen[-10:].count("b") >= 9


def test_the_bandit_counts_cost_and_not_trials() -> None:
    """Of two arms that are as good, the one that costs a tenth gets ten times as many trials."""
    bandit = Bandit({"dear": True, "cheap": True}, Objective("val/loss"))
    for number in range(60):
        arm = bandit.choose()
        assert arm is not None
        bandit.begin(number, arm, 10.0 if arm == "dear" else 1.0)
        bandit.end(number, 1.0, 10.0 if arm == "dear" else 1.0)
    assert bandit._arms["cheap"].tried > 5 * bandit._arms["dear"].tried


def test_heads_that_lead_take_a_tenth_of_the_cost_and_half_of_the_trials_at_most() -> None:
    bandit = Bandit({"head": False, "fuse": True}, Objective("val/accuracy"))
    counted = 0
    for number in range(400):
        arm = bandit.choose()
        assert arm is not None
        cost = 0.05 if arm == "head" else 4.0
        counted += arm == "fuse"
        bandit.begin(number, arm, cost)
        bandit.end(number, 0.9 if arm == "head" else 0.5, cost)
    assert counted >= 4
    spent = sum(arm.cost for arm in bandit._arms.values())
    assert bandit._arms["head"].cost <= SHARE * spent + 0.05
    assert bandit._arms["head"].tried <= max(TRIES, counted)


def test_a_failed_trial_costs_and_gives_nothing() -> None:
    bandit = Bandit({"a": True}, Objective("val/accuracy"))
    bandit.begin(0, "a", 4.0)
    bandit.end(0, None, 1.0)
    assert (bandit._arms["a"].cost, bandit._arms["a"].best) == (1.0, -np.inf)
    assert bandit.choose() == "a"
    assert Bandit({}, Objective("val/accuracy")).choose() is None


def test_a_process_predicts_what_it_has_seen_and_extrapolates_curves() -> None:
    """Two fields and the epoch; the score rises with the epoch and is best in the middle."""
    space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "xy"}
    model, study = gaussian.GaussianModel(0), optuna.create_study(direction="maximize")
    draw = np.random.default_rng(1)
    for number in range(20):
        x, y = draw.random(2)
        best = 1 - (x - 0.5) ** 2 - (y - 0.3) ** 2
        curve = {e: best * (1 - 0.5 / e) for e in range(1, 9 if number % 2 else 3)}
        state = TrialState.COMPLETE if number % 2 else TrialState.PRUNED
        study.add_trial(
            optuna.trial.create_trial(
                params={"x": x, "y": y}, distributions=dict(space), intermediate_values=curve, state=state,
                value=curve[max(curve)],
            )
        )  # fmt: skip
    first = next(iter(model.suggest(study.trials, space, maximize=True)))
    assert abs(first["x"] - 0.5) < 0.25
    assert abs(first["y"] - 0.3) < 0.25


def test_units_come_back_as_the_values_that_they_were() -> None:
    spreads = [
        optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
        optuna.distributions.IntDistribution(2, 11, step=3),
        optuna.distributions.IntDistribution(1, 100, log=True),
        optuna.distributions.CategoricalDistribution(("a", 3, "c")),
    ]
    for spread in spreads:
        for share in np.linspace(0, 1, 9):
            value = gaussian.from_unit(spread, share)
            assert spread._contains(spread.to_internal_repr(value))
            back = gaussian.from_unit(spread, float(gaussian.to_units(spread, [value])[0]))
            assert back == pytest.approx(value)


def portfolio_of(*rates: float) -> Portfolio:
    fuse = {"strategy": "fuse", "optimizer": "sgd", "head_size": 0, "backbone_rate": 1.0, "augment": "none"}
    settings = tuple({**fuse, "learning_rate": rate, "frozen_layers": 0.5} for rate in rates)
    losses = np.array([[float(i) for i in range(len(rates))], [float(-i % 3) for i in range(len(rates))]])
    return Portfolio((Situation(100, 2), Situation(100_000, 1000)), settings, losses)


def test_a_portfolio_is_ordered_for_the_data_at_hand() -> None:
    made = portfolio_of(0.001, 0.003, 0.01)
    assert made.order(Situation(100, 2))[0]["learning_rate"] == 0.001
    many = Portfolio(made.situations, made.settings, np.array([[0.0, 1, 1], [1, 1, 0.0]]))
    assert many.order(Situation(120, 3))[0]["learning_rate"] == 0.001
    assert many.order(Situation(90_000, 900))[0]["learning_rate"] == 0.01


def test_greedy_takes_what_covers_all_tasks_before_what_is_second_on_one() -> None:
    scores = np.array([[0.9, 0.89, 0.2, 0.1], [0.2, 0.1, 0.8, 0.1]])
    assert portfolio.greedy(scores, 2) == [0, 2]
    assert sorted(portfolio.greedy(scores, 9)) == [0, 1, 2, 3]


def test_a_study_begins_with_settings_that_its_space_holds() -> None:
    made = portfolio_of(0.003, 0.5)
    space = space_of(space={"backbone_rate": 0.1, "head_size": {"replace": 0, "fuse": [256, 1024]}})
    starts = portfolio.starts(space, made, Situation(), trials=24)
    assert [start["strategy"] for start in starts][-1] == "fuse"
    fused = [start for start in starts if start["strategy"] == "fuse"]
    assert [(s["learning_rate"], s["backbone_rate"], s["head_size"]) for s in fused] == [(0.003, 0.1, 256)]
    assert all(space.holds(start) for start in starts)
    adam = space_of(space={"optimizer": "adam"})
    assert portfolio.starts(adam, made, Situation(), trials=24) == []


def test_the_portfolio_takes_a_third_of_a_small_study() -> None:
    some = portfolio_of(*(0.001 * 1.4**i for i in range(9)))
    made = Portfolio(some.situations, some.settings, np.zeros((2, 9)))
    space = space_of()
    for trials, wanted in ((24, 8), (9, 3), (1, 1)):
        starts = portfolio.starts(space, made, Situation(), trials=trials)
        assert sum(start["strategy"] == "fuse" for start in starts) == wanted
    study = StudyConfig.from_dict(
        {"study": {"name": "s", "trials": 9, "baselines": []}, "data": {"path": "/i"}}
    ).study
    planned, sampled = to_do([], study, space, portfolio.starts(space, made, Situation(), trials=9))
    assert [plan.counted for plan in planned] == [False, False, True, True, True]
    assert sampled == 6


def test_ones_own_studies_join_the_portfolio() -> None:
    fuse = {"strategy": "fuse", "optimizer": "sgd", "head_size": 0, "backbone_rate": 1.0, "augment": "none"}
    settings = tuple({**fuse, "learning_rate": rate, "frozen_layers": 0.25} for rate in (0.01, 0.02, 0.03))
    own = Recorded(Situation(500, 5), settings, (2.0, 0.0, 1.0))
    grown = portfolio_of(0.001, 0.003).grown([own])
    assert grown.losses.shape == (3, 5)
    assert grown.order(Situation(500, 5))[0] in settings[1:2] + grown.settings[:2]
    assert portfolio.expected(settings[1], own) == 0.0
    there = Portfolio.read(portfolio.SHIPPED)
    assert len(there.settings) >= portfolio.SIZE


def test_a_finished_study_is_read_as_settings_and_losses(tmp_path: Path) -> None:
    config = StudyConfig.from_dict(
        {
            "study": {"name": "s", "trials": 12, "epochs": EPOCHS},
            "data": {"path": "/i"},
            "model": {"backbone": "vgg13"},
        }
    )
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    run(tmp_path / "optuna.db", Space(config), "auto", 12)
    found = read_study(tmp_path)
    assert found is not None
    assert len(found.settings) == 12
    assert min(found.losses) == 0.0
    assert all(0 <= setting["frozen_layers"] < 1 for setting in found.settings)


def test_a_portfolio_is_made_from_a_table_of_recorded_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two data sets that want different rates, and one whose tasks are left out."""
    facts = {"backbone": "vgg13", "images": 500, "val_images": 100, "classes": 5,
             "common": {"optimizer": "sgd", "augment": "none"}}  # fmt: skip
    lines: list[dict[str, Any]] = []
    for name, best in (("a", 0.002), ("b", 0.02), ("c", 0.0007)):
        lines.append({"task": name, "data": f"images of {name}", **facts})
        for rate in (0.0007, 0.002, 0.006, 0.02, 0.05):
            setting = {"strategy": "fuse", "learning_rate": rate, "head_size": 0, "frozen_layers": 0.5}
            score = 0.9 - 0.3 * abs(np.log10(rate / best))
            lines.append(
                {"task": name, "setting": setting, "scores": [0.3, score, score - 0.1], "seconds": 2}
            )
        head = {"strategy": "load", "learning_rate": 0.01, "frozen_layers": 1.0}
        lines.append({"task": name, "setting": head, "scores": [0.6], "seconds": 0.1})
    (tmp_path / "table.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    command = ["portfolio", str(tmp_path / "table.jsonl"), "--to", str(tmp_path / "p.json")]
    monkeypatch.setattr("sys.argv", [*command, "--without", "images of c"])
    portfolio.main()
    made = Portfolio.read(tmp_path / "p.json")
    assert made.situations == (Situation(500, 5, 0.5),) * 2
    assert {setting["learning_rate"] for setting in made.order(Situation())[:2]} == {0.002, 0.02}
    assert all(setting["optimizer"] == "sgd" for setting in made.settings)
    assert "a: 5 trials" in capsys.readouterr().out


def test_a_setting_that_needs_an_exact_head_stays_out_of_a_space_without_it() -> None:
    setting = {"strategy": "fuse", "learning_rate": 0.01, "head_size": 0, "frozen_layers": 0.5,
               "head_init": "exact"}  # fmt: skip
    plain = space_of(space={"head_init": "random"})
    assert plain.placed(setting | {"head_init": "random"}) is not None
    assert plain.placed(setting) is None
    placed = space_of().placed(setting)
    assert placed is not None
    assert placed["head_init"] == "exact"


def test_with_random_weights_no_head_begins_with_the_exact_solution() -> None:
    wanted = {"strategy": "fuse", "learning_rate": 0.01, "head_size": 0, "frozen_layers": 0.5}
    for weights, found in (("none", None), ("DEFAULT", "exact")):
        placed = space_of(model={"weights": weights}, space={"strategy": "fuse"}).placed(
            wanted | {"head_init": "exact"}
        )
        assert (placed and placed["head_init"]) == found


def test_a_portfolio_survives_its_file(tmp_path: Path) -> None:
    made = portfolio_of(0.001, 0.003)
    (tmp_path / "p.json").write_text(made.to_json())
    again = Portfolio.read(tmp_path / "p.json")
    assert (again.settings, again.situations) == (made.settings, made.situations)
    assert again.losses == pytest.approx(made.losses)
