"""Following a job over a connection that breaks, against a client that breaks on purpose."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from search.cluster import jobs
from search.errors import ClusterError

LINES = [f"epoch {number}\n" for number in range(100)]


class Client:
    """A job that writes LINES; every connection to its log breaks after `brings` new lines."""

    def __init__(self, brings: int) -> None:
        self.brings, self.connections = brings, 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.connections += 1
        known = self.brings * self.connections
        for line in LINES[:known]:
            yield line
        if known < len(LINES):
            raise ConnectionError("the laptop slept")

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(
            submission_id=job_id, status="SUCCEEDED", metadata={}, start_time=0, driver_exit_code=0
        )


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.0, raising=False)


def test_a_log_is_followed_for_as_long_as_each_connection_brings_something() -> None:
    """Two days on Wi-Fi lose more connections than a cluster that is gone is given."""
    written: list[str] = []
    client = Client(brings=1)
    assert jobs.follow(client, "job", written.append).ended
    assert "".join(written) == "".join(LINES)
    assert client.connections == len(LINES) > jobs._RECONNECTS


def test_a_cluster_that_answers_no_more_is_given_up() -> None:
    client = Client(brings=0)
    with pytest.raises(ClusterError, match="the cluster must answer, got 'the laptop slept'"):
        jobs.follow(client, "job", lambda text: None)
    assert client.connections == jobs._RECONNECTS + 1
