"""Samples of `make chaos`: crash states of a study, bugs that they must show, studies under faults."""

import pytest

from tests.chaos import crashes, harness
from tests.chaos.planted import PLANTED


def test_no_crash_loses_anything_that_was_announced() -> None:
    points, states, wrong = crashes.enumerate_states(lengths=6, most=120, seed=0)
    assert points > 150
    assert states == 120
    assert wrong == []


@pytest.mark.parametrize("name", ["no sync before a rename", "nothing is handed over"])
def test_a_planted_bug_is_shown_by_some_state(name: str) -> None:
    with PLANTED[name]():
        _, _, wrong = crashes.enumerate_states(lengths=1, most=200, seed=0)
    assert wrong


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["worker", "driver"])
def test_a_study_under_faults_loses_nothing(kind: str) -> None:
    outcome = harness.run(harness.KINDS[kind], seed=0)
    assert outcome.hit
    assert outcome.wrong == []
