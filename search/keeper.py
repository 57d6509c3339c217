"""The keeper: an actor that starts, ends and starts again the slots of a study as nodes come and go.

Every second it looks at the cluster. A node that has joined is checked (preflight.py) before it gets a slot;
the slots of one that is about to go are emptied; slots are started while there are trials and room for more;
and where room is missing, an autoscaler is asked for it by placement groups that wait.
It lives beside the driver, so that the driver need not import torch.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from search import nodes, preflight, training
from search.nodes import Node, Resources
from search.preflight import Expected

LOOK_SECONDS = 1.0
END_SECONDS = 10.0
"""For slots to end by themselves once the study has; one that starts has to get its workers up first."""


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
        """Keep as many slots up as there are trials and room for, until the exchange is closed."""
        while (wanted := ray.get(self._exchange.wanted.remote())) != 0:
            wanted = self._plan.slots if wanted is None else min(wanted, self._plan.slots)
            usable = self._look()
            self._ask(min(wanted, self._plan.ask), usable)
            room = self._plan.fit(node.resources for node in usable)
            for _ in range(min(wanted, room) - len(self._slots)):
                self._start(usable)
            self._changed.wait(LOOK_SECONDS)
            self._changed.clear()
            self._slots = {name: thread for name, thread in self._slots.items() if thread.is_alive()}
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
            self._going = going
            ray.get(self._exchange.vacate.remote(sorted(going)))
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

    def _ask(self, slots: int, usable: list[Node]) -> None:
        """Have a placement group wait for each missing worker: that is what an autoscaler starts nodes for.

        They wait for new nodes: on a usable one they would take the room of slots that start, and a refused
        one they would keep from being given back. One that is granted keeps its node until that is judged.
        """
        plan = self._plan
        there = max(plan.workers_fit(node.resources for node in usable), plan.workers * len(self._slots))
        missing = plan.workers * slots - there - plan.workers_fit(self._refused.values())
        asked_for = (max(0, missing), frozenset({*(node.id for node in usable), *self._refused}))
        if asked_for == self._asked_for:
            return
        for group in self._asked:
            remove_placement_group(group)
        missing, known = self._asked_for = asked_for
        new = [{training.NODE_LABEL: f"!in({','.join(sorted(known))})"} if known else {}]
        self._asked = [placement_group([plan.bundle], bundle_label_selector=new) for _ in range(missing)]

    def _start(self, usable: list[Node]) -> None:
        name = next(f"slot-{i}" for i in range(self._plan.slots) if f"slot-{i}" not in self._slots)
        thread = threading.Thread(target=self._keep, args=(name, usable), name=name, daemon=True)
        self._slots[name] = thread
        thread.start()

    def _keep(self, name: str, usable: list[Node]) -> None:
        """Hold one slot until it ends, or dies where other nodes could take its place."""
        try:
            training.run(
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
            if training.is_unheard(error) and not self._over.is_set():
                how = training.how_lost(error)
                ray.get(self._exchange.bury.remote(name, training.first_words(error), **how))
        finally:
            self._changed.set()
