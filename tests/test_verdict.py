"""The verdict by number: wins, ties, luck, seeds that are missing, and how often it is wrong."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from finetune.metrics import Objective
from search.record.records import StudyRecord, TrialRecord
from search.verdict import answers, contest, paired, words
from search.verdict.answers import Answers
from search.verdict.paired import Runs
from search.verdict.words import Contestant, Verdict, verdict

IMAGES = 400


def runs(rights: list[int], images: int = IMAGES) -> Runs:
    """Models of several seeds that answer the first so many images right."""
    credits_ = np.array([[float(i < right) for i in range(images)] for right in rights])
    return Runs(scores=credits_.mean(axis=1), credits=credits_)


def setting(trial: str, strategy: str, chosen: float, rights: list[int], **more: object) -> Contestant:
    measured = runs(rights) if rights else None
    again = tuple(right / IMAGES for right in rights)
    made = Contestant(trial=trial, strategy=strategy, chosen=chosen, again=again, runs=measured)
    return dataclasses.replace(made, **more)


def told(winner: Contestant | None, *others: Contestant, **more: str) -> Verdict:
    return verdict(winner, others, **{"objective": Objective("val/accuracy"), "split": "test"} | more)


RECIPE = setting("trial-0000", "replace", 0.70, [280, 281, 279], baseline="recipe")
WINNER = setting("trial-0008", "fuse", 0.87, [344, 346, 345])


def test_a_winner_is_better_than_the_recipe_and_the_interval_is_the_one_worked_out_by_hand() -> None:
    found = told(WINNER, RECIPE)
    (one,) = found.comparisons
    # 65 of 400 images are answered better: 0.1625; on the rest both agree, but for one image here and there.
    assert one.difference == pytest.approx(0.1625)
    images = (WINNER.runs.credits.mean(0) - RECIPE.runs.credits.mean(0)).var(ddof=1) / IMAGES
    seeds = 2 * (1 / 400) ** 2 / 3
    freedom = (images + seeds) ** 2 / (images**2 / 399 + 2 * (seeds / 2) ** 2 / 2)
    from scipy.stats import t

    half = t.ppf(0.975, freedom) * np.sqrt(images + seeds)
    assert (one.low, one.high) == pytest.approx((0.1625 - half, 0.1625 + half))
    assert one.outcome == "better"
    assert found.sentence == (
        f"trial-0008 (fuse) is better than the recipe (+16.25 points, {100 * one.low:+.2f} to "
        f"{100 * one.high:+.2f}): on 400 test images over 3 seeds."
    )
    assert (found.images, found.seeds, found.split, found.score) == (400, 3, "test", pytest.approx(0.8625))


def test_two_settings_as_good_cannot_be_told_apart() -> None:
    one = told(WINNER, setting("trial-0019", "load", 0.868, [345, 343, 346])).comparisons[0]
    assert one.outcome == "cannot be told apart"
    assert one.low < 0 < one.high
    same = told(WINNER, setting("trial-0019", "load", 0.868, [344, 346, 345])).comparisons[0]
    assert (same.difference, same.outcome) == (0.0, "cannot be told apart")


def test_every_strategy_is_compared_once_and_intervals_hold_together() -> None:
    others = [
        setting("trial-0009", "fuse", 0.86, [343, 344, 342]),
        setting("trial-0003", "load", 0.80, [320, 321, 322]),
        setting("trial-0004", "load", 0.79, [310, 312, 311]),
        RECIPE,
        setting("trial-0005", "replace", 0.75, [300, 300, 301]),
    ]
    found = told(WINNER, *others)
    names = [(one.against, one.trial) for one in found.comparisons]
    assert names == [
        ("recipe", "trial-0000"),
        ("runner-up", "trial-0009"),
        ("load", "trial-0003"),
        ("replace", "trial-0005"),
    ]
    alone = told(WINNER, RECIPE).comparisons[0]
    assert found.comparisons[0].high - found.comparisons[0].low > alone.high - alone.low  # Bonferroni


def test_a_winner_that_is_worse_is_called_worse() -> None:
    found = told(RECIPE, WINNER)
    assert found.comparisons[0].outcome == "worse"
    assert "is worse than the runner-up trial-0008 (-16.25 points" in found.sentence


def test_a_planted_lucky_winner_is_called_so() -> None:
    lucky = setting("trial-0011", "fuse", 0.91, [340, 341, 339])
    steady = setting("trial-0007", "load", 0.89, [356, 355, 357])
    found = told(lucky, steady)
    assert found.luck is not None
    assert found.luck.won_by_luck
    assert found.luck.difference == pytest.approx(0.06)
    assert found.sentence.startswith("trial-0011 (fuse) won by luck: it is worse than")
    assert found.luck.sentence == (
        "The score that chose trial-0011, 0.9100, became 0.8500 over 3 other seeds: 6.00 points of it were "
        "luck; its first place too: trial-0007 (load) has 0.8900."
    )
    kept = told(WINNER, RECIPE).luck
    assert kept is not None
    assert not kept.won_by_luck


@pytest.mark.parametrize("rights", [[], [344]])
def test_with_fewer_than_two_seeds_nothing_is_claimed(rights: list[int]) -> None:
    found = told(setting("trial-0008", "fuse", 0.87, rights), RECIPE)
    assert found.comparisons[0].outcome == "not measured"
    assert found.comparisons[0].difference is None
    assert "was not measured over seeds" in found.sentence
    assert (found.split, found.images, found.score) == ("", 0, None)


def test_a_head_that_is_solved_for_is_trained_once_and_adds_no_chance_of_a_seed() -> None:
    one = runs([344])
    solved = dataclasses.replace(one, solved=True)
    winner = setting("trial-0001", "exact", 0.86, [344], baseline="exact", runs=solved)
    found = told(winner, RECIPE)
    (against,) = found.comparisons
    assert (against.outcome, against.seeds) == ("better", 3)
    twice = paired.Runs(scores=np.array([0.86, 0.86]), credits=one.credits.repeat(2, axis=0))
    expected = paired.difference(twice, RECIPE.runs, level=0.95, objective=Objective("val/accuracy"))
    assert (against.low, against.high) == pytest.approx((expected.low, expected.high))
    assert found.luck is None
    assert found.sentence.endswith("on 400 test images over 3 seeds.")
    record = SimpleNamespace(params={"strategy": "exact"})
    assert [contest.seeds_of(record, seeds) for seeds in (0, 1, 3)] == [0, 1, 1]


def test_seeds_that_failed_are_told_and_the_others_count() -> None:
    found = told(WINNER, setting("trial-0000", "replace", 0.7, [280, 281], baseline="recipe", failed=1))
    assert found.comparisons[0].outcome == "better"
    assert found.comparisons[0].seeds == 2
    assert found.note == "Seeds that failed or did not fit into the budget: trial-0000 (1)."
    lost = told(WINNER, setting("trial-0000", "replace", 0.7, [], baseline="recipe", failed=3))
    assert lost.comparisons[0].outcome == "not measured"


def test_trials_that_failed_or_were_stopped_are_compared_with_nobody() -> None:
    """However good they were at their best epoch; a baseline that failed is none."""

    def trial(number: int, state: str, score: float, **more: Any) -> TrialRecord:
        metrics = {"best": {"val/accuracy": score}, "last": {"val/accuracy": score}}
        params = {"strategy": ("replace", "load", "fuse")[number % 3], "learning_rate": score}
        name = f"trial-{number:04}"
        return TrialRecord(number=number, id=name, state=state, params=params, metrics=metrics, **more)

    trials = (
        trial(0, "FAIL", 0.5, baseline="recipe", error="nan"),
        trial(1, "COMPLETE", 0.8),
        trial(2, "FAIL", 0.99, error="nan"),
        trial(3, "PRUNED", 0.95),
        trial(4, "FAIL", 0.97, interrupted=True),
        trial(5, "COMPLETE", 0.7),
    )
    facts: dict[str, Any] = {
        "name": "s",
        "metric": "val/accuracy",
        "planned": 6,
        "epochs": 2,
        "state": "finished",
    }
    record = StudyRecord(**facts, seconds=1.0, provenance={}, trials=trials, folder="nowhere")
    assert [one.number for one in contest.contestants(record, top=3)] == [1, 5]
    found = contest.of(record)
    assert (found.winner, [one.trial for one in found.comparisons]) == ("trial-0001", ["trial-0005"])
    nobody = dataclasses.replace(record, trials=(trials[0], *trials[2:5]))
    assert contest.of(nobody).sentence == "No verdict: no trial completed with val/accuracy."


def test_without_test_images_the_verdict_says_that_nothing_independent_was_measured() -> None:
    found = told(WINNER, RECIPE, split="val")
    assert found.note.startswith("There are no test images, so nothing independent was measured")
    assert "on 400 validation images" in found.comparisons[0].sentence


def test_no_winner_and_a_winner_alone() -> None:
    assert told(None).sentence == "No verdict: no trial completed with val/accuracy."
    assert told(WINNER).sentence == "trial-0008 (fuse) won; there is no other setting to compare it with."


def test_less_is_better_turns_the_signs() -> None:
    low, high = (
        dataclasses.replace(setting("a", "fuse", 1.0, []), again=(0.3, 0.31), runs=runs([120, 124])),
        dataclasses.replace(setting("b", "load", 1.1, []), again=(0.5, 0.51), runs=runs([200, 204])),
    )
    one = told(low, high, objective=Objective("val/loss")).comparisons[0]
    assert one.outcome == "better"
    assert one.difference == pytest.approx(0.2)
    assert "+0.2000" in one.sentence


def test_a_verdict_survives_json() -> None:
    found = told(WINNER, RECIPE)
    assert words.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_equal_models_are_called_different_in_at_most_5_percent_of_1000_draws() -> None:
    """Images differ in difficulty, seeds in skill; both settings are drawn from the same distribution."""
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        difficulty = draw.normal(1.2, 1.5, size=300)

        def model(difficulty: np.ndarray = difficulty) -> Runs:
            skill = draw.normal(0, 0.25, size=(3, 1))
            share = 1 / (1 + np.exp(-(difficulty + skill + draw.normal(0, 0.7, size=(3, 300)))))
            right = (draw.random((3, 300)) < share).astype(float)
            return Runs(right.mean(axis=1), right)

        found = paired.difference(model(), model(), level=0.95, objective=Objective("val/accuracy"))
        wrong += not found.low <= 0 <= found.high
    assert 5 <= wrong <= 50  # not never either: an interval that is far too wide would say nothing


def test_a_true_difference_of_6_points_is_found_in_most_draws() -> None:
    draw = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        difficulty = draw.normal(1.2, 1.5, size=400)
        made = []
        for skill in (0.5, 0.0):
            share = 1 / (1 + np.exp(-(difficulty + skill + draw.normal(0, 0.05, size=(3, 1)))))
            right = (draw.random((3, 400)) < share).astype(float)
            made.append(Runs(right.mean(axis=1), right))
        found += paired.difference(*made, level=0.95, objective=Objective("val/accuracy")).low > 0
    assert found > 160


def random_answers(images: int = 60, classes: int = 4) -> tuple[Answers, np.ndarray]:
    draw = np.random.default_rng(3)
    labels = draw.integers(0, classes, images)
    probabilities = draw.dirichlet(np.ones(classes), images)
    probabilities[np.arange(images), labels] += 0.5
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    made = Answers(
        labels=labels,
        predicted=predicted,
        confidence=probabilities.max(1),
        of_label=probabilities[np.arange(images), labels],
        in_top5=np.ones(images, dtype=bool),
    )
    return made, probabilities


def without(made: Answers, image: int) -> Answers:
    arrays = {name: value for name, value in vars(made).items() if value is not None}
    return Answers(**{name: np.delete(value, image) for name, value in arrays.items()})


def ece(made: Answers) -> float:
    bins = answers.reliability(made)
    return sum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(made.labels)


def test_the_credits_of_images_are_those_of_the_metrics() -> None:
    made, probabilities = random_answers()
    names = ["a", "b", "c", "d"]
    of = {
        m: answers.credits_of(made, m, names) for m in ("accuracy", "loss", "balanced_accuracy", "recall/c")
    }
    assert of["accuracy"].mean() == pytest.approx((made.labels == made.predicted).mean())
    assert of["loss"].mean() == pytest.approx(log_loss(made.labels, probabilities))
    assert of["balanced_accuracy"].mean() == pytest.approx(
        balanced_accuracy_score(made.labels, made.predicted)
    )
    mine = made.labels == 2
    assert of["recall/c"].mean() == pytest.approx((made.predicted[mine] == 2).mean())


@pytest.mark.parametrize("metric", ["macro_f1", "ece"])
def test_other_metrics_get_the_jackknifes_pseudo_values(metric: str) -> None:
    made, _ = random_answers()

    def measure(some: Answers) -> float:
        return f1_score(some.labels, some.predicted, average="macro") if metric == "macro_f1" else ece(some)

    count = len(made.labels)
    whole = measure(made)
    by_hand = [count * whole - (count - 1) * measure(without(made, i)) for i in range(count)]
    assert answers.credits_of(made, metric, ["a", "b", "c", "d"]) == pytest.approx(by_hand)
