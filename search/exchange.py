"""The exchange: an actor that hands trials to slots and carries back what the slots say.

Trials ask from one side (`submit`, `receive`, `cancel`), slots from the other (`register`, `take`,
`report`, `until_stopped`), and whoever watches a slot's processes says when they died (`bury`).
Every way a trial can end frees its slot, and every way a slot can end ends its trial with a reason.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Job = dict[str, Any]
"""`id`, `kind` (`train` or `export`) and what the worker needs; travels to the slot as it is."""

RECEIVE_SECONDS = 30.0
"""How long `receive` waits before it answers with nothing."""
HANDED_OUT_AT_MOST = 2
"""A job whose slot died before the worker began it is handed out again, once."""
FUTILE_STARTS = 3
"""Deaths in a row, without a start between them, after which a slot is given up."""


@dataclass
class _Work:
    """One job on its way: queued, running or ended."""

    job: Job
    messages: deque[Message] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    handed_out: int = 0
    ended: bool = False
    early: dict[int, Message] = field(default_factory=dict)
    """Messages of the worker that overtook an earlier one, by number."""
    heard: int = 0
    """Messages of the worker so far, without a gap."""

    def hear(self, number: int, message: Message) -> None:
        """Take the worker's message `number` (from 0); say it once all before it are there."""
        self.early[number] = message
        while self.heard in self.early:
            self.say(self.early.pop(self.heard))
            self.heard += 1

    def say(self, message: Message) -> None:
        """Pass a message on; the first `end` is the last."""
        if not self.ended:
            self.messages.append(message)
            self.ended = message["kind"] == "end"
            self.started = self.started or message["kind"] == "started"
            if message["kind"] != "started":  # that one can wait for the next
                self.news.set()
        if self.ended:
            self.stop.set()  # wakes the worker's `until_stopped`


@dataclass
class _Slot:
    """One worker group as the exchange sees it."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    generation: int = 0
    serial: int = 0
    """Jobs handed to this generation so far; its workers ask for them by number."""
    work: _Work | None = None
    change: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False
    asking: bool = False
    """The first worker waits for a job."""
    deaths: int = 0
    """In a row, without a start between them."""
    reason: str = ""
    """Why it last died."""

    def wake(self) -> None:
        self.change.set()
        self.change = asyncio.Event()


class Exchange:
    """Matches jobs and slots; meant to run as one asynchronous Ray actor per study."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}
        self._queue: deque[_Work] = deque()
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        self._change = asyncio.Event()

    # The trial's side

    async def submit(self, job: Job) -> None:
        """Queue a job for the next free slot; a job of the same id that still runs is stopped."""
        await self.cancel(job["id"])
        self._works[job["id"]] = work = _Work(job)
        self._queue.append(work)
        self._match()

    async def run(self, job: Job) -> list[Message]:
        """Queue a job and return its first messages: `submit` and `receive` in one call."""
        await self.submit(job)
        return await self.receive(job["id"])

    async def receive(self, job_id: str) -> list[Message]:
        """Return what the slot said since the last call, waiting for more than that it started.

        Messages are `started` (with the slot's name), `effective`, `epoch` and, last, `end` with a
        `state` of `complete`, `stopped` or `failed`. Empty: nothing for RECEIVE_SECONDS.
        """
        work = self._works.get(job_id)
        if work is None:
            return [_ended("stopped")]
        if not work.news.is_set():
            try:
                await asyncio.wait_for(work.news.wait(), RECEIVE_SECONDS)
            except asyncio.TimeoutError:
                return []
        work.news.clear()
        messages, work.messages = list(work.messages), deque()
        if work.ended:
            self._works.pop(job_id, None)
        return messages

    async def cancel(self, job_id: str) -> None:
        """Stop a job wherever it is; nothing happens if it has ended. Its slot is then free."""
        work = self._works.pop(job_id, None)
        if work is None:
            return
        if work in self._queue:
            self._queue.remove(work)
        work.say(_ended("stopped"))  # wakes the worker's `until_stopped` and a late `receive`

    # The slot's side

    async def register(self, name: str, facts: dict[str, Any]) -> int:
        """Enter a started slot; return its generation. A job of an earlier one is lost."""
        slot = self._slots.setdefault(name, _Slot(name))
        self._drop_work(slot)
        slot.generation += 1
        slot.facts, slot.serial, slot.ready, slot.asking, slot.deaths = facts, 0, True, False, 0
        self._changed()
        return slot.generation

    async def take(self, name: str, generation: int, rank: int, serial: int) -> Job | None:
        """Return the slot's job number `serial`, waiting for it; None: the slot is to end.

        The first worker's call asks for a new job; the others wait for the one it gets.
        """
        slot = self._slots[name]
        if rank == 0:
            slot.work, slot.asking = None, True
            self._match()
        while slot.serial <= serial:
            if self._closed or slot.generation != generation:
                return None
            await slot.change.wait()
        return slot.work.job if slot.work and slot.generation == generation else None

    async def report(self, job_id: str, number: int, message: Message) -> None:
        """Pass on a slot's message `number` (from 0) of its job; one that nobody waits for is dropped."""
        work = self._works.get(job_id)
        if work is None:
            return
        slot = next((s for s in self._slots.values() if s.work is work), None)
        if slot is not None and message["kind"] == "started":
            message = message | {"slot": slot.name}
        work.hear(number, message)

    async def report_all(self, job_id: str, number: int, messages: list[Message]) -> None:
        """Pass on messages that follow one another, the first one's number being `number`."""
        for i, message in enumerate(messages):
            await self.report(job_id, number + i, message)

    async def until_stopped(self, job_id: str) -> bool:
        """Return once the job has been cancelled or has ended."""
        work = self._works.get(job_id)
        if work is not None:
            await work.stop.wait()
        return True

    async def bury(self, name: str, reason: str) -> None:
        """Take note that a slot's workers died; its job ends here, or starts anew if it had not begun."""
        slot = self._slots.setdefault(name, _Slot(name))
        slot.ready, slot.asking, slot.reason = False, False, reason
        slot.deaths += 1
        self._drop_work(slot)
        if slot.deaths >= FUTILE_STARTS and not any(s.ready for s in self._slots.values()):
            for work in list(self._queue):
                self._fail(work, f"no slot is left, the last one died of: {reason}")
            self._queue.clear()
        self._changed()

    # The driver's side

    async def wait_for_slots(self, count: int, seconds: float) -> dict[str, Any]:
        """Return `status` once `count` slots are up, a slot was given up or the time has passed."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            status = await self.status()
            left = deadline - asyncio.get_running_loop().time()
            if len(status["ready"]) >= count or status["given_up"] or left <= 0:
                return status
            try:
                await asyncio.wait_for(self._change.wait(), left)
            except asyncio.TimeoutError:
                continue

    async def status(self) -> dict[str, Any]:
        """Return `ready` (slot -> facts), `given_up` (slot -> reason), `queued` and `running` jobs."""
        slots = self._slots.values()
        return {
            "ready": {s.name: s.facts for s in slots if s.ready},
            "given_up": {s.name: s.reason for s in slots if s.deaths >= FUTILE_STARTS},
            "queued": [work.job["id"] for work in self._queue],
            "running": [s.work.job["id"] for s in slots if s.work and not s.work.ended],
        }

    async def is_closed(self) -> bool:
        """Return True once `close` was called."""
        return self._closed

    async def close(self) -> None:
        """Stop every job and let every slot end."""
        self._closed = True
        for job_id in list(self._works):
            await self.cancel(job_id)
        for slot in self._slots.values():
            slot.wake()

    def _match(self) -> None:
        for slot in self._slots.values():
            if self._queue and slot.asking and slot.ready:
                work = self._queue.popleft()
                work.handed_out += 1
                slot.work, slot.asking = work, False
                slot.serial += 1
                slot.wake()

    def _drop_work(self, slot: _Slot) -> None:
        work, slot.work = slot.work, None
        slot.wake()
        if work is None or work.ended or work.job["id"] not in self._works:
            return
        if work.started or work.handed_out >= HANDED_OUT_AT_MOST:
            self._fail(work, f"its worker died: {slot.reason or 'no reason was left'}")
        else:
            self._queue.appendleft(work)
            self._match()

    @staticmethod
    def _fail(work: _Work, error: str) -> None:
        work.say(_ended("failed") | {"error": error, "trace": error})

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def _ended(state: str) -> Message:
    return {"kind": "end", "state": state, "seconds": 0.0}
