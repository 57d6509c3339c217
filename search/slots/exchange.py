"""The exchange: an actor that gives jobs (trials, or the export of a model) to slots and relays messages.

- The driver offers jobs (`offer`) and ends unwanted ones (`cancel`, `leave`, `close`).
- The trial's process in Tune reads the messages of its job (`receive`).
- The workers of a slot take jobs and report on them (`register`, `take`, `report`, `until_stopped`).
- The supervisor tells on which nodes a slot is (`place`), which nodes are being drained (`vacate`) and whose
  workers died (`bury`).

A slot becomes free whichever way its trial ends. If a slot's node is drained, or its workers or node die, the
trial moves to another slot and continues from its last checkpoint. A trial fails if it raises an exception,
or if its workers have died so often that the trial itself may be the cause.

All methods run on one event loop. Between two `await`s nothing else runs, so no state here needs a lock.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from finetune.messages import End, Epoch, ExportJob, Job, Message, Started
from finetune.steps import Step
from search.slots.job_state import Bell, JobState, Slot
from search.slots.news import News
from search.slots.signs import Signs

RECEIVE_SECONDS = 30.0
"""Seconds that `receive` waits before it returns an empty list."""
FUTILE_STARTS = 3
"""Deaths in a row, without a successful start between them, after which a slot counts as given up."""


class Exchange:
    """Matches jobs to slots; runs as one asynchronous Ray actor per study.

    Args:
        retries: how often a job is tried again after its workers have died.
        patience: seconds without a sign of progress after which the workers of a job are ended; None: it
            follows from the silences of the study's jobs, see signs.py.
    """

    def __init__(self, retries: int = 2, patience: float | None = None) -> None:
        self._retries = retries
        self._signs = Signs(patience)
        self._jobs: dict[str, JobState] = {}
        self._queue: deque[JobState] = deque()
        self._known: set[str] = set()
        """Ids of all jobs that were ever offered or cancelled."""
        self._offers = Bell()
        self._slots: dict[str, Slot] = {}
        self._going: frozenset[str] = frozenset()
        """Ids of the nodes that are being drained."""
        self._wanted: int | None = None
        """Number of slots that the study has work for; None means as many as there may be."""
        self._news = News()
        self._closed = False
        self._kept_at = time.monotonic()
        """Time of the supervisor's last call of `wanted`, by `time.monotonic`."""
        self._change = Bell()

    # The trial's side

    async def offer(self, job: Job) -> None:
        """Queue a job for the next free slot, unless one with its id was offered or cancelled before."""
        # A job that was cancelled must not begin if its offer comes late or, since Ray repeats a call whose
        # answer was lost, a second time.
        if job.id not in self._known:
            self._known.add(job.id)
            self._jobs[job.id] = work = JobState(job)
            self._queue.append(work)
            self._match()
            self._offers.ring()

    async def receive(self, job_id: str, heard: int = 0) -> list[Message]:
        """Return a job's messages after the first `heard`; wait until there is one other than Started.

        The last one is an End that is not `moved`. A job that moved to another slot has Started and Effective
        for each slot, but each Epoch only once.

        The list is empty if nothing came within RECEIVE_SECONDS. Messages are kept until the job is
        cancelled, so that a process that replaces a dead one can read them from the beginning.
        """
        # The driver offers a job before Tune starts the trial's process, but this call may be here first.
        if job_id not in self._known:
            await _rings(self._offers, RECEIVE_SECONDS)
            return []
        work = self._jobs.get(job_id)
        if work is None:
            return [End("stopped")]
        if not work.has_news(heard) and not await _rings(work.news, RECEIVE_SECONDS):
            return []
        return work.messages[heard:]

    async def so_far(self, job_id: str, heard: int) -> list[Message]:
        """Return what `receive` would, without waiting: nothing if nothing has come since."""
        work = self._jobs.get(job_id)
        return [] if work is None else work.messages[heard:]

    async def cancel(self, job_id: str) -> None:
        """Stop a job, whether queued or running, and forget it; its slot is then free."""
        self._known.add(job_id)
        work = self._jobs.pop(job_id, None)
        if work is None:
            return
        if work in self._queue:
            self._queue.remove(work)
        work.say(End("stopped"))  # wakes the worker's `until_stopped` and a late `receive`
        self._match()

    async def leave(self, job_id: str) -> None:
        """Let a running job finish its epoch, save its checkpoint and stop; cancel any other job at once.

        This is how the running trials of an interrupted study end. `cancel` is for a trial whose further
        training nobody wants.
        """
        work = self._jobs.get(job_id)
        if work is None or work.ended or work in self._queue:
            # There is nothing to save.
            await self.cancel(job_id)
            return
        work.left = True
        work.move()

    # The slot's side

    async def register(self, name: str, facts: dict[str, Any]) -> int:
        """Record that the workers of a slot have started; return the number of this generation of workers."""
        slot = self._slots.setdefault(name, Slot(name))
        # A job that an earlier generation still held cannot end there any more.
        self._drop_work(slot)
        slot.generation += 1
        slot.facts, slot.serial, slot.ready, slot.asking, slot.deaths = facts, 0, True, False, 0
        slot.buried = False
        slot.leaving = self._goes(slot)
        self._change.ring()
        return slot.generation

    async def take(self, name: str, generation: int, rank: int, serial: int) -> Job | None:
        """Wait for the slot's job number `serial` and return it; return None if the slot is to end.

        The call of the first worker (rank 0) asks for a new job; the other workers wait for the same job.
        """
        slot = self._slots[name]
        # Only rank 0 asks, so that a slot of several workers is offered one job, not one for each worker.
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
        """Deliver a worker's message about its job; a message about a cancelled job is dropped.

        Args:
            job_id: the job.
            number: the message's number; the worker counts from the job's `first_message`, or from 0.
            message: the message.
        """
        work = self._jobs.get(job_id)
        if work is None:
            return
        slot = next((s for s in self._slots.values() if s.work is work), None)
        self._signs.see(job_id, epoch=isinstance(message, Epoch))
        if slot is not None and isinstance(message, Started):
            # The worker knows neither: a job may have been in other slots before.
            message = replace(message, slot=slot.name, retries=work.retries)
        if work.hear(number, message):
            # The worker has saved and released the job, as `move` had asked: another slot continues it.
            if slot is not None:
                slot.work = None
            self._hand_on(work)
        elif work.ended:
            # Calls may overtake one another: the slot may have asked for its next job before this end came.
            self._match()
            self._change.ring()

    async def report_all(self, job_id: str, number: int, messages: list[Message]) -> None:
        """Deliver consecutive messages, of which the first has the given number."""
        for i, message in enumerate(messages):
            await self.report(job_id, number + i, message)

    async def show(self, name: str, job_id: str, step: Step) -> None:
        """Keep how far a slot is with a long step of its job, for `watch`; a late report changes nothing.

        The end of a long step becomes a note, so that it can be read afterwards.
        """
        slot = self._slots.get(name)
        if slot is None or slot.work is None or slot.work.job.id != job_id:
            return
        self._signs.see(job_id)
        self._news.show(name, job_id, step)
        self._change.ring()

    async def beat(self, job_id: str) -> None:
        """Hear that a worker is between two batches of its job."""
        self._signs.see(job_id)

    async def until_stopped(self, job_id: str, moving: bool = False) -> str:
        """Wait until the worker must react; return `stop` if its job has ended, `move` if it must leave.

        A worker that was told to move calls again with `moving`, and then waits for `stop` only.
        """
        work = self._jobs.get(job_id)
        while work is not None and not work.ended:
            if work.moving and not moving:
                return "move"
            await work.told.wait()
        return "stop"

    # The supervisor's side

    async def place(self, name: str, nodes: Collection[str]) -> None:
        """Record the nodes on which a slot's workers are starting; no nodes means that it has no workers."""
        slot = self._slots.setdefault(name, Slot(name))
        slot.nodes, slot.buried = tuple(nodes), False
        if not nodes:
            if slot.work is not None and not slot.work.ended:
                # A death with a known reason has called `bury`, which took the job away.
                slot.reason = "its slot has ended"
            slot.ready = slot.asking = False
            self._drop_work(slot)
            self._change.ring()

    async def places(self) -> Mapping[str, tuple[str, ...]]:
        """Return the node ids of each slot, by the slot's name."""
        return {slot.name: slot.nodes for slot in self._slots.values()}

    async def vacate(self, nodes: Collection[str]) -> None:
        """Empty the slots on nodes that are being drained: idle slots now, the others after their epoch."""
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
        """Record that a slot's workers died, and retry or fail their job; a second report changes nothing.

        Args:
            name: the slot.
            reason: why they died, for the user.
            lost: their node died. Such deaths have a limit of their own, LOST_AT_MOST.
            parted: they lost the connection to one another; on several nodes that counts as `lost`, as one of
                these may have died.
            raised: the trial itself raised the exception that ended them, so it is not retried.
        """
        slot = self._slots.setdefault(name, Slot(name))
        # Witness and supervisor may both report one death; only the first report may cost the job a retry.
        if slot.buried:
            return
        lost = lost or (parted and len(set(slot.nodes)) > 1) or self._goes(slot)
        slot.ready, slot.asking, slot.buried, slot.reason = False, False, True, reason
        slot.deaths += not lost
        self._drop_work(slot, lost=lost, raised=raised)
        # If even starting fails, and no other slot is up, waiting jobs would wait for ever.
        if slot.deaths >= FUTILE_STARTS and not any(s.ready for s in self._slots.values()):
            for work in list(self._queue):
                self._fail(work, f"no slot is left, the last one died of: {reason}")
            self._queue.clear()
        self._change.ring()

    async def end_silent(self) -> list[str]:
        """Take their jobs from the slots that show no progress; return these slots, to be killed.

        A job is then retried like one whose workers have died. An export has no limit: it gives no signs.
        """
        busy = {slot.work.job.id: slot for slot in self._slots.values() if slot.work and not slot.work.ended}
        silent = self._signs.silent([name for name, slot in busy.items() if slot.trains])
        for job_id, seconds in silent.items():
            reason = f"no progress for {seconds:.0f} s, which is more than study.trial_timeout allows"
            await self.bury(busy[job_id].name, reason)
        return [busy[job_id].name for job_id in silent]

    async def note(self, text: str) -> None:
        """Add a line for the user, which the driver prints."""
        self._news.notes.append(text)
        self._change.ring()

    async def wanted(self) -> int | None:
        """Return how many slots the study has work for; None: no limit; 0: the study is closed."""
        self._kept_at = time.monotonic()
        return 0 if self._closed else self._wanted

    # The driver's side

    async def pulse(self) -> float:
        """Return the seconds since the supervisor's last call of `wanted`."""
        return time.monotonic() - self._kept_at

    async def want(self, slots: int) -> None:
        """Set how many slots there is still work for; idle slots beyond that end, but one always stays."""
        self._wanted = max(1, slots)
        self._match()

    async def wait_for_slots(self, count: int, seconds: float) -> dict[str, Any]:
        """Return `status` once `count` slots are up, a slot is given up or the time has passed."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            status = await self.status()
            left = deadline - asyncio.get_running_loop().time()
            if len(status["ready"]) >= count or status["given_up"] or left <= 0:
                return status
            await _rings(self._change, left)

    async def watch(self, up: int, notes: int, shown: int | None = None) -> dict[str, Any]:
        """Wait until the number of slots that are up differs from `up`, or the number of notes from `notes`.

        Args:
            up: number of slots that the caller knows of.
            notes: number of notes that it has read.
            shown: `shown` of the last answer: the call then also returns when a step is further; None: not.

        Returns:
            `up`, the number of slots, and what `News.told` returns.
        """
        while True:
            now = sum(slot.stays for slot in self._slots.values())
            news = self._news
            if self._closed or now != up or len(news.notes) != notes or shown not in (None, news.shown):
                works = [slot.work for slot in self._slots.values() if slot.work]
                return {"up": now, **news.told({work.job.id for work in works if not work.ended})}
            await self._change.wait()

    async def status(self) -> dict[str, Any]:
        """Return a summary.

        Returns:
            `ready` (slot -> facts), `given_up` (slot -> reason), `queued` and `running` (job ids), `notes`.
        """
        slots = self._slots.values()
        return {
            "ready": {s.name: s.facts for s in slots if s.stays},
            "given_up": {s.name: s.reason for s in slots if s.deaths >= FUTILE_STARTS},
            "queued": [work.job.id for work in self._queue],
            "running": [s.work.job.id for s in slots if s.work and not s.work.ended],
            "notes": self._news.notes,
        }

    async def close(self, seconds: float = 0.0) -> None:
        """Stop every job and let every slot end; running trials first get `seconds` to save their epoch."""
        # A half-written model folder is of no use, so an export is not waited for.
        for work in [slot.work for slot in self._slots.values() if slot.work]:
            if not isinstance(work.job, ExportJob):
                await self.leave(work.job.id)
        deadline = asyncio.get_running_loop().time() + seconds
        while self._is_saving() and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await _rings(self._change, left)
        # From here on `take` returns None and `wanted` returns 0: slots and supervisor end by themselves.
        self._closed = True
        for job_id in list(self._jobs):
            await self.cancel(job_id)
        for slot in self._slots.values():
            slot.change.ring()
        self._change.ring()

    # Internal steps

    def _match(self) -> None:
        """Give queued jobs to free slots; called after every change that may free a slot or add a job."""
        if self._closed:
            return
        for slot in self._slots.values():
            if self._queue and slot.is_free:
                work = self._queue.popleft()
                work.handed_out += 1
                slot.work, slot.asking = work, False
                self._signs.begin(work.job.id)
                slot.serial += 1
                slot.change.ring()
        self._release()

    def _release(self) -> None:
        """End idle slots that there is no work for, first those on the least busy nodes."""
        if self._wanted is None or self._queue:
            return
        # An autoscaler takes back only nodes that are wholly idle, so idle slots on busy nodes end last.
        staying = [slot for slot in self._slots.values() if slot.stays]
        busy = Counter(node for slot in staying if not slot.asking for node in slot.nodes)
        idle = sorted((s for s in staying if s.asking), key=lambda s: sum(busy[node] for node in s.nodes))
        for slot in idle[: max(0, len(staying) - self._wanted)]:
            slot.leaving = True
            slot.change.ring()

    def _end(self, slot: Slot, generation: int) -> None:
        # A worker of an earlier generation may still call; it must not end the slot of its successor.
        if slot.generation == generation:
            slot.ready = slot.asking = False
            self._change.ring()

    def _goes(self, slot: Slot) -> bool:
        return not self._going.isdisjoint(slot.nodes)

    def _drop_work(self, slot: Slot, *, lost: bool = False, raised: bool = False) -> None:
        """Take the job from a slot whose workers are gone, and retry or fail it; for the flags see `bury`."""
        work, slot.work = slot.work, None
        slot.change.ring()  # workers that still wait in `take` see that their generation has no job
        if work is None or work.ended or work.job.id not in self._jobs:
            return
        if not lost and not work.started and work.may_begin_again(self._retries):
            self._queue.appendleft(work)
            self._match()
            return
        again = work.is_tried_again(self._retries, lost=lost, announced=self._goes(slot), raised=raised)
        reason = f"its worker died: {slot.reason or 'no reason was left'}"
        if again and not work.left:
            self._news.notes.append(f"{work.job.id}: {reason}. It is tried again from its last checkpoint.")
        if again:
            self._hand_on(work)
        else:
            self._fail(work, reason + (f" (tried {work.retries + 1} times)" if work.retries else ""))

    def _is_saving(self) -> bool:
        return any(slot.work and slot.work.left and not slot.work.ended for slot in self._slots.values())

    def _hand_on(self, work: JobState) -> None:
        """Queue a job that has left its slot, before all others; end it if the study is being stopped."""
        if work.left:
            # Its checkpoint is written; `close` waits for this end.
            work.say(End("stopped"))
            self._change.ring()
            return
        work.hand_on()
        self._queue.appendleft(work)
        self._match()

    @staticmethod
    def _fail(work: JobState, error: str) -> None:
        work.say(End("failed", error=error, trace=error, retries=work.retries))


async def _rings(bell: Bell, seconds: float) -> bool:
    """Wait for the bell's next ring; return False if none came within `seconds`."""
    # `Bell.wait` takes its event now, so a ring before `wait_for` has begun to wait is not missed.
    try:
        return await asyncio.wait_for(bell.wait(), seconds)
    except asyncio.TimeoutError:
        return False
