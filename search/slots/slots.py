"""Slots: warm worker groups, each one long-lived Ray Train run that takes trial after trial.

The documented pattern starts a Train run per trial and pays seconds to tens of seconds for it; a
slot pays once. `once` gives that pattern back: fresh processes for every trial.

`plan` says how many slots there may be, `Slots` is the driver's end of them. The keeper (supervisor.py)
starts and ends them as nodes come and go; the exchange (exchange.py) is where they get their trials.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from finetune.disk import file_cache
from search.errors import CapacityError, SlotsLost
from search.slots import nodes, train_run
from search.slots.exchange import Exchange
from search.slots.nodes import HEAD, Resources
from search.slots.preflight import Expected

START_SECONDS = 600.0
"""For the first slot to be up: imports of torch take minutes on a machine that is busy with other work. If a
slot, the keeper or the exchange dies, that is told at once."""
BOOT_SECONDS = 1800.0
"""The same where no node has room yet: an autoscaler has to get one from its cloud first."""
CLOSE_SECONDS = 20.0
"""For the keeper to end all slots; it takes END_SECONDS of its own, and a moment to kill the rest."""
LOOK_SECONDS = 0.5
"""Between two looks whether exchange and keeper live, while the driver waits."""
SILENT_SECONDS = 120.0
"""For the exchange to answer and the keeper to look at the cluster. It takes them milliseconds, and many
seconds on a machine that is short of memory."""
SAVE_SECONDS = 60.0
"""For the trials of a stopped study to end their epoch and save it; a longer epoch is lost."""

ON_HEAD = {"num_cpus": 0, "resources": {HEAD: 0.001}}
"""Beside the driver and Ray's own state: a node that goes takes none of what a study cannot do without."""

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""glibc keeps what torch gives back, instead of having the kernel clear it again for each batch: on a CPU an
epoch of a whole mobilenet_v2 took 25.5 s instead of 30.2 (1,000 images of 128 pixels, once, by hand,
beside other work)."""

TRAIN_ENVIRONMENT = {
    # Train looks at its workers every 2 s by default: a dead one is noticed within this instead.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per run; the keeper sees drains for all
    # A worker answers these looks from a thread of its own while it trains. One that does not for so long is
    # taken for dead; by default after ten minutes. One on a machine that swaps may be mute for many seconds.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # A slot whose room another one has taken starts again with the nodes that are there by then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    **KEPT_MEMORY,
}


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How many worker groups of which shape."""

    slots: int
    """At most."""
    workers: int
    """Per slot."""
    cpus: int
    """Per worker."""
    gpu: bool
    """Workers train on GPUs."""
    gpu_per_worker: float = 1.0
    """GPUs of a worker, if it trains on them; below 1 several workers share one."""
    ask: int = 0
    """Slots that an autoscaler is asked for while nodes for them are not up."""
    once: bool = False
    """Fresh processes for every trial."""

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker takes, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpu_per_worker} if self.gpu else {})

    def fit(self, nodes: Iterable[Resources]) -> int:
        """Return how many slots fit on nodes with these resources; a slot may span nodes, a worker not."""
        return self.workers_fit(nodes) // self.workers

    def workers_fit(self, nodes: Iterable[Resources]) -> int:
        """Return how many workers fit on nodes with these resources."""
        slack = 1e-6  # of floats: ten workers of a tenth of a GPU fit on one
        return sum(
            min(math.floor(node.get(name, 0) / amount + slack) for name, amount in self.bundle.items())
            for node in nodes
        )


def plan(
    up: Sequence[Resources],
    *,
    slots: int | str,
    workers: int,
    cpus: int,
    gpu: bool | str,
    gpu_per_worker: float,
    trials: int,
    may_come: Sequence[Resources] = (),
    grows: bool = False,
    once: bool = False,
) -> SlotPlan:
    """Return the slots of a study.

    Args:
        up: resources of each node that is up.
        slots: how many; `auto`: as many as fit, on a cluster also later.
        workers: per slot.
        cpus: per worker.
        gpu: train on GPUs; `auto`: if any node has or will have one.
        gpu_per_worker: if so, GPUs of each worker.
        trials: no more slots than these.
        may_come: resources of each node that an autoscaler may add.
        grows: nodes may join; else what does not fit now never will.
        once: fresh processes for every trial.

    Raises:
        CapacityError: not one slot fits now or later, or fewer than were asked for.
    """
    gpus = sum(node.get("GPU", 0) for node in (*up, *may_come))
    use_gpu = gpus > 0 if gpu == "auto" else bool(gpu)
    shape = SlotPlan(
        slots=1, workers=workers, cpus=cpus, gpu=use_gpu, gpu_per_worker=gpu_per_worker, once=once
    )
    fit = shape.fit(up)
    later = shape.fit((*up, *may_come))
    wanted = min(later, trials) if slots == "auto" else int(slots)
    if wanted < 1 or (wanted > fit and not grows):
        kind = f"{workers} worker(s) of {cpus} CPU(s)" + (
            f" and {gpu_per_worker:g} GPU(s) each" if use_gpu else ""
        )
        total = f"{sum(node.get('CPU', 0) for node in up):g} CPUs, {gpus:g} GPUs"
        wait = ", or name a number of slots to wait for nodes" if grows else ""
        raise CapacityError(
            f"resources: {max(wanted, 1)} slot(s) of {kind} must fit, got room for {fit} "
            f"({total}). Lower slots, workers_per_trial or cpus_per_worker, or set gpu: false{wait}."
        )
    most = trials if slots == "auto" and grows else min(wanted, trials)
    return replace(shape, slots=most, ask=min(wanted, trials) if grows else 0)


class Slots:
    """The slots of one study, from start to close; `exchange` is where trials find them.

    Args:
        plan: how many of which shape.
        folder: for what Train writes.
        copies_bytes: what copies of far files may take on each node.
        expected: what a node must be like to get a slot; None: any will do.
        retries: how often a trial is tried again whose workers die under it.
    """

    def __init__(
        self,
        plan: SlotPlan,
        folder: Path,
        *,
        copies_bytes: int = file_cache.BUDGET_BYTES,
        expected: Expected | None = None,
        retries: int = 2,
    ) -> None:
        from search.slots.supervisor import Keeper

        self.plan = plan
        given = {"copies_bytes": copies_bytes}
        self.exchange = ray.remote(Exchange).options(**ON_HEAD, max_concurrency=10_000).remote(retries)
        environment = {"env_vars": TRAIN_ENVIRONMENT}
        keeper = ray.remote(Keeper).options(**ON_HEAD, runtime_env=environment)
        self._keeper = keeper.remote(self.exchange, plan, str(folder), given, serve, expected)
        self._run = self._keeper.run.remote()
        self._up, self._notes = 0, 0
        self._new: list[str] = []
        """Notes that `news` has not returned yet."""
        self._change = self.exchange.watch.remote(0, 0)
        self._pulse, self._felt = self.exchange.pulse.remote(), time.monotonic()
        self._dead: str | None = None
        """Why no trial can go on."""

    def wait(
        self, count: int = 1, seconds: float = START_SECONDS, tell: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Return facts by slot once `count` slots are up.

        Args:
            count: how many.
            seconds: to wait for them, at most.
            tell: gets what is new about the cluster meanwhile; else `news` has it afterwards.

        Raises:
            SlotsLost: no slot came up; the message carries the reason.
        """
        answer = self.exchange.wait_for_slots.remote(count, seconds)
        while tell and not ray.wait([answer], timeout=LOOK_SECONDS)[0] and self.lost() is None:
            for line in self.news()[1]:
                tell(line)
        status = self.get(answer)
        if not status["ready"]:
            why = [f"{name}: {reason}" for name, reason in status["given_up"].items()] + status["notes"]
            raise SlotsLost(
                f"slots: none started{': ' + '; '.join(why) if why else f' within {seconds:.0f} s'}. "
                "See `ray status` and the worker logs in Ray's session folder."
            )
        facts: dict[str, Any] = status["ready"]
        return facts

    def news(self) -> tuple[int, list[str]]:
        """Return how many slots are up, and what is new about the cluster; never waits."""
        self._listen()
        new, self._new = self._new, []
        return self._up, new

    def lost(self) -> str | None:
        """Return why no trial can go on any more, if so; never waits."""
        self._listen()
        self._feel()
        if self._dead is None and ray.wait([self._run], timeout=0)[0]:
            self._dead = "the keeper of the slots has ended"
            try:
                ray.get(self._run)
            except RayError as error:
                self._dead = f"the keeper of the slots has died: {train_run.first_words(error)}"
        return self._dead

    def get(self, answer: Any) -> Any:
        """Return an answer of the exchange, waiting for it as long as there is anybody to give it.

        Raises:
            SlotsLost: there is not.
        """
        while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
            if (reason := self.lost()) is not None:
                raise SlotsLost(f"slots: exchange and keeper must run on, but {reason}. See Ray's logs.")
        try:
            return ray.get(answer)
        except RayError as error:
            raise SlotsLost(
                f"slots: the exchange must run on, got {train_run.first_words(error)}. See Ray's logs."
            ) from error

    def _listen(self) -> None:
        """Take in what is new, if anything is."""
        if self._dead is not None or not ray.wait([self._change], timeout=0)[0]:
            return
        try:
            now = ray.get(self._change)
            self._new += now["notes"][self._notes :]
            self._up, self._notes = now["up"], len(now["notes"])
        except ActorUnavailableError:
            pass  # a call was lost; the next one may not be
        except RayError as error:
            self._dead = f"the exchange has died: {train_run.first_words(error)}"
        self._change = self.exchange.watch.remote(self._up, self._notes)

    def _feel(self) -> None:
        """Look whether exchange and keeper, where they live, do anything."""
        now = time.monotonic()
        if ray.wait([self._pulse], timeout=0)[0]:
            try:
                if ray.get(self._pulse) > SILENT_SECONDS:
                    self._dead = f"the keeper of the slots has done nothing for {SILENT_SECONDS:.0f} s"
            except RayError:
                pass  # `_listen` tells a dead exchange
            self._pulse, self._felt = self.exchange.pulse.remote(), now
        elif now - self._felt > SILENT_SECONDS:
            self._dead = f"the exchange has not answered for {SILENT_SECONDS:.0f} s"

    def close(self) -> None:
        """End every slot; processes that do not end by themselves are killed."""
        # Workers belong to the keeper and end with it: then there is nothing left to save.
        seconds = SAVE_SECONDS if self.lost() is None else 0.0
        try:
            ray.get(self.exchange.close.remote(seconds), timeout=seconds + CLOSE_SECONDS)
            ray.get(self._run, timeout=CLOSE_SECONDS)
            ended = True
        except (GetTimeoutError, RayError):
            ended = False  # they are killed below: their workers belong to the keeper and go with it
        for actor in (self._keeper, self.exchange):
            ray.kill(actor)
        if not ended:  # nobody has freed what the slots held, and this driver may go on with another study
            nodes.free_children(self._keeper._actor_id.hex(), CLOSE_SECONDS)


def serve(config: dict[str, Any]) -> None:
    """Serve trials in a worker; imported there, so that keeper and controllers start without it."""
    from finetune.worker import slot_loop

    slot_loop(config)


Serve = Callable[[dict[str, Any]], None]
"""What a worker of a slot runs."""
