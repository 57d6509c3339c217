"""The keeper: an actor that starts, ends and starts again the slots of a study as nodes come and go.

Every second it looks at the cluster. A node that has joined is checked (preflight.py) before it gets a slot;
the slots of one that is about to go are emptied; slots are started while there are trials and room for more;
and where room is missing, an autoscaler is asked for it by placement groups that wait.
It lives beside the driver, so that the driver need not import torch.
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

LOOK_SECONDS = 1.0
END_SECONDS = 10.0
"""For slots to end by themselves once the study has; one that starts has to get its workers up first."""

MISSES_AT_MOST = 30
"""Looks in a row that Ray may leave without an answer, as while its state service starts again."""


@dataclass(frozen=True)
class Need:
    """What a study lacks."""

    start: int
    """Slots that are to be started: there is room for them."""
    ask: int
    """Workers that nodes are to be asked for."""


def need(
    plan: Any,
    wanted: int,
    slots: Mapping[str, Collection[str]],
    usable: Collection[Node],
    refused: Iterable[Resources] = (),
) -> Need:
    """Return what a study lacks; slots on nodes that are about to go, or have died, do not count.

    Args:
        plan: how many slots of which shape.
        wanted: slots that the study has use for.
        slots: name -> ids of its nodes, none where they are not known yet, for those whose run has not ended.
        usable: nodes that may hold slots.
        refused: what those nodes have that may not; nobody is asked for others in their place.
    """
    resources = [node.resources for node in usable]
    ids = {node.id for node in usable}
    staying = sum(ids.issuperset(places) for places in slots.values())
    missing = plan.workers * min(wanted, plan.ask) - plan.workers_fit(resources) - plan.workers_fit(refused)
    return Need(start=max(0, min(wanted, plan.fit(resources)) - staying), ask=max(0, missing))


class Keeper:
    """Holds the Train runs of all slots, one thread each.

    Args:
        exchange: where slots get their trials.
        plan: how many slots of which shape.
        folder: for what Train writes.
        given: what their workers are told besides: room for copies of far files.
        serve: what their workers run.
        expected: what a node must be like to get a slot; None: any will do.
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
        self._changed = threading.Event()
        self._over = threading.Event()
        self._asked: list[PlacementGroup] = []
        self._asked_for: tuple[int, frozenset[str]] = (0, frozenset())
        """How many workers, and the nodes on which they are not to be."""
        self._passed: set[str] = set(expected.passed) if expected else set()
        self._refused: dict[str, Resources] = {}
        """Node -> what it has; nobody is asked for another one in its place."""
        self._looking: dict[str, Any] = {}
        """Node -> the check of it that runs."""
        self._going: frozenset[str] = frozenset()

    def run(self) -> None:
        """Keep as many slots up as there are trials and room for, until the exchange is closed.

        Raises:
            RayError: the exchange has died, or Ray has not answered for long; the driver then ends the study.
        """
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
            self._changed.wait(LOOK_SECONDS)
            self._changed.clear()
            self._slots = {name: thread for name, thread in self._slots.items() if thread.is_alive()}
        self._end()

    def _follow(self, wanted: int) -> None:
        """Bring the slots to where the nodes are."""
        usable, places = self._look(), self._places()
        lacking = need(self._plan, wanted, places, usable, self._refused.values())
        self._ask(lacking.ask, usable)
        for _ in range(lacking.start):
            self._start(usable)

    def _places(self) -> dict[str, tuple[str, ...]]:
        """Return the nodes of each slot whose run has not ended, after telling which of them have died.

        Their Train run may hear of it much later, and their trials shall not wait for that.
        """
        known = ray.get(self._exchange.places.remote())
        places = {name: known.get(name, ()) for name in self._slots}
        alive = nodes.alive()
        for name, there in places.items():
            if not alive.issuperset(there):
                ray.get(self._exchange.bury.remote(name, "its node has died", lost=True))
        return places

    def _end(self) -> None:
        """Wait for the slots to end by themselves, a while; then kill them."""
        self._ask(0, [])
        deadline = time.monotonic() + END_SECONDS
        for thread in self._slots.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._over.set()
        for thread in self._slots.values():
            thread.join()

    def _look(self) -> list[Node]:
        """Return the nodes that may hold slots, after telling the exchange which ones are about to go."""
        going = nodes.about_to_go()
        if going != self._going:
            ray.get(self._exchange.vacate.remote(sorted(going)))
            self._going = going
        up = nodes.up()
        if self._expected is None:
            return up
        for node in up:
            if node.id not in {*self._passed, *self._refused, *self._looking}:
                self._looking[node.id] = preflight.examine(self._expected, node)
        for node in up:
            answer = self._looking.get(node.id)
            if answer is not None and ray.wait([answer], timeout=0)[0]:
                self._judge(self._expected, node, self._looking.pop(node.id))
        return [node for node in up if node.id in self._passed]

    def _judge(self, expected: Expected, node: Node, answer: Any) -> None:
        problems = preflight.problems(expected, node, answer)
        if not problems:
            self._passed.add(node.id)
        elif node.id in {there.id for there in nodes.up()}:  # else it has died meanwhile
            self._refused[node.id] = node.resources
            for problem in problems:
                self._exchange.note.remote(f"{problem} It gets no slot.")

    def _ask(self, workers: int, usable: list[Node]) -> None:
        """Have a placement group wait for each missing worker: that is what an autoscaler starts nodes for.

        They wait for new nodes: on a usable one they would take the room of slots that start, and a refused
        one they would keep from being given back. One that is granted keeps its node until that is judged.
        """
        asked_for = (workers, frozenset({*(node.id for node in usable), *self._refused}))
        if asked_for == self._asked_for:
            return
        for group in self._asked:
            remove_placement_group(group)
        self._asked_for = asked_for
        known = asked_for[1]
        new = [{train_run.NODE_LABEL: f"!in({','.join(sorted(known))})"} if known else {}]
        bundles = [self._plan.bundle]
        self._asked = [placement_group(bundles, bundle_label_selector=new) for _ in range(workers)]

    def _start(self, usable: list[Node]) -> None:
        # The runs of slots whose nodes went may still hold their names.
        name = next(name for i in itertools.count() if (name := f"slot-{i}") not in self._slots)
        ray.get(self._exchange.place.remote(name, []))  # not where the one before it was
        thread = threading.Thread(target=self._keep, args=(name, usable), name=name, daemon=True)
        self._slots[name] = thread
        thread.start()

    def _keep(self, name: str, usable: list[Node]) -> None:
        """Hold one slot until it ends, or dies where other nodes could take its place."""
        try:
            train_run.run(
                self._serve,
                self._config | {"slot": name},
                plan=self._plan,
                folder=self._folder,
                nodes=[node.id for node in usable],
                # A group that is restarted stays on its nodes. Where there are others, a new one is better.
                restarts=all(node.is_head for node in usable),
                over=self._over,
            )
        except Exception as error:
            # The witness has told of dead workers, unless its controller died with them.
            if not train_run.has_waited(error) and not self._over.is_set():
                how = train_run.how_lost(*train_run.failures(error))
                ray.get(self._exchange.bury.remote(name, train_run.first_words(error), **how))
        finally:
            with contextlib.suppress(RayError):  # `run` sees to an exchange that is gone
                ray.get(self._exchange.place.remote(name, []))
            self._changed.set()
