"""Slots: warm worker groups, each one long-lived Ray Train run that takes trial after trial.

Ray's documented pattern starts a Train run for each trial, which costs seconds to tens of seconds each time;
a slot pays this once. With `once` each trial gets fresh processes, as in the documented pattern.

`plan` decides how many slots a study may have. `Slots` is the driver's handle on them. The supervisor
(supervisor.py) starts and ends slots as nodes come and go; the exchange (exchange.py) gives them trials.
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
from finetune.messages import Job
from finetune.steps import Step
from search.errors import CapacityError, SlotsLost
from search.slots import ray_private, train_run
from search.slots.exchange import Exchange
from search.slots.news import NO_FEATURES
from search.slots.nodes import HEAD, Resources
from search.slots.preflight import Expected

START_SECONDS = 600.0
"""Seconds to wait for the first slot: imports of torch take minutes on a machine that is busy with other
work. If a slot, the supervisor or the exchange dies meanwhile, that is reported at once."""
BOOT_SECONDS = 1800.0
"""Seconds to wait for the first slot if no node has room yet and an autoscaler must first start one."""
CLOSE_SECONDS = 20.0
"""Seconds for the supervisor to end all slots: its own END_SECONDS, and a moment to kill the rest."""
LOOK_SECONDS = 0.5
"""Seconds between two checks that exchange and supervisor live, while the driver waits."""
SILENT_SECONDS = 120.0
"""Seconds without an answer of the exchange, or a call of the supervisor, after which they count as dead.
Both take milliseconds, but many seconds on a machine that is short of memory."""
SAVE_SECONDS = 60.0
"""Seconds for the trials of a stopped study to finish and save their epoch; a longer epoch is lost."""

ON_HEAD = {"num_cpus": 0, "resources": {HEAD: 0.001}}
"""Options that place an actor on the head node, beside the driver and Ray's own state, so that the loss of
another node cannot end the study."""

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""With these settings glibc keeps memory that torch frees, so that the kernel need not clear it again for
each batch: on a CPU an epoch of a whole mobilenet_v2 took 25.5 s instead of 30.2 (1,000 images of 128 pixels,
measured once, by hand, beside other work)."""

TRAIN_ENVIRONMENT = {
    # Train checks its workers every 2 s by default; with this a dead worker is noticed sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per run; the supervisor sees drains
    # A worker answers these checks from a separate thread while it trains. If it does not answer for this
    # long, it counts as dead (default: ten minutes). On a machine that swaps it may be mute for many seconds.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # If another study has taken a slot's room, the slot starts again with the nodes that are up by then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    **KEPT_MEMORY,
}


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """Number and shape of a study's slots."""

    slots: int
    """Maximum number of slots."""
    workers: int
    """Workers per slot."""
    cpus: int
    """CPUs per worker."""
    gpu: bool
    """True if workers train on GPUs."""
    gpu_per_worker: float = 1.0
    """GPUs per worker if `gpu`; below 1, several workers share a GPU."""
    ask: int = 0
    """Number of slots for which an autoscaler is asked for nodes; 0 if no nodes can join."""
    once: bool = False
    """True if every trial gets fresh processes."""

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one worker, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpu_per_worker} if self.gpu else {})

    def fit(self, nodes: Iterable[Resources]) -> int:
        """Return how many slots fit on nodes with these resources; slots may span nodes, workers may not."""
        return self.workers_fit(nodes) // self.workers

    def workers_fit(self, nodes: Iterable[Resources]) -> int:
        """Return how many workers fit on nodes with these resources."""
        slack = 1e-6  # against rounding of floats: ten workers of a tenth of a GPU fit on one GPU
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
    """Return the number and shape of a study's slots.

    Args:
        up: resources of each node that is up.
        slots: number of slots; `auto`: as many as fit, on a cluster also as nodes join later.
        workers: workers per slot.
        cpus: CPUs per worker.
        gpu: whether to train on GPUs; `auto`: if any node has one or an autoscaler may add such a node.
        gpu_per_worker: GPUs per worker, if GPUs are used.
        trials: upper limit of the number of slots.
        may_come: resources of each node that an autoscaler may add.
        grows: whether nodes may join; if not, slots that do not fit now never will.
        once: whether every trial gets fresh processes.

    Raises:
        CapacityError: not a single slot fits now or later, or fewer than the number asked for.
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
    # Where nodes may join, `auto` takes any room that appears, but asks an autoscaler only for what may come.
    most = trials if slots == "auto" and grows else min(wanted, trials)
    return replace(shape, slots=most, ask=min(wanted, trials) if grows else 0)


class Slots:
    """Start the slots of one study, watch that they can work, and close them.

    The attribute `exchange` is the actor that gives them trials.

    Args:
        plan: number and shape of the slots.
        folder: folder for the files that Ray Train writes.
        copies_bytes: limit of the disk space for copies of far files on each node.
        expected: facts that a node must share with the driver to get a slot; None: any node may have slots.
        retries: how often a trial is tried again after its workers have died.
        patience: seconds without progress after which a trial's workers are ended; None: see signs.py.
    """

    def __init__(
        self,
        plan: SlotPlan,
        folder: Path,
        *,
        copies_bytes: int = file_cache.BUDGET_BYTES,
        expected: Expected | None = None,
        retries: int = 2,
        patience: float | None = None,
    ) -> None:
        from search.slots.supervisor import Supervisor

        self.plan = plan
        given = {"copies_bytes": copies_bytes}
        exchange = ray.remote(Exchange).options(**ON_HEAD, max_concurrency=10_000)
        self.exchange = exchange.remote(retries, patience)
        environment = {"env_vars": TRAIN_ENVIRONMENT | ray_private.environment()}
        supervisor = ray.remote(Supervisor).options(**ON_HEAD, runtime_env=environment)
        self._supervisor = supervisor.remote(self.exchange, plan, str(folder), given, serve, expected)
        self._run = self._supervisor.run.remote()
        self.up, self._notes = 0, 0
        """Number of slots that are up, and of notes that were read, as of the last look for news."""
        self._new: list[str] = []
        """Notes that `news` has not returned yet."""
        # This call stays open until there is news, so that looking for news costs the driver no round trip.
        self._change = self.exchange.watch.remote(0, 0, 0)
        self.steps: dict[str, Step] = {}
        """Long steps of the jobs that run, by the id of the job, as of the last look for news."""
        self.computed, self._shown = dict(NO_FEATURES), 0
        """Feature `arrays` computed so far, their `images` and `seconds`; number of reports about steps."""
        self._pulse, self._felt = self.exchange.pulse.remote(), time.monotonic()
        self._dead: str | None = None
        """Reason why no trial can continue, once that is so."""

    def wait(
        self, count: int = 1, seconds: float = START_SECONDS, tell: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Wait until `count` slots are up; return the facts of each slot that is up.

        It returns with fewer slots, but at least one, when the time has passed or a slot is given up.

        Args:
            count: number of slots to wait for.
            seconds: longest time to wait.
            tell: gets each note about the cluster as it comes; None: `news` returns the notes afterwards.

        Raises:
            SlotsLost: no slot came up; the message gives the reason.
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

    def offer(self, job: Job) -> Any:
        """Hand a job to the slots, without waiting; return a reference to the answer."""
        # An offer is the only way to a slot, and offering twice changes nothing: if the answer is lost, while
        # the exchange lives, Ray calls again.
        return self.exchange.offer.options(max_task_retries=-1).remote(job)

    def news(self) -> tuple[int, list[str]]:
        """Return the number of slots that are up and the new notes about the cluster, without waiting."""
        self._listen()
        new, self._new = self._new, []
        return self.up, new

    def lost(self) -> str | None:
        """Return the reason why no trial can continue, or None, without waiting."""
        self._listen()
        self._feel()
        if self._dead is None and ray.wait([self._run], timeout=0)[0]:
            self._dead = "the supervisor of the slots has ended"
            try:
                ray.get(self._run)
            except RayError as error:
                self._dead = f"the supervisor of the slots has died: {train_run.first_words(error)}"
        return self._dead

    def get(self, answer: Any) -> Any:
        """Wait for an answer of the exchange and return it.

        Raises:
            SlotsLost: the exchange or the supervisor died, or does nothing any more.
        """
        while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
            if (reason := self.lost()) is not None:
                raise SlotsLost(f"slots: exchange and supervisor must run on, but {reason}. See Ray's logs.")
        try:
            return ray.get(answer)
        except RayError as error:
            raise SlotsLost(
                f"slots: the exchange must run on, got {train_run.first_words(error)}. See Ray's logs."
            ) from error

    def _listen(self) -> None:
        """Read the answer of `watch`, if it is there, and ask for the next one."""
        if self._dead is not None or not ray.wait([self._change], timeout=0)[0]:
            return
        try:
            now = ray.get(self._change)
            self._new += now["notes"][self._notes :]
            self.up, self._notes = now["up"], len(now["notes"])
            self.steps, self._shown, self.computed = now["steps"], now["shown"], now["computed"]
        except ActorUnavailableError:
            pass  # one call was lost, which is not the end of the actor: ask again
        except RayError as error:
            self._dead = f"the exchange has died: {train_run.first_words(error)}"
        self._change = self.exchange.watch.remote(self.up, self._notes, self._shown)

    def _feel(self) -> None:
        """Check that exchange and supervisor still work: an actor may live, and yet do nothing."""
        now = time.monotonic()
        if ray.wait([self._pulse], timeout=0)[0]:
            try:
                if ray.get(self._pulse) > SILENT_SECONDS:
                    self._dead = f"the supervisor of the slots has done nothing for {SILENT_SECONDS:.0f} s"
            except RayError:
                pass  # `_listen` reports a dead exchange
            self._pulse, self._felt = self.exchange.pulse.remote(), now
        elif now - self._felt > SILENT_SECONDS:
            self._dead = f"the exchange has not answered for {SILENT_SECONDS:.0f} s"

    def close(self) -> None:
        """End every slot; kill the processes that do not end by themselves."""
        # If the supervisor is dead, so are the workers, which belong to it: there is nothing left to save.
        seconds = SAVE_SECONDS if self.lost() is None else 0.0
        try:
            ray.get(self.exchange.close.remote(seconds), timeout=seconds + CLOSE_SECONDS)
            ray.get(self._run, timeout=CLOSE_SECONDS)
            ended = True
        except (GetTimeoutError, RayError):
            ended = False  # the supervisor is killed below, and the workers, which belong to it, with it
        for actor in (self._supervisor, self.exchange):
            ray.kill(actor)
        if not ended:  # nobody has freed the slots' placement groups, and this driver may run another study
            ray_private.free_children(self._supervisor, CLOSE_SECONDS)


def serve(config: dict[str, Any]) -> None:
    """Serve trials in a worker; the import is here, so that the controllers start without torch."""
    from finetune.worker import slot_loop

    slot_loop(config)


Serve = Callable[[dict[str, Any]], None]
"""Type of the function that each worker of a slot runs, with the slot's settings."""
