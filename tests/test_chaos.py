"""A sample of `make chaos`: a study whose driver is killed."""

import pytest

from tests.chaos import harness


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["driver"])
def test_a_study_under_faults_loses_nothing(kind: str) -> None:
    outcome = harness.run(harness.KINDS[kind], seed=0)
    assert outcome.hit
    assert outcome.wrong == []
