"""The exchange without Ray, in disorder: workers die, nodes get notices, calls overtake one another."""

import asyncio
import itertools
import random

import pytest

from finetune.messages import End, Epoch, Job, Message, Started
from search.slots.exchange import Exchange

EPOCHS = [1, 2, 3]
JOBS = 8
WATCHDOG_SECONDS = 120


class Disorder:
    """Plays worker, supervisor and driver on one exchange, in an order that the seed decides."""

    def __init__(self, seed: int) -> None:
        self.exchange = Exchange(retries=10_000)
        self.chance = random.Random(seed)
        self.under_way: set[asyncio.Task[None]] = set()
        """Messages that may arrive after their worker has died."""

    async def pass_by(self, most: int = 12) -> None:
        """Let others go first."""
        for _ in range(self.chance.randrange(most)):
            await asyncio.sleep(0)

    def say(self, job_id: str, number: int, message: Message) -> asyncio.Task[None]:
        async def arrive() -> None:
            await self.pass_by()
            await self.exchange.report(job_id, number, message)

        task = asyncio.create_task(arrive())
        self.under_way.add(task)
        return task

    async def train(self, job: Job) -> None:
        name, numbers = job.id, itertools.count(job.first_message)
        await self.say(name, next(numbers), Started())
        orders = asyncio.create_task(self.exchange.until_stopped(name))
        state = "complete"
        for epoch in EPOCHS:
            self.say(name, next(numbers), Epoch({"epoch": epoch}))
            await self.pass_by()
            if orders.done():
                state = {"move": "moved", "stop": "stopped"}[orders.result()]
                break
        orders.cancel()
        self.say(name, next(numbers), End(state))

    async def live(self, slot: str) -> None:
        """Serve as the worker of a slot does."""
        generation = await self.exchange.register(slot, {})
        for serial in itertools.count():
            await self.pass_by()
            job = await self.exchange.take(slot, generation, 0, serial)
            if job is None:
                return
            await self.train(job)

    async def keep(self, slot: str, node: str) -> None:
        """Start the slot again and again, as the supervisor does, and let it die in one way or another."""
        while await self.exchange.wanted() != 0:
            await self.exchange.place(slot, [node])
            life = asyncio.create_task(self.live(slot))
            await self.pass_by(200)
            if self.chance.random() < 0.5 and life.cancel():
                for _ in range(self.chance.randrange(1, 3)):  # who tells it second changes nothing
                    await self.exchange.bury(slot, "killed")
            elif self.chance.random() < 0.5:
                await self.exchange.vacate([node])
                await self.pass_by(100)
                await self.exchange.vacate([])
            life.cancel()  # for a reason that nobody tells
            await self.exchange.place(slot, [])

    async def follow(self, name: str) -> None:
        """Have a job trained and listen to it, as the driver and a trial do."""
        await self.exchange.offer(Job(id=name))
        told: list[Message] = []
        while not told or not isinstance(told[-1], End):
            told += await self.exchange.receive(name, len(told))
        await self.exchange.cancel(name)
        assert told[-1].state == "complete"
        assert [message.number for message in told if isinstance(message, Epoch)] == EPOCHS

    async def play(self) -> None:
        slots = [asyncio.create_task(self.keep(f"slot-{i}", node)) for i, node in enumerate("ABB")]
        await asyncio.gather(*(self.follow(f"job-{i}") for i in range(JOBS)))
        await self.exchange.close()
        await asyncio.gather(*slots)


@pytest.mark.parametrize("seed", range(60))
def test_every_job_ends_and_tells_each_epoch_once(seed: int) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(Disorder(seed).play(), WATCHDOG_SECONDS)

    asyncio.run(bounded())
