"""A sample of `make chaos`: states in which a crash may leave a study, and a study whose driver is killed."""

from dataclasses import replace

import pytest

from tests.chaos import crashes, harness


@pytest.mark.thorough
def test_no_crash_loses_anything_that_was_announced() -> None:
    points, states, wrong = crashes.enumerate_states(lengths=6, most=60, seed=0)
    assert points > 150
    assert states == 60
    assert wrong == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["driver, slow disk"])
def test_a_study_under_faults_loses_nothing(kind: str) -> None:
    outcome = harness.run(replace(harness.KINDS[kind], runs=1, trials=8), seed=0)
    assert outcome.hit
    assert outcome.wrong == []
