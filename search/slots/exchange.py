"""The exchange: an actor that hands trials to slots and carries back what the slots say.

The driver offers jobs (`offer`) and ends what is not wanted any more (`cancel`, `leave`, `close`). Trials
hear of theirs from one side (`run`, `receive`), slots take and tell from the other (`register`, `take`,
`report`, `until_stopped`). The keeper of the slots says where they are (`place`), which nodes are about to go
(`vacate`) and whose workers died (`bury`).
Every way a trial can end frees its slot. A slot that ends since its node goes, or whose workers or node
die, hands its trial on, and it continues from its last checkpoint in another one. A trial fails, with the
reason, by an exception of its own, or once it has been tried again so often that it may be what kills them.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Any

from search.slots.job_state import Bell, Job, Message, Slot, Work

RECEIVE_SECONDS = 30.0
"""How long `receive` waits before it answers with nothing."""
NOT_BEGUN_AGAIN = 1
"""A job whose slot died before the worker began it is handed out again so often, even with no `retries`."""
LOST_AT_MOST = 3
"""Nodes that may die under one job without notice: it may be what kills them."""
FUTILE_STARTS = 3
"""Deaths in a row, without a start between them, after which a slot is given up."""


class Exchange:
    """Matches jobs and slots; meant to run as one asynchronous Ray actor per study.

    Args:
        retries: how often a job is tried again whose workers die under it.
    """

    def __init__(self, retries: int = 2) -> None:
        self._retries = retries
        self._works: dict[str, Work] = {}
        self._queue: deque[Work] = deque()
        self._offered: set[str] = set()
        """Ids of all jobs that were, ended ones too."""
        self._slots: dict[str, Slot] = {}
        self._going: frozenset[str] = frozenset()
        """Nodes that are about to go."""
        self._wanted: int | None = None
        """Slots that the study has use for; None: all."""
        self._notes: list[str] = []
        self._closed = False
        self._kept_at = time.monotonic()
        """When the keeper last asked what is wanted."""
        self._change = Bell()

    # The trial's side

    async def submit(self, job: Job) -> None:
        """Queue a job for the next free slot; a job of the same id that still runs is stopped."""
        await self.cancel(job["id"])
        self._works[job["id"]] = work = Work(job)
        self._queue.append(work)
        self._match()

    async def offer(self, job: Job) -> None:
        """Queue a job that nobody has offered before."""
        if job["id"] not in self._offered:
            self._offered.add(job["id"])
            await self.submit(job)

    async def run(self, job: Job) -> list[Message]:
        """Return a job's first messages; it is queued, unless the driver's offer was here first."""
        await self.offer(job)
        return await self.receive(job["id"])

    async def receive(self, job_id: str, heard: int = 0) -> list[Message]:
        """Return what the slot said after the first `heard` messages, waiting for more than that it started.

        Messages are `started` (with the slot's name, and `retries` so far), `effective`, `epoch` and, last,
        `end` with a `state` of `complete`, `stopped` or `failed`; a job that was moved says `started` and
        `effective` once per slot, and every epoch once. Empty: nothing for RECEIVE_SECONDS.
        They are kept until the job is cancelled, for a process that takes the place of one that has died.
        """
        work = self._works.get(job_id)
        if work is None:
            return [_ended("stopped")]
        if not work.has_news(heard):
            try:
                await asyncio.wait_for(work.news.wait(), RECEIVE_SECONDS)
            except asyncio.TimeoutError:
                return []
        return work.messages[heard:]

    async def cancel(self, job_id: str) -> None:
        """Stop a job wherever it is, and forget it; its slot is then free."""
        work = self._works.pop(job_id, None)
        if work is None:
            return
        if work in self._queue:
            self._queue.remove(work)
        work.say(_ended("stopped"))  # wakes the worker's `until_stopped` and a late `receive`
        self._match()

    async def leave(self, job_id: str) -> None:
        """Nobody listens to a job any more: if it still runs it ends its epoch, is saved, and stops.

        That is how trials end that a stopped study leaves behind; one that is no longer wanted at all is
        cancelled at once.
        """
        work = self._works.get(job_id)
        if work is None or work.ended or work in self._queue:
            await self.cancel(job_id)
            return
        work.left = True
        work.move()

    # The slot's side

    async def register(self, name: str, facts: dict[str, Any]) -> int:
        """Enter a started slot; return its generation. A job of an earlier one is lost."""
        slot = self._slots.setdefault(name, Slot(name))
        self._drop_work(slot)
        slot.generation += 1
        slot.facts, slot.serial, slot.ready, slot.asking, slot.deaths = facts, 0, True, False, 0
        slot.buried = False
        slot.leaving = self._goes(slot)
        self._change.ring()
        return slot.generation

    async def take(self, name: str, generation: int, rank: int, serial: int) -> Job | None:
        """Return the slot's job number `serial`, waiting for it; None: the slot is to end.

        The first worker's call asks for a new job; the others wait for the one it gets.
        """
        slot = self._slots[name]
        if rank == 0 and slot.generation == generation:
            slot.asking = True
            self._match()
        while slot.serial <= serial:
            if self._closed or slot.generation != generation or slot.leaving:
                self._end(slot, generation)
                return None
            await slot.change.wait()
        return slot.work.job if slot.work and slot.generation == generation else None

    async def report(self, job_id: str, number: int, message: Message) -> None:
        """Pass on a slot's message `number` of its job, counted from the job's `first_message`, or 0.

        One that nobody waits for is dropped.
        """
        work = self._works.get(job_id)
        if work is None:
            return
        slot = next((s for s in self._slots.values() if s.work is work), None)
        if slot is not None and message["kind"] == "started":
            message = message | {"slot": slot.name, "retries": work.retries}
        if work.hear(number, message):
            if slot is not None:
                slot.work = None
            self._hand_on(work)
        elif work.ended:
            self._match()  # its slot may have asked for the next one already
            self._change.ring()

    async def report_all(self, job_id: str, number: int, messages: list[Message]) -> None:
        """Pass on messages that follow one another, the first one's number being `number`."""
        for i, message in enumerate(messages):
            await self.report(job_id, number + i, message)

    async def until_stopped(self, job_id: str, moving: bool = False) -> str:
        """Return `stop` once the job was cancelled or has ended, `move` once it is to leave its slot.

        A worker that knows it is `moving` asks for the rest.
        """
        work = self._works.get(job_id)
        while work is not None and not work.ended:
            if work.moving and not moving:
                return "move"
            await work.told.wait()
        return "stop"

    # The keeper's side

    async def place(self, name: str, nodes: Collection[str]) -> None:
        """Take note on which nodes a slot's workers are starting; on none: it has none any more, or yet."""
        slot = self._slots.setdefault(name, Slot(name))
        slot.nodes, slot.buried = tuple(nodes), False
        if not nodes:
            if slot.work is not None and not slot.work.ended:
                slot.reason = "its slot has ended"  # and nobody has said why
            slot.ready = slot.asking = False
            self._drop_work(slot)
            self._change.ring()

    async def places(self) -> Mapping[str, tuple[str, ...]]:
        """Return the nodes of each slot."""
        return {slot.name: slot.nodes for slot in self._slots.values()}

    async def vacate(self, nodes: Collection[str]) -> None:
        """Empty the slots on nodes that are about to go: idle ones now, others after their epoch."""
        self._going = frozenset(nodes)
        for slot in self._slots.values():
            if self._goes(slot) and not slot.leaving:
                slot.leaving = True
                slot.change.ring()
                if slot.work is not None and not slot.work.ended:
                    slot.work.move()
        self._change.ring()

    async def bury(
        self, name: str, reason: str, lost: bool = False, parted: bool = False, raised: bool = False
    ) -> None:
        """Take note that a slot's workers died; who tells it second changes nothing.

        Their job continues in another slot. How often depends on whether they were `lost` with their node,
        or `parted` from one another on several nodes, as one of these may have died. It ends here if the job
        has `raised` the exception by which they ended.
        """
        slot = self._slots.setdefault(name, Slot(name))
        if slot.buried:
            return
        lost = lost or (parted and len(set(slot.nodes)) > 1) or self._goes(slot)
        slot.ready, slot.asking, slot.buried, slot.reason = False, False, True, reason
        slot.deaths += not lost
        self._drop_work(slot, lost=lost, raised=raised)
        if slot.deaths >= FUTILE_STARTS and not any(s.ready for s in self._slots.values()):
            for work in list(self._queue):
                self._fail(work, f"no slot is left, the last one died of: {reason}")
            self._queue.clear()
        self._change.ring()

    async def note(self, text: str) -> None:
        """Tell the driver something about the cluster."""
        self._notes.append(text)
        self._change.ring()

    async def wanted(self) -> int | None:
        """Return how many slots the study has use for; None: as many as there may be; 0: it is closed."""
        self._kept_at = time.monotonic()
        return 0 if self._closed else self._wanted

    # The driver's side

    async def pulse(self) -> float:
        """Return for how many seconds the keeper has not asked for anything."""
        return time.monotonic() - self._kept_at

    async def want(self, slots: int) -> None:
        """Say how many slots there is still work for: idle ones beyond that end, the last one stays."""
        self._wanted = max(1, slots)
        self._match()

    async def wait_for_slots(self, count: int, seconds: float) -> dict[str, Any]:
        """Return `status` once `count` slots are up, a slot was given up or the time has passed."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            status = await self.status()
            left = deadline - asyncio.get_running_loop().time()
            if len(status["ready"]) >= count or status["given_up"] or left <= 0:
                return status
            await self._wait(left)

    async def watch(self, up: int, notes: int) -> dict[str, Any]:
        """Return `up`, the slots that are up, and all `notes`, once either is no longer as given."""
        while True:
            now = sum(slot.stays for slot in self._slots.values())
            if self._closed or now != up or len(self._notes) != notes:
                return {"up": now, "notes": self._notes}
            await self._change.wait()

    async def status(self) -> dict[str, Any]:
        """Return `ready` (slot -> facts), `given_up` (slot -> reason), jobs `queued`, `running`, `notes`."""
        slots = self._slots.values()
        return {
            "ready": {s.name: s.facts for s in slots if s.stays},
            "given_up": {s.name: s.reason for s in slots if s.deaths >= FUTILE_STARTS},
            "queued": [work.job["id"] for work in self._queue],
            "running": [s.work.job["id"] for s in slots if s.work and not s.work.ended],
            "notes": self._notes,
        }

    async def close(self, seconds: float = 0.0) -> None:
        """Stop every job and let every slot end; trials get `seconds` to end and save their epoch before."""
        for work in [slot.work for slot in self._slots.values() if slot.work]:
            if work.job.get("kind") != "export":
                await self.leave(work.job["id"])
        deadline = asyncio.get_running_loop().time() + seconds
        while self._is_saving() and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self._wait(left)
        self._closed = True
        for job_id in list(self._works):
            await self.cancel(job_id)
        for slot in self._slots.values():
            slot.change.ring()
        self._change.ring()

    # What it does by itself

    def _match(self) -> None:
        if self._closed:
            return
        for slot in self._slots.values():
            if self._queue and slot.is_free:
                work = self._queue.popleft()
                work.handed_out += 1
                slot.work, slot.asking = work, False
                slot.serial += 1
                slot.change.ring()
        self._release()

    def _release(self) -> None:
        """Let idle slots go that there is no work for, those first whose nodes are the least busy."""
        if self._wanted is None or self._queue:
            return
        staying = [slot for slot in self._slots.values() if slot.stays]
        busy = Counter(node for slot in staying if not slot.asking for node in slot.nodes)
        idle = sorted((s for s in staying if s.asking), key=lambda s: sum(busy[node] for node in s.nodes))
        for slot in idle[: max(0, len(staying) - self._wanted)]:
            slot.leaving = True
            slot.change.ring()

    def _end(self, slot: Slot, generation: int) -> None:
        if slot.generation == generation:
            slot.ready = slot.asking = False
            self._change.ring()

    def _goes(self, slot: Slot) -> bool:
        return not self._going.isdisjoint(slot.nodes)

    def _drop_work(self, slot: Slot, *, lost: bool = False, raised: bool = False) -> None:
        work, slot.work = slot.work, None
        slot.change.ring()
        if work is None or work.ended or work.job["id"] not in self._works:
            return
        if not lost and not work.started:  # no word of it has come, so it is hardly what killed the worker
            if work.handed_out <= max(NOT_BEGUN_AGAIN, self._retries):
                self._queue.appendleft(work)
                self._match()
                return
            again = False
        elif lost:
            again = self._goes(slot) or work.lost < LOST_AT_MOST
            work.lost += again and not self._goes(slot)
        else:
            again = not raised and work.died < self._retries
            work.died += again
        reason = f"its worker died: {slot.reason or 'no reason was left'}"
        if again and not work.left:
            self._notes.append(f"{work.job['id']}: {reason}. It is tried again from its last checkpoint.")
        if again:
            self._hand_on(work)
        else:
            self._fail(work, reason + (f" (tried {work.retries + 1} times)" if work.retries else ""))

    def _is_saving(self) -> bool:
        return any(slot.work and slot.work.left and not slot.work.ended for slot in self._slots.values())

    def _hand_on(self, work: Work) -> None:
        if work.left:
            work.say(_ended("stopped"))
            self._change.ring()
            return
        work.hand_on()
        self._queue.appendleft(work)
        self._match()

    @staticmethod
    def _fail(work: Work, error: str) -> None:
        work.say(_ended("failed") | {"error": error, "trace": error, "retries": work.retries})

    async def _wait(self, seconds: float) -> None:
        # A ring counts from here on, also before `wait_for` has begun to wait.
        try:
            await asyncio.wait_for(self._change.wait(), seconds)
        except asyncio.TimeoutError:
            return


def _ended(state: str) -> Message:
    return {"kind": "end", "state": state, "seconds": 0.0}
