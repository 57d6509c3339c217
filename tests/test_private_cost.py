"""What a private study costs: two bounds, an independent accountant, and a search computed exactly."""

import numpy as np
import pytest

from finetune.private import accounting, profiles, renyi
from finetune.private.accounting import Steps
from finetune.private.law import TrialLaw

DELTA = 1e-4


@pytest.mark.parametrize(
    ("noise", "mean", "shape", "expected"),
    [
        # dp-accounting 0.6.0, by `benchmarks.private_search --reference`: RepeatAndSelectDpEvent
        (11.584948193137127, 10, 0, 1.875522),
        (11.584948193137127, 25, 0, 2.052239),
        (11.584948193137127, 25, 1, 2.568124),
        (11.584948193137127, 100, 0, 2.282779),
        (6.295394883753849, 25, 0, 3.887615),
        (6.295394883753849, 25, 1, 4.780098),
        (3.512504320746599, 25, 0, 7.250848),
        (3.512504320746599, 100, 1, 9.916778),
    ],
)
def test_the_cost_of_a_search_over_dp_sgd_is_that_of_an_independent_accountant(
    noise: float, mean: float, shape: float, expected: float
) -> None:
    curve = renyi.subsampled(0.256, noise, 160)
    assert renyi.study_epsilon(curve, TrialLaw(mean, shape), DELTA) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("noise", "trial", "study"),
    [(3.6408058575091813, 0.9594593, 1.993454), (0.9549496387119203, 4.4087469, 7.89232)],
)
def test_the_cost_of_a_search_over_one_question_is_that_of_an_independent_accountant(
    noise: float, trial: float, study: float
) -> None:
    curve = renyi.gaussian(noise)
    assert renyi.epsilon(curve, DELTA) == pytest.approx(trial, rel=0.01)
    assert renyi.study_epsilon(curve, TrialLaw(25), DELTA) == pytest.approx(study, rel=0.01)


def test_releasing_all_trials_would_cost_three_times_as_much() -> None:
    curve = renyi.subsampled(0.256, 11.584948193137127, 160)
    assert renyi.released_one_by_one(curve, 25, DELTA) == pytest.approx(6.24, rel=0.01)
    assert renyi.study_epsilon(curve, TrialLaw(25), DELTA) < 2.06


def test_a_search_of_one_trial_costs_what_the_trial_costs() -> None:
    curve = renyi.gaussian(2.0)
    assert renyi.study_epsilon(curve, TrialLaw(1), DELTA) == renyi.epsilon(curve, DELTA)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "beside", "trial", "study"),
    [
        # dp-accounting 0.6.0, by the same command: its loss distributions.
        (0.25, 6.92, 60, 10.44, 0.95698, 1.99045),
        (0.25, 2.0, 60, 2.76, 4.44862, 7.88760),
        (1.0, 3.3 * 8, 63, 3.3 * 8, 0.96093, 1.99552),  # 64 questions with 8 times the noise are one question
        (1.0, 0.87 * 8, 63, 0.87 * 8, 4.49218, 7.93538),
    ],
)
def test_profiles_are_those_of_an_independent_accountant(
    rate: float, noise: float, steps: int, beside: float, trial: float, study: float
) -> None:
    profile = profiles.subsampled(rate, noise, steps, beside, error=2e-3)
    assert trial <= profiles.epsilon(profile, DELTA) == pytest.approx(trial, rel=0.01)
    assert study <= profiles.searched(profile, TrialLaw(25), DELTA) == pytest.approx(study, rel=0.01)


def best_of(odds: np.ndarray, law: TrialLaw) -> np.ndarray:
    """The exact odds of the best outcome of a search, for outcomes in the order of their scores."""
    no_better = np.append(0, np.cumsum(odds))
    generating = np.log(1 - (1 - law.gamma) * no_better) / np.log(law.gamma)
    return np.diff(generating)


def stick(odds: np.ndarray, others: np.ndarray, epsilon: float) -> float:
    """The exact delta of two distributions at an epsilon, in the worse direction."""
    return max(
        (odds - np.exp(epsilon) * others).clip(0).sum(), (others - np.exp(epsilon) * odds).clip(0).sum()
    )


@pytest.mark.parametrize("mean", [2.0, 25.0, 400.0])
@pytest.mark.parametrize("noise", [0.7, 3.3])
def test_a_search_that_is_computed_exactly_stays_below_its_bound(noise: float, mean: float) -> None:
    """Outcomes are scores on a grid, which the unit moves by one: up, down, or in a random order."""
    law = TrialLaw(mean)
    at = np.linspace(-8 * noise, 8 * noise + 1, 4000)
    pair = [np.exp(-((at - moved) ** 2) / (2 * noise**2)) for moved in (0.0, 1.0)]
    pair = [odds / odds.sum() for odds in pair]
    sticks = np.array([stick(*pair, epsilon) for epsilon in profiles.EPSILONS[::50]])
    profile = np.repeat(sticks, 50)[: len(profiles.EPSILONS)]  # each epsilon has the delta of a smaller one
    bound = profiles.searched(profile, law, DELTA)
    mixed = np.random.default_rng(0).permutation(len(at))
    for order in (np.arange(len(at)), np.arange(len(at))[::-1], mixed):
        found = [best_of(odds[order], law) for odds in pair]
        assert stick(*found, bound) <= DELTA
    # It is no empty bound: in the order of the scores a search really costs most of it.
    found = [best_of(odds, law) for odds in pair]
    assert stick(*found, 0.5 * bound) > DELTA


@pytest.mark.parametrize("noise", [0.87, 3.3, 12.5])
def test_a_profile_gives_a_smaller_epsilon_than_a_renyi_curve(noise: float) -> None:
    law, cost = TrialLaw(25), accounting.once(noise)
    by_curve = renyi.study_epsilon(cost.curve, law, DELTA)
    assert 0.85 * by_curve < cost.of_study(law, DELTA) < 0.95 * by_curve
    assert cost.epsilon(DELTA) < renyi.epsilon(cost.curve, DELTA)


@pytest.mark.parametrize("shape", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("mean", [3.0, 25.0])
def test_the_law_of_the_number_of_trials_has_its_mean(mean: float, shape: float) -> None:
    law = TrialLaw(mean, shape)
    odds = np.array([law.probability(k) for k in range(1, 60_000)])
    assert odds.sum() == pytest.approx(1, abs=1e-4)
    assert (odds * np.arange(1, 60_000)).sum() == pytest.approx(mean, rel=0.01)
    drawn = [law.draw((i + 0.5) / 2000) for i in range(2000)]
    assert min(drawn) == 1
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)


def test_the_noise_of_every_mechanism_meets_the_budget_together() -> None:
    budget, law, steps = 2.0, TrialLaw(25), (Steps(0.25, 60), Steps(1.0, 40))
    noise = accounting.solve(budget, DELTA, law, steps)
    costs = [accounting.stepwise(s, n, noise.one_shot, tight=2e-3) for s, n in noise.steps.items()]
    whole = accounting.worst([accounting.once(noise.one_shot), *costs])
    assert whole.of_study(law, DELTA) == pytest.approx(noise.study_epsilon, rel=0.01)
    assert 0.97 * budget < noise.study_epsilon <= budget
    # No mechanism is given much more noise than it needs.
    assert all(cost.of_study(law, DELTA) > 0.97 * budget for cost in costs)
    # A count on test images alone may be exacter than the trials, and still costs no more than the study.
    assert noise.test < noise.one_shot
    assert accounting.once(noise.test).epsilon(DELTA) <= budget
    assert noise.naive_epsilon > 2 * noise.study_epsilon


@pytest.mark.parametrize(("budget", "mean"), [(20.0, 25.0), (0.1, 1.0), (1e3, 3.0)])
def test_every_budget_is_met(budget: float, mean: float) -> None:
    """Few steps, so that composing them is quick."""
    noise = accounting.solve(budget, DELTA, TrialLaw(mean), (Steps(0.25, 3), Steps(1.0, 2)))
    assert 0.85 * budget < noise.study_epsilon <= budget


@pytest.mark.thorough
def test_a_budget_at_the_end_of_numerical_composition_is_met() -> None:
    """A bound that changes with the noise between two guesses would have none that fits."""
    for budget in (0.97 * accounting.TIGHT_BELOW, 1.03 * accounting.TIGHT_BELOW):
        noise = accounting.solve(budget, DELTA, TrialLaw(1), (Steps(0.25, 3),))
        assert 0.85 * budget < noise.study_epsilon <= budget
