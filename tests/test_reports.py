"""How soon a worker's reports go out: at once where somebody acts on them, together where nobody does.

And that whoever reads them needs no torch.
"""

import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from finetune import worker
from search.config.study import StudyConfig
from search.driver.study_run import StudyRun
from search.record.study_folder import StudyFolder
from search.suggest.sampler import Planned
from search.suggest.space import Space
from tests import small


class Calls:
    """An exchange's handle that keeps what it is called with."""

    def __init__(self) -> None:
        self.made: list[tuple[int, list[dict[str, Any]]]] = []
        self.report_all = types.SimpleNamespace(remote=self._take)

    def _take(self, job_id: str, number: int, messages: list[dict[str, Any]]) -> None:
        self.made.append((number, messages))


@pytest.mark.parametrize(("together", "calls"), [(worker.TOGETHER_SECONDS, 21), (worker.PATIENT_SECONDS, 6)])
def test_epochs_wait_for_one_another_where_nobody_waits_for_them(
    together: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    exchange = Calls()
    outbox = worker._Outbox(exchange, "a", 7, together)
    for epoch in range(21):
        outbox.put({"epoch": epoch})
        now += 1 / 16
    outbox.send()
    assert len(exchange.made) == calls
    assert [m["epoch"] for _, messages in exchange.made for m in messages] == list(range(21))
    assert [number for number, _ in exchange.made] == [
        7 + messages[0]["epoch"] for _, messages in exchange.made
    ]


def test_an_epoch_that_takes_longer_goes_out_at_once_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    exchange = Calls()
    outbox = worker._Outbox(exchange, "a", 0, worker.PATIENT_SECONDS)
    for epoch in range(3):
        outbox.put({"epoch": epoch})
        assert len(exchange.made) == epoch + 1
        now += 1.0


@pytest.mark.parametrize(
    ("enabled", "plan", "may_be_stopped"),
    [
        (True, None, True),
        (True, Planned(params={}), True),
        (True, Planned(params={}, baseline="recipe"), False),
        (False, None, False),
    ],
)
def test_a_job_says_whether_its_trial_may_be_stopped(
    tmp_path: Path, enabled: bool, plan: Planned | None, may_be_stopped: bool
) -> None:
    config = StudyConfig.from_dict(small.merged(small.STUDY, {"early_stopping": {"enabled": enabled}}))
    space = Space(config)
    study: Any = types.SimpleNamespace(
        config=config,
        space=space,
        folder=StudyFolder(tmp_path),
        images=types.SimpleNamespace(fingerprint="f"),
    )
    job = StudyRun._job(study, 0, space.baseline("recipe"), plan)
    assert job.may_be_stopped == may_be_stopped


def test_what_a_worker_says_of_itself_is_read_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.__version__` as it is made exchange and driver import torch, with a slot waiting for it."""
    context = types.SimpleNamespace(get_node_id=lambda: "a", get_accelerator_ids=dict)
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: context)
    facts = worker._facts(worker.World())
    read = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", read], input=pickle.dumps(facts), check=False)
    assert done.returncode == 0
