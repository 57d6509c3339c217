"""Privacy profiles: the delta that a trial needs at each epsilon, and what a search of such trials costs.

A profile says more than a Renyi curve, so it gives a smaller epsilon (Koskela, Redberg and Wang, "Privacy
profiles for private selection", ICML 2024). That of DP-SGD is composed by opacus' numerical accountant (Gopi,
Lee and Wutschitz, NeurIPS 2021). Profiles are arrays over EPSILONS.
"""

import warnings
from functools import lru_cache

import numpy as np
from scipy.special import erfc, log_ndtr, ndtr

from finetune.private.law import TrialLaw

EPSILONS = np.concatenate([[0.0], np.geomspace(1e-3, 50, 8000)])
"""Epsilons at which profiles are known. A bound holds at any of them, so more of them only tighten it."""
DELTA_ERROR = 1e-10
"""Bound on the error of delta of a composed profile, which is added to it."""


def gaussian(noise: float) -> np.ndarray:
    """Return the profile of one Gaussian mechanism, exactly (Balle and Wang, ICML 2018, Theorem 8)."""
    half, whole = 1 / (2 * noise), EPSILONS * noise
    found: np.ndarray = ndtr(half - whole) - np.exp(EPSILONS + log_ndtr(-half - whole))
    return found.clip(min=0)


@lru_cache(maxsize=256)
def _subsampled(rate: float, noise: float, steps: int, beside: float, error: float) -> np.ndarray:
    from opacus.accountants.analysis import prv

    class Added(prv.PoissonSubsampledGaussianPRV):
        """The loss where the unit is left out. Opacus has the one where it is there."""

        def cdf(self, t: np.ndarray | float) -> np.ndarray:
            rate, noise = self.sample_rate, self.noise_multiplier
            rest = np.exp(-np.asarray(t, float)) - (1 - rate)
            at = noise**2 * np.log(np.where(rest > 0, rest, 1) / rate) + 0.5
            found: np.ndarray = np.where(rest > 0, erfc(at / (noise * np.sqrt(2))) / 2, 1.0)
            return found

    def one(kind: type[prv.PoissonSubsampledGaussianPRV]) -> np.ndarray:
        losses, counts = [kind(rate, noise), kind(1.0, beside)], [steps, 1]
        reach = prv.compute_safe_domain_size(losses, counts, error, DELTA_ERROR)
        mesh = error / np.sqrt((steps + 1) * np.log(12 / DELTA_ERROR) / 2)
        domain = prv.Domain.create_aligned(-reach, reach, mesh)
        cut = [prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max) for loss in losses]
        whole = prv.compose_heterogeneous([prv.discretize(loss, domain) for loss in cut], counts)
        at, odds = whole.domain.ts, whole.pmf
        above = np.append(np.cumsum(odds[::-1])[::-1], 0)
        weighted = np.append(np.cumsum((odds * np.exp(-at))[::-1])[::-1], 0)
        wanted = EPSILONS - error
        begin = np.searchsorted(at, wanted)
        found: np.ndarray = above[begin] - np.exp(wanted) * weighted[begin] + DELTA_ERROR
        return found.clip(min=DELTA_ERROR)

    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")  # opacus: about the range of Renyi orders, and logarithms of 0
        worse: np.ndarray = np.maximum(one(prv.PoissonSubsampledGaussianPRV), one(Added))
        return worse


def subsampled(rate: float, noise: float, steps: int, beside: float, *, error: float) -> np.ndarray:
    """Return the profile of `steps` Gaussian mechanisms on Poisson samples, and one on all units beside them.

    A unit may be there or be left out: both directions are composed, and the worse one counts.

    Args:
        rate: share of the units in a sample; 1: all of them.
        noise: noise multiplier of each step.
        steps: number of steps.
        beside: noise multiplier of the mechanism beside them.
        error: bound on the error of epsilon, which is added to it.
    """
    if rate == 1:  # Gaussian mechanisms compose to a Gaussian mechanism
        return gaussian(1 / np.sqrt(steps / noise**2 + 1 / beside**2))
    return _subsampled(rate, noise, steps, beside, error)


def epsilon(profile: np.ndarray, delta: float) -> float:
    """Return the least of EPSILONS at which a profile is within a delta; infinity if there is none."""
    met = profile <= delta
    return float(EPSILONS[met.argmax()]) if met.any() else float("inf")


def searched(profile: np.ndarray, law: TrialLaw, delta: float) -> float:
    """Return the epsilon of a search, given the profile of one trial, its score included.

    The winner's density is that of a trial times f'(x), where f is the generating function of the number of
    trials and x the odds that a trial scores no better. The first is bounded by the profile at delta / f'(1),
    f'(1) being the mean. The second changes by at most a power of e^second + odd * delta(second), since the
    odds that a trial scores better obey the profile as well; the best `second` is taken.

    Args:
        profile: profile of one trial.
        law: distribution of the number of trials.
        delta: delta of the search.
    """
    first = epsilon(profile, delta / law.mean)
    if law.gamma == 1:  # always one trial: nothing is chosen
        return first
    odd = 1 / law.gamma - 1
    change = np.log(np.exp(EPSILONS) + odd * profile).min()
    return float(first + (1 + law.shape) * change)
