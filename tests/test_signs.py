"""A job that shows no progress is taken from its slot, without Ray."""

import asyncio
import math
import time
from pathlib import Path

import pytest

from finetune.messages import End, Epoch, ExportJob, Started
from finetune.settings import FeatureSettings
from search.slots import signs
from search.slots.exchange import Exchange
from tests.by_hand import SETTINGS, train_job


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(signs.time, "monotonic", lambda: self.now)

    def go(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(signs, "time", type("Time", (), {"monotonic": time.monotonic}))
    return Clock(monkeypatch)


def test_the_limit_follows_from_the_longest_silence_once_an_epoch_was_told(clock: Clock) -> None:
    seen = signs.Signs()
    seen.begin("a")
    clock.go(500)
    seen.see("a")
    assert seen.limit == signs.BEFORE_ANY_SECONDS, "the start of a process says nothing about epochs"
    clock.go(20)
    seen.see("a", epoch=True)
    assert seen.limit == signs.LEAST_SECONDS
    clock.go(100)
    seen.see("a")
    assert seen.limit == 100 * signs.TIMES
    clock.go(1000)
    assert seen.silent(["a"]) == {}
    clock.go(1)
    assert seen.silent(["a"]) == {"a": 1001}
    assert signs.Signs(math.inf).silent(["a"]) == {}


def test_a_silent_job_is_retried_elsewhere_and_fails_when_it_is_silent_again_and_again(clock: Clock) -> None:
    async def scene() -> None:
        exchange = Exchange(retries=1, patience=30.0)
        await exchange.offer(train_job("a", {}))
        for number in range(2):
            generation = await exchange.register("slot-0", {})
            job = await exchange.take("slot-0", generation, 0, 0)
            assert job is not None
            await exchange.report("a", job.first_message, Started())
            for _ in range(4):
                clock.go(20)
                await exchange.beat("a")
                assert await exchange.end_silent() == []
            await exchange.report("a", job.first_message + 1, Epoch({"epoch": number + 1}))
            clock.go(31)
            assert await exchange.end_silent() == ["slot-0"]
            assert await exchange.end_silent() == []
            await exchange.place("slot-0", [])
        heard = await exchange.receive("a")
        assert [message.number for message in heard if isinstance(message, Epoch)] == [1, 2]
        end = heard[-1]
        assert isinstance(end, End)
        assert end.error == (
            "its worker died: no progress for 31 s, which is more than study.trial_timeout allows "
            "(tried 2 times)"
        )

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_an_export_and_a_job_that_waits_for_a_slot_may_be_silent(clock: Clock) -> None:
    async def scene() -> None:
        exchange = Exchange(patience=30.0)
        features = FeatureSettings(folder="", budget_bytes=0, mode="off")
        export = ExportJob(
            id="export",
            checkpoint=Path("best"),
            to=Path("to"),
            provenance={},
            answers=None,
            settings=SETTINGS,
            features=features,
        )
        await exchange.offer(export)
        await exchange.offer(train_job("a", {}))
        generation = await exchange.register("slot-0", {})
        assert await exchange.take("slot-0", generation, 0, 0) == export
        clock.go(1e6)
        assert await exchange.end_silent() == []
        await exchange.report("export", 0, End("complete"))
        job = await exchange.take("slot-0", generation, 0, 1)
        assert job is not None
        assert await exchange.end_silent() == [], "its silence counts from when it was given to the slot"

    asyncio.run(asyncio.wait_for(scene(), 60))
