"""What the exchange keeps of one job and of one slot."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Job = dict[str, Any]
"""`id`, `kind` (`train` or `export`) and what the worker needs; travels to the slot as it is."""

MESSAGES_PER_TAKE = 2**32
"""More than a slot ever says of one job: the next slot's messages are numbered from the next multiple,
so that a late one of the slot before is known by its number."""


class Bell:
    """Wakes everybody who waits for it, any number of times."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake those who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    def wait(self) -> Awaitable[bool]:
        """Wait for the next ring after this call, whenever the answer is awaited."""
        return self._event.wait()


@dataclass(eq=False)
class Work:
    """One job on its way: queued, running or ended."""

    job: Job
    messages: list[Message] = field(default_factory=list)
    news: Bell = field(default_factory=Bell)
    told: Bell = field(default_factory=Bell)
    """Rings when the worker has something to do: stop, or move."""
    moving: bool = False
    """Its slot's node goes, or the study ends: the worker saves the trial after its epoch and leaves it."""
    left: bool = False
    """Nobody listens any more: it is not handed on."""
    started: bool = False
    handed_out: int = 0
    lost: int = 0
    """Times that it was tried again since its node had died without notice."""
    died: int = 0
    """Times that it was tried again since its workers had died alone."""
    ended: bool = False
    epoch: int = 0
    """The last one passed on; a trial that was moved tells the ones before its checkpoint again."""
    early: dict[int, Message] = field(default_factory=dict)
    """Messages of the worker that overtook an earlier one, by number."""
    heard: int = 0
    """Number of the worker's next message."""

    def has_news(self, heard: int) -> bool:
        """True if there is more than a start after the first `heard` messages."""
        return any(message["kind"] != "started" for message in self.messages[heard:])

    @property
    def retries(self) -> int:
        """Times that it was tried again, for whatever reason."""
        return self.lost + self.died

    def hear(self, number: int, message: Message) -> bool:
        """Take the worker's message `number`, say it once all before it are there; True: it has let go."""
        if number < self.heard:
            return False  # of a slot that had the job before
        self.early[number] = message
        while self.heard in self.early:
            message = self.early.pop(self.heard)
            self.heard += 1
            if message["kind"] == "end" and message["state"] == "moved":
                return True
            if message["kind"] != "epoch" or message["epoch"] > self.epoch:
                self.epoch = message.get("epoch", self.epoch)
                self.say(message)
        return False

    def say(self, message: Message) -> None:
        """Pass a message on; the first `end` is the last."""
        if not self.ended:
            self.messages.append(message)
            self.ended = message["kind"] == "end"
            self.started = self.started or message["kind"] == "started"
            if message["kind"] != "started":  # that one can wait for the next
                self.news.ring()
        if self.ended:
            self.told.ring()

    def move(self) -> None:
        """Ask the worker to let go of the job after its epoch."""
        self.moving = True
        self.told.ring()

    def hand_on(self) -> None:
        """Make ready for another slot; whatever the last one still says is too late."""
        self.heard = (self.heard // MESSAGES_PER_TAKE + 1) * MESSAGES_PER_TAKE
        self.early, self.started, self.moving, self.handed_out = {}, False, False, 0
        self.job = self.job | {"first_message": self.heard}


@dataclass(eq=False)
class Slot:
    """One worker group."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    """Where its workers are."""
    generation: int = 0
    serial: int = 0
    """Jobs handed to this generation so far; its workers ask for them by number."""
    work: Work | None = None
    change: Bell = field(default_factory=Bell)
    ready: bool = False
    asking: bool = False
    """The first worker waits for a job."""
    leaving: bool = False
    """It gets no more jobs, and ends once it has none."""
    deaths: int = 0
    """In a row, without a start between them."""
    reason: str = ""
    """Why it last died."""
    buried: bool = False
    """That death is counted, and no workers have been placed since."""

    @property
    def is_free(self) -> bool:
        """True if it can take a job now: it asks for one, and the end of its last one has been heard."""
        asks = self.ready and self.asking and not self.leaving
        return asks and (self.work is None or self.work.ended)

    @property
    def stays(self) -> bool:
        """True if it is up and will be."""
        return self.ready and not self.leaving
