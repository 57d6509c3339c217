"""State that the exchange keeps for each job (`JobState`) and each slot (`Slot`)."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.messages import End, Epoch, ExportJob, Job, Message, Started

MESSAGES_PER_TAKE = 2**32
"""A number above all messages that a slot sends about one job. The next slot's messages are numbered from the
next multiple of it, so that a late message of the slot before is recognised by its number."""

NOT_BEGUN_AGAIN = 1
"""Times that a job is handed out again after its slot died before it began, even with `retries` 0."""
LOST_AT_MOST = 3
"""Times that a job is retried after its node died without notice; at the next such death the job fails,
since it may be what kills the nodes."""


class Bell:
    """An event that can be waited for again and again: each ring wakes all who wait at that moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    def wait(self) -> Awaitable[bool]:
        """Return an awaitable of the next ring after this call, even if it is awaited later."""
        return self._event.wait()


@dataclass(eq=False)
class JobState:
    """One job and its messages, while it is queued or running and after its end."""

    job: Job
    messages: list[Message] = field(default_factory=list)
    news: Bell = field(default_factory=Bell)
    told: Bell = field(default_factory=Bell)
    """Rings when the worker must stop or move."""
    moving: bool = False
    """True if the worker is to save the trial after its epoch and release it, because its node is being
    drained or the study is being stopped."""
    left: bool = False
    """True if the study is being stopped: once its worker releases the job, it ends, and is not queued."""
    started: bool = False
    """True if the worker of the present slot has reported that it started."""
    handed_out: int = 0
    """Times that it was given to a slot without any worker starting it in between."""
    lost: int = 0
    """Retries after its node died without notice."""
    died: int = 0
    """Retries after its workers died while their node lived."""
    ended: bool = False
    epoch: int = 0
    """Last epoch that was passed on; a trial that moved reports the epochs before its checkpoint again."""
    early: dict[int, Message] = field(default_factory=dict)
    """The worker's messages that overtook an earlier one, by number."""
    heard: int = 0
    """Number of the worker's next message in order."""

    def has_news(self, heard: int) -> bool:
        """True if a message other than `started` follows the first `heard` ones."""
        return any(not isinstance(message, Started) for message in self.messages[heard:])

    @property
    def retries(self) -> int:
        """Number of retries, for whatever reason."""
        return self.lost + self.died

    def hear(self, number: int, message: Message) -> bool:
        """Deliver message `number` once all earlier ones have arrived.

        Returns:
            True if the worker has released the job, so that another slot may continue it.
        """
        if number < self.heard:
            return False  # a late message of the slot that had the job before
        # Calls of an asynchronous actor may overtake one another, so messages wait here for their turn.
        self.early[number] = message
        while self.heard in self.early:
            message = self.early.pop(self.heard)
            self.heard += 1
            if isinstance(message, End) and message.state == "moved":
                return True
            if isinstance(message, Epoch):
                if message.number <= self.epoch:
                    continue
                self.epoch = message.number
            self.say(message)
        return False

    def say(self, message: Message) -> None:
        """Append a message for the trial's process; nothing follows the first `end`."""
        if not self.ended:
            self.messages.append(message)
            self.ended = isinstance(message, End)
            if isinstance(message, Started):  # not worth a call of its own: it travels with the next message
                self.started = True
            else:
                self.news.ring()
        if self.ended:
            self.told.ring()

    def may_begin_again(self, retries: int) -> bool:
        """Return True if a job that no worker began is to be handed out again after its slot died.

        No message has come from the worker, so the job is hardly what killed it: this costs no retry.
        """
        return self.handed_out <= max(NOT_BEGUN_AGAIN, retries)

    def is_tried_again(self, retries: int, *, lost: bool, announced: bool, raised: bool) -> bool:
        """Count a death of its workers, and return True if the job is tried again.

        Args:
            retries: how often a job is tried again after its workers died while their node lived.
            lost: the node died with them.
            announced: the node was being drained; such deaths cost nothing.
            raised: the trial itself raised the exception that ended them.
        """
        if lost:
            again = announced or self.lost < LOST_AT_MOST
            self.lost += again and not announced
        else:
            again = self.started and not raised and self.died < retries
            self.died += again
        return again

    def move(self) -> None:
        """Ask the worker to save the trial after its epoch and release the job."""
        self.moving = True
        self.told.ring()

    def hand_on(self) -> None:
        """Prepare the job for another slot; messages that the last one still sends are then ignored."""
        self.heard = (self.heard // MESSAGES_PER_TAKE + 1) * MESSAGES_PER_TAKE
        self.early, self.started, self.moving, self.handed_out = {}, False, False, 0
        self.job = replace(self.job, first_message=self.heard)


@dataclass(eq=False)
class Slot:
    """One slot, a group of workers that trains one job at a time.

    Workers that start again under the same name are the next `generation`.
    """

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    """Ids of the nodes of its workers."""
    generation: int = 0
    serial: int = 0
    """Number of jobs given to this generation so far; its workers ask for a job by its number."""
    work: JobState | None = None
    change: Bell = field(default_factory=Bell)
    ready: bool = False
    asking: bool = False
    """True while its first worker waits for a job."""
    leaving: bool = False
    """True if it gets no more jobs and ends once it has none."""
    deaths: int = 0
    """Deaths in a row without a successful start between them."""
    reason: str = ""
    """Reason of its last death."""
    buried: bool = False
    """True if its last death is counted and no workers have been placed since."""

    @property
    def is_free(self) -> bool:
        """True if it can take a job now: it asks for one, and the end of its last job has been reported."""
        asks = self.ready and self.asking and not self.leaving
        return asks and (self.work is None or self.work.ended)

    @property
    def trains(self) -> bool:
        """True if it has a job other than an export."""
        return self.work is not None and not isinstance(self.work.job, ExportJob)

    @property
    def stays(self) -> bool:
        """True if it is up and not about to end."""
        return self.ready and not self.leaving
