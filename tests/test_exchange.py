"""The exchange without Ray: who gets which job, and that every ending frees what it held."""

import asyncio
from collections.abc import Awaitable, Callable

from search.exchange import FUTILE_STARTS, Exchange


def play(scene: Callable[[Exchange], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scene(Exchange()), timeout=10)

    asyncio.run(bounded())


def job(name: str) -> dict[str, str]:
    return {"id": name, "kind": "train"}


async def ends(exchange: Exchange, name: str) -> dict[str, object]:
    while True:
        for message in await exchange.receive(name):
            if message["kind"] == "end":
                return message


def test_a_slot_gets_jobs_in_order_and_their_messages_reach_the_trial() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.submit(job("a"))
        await exchange.submit(job("b"))
        generation = await exchange.register("slot-0", {})
        assert await exchange.take("slot-0", generation, 0, 0) == job("a")
        await exchange.report("a", 0, {"kind": "started"})
        await exchange.report("a", 2, {"kind": "end", "state": "complete"})  # it overtook the epoch
        await exchange.report("a", 1, {"kind": "epoch", "epoch": 1})
        messages = await exchange.receive("a")
        assert [m["kind"] for m in messages] == ["started", "epoch", "end"]
        assert messages[0]["slot"] == "slot-0"
        assert await exchange.take("slot-0", generation, 0, 1) == job("b")

    play(scene)


def test_all_workers_of_a_slot_get_the_same_job() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        follower = asyncio.create_task(exchange.take("slot-0", generation, 1, 0))
        leader = asyncio.create_task(exchange.take("slot-0", generation, 0, 0))
        await asyncio.sleep(0)
        await exchange.submit(job("a"))
        assert await asyncio.gather(leader, follower) == [job("a"), job("a")]

    play(scene)


def test_a_cancelled_job_is_stopped_in_its_slot_and_the_slot_takes_the_next() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.submit(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        stopped = asyncio.create_task(exchange.until_stopped("a"))
        await asyncio.sleep(0)
        assert not stopped.done()
        await exchange.cancel("a")
        assert await stopped
        await exchange.report("a", 1, {"kind": "epoch", "epoch": 2})  # too late, nobody listens
        await exchange.submit(job("b"))
        assert await exchange.take("slot-0", generation, 0, 1) == job("b")

    play(scene)


def test_a_cancelled_job_in_the_queue_is_never_handed_out() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.submit(job("a"))
        await exchange.submit(job("b"))
        await exchange.cancel("a")
        generation = await exchange.register("slot-0", {})
        assert await exchange.take("slot-0", generation, 0, 0) == job("b")

    play(scene)


def test_a_job_whose_worker_dies_fails_alone_with_the_reason() -> None:
    async def scene(exchange: Exchange) -> None:
        first = await exchange.register("slot-0", {})
        await exchange.submit(job("a"))
        await exchange.submit(job("b"))
        await exchange.take("slot-0", first, 0, 0)
        await exchange.report("a", 0, {"kind": "started"})
        await exchange.bury("slot-0", "worker 0: out of memory")
        end = await ends(exchange, "a")
        assert (end["state"], end["error"]) == ("failed", "its worker died: worker 0: out of memory")
        second = await exchange.register("slot-0", {})
        assert second == first + 1
        assert await exchange.take("slot-0", second, 0, 0) == job("b")

    play(scene)


def test_a_job_that_had_not_begun_is_handed_out_again_once() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.submit(job("a"))
        for _ in range(2):
            generation = await exchange.register("slot-0", {})
            assert await exchange.take("slot-0", generation, 0, 0) == job("a")
            await exchange.bury("slot-0", "killed")
        assert (await ends(exchange, "a"))["state"] == "failed"

    play(scene)


def test_workers_of_a_dead_generation_are_sent_home() -> None:
    async def scene(exchange: Exchange) -> None:
        old = await exchange.register("slot-0", {})
        waiting = asyncio.create_task(exchange.take("slot-0", old, 1, 0))
        await asyncio.sleep(0)
        new = await exchange.register("slot-0", {})
        assert await waiting is None
        await exchange.submit(job("a"))
        assert await exchange.take("slot-0", new, 0, 0) == job("a")

    play(scene)


def test_queued_jobs_fail_when_the_last_slot_keeps_dying() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.submit(job("a"))
        for _ in range(FUTILE_STARTS):
            await exchange.bury("slot-0", "ImportError: no torch")
        end = await ends(exchange, "a")
        assert end["error"] == "no slot is left, the last one died of: ImportError: no torch"
        assert (await exchange.wait_for_slots(1, 5))["given_up"] == {"slot-0": "ImportError: no torch"}

    play(scene)


def test_trials_that_kill_one_worker_after_another_do_not_give_up_the_slot() -> None:
    async def scene(exchange: Exchange) -> None:
        for name in "abcd":
            await exchange.submit(job(name))
        for name in "abcd":
            generation = await exchange.register("slot-0", {})
            assert await exchange.take("slot-0", generation, 0, 0) == job(name)
            await exchange.report(name, 0, {"kind": "started"})
            await exchange.bury("slot-0", "killed")
            assert (await ends(exchange, name))["error"] == "its worker died: killed"

    play(scene)


def test_closing_ends_every_job_and_sends_every_worker_home() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.submit(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        await exchange.submit(job("b"))
        listening = asyncio.create_task(ends(exchange, "b"))
        await asyncio.sleep(0)
        await exchange.close()
        assert (await listening)["state"] == "stopped"
        assert await exchange.until_stopped("a")
        assert await exchange.take("slot-0", generation, 0, 1) is None
        status = await exchange.status()
        assert (status["queued"], status["running"]) == ([], [])

    play(scene)


def test_a_call_queues_a_job_and_waits_for_more_than_its_start() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        trial = asyncio.create_task(exchange.run(job("a")))
        assert await exchange.take("slot-0", generation, 0, 0) == job("a")
        await exchange.report("a", 0, {"kind": "started"})
        await asyncio.sleep(0.01)
        assert not trial.done()
        await exchange.report_all("a", 1, [{"kind": "epoch", "epoch": 1}, {"kind": "epoch", "epoch": 2}])
        assert [m["kind"] for m in await trial] == ["started", "epoch", "epoch"]

    play(scene)


def test_messages_sent_together_keep_their_order_when_a_later_call_comes_first() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.submit(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        await exchange.report_all("a", 3, [{"kind": "end", "state": "complete"}])
        epochs = [{"kind": "epoch", "epoch": 1}, {"kind": "epoch", "epoch": 2}]
        await exchange.report_all("a", 0, [{"kind": "started"}, *epochs])
        assert [m["kind"] for m in await exchange.receive("a")] == ["started", "epoch", "epoch", "end"]

    play(scene)


def test_a_job_whose_end_was_told_is_forgotten() -> None:
    """The exchange lives as long as the study: what it keeps must not grow with the trials."""

    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        for serial in range(20):
            trial = asyncio.create_task(exchange.run(job(f"job-{serial}")))
            await exchange.take("slot-0", generation, 0, serial)
            await exchange.report_all(
                f"job-{serial}", 0, [{"kind": "started"}, {"kind": "end", "state": "complete"}]
            )
            await trial
        assert len(exchange._works) == 0
        assert await exchange.receive("job-3") == [{"kind": "end", "state": "stopped", "seconds": 0.0}]

    play(scene)
