"""The supervisor: an actor that starts, ends and restarts the slots of a study as nodes come and go.

Every second it looks at the cluster:

- A node that has joined is checked (preflight.py) before it gets a slot.
- The slots of a node that is being drained are emptied.
- Slots are started while there are trials and room for more.
- If room is missing, waiting placement groups ask the autoscaler for nodes.

It is an actor beside the driver, so that the driver need not import torch.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from search.slots import nodes, preflight, train_run
from search.slots.nodes import Node, Resources
from search.slots.preflight import Expected
from search.slots.ray_private import NODE_LABEL

LOOK_SECONDS = 1.0
"""Seconds between two looks at the cluster."""
END_SECONDS = 10.0
"""Seconds for slots to end by themselves after the study; a slot that is starting must first get its workers
up."""

MISSES_AT_MOST = 30
"""Looks in a row that may fail with a Ray error, for example while Ray's state service restarts."""


@dataclass(frozen=True)
class Need:
    """Slots and nodes that a study lacks."""

    start: int
    """Slots to start now, as there is room for them."""
    ask: int
    """Workers for which an autoscaler is to be asked for nodes."""


def need(
    plan: Any,
    wanted: int,
    slots: Mapping[str, Collection[str]],
    usable: Collection[Node],
    refused: Iterable[Resources] = (),
) -> Need:
    """Return the slots and nodes that a study lacks.

    Args:
        plan: number and shape of the slots (a SlotPlan).
        wanted: number of slots that the study has work for.
        slots: slots whose Train run has not ended: name -> ids of its nodes, empty while it is starting.
        usable: nodes that may hold slots.
        refused: resources of the nodes that failed the check; no other nodes are asked for in their place.
    """
    resources = [node.resources for node in usable]
    # Count the slots whose nodes all stay; a slot on a drained or dead node is replaced before it is gone.
    ids = {node.id for node in usable}
    staying = sum(ids.issuperset(places) for places in slots.values())
    missing = plan.workers * min(wanted, plan.ask) - plan.workers_fit(resources) - plan.workers_fit(refused)
    return Need(start=max(0, min(wanted, plan.fit(resources)) - staying), ask=max(0, missing))


class Supervisor:
    """Keep the slots of a study running: a Ray actor with one thread for the Train run of each slot.

    Args:
        exchange: actor that gives slots their trials.
        plan: number and shape of the slots (a SlotPlan).
        folder: folder for the files that Ray Train writes.
        given: further settings for the workers, such as `copies_bytes`.
        serve: function that each worker runs.
        expected: facts that a node must share with the driver to get a slot; None: any node may have slots.
    """

    def __init__(
        self,
        exchange: Any,
        plan: Any,
        folder: str,
        given: dict[str, Any],
        serve: Callable[[dict[str, Any]], None],
        expected: Expected | None,
    ) -> None:
        self._exchange, self._plan, self._expected = exchange, plan, expected
        self._config = {"exchange": exchange, **given, "threads": plan.cpus, "once": plan.once}
        self._folder, self._serve = folder, serve
        self._slots: dict[str, threading.Thread] = {}
        self._ends: dict[str, threading.Event] = {}
        """For each slot, the event on which its Train run is killed."""
        self._changed = threading.Event()
        self._over = threading.Event()
        self._asked: list[PlacementGroup] = []
        self._asked_for: tuple[int, frozenset[str]] = (0, frozenset())
        """The request behind `_asked`: number of workers, and ids of the nodes that they must not take."""
        self._passed: set[str] = set(expected.passed) if expected else set()
        self._refused: dict[str, Resources] = {}
        """Nodes that failed the check: id -> resources. No other nodes are asked for in their place."""
        self._looking: dict[str, Any] = {}
        """Checks that still run: node id -> reference to the answer."""
        self._going: frozenset[str] = frozenset()
        """Ids of the nodes that the exchange knows to be drained."""

    def run(self) -> None:
        """Keep as many slots up as there are trials and room for, until the exchange is closed.

        Raises:
            RayError: the exchange has died, or Ray has not answered for long; the driver then ends the study.
        """
        # Each look starts from the cluster's present state, so a look that failed needs no repair.
        misses = 0
        while True:
            try:
                wanted = ray.get(self._exchange.wanted.remote())
                if wanted == 0:
                    break
                self._follow(self._plan.slots if wanted is None else min(wanted, self._plan.slots))
                misses = 0
            except ActorDiedError:
                raise
            except RayError:
                misses += 1
                if misses > MISSES_AT_MOST:
                    raise
            # A slot's thread that ends sets `_changed`, so that the slot is replaced without delay.
            self._changed.wait(LOOK_SECONDS)
            self._changed.clear()
            self._slots = {name: thread for name, thread in self._slots.items() if thread.is_alive()}
        self._end()

    def _follow(self, wanted: int) -> None:
        """Look at the cluster once, ask for missing nodes and start missing slots."""
        for name in ray.get(self._exchange.end_silent.remote()):
            self._ends[name].set()
        usable, places = self._look(), self._places()
        lacking = need(self._plan, wanted, places, usable, self._refused.values())
        self._ask(lacking.ask, usable)
        for _ in range(lacking.start):
            self._start(usable)

    def _places(self) -> dict[str, tuple[str, ...]]:
        """Return the node ids of each slot whose run has not ended, after reporting slots with dead nodes.

        Train may notice the death of a node much later, and the trial should not wait for that.
        """
        known = ray.get(self._exchange.places.remote())
        places = {name: known.get(name, ()) for name in self._slots}
        alive = nodes.alive()
        for name, there in places.items():
            if not alive.issuperset(there):
                ray.get(self._exchange.bury.remote(name, "its node has died", lost=True))
        return places

    def _end(self) -> None:
        """Give the slots END_SECONDS to end by themselves, then kill them."""
        # First withdraw the requests for nodes, or the autoscaler may start one for a study that is over.
        self._ask(0, [])
        deadline = time.monotonic() + END_SECONDS
        for thread in self._slots.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._over.set()
        for end in self._ends.values():
            end.set()
        for thread in self._slots.values():
            thread.join()

    def _look(self) -> list[Node]:
        """Tell the exchange which nodes are drained, check new ones, and return those that may hold slots."""
        going = nodes.about_to_go()
        if going != self._going:
            ray.get(self._exchange.vacate.remote(sorted(going)))
            self._going = going
        up = nodes.up()
        if self._expected is None:
            return up
        # A check is a task that may take minutes, so it runs while the loop goes on.
        for node in up:
            if node.id not in {*self._passed, *self._refused, *self._looking}:
                self._looking[node.id] = preflight.examine(self._expected, node)
        for node in up:
            answer = self._looking.get(node.id)
            if answer is not None and ray.wait([answer], timeout=0)[0]:
                self._judge(self._expected, node, self._looking.pop(node.id))
        return [node for node in up if node.id in self._passed]

    def _judge(self, expected: Expected, node: Node, answer: Any) -> None:
        """Enter a checked node as passed, or as refused with a note for the user."""
        problems = preflight.problems(expected, node, answer)
        if not problems:
            self._passed.add(node.id)
        elif node.id in {there.id for there in nodes.up()}:  # if not, it died meanwhile: nothing to report
            self._refused[node.id] = node.resources
            for problem in problems:
                self._exchange.note.remote(f"{problem} It gets no slot.")

    def _ask(self, workers: int, usable: list[Node]) -> None:
        """Keep one placement group waiting for each missing worker; autoscalers start nodes for such groups.

        The groups accept new nodes only. On a usable node they would take the room of slots that are
        starting; on a refused node they would keep the autoscaler from giving it back. A group that is
        granted holds its node until the node has been checked.
        """
        asked_for = (workers, frozenset({*(node.id for node in usable), *self._refused}))
        if asked_for == self._asked_for:
            return
        for group in self._asked:
            remove_placement_group(group)
        self._asked_for = asked_for
        known = asked_for[1]
        new = [{NODE_LABEL: f"!in({','.join(sorted(known))})"} if known else {}]
        bundles = [self._plan.bundle]
        self._asked = [placement_group(bundles, bundle_label_selector=new) for _ in range(workers)]

    def _start(self, usable: list[Node]) -> None:
        """Start a slot, under the first free name, in a thread of its own."""
        # A run whose nodes are gone may not have ended yet, and its name is taken until then.
        name = next(name for i in itertools.count() if (name := f"slot-{i}") not in self._slots)
        ray.get(self._exchange.place.remote(name, []))  # forget the nodes of an earlier slot of this name
        self._ends[name] = end = threading.Event()
        thread = threading.Thread(target=self._keep, args=(name, usable, end), name=name, daemon=True)
        self._slots[name] = thread
        thread.start()

    def _keep(self, name: str, usable: list[Node], end: threading.Event) -> None:
        """Run one slot until it ends, is killed by `end`, or dies and other nodes could take its place."""
        try:
            train_run.run(
                self._serve,
                self._config | {"slot": name},
                plan=self._plan,
                folder=self._folder,
                nodes=[node.id for node in usable],
                # Workers that Train restarts stay on the same nodes. With nodes beside the head it is better
                # that the run ends, and the loop starts a new one on the nodes that are usable by then.
                restarts=all(node.is_head for node in usable),
                over=end,
            )
        except Exception as error:
            # The witness has reported dead workers, unless its controller died with them; `bury` ignores the
            # second report.
            if not train_run.has_waited(error) and not end.is_set():
                how = train_run.how_lost(*train_run.failures(error))
                ray.get(self._exchange.bury.remote(name, train_run.first_words(error), **how))
        finally:
            with contextlib.suppress(RayError):  # if the exchange is gone, `run` ends the supervisor
                ray.get(self._exchange.place.remote(name, []))
            self._changed.set()
