"""The exchange without Ray: who gets which job, and that every ending frees what it held."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from finetune.messages import End, Epoch, Job, Message, Started
from finetune.steps import Step
from search.slots import job_state, train_run
from search.slots.exchange import FUTILE_STARTS, Exchange
from search.slots.job_state import LOST_AT_MOST


def play(scene: Callable[[Exchange], Awaitable[None]], retries: int = 2) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scene(Exchange(retries)), timeout=120)

    asyncio.run(bounded())


async def settled() -> None:
    """Let every task go on until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def job(name: str) -> Job:
    return Job(id=name)


async def hear(exchange: Exchange, name: str) -> list[Message]:
    """Return the first messages of a job; an answer is empty where the job is offered while it is awaited."""
    while not (heard := await exchange.receive(name)):
        pass
    return heard


async def start(exchange: Exchange, slot: str = "slot-0", node: str = "A") -> Job:
    """Start a slot and have it begin a job, as its first worker does; return the job as the slot got it."""
    generation = await begin(exchange, slot, node)
    taken = await exchange.take(slot, generation, 0, 0)
    assert taken is not None
    await exchange.report(taken.id, taken.first_message, Started())
    return taken


async def ends(exchange: Exchange, name: str) -> End:
    while True:
        for message in await exchange.receive(name):
            if isinstance(message, End):
                return message


def test_a_job_is_queued_once_whoever_comes_first() -> None:
    """The driver offers a job when it is suggested; Tune's process for the trial asks once it is up.

    Calls may overtake one another, and Ray repeats an offer whose answer was lost.
    """

    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        assert await exchange.take("slot-0", generation, 0, 0) == job("a")
        await exchange.report("a", 0, End("complete"))  # before anybody has asked
        assert await hear(exchange, "a") == [End("complete")]
        asked = asyncio.create_task(hear(exchange, "b"))
        await settled()
        await exchange.offer(job("b"))  # it comes late
        assert await exchange.take("slot-0", generation, 0, 1) == job("b")
        await exchange.report("b", 0, End("complete"))
        assert [type(message) for message in await asked] == [End]
        await exchange.offer(job("b"))  # once more, as its answer was lost
        assert (await exchange.status())["queued"] == []

    play(scene)


def test_a_job_that_was_cancelled_before_its_trial_came_up_stays_so() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        for name in "ab":
            await exchange.cancel(name)
            await exchange.offer(job(name))
            assert await hear(exchange, name) == [End("stopped")]
        assert (await exchange.status())["queued"] == []

    play(scene)


def test_a_slot_gets_jobs_in_order_and_their_messages_reach_the_trial() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await exchange.offer(job("b"))
        generation = await exchange.register("slot-0", {})
        assert await exchange.take("slot-0", generation, 0, 0) == job("a")
        await exchange.report("a", 0, Started())
        await exchange.report("a", 2, End("complete"))  # it overtook the epoch
        await exchange.report("a", 1, Epoch({"epoch": 1}))
        messages = await exchange.receive("a")
        assert [type(m) for m in messages] == [Started, Epoch, End]
        assert messages[0].slot == "slot-0"
        assert await exchange.take("slot-0", generation, 0, 1) == job("b")

    play(scene)


def test_all_workers_of_a_slot_get_the_same_job() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        follower = asyncio.create_task(exchange.take("slot-0", generation, 1, 0))
        leader = asyncio.create_task(exchange.take("slot-0", generation, 0, 0))
        await asyncio.sleep(0)
        await exchange.offer(job("a"))
        assert await asyncio.gather(leader, follower) == [job("a"), job("a")]

    play(scene)


def test_a_cancelled_job_is_stopped_in_its_slot_and_the_slot_takes_the_next() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        stopped = asyncio.create_task(exchange.until_stopped("a"))
        await asyncio.sleep(0)
        assert not stopped.done()
        await exchange.cancel("a")
        assert await stopped
        await exchange.report("a", 1, Epoch({"epoch": 2}))  # too late, nobody listens
        await exchange.offer(job("b"))
        assert await exchange.take("slot-0", generation, 0, 1) == job("b")

    play(scene)


def test_a_job_that_nobody_listens_to_is_saved_after_its_epoch_and_not_handed_on() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        await exchange.leave("a")
        assert await exchange.until_stopped("a") == "move"
        await exchange.report("a", 0, End("moved"))
        assert (await exchange.status())["queued"] == []
        assert (await exchange.receive("a"))[-1].state == "stopped"

    play(scene)


def test_a_study_that_is_stopped_waits_for_its_trials_to_be_saved_but_not_for_ever() -> None:
    async def scene(exchange: Exchange) -> None:
        generations = {name: await exchange.register(name, {}) for name in ("slot-0", "slot-1")}
        for name, generation in generations.items():
            await exchange.offer(job(name))
            await exchange.take(name, generation, 0, 0)
        closing = asyncio.create_task(exchange.close(1.0))
        assert await exchange.until_stopped("slot-0") == "move"
        await exchange.report("slot-0", 0, End("moved"))
        await settled()
        assert not closing.done()  # the other trial still trains
        await closing
        assert await exchange.until_stopped("slot-1", moving=True) == "stop"
        assert await exchange.take("slot-0", generations["slot-0"], 0, 1) is None

    play(scene)


def test_a_cancelled_job_in_the_queue_is_never_handed_out() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await exchange.offer(job("b"))
        await exchange.cancel("a")
        generation = await exchange.register("slot-0", {})
        assert await exchange.take("slot-0", generation, 0, 0) == job("b")

    play(scene)


def test_a_job_whose_worker_dies_is_tried_again_and_tells_no_epoch_twice() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await start(exchange)
        await exchange.report("a", 1, Epoch({"epoch": 1}))
        await exchange.bury("slot-0", "worker 0: killed")
        again = await start(exchange, "slot-1")
        told = [
            Epoch({"epoch": 1}),
            Epoch({"epoch": 2}),
            End("complete"),
        ]
        await exchange.report_all("a", again.first_message + 1, told)
        heard = await exchange.receive("a")
        assert [m.number for m in heard if isinstance(m, Epoch)] == [1, 2]
        assert [m.retries for m in heard if isinstance(m, Started)] == [0, 1]
        assert heard[-1].state == "complete"
        (note,) = (await exchange.status())["notes"]
        assert note.startswith("a: its worker died: worker 0: killed. It is tried again")

    play(scene)


def test_a_job_that_keeps_killing_its_workers_fails_alone_with_the_reason() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await exchange.offer(job("b"))
        for _ in range(3):
            assert (await start(exchange)).id == "a"
            await exchange.bury("slot-0", "worker 0: out of memory")
        end = await ends(exchange, "a")
        assert end.error == "its worker died: worker 0: out of memory (tried 3 times)"
        assert end.retries == 2
        assert await start(exchange) == job("b")

    play(scene)


def test_a_job_is_not_tried_again_where_its_study_says_so() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await start(exchange)
        await exchange.bury("slot-0", "worker 0: killed")
        assert (await ends(exchange, "a")).error == "its worker died: worker 0: killed"

    play(scene, retries=0)


def test_an_exception_of_the_trial_itself_fails_it_at_once() -> None:
    """The workers of a DDP group end with it, but would end again in the same way."""

    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await start(exchange)
        await exchange.bury("slot-0", "worker 1: ValueError: no such class", raised=True)
        end = await ends(exchange, "a")
        assert end.error == "its worker died: worker 1: ValueError: no such class"

    play(scene)


def test_a_death_that_is_told_twice_counts_once() -> None:
    """By a slot's Train run and by the supervisor, as the word of either may be lost."""

    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        for slot in ("slot-0", "slot-1", "slot-2"):
            assert (await start(exchange, slot)).id == "a"
            await exchange.bury(slot, "worker 0: killed")
            await exchange.bury(slot, "the run has ended")
        assert (await ends(exchange, "a")).error == "its worker died: worker 0: killed (tried 3 times)"
        for _ in range(FUTILE_STARTS - 1):
            await exchange.place("slot-3", [])
            await exchange.bury("slot-3", "no start")
            await exchange.bury("slot-3", "no start")
        assert (await exchange.status())["given_up"] == {}

    play(scene)


def test_a_trial_whose_process_in_tune_died_is_heard_whole_by_the_next_one() -> None:
    """The first one may have died with what it had been told, or while it waited for more."""

    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await start(exchange)
        await exchange.report("a", 1, Epoch({"epoch": 1}))
        first = await hear(exchange, "a")
        dead = asyncio.create_task(exchange.receive("a", len(first)))
        await asyncio.sleep(0)
        await exchange.report("a", 2, End("complete"))
        assert [type(m) for m in await dead] == [End]
        assert [type(m) for m in await hear(exchange, "a")] == [Started, Epoch, End]

    play(scene)


def test_what_happens_just_before_somebody_waits_is_not_missed() -> None:
    """Else a stopped study waits its full time for trials that are saved already."""

    async def scene(exchange: Exchange) -> None:
        bell = job_state.Bell()
        waiting = asyncio.ensure_future(bell.wait())
        bell.ring()
        await waiting

    play(scene)


def test_the_driver_can_tell_since_when_the_keeper_is_silent() -> None:
    async def scene(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        silent = await exchange.pulse()
        assert silent >= 0.02
        begun = asyncio.get_running_loop().time()
        await exchange.wanted()
        assert await exchange.pulse() <= asyncio.get_running_loop().time() - begun

    play(scene)


def test_a_job_that_had_not_begun_is_handed_out_again_once_where_none_is_tried_again() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        for _ in range(2):
            generation = await exchange.register("slot-0", {})
            assert await exchange.take("slot-0", generation, 0, 0) == job("a")
            await exchange.bury("slot-0", "killed")
        assert (await ends(exchange, "a")).state == "failed"

    play(scene, retries=0)


def test_workers_of_a_dead_generation_are_sent_home() -> None:
    async def scene(exchange: Exchange) -> None:
        old = await exchange.register("slot-0", {})
        waiting = asyncio.create_task(exchange.take("slot-0", old, 1, 0))
        await asyncio.sleep(0)
        new = await exchange.register("slot-0", {})
        assert await waiting is None
        await exchange.offer(job("a"))
        assert await exchange.take("slot-0", new, 0, 0) == job("a")
        assert await exchange.take("slot-0", old, 0, 1) is None
        await exchange.report("a", 0, Started())
        assert (await exchange.status())["running"] == ["a"]

    play(scene)


def test_queued_jobs_fail_when_the_last_slot_keeps_dying() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        for _ in range(FUTILE_STARTS):
            await exchange.place("slot-0", [])
            await exchange.bury("slot-0", "ImportError: no torch")
        end = await ends(exchange, "a")
        assert end.error == "no slot is left, the last one died of: ImportError: no torch"
        assert (await exchange.wait_for_slots(1, 5))["given_up"] == {"slot-0": "ImportError: no torch"}

    play(scene)


def test_trials_that_kill_one_worker_after_another_do_not_give_up_the_slot() -> None:
    async def scene(exchange: Exchange) -> None:
        for name in "abcd":
            await exchange.offer(job(name))
        for name in "abcd":
            assert (await start(exchange)).id == name
            await exchange.bury("slot-0", "killed")
            assert (await ends(exchange, name)).error == "its worker died: killed"

    play(scene, retries=0)


def test_closing_ends_every_job_and_sends_every_worker_home() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        await exchange.offer(job("b"))
        listening = asyncio.create_task(ends(exchange, "b"))
        await asyncio.sleep(0)
        await exchange.close()
        assert (await listening).state == "stopped"
        assert await exchange.until_stopped("a")
        assert await exchange.take("slot-0", generation, 0, 1) is None
        status = await exchange.status()
        assert (status["queued"], status["running"]) == ([], [])

    play(scene)


def test_a_call_waits_for_more_than_the_start_of_a_job() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        trial = asyncio.create_task(exchange.receive("a"))
        assert await exchange.take("slot-0", generation, 0, 0) == job("a")
        await exchange.report("a", 0, Started())
        await settled()
        assert not trial.done()
        await exchange.report_all("a", 1, [Epoch({"epoch": 1}), Epoch({"epoch": 2})])
        assert [type(m) for m in await trial] == [Started, Epoch, Epoch]

    play(scene)


def test_messages_sent_together_keep_their_order_when_a_later_call_comes_first() -> None:
    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        await exchange.offer(job("a"))
        await exchange.take("slot-0", generation, 0, 0)
        await exchange.report_all("a", 3, [End("complete")])
        epochs = [Epoch({"epoch": 1}), Epoch({"epoch": 2})]
        await exchange.report_all("a", 0, [Started(), *epochs])
        assert [type(m) for m in await exchange.receive("a")] == [Started, Epoch, Epoch, End]

    play(scene)


async def begin(exchange: Exchange, name: str, node: str) -> int:
    """Start a slot on a node, as the supervisor and the slot's first worker do."""
    await exchange.place(name, [node])
    return await exchange.register(name, {})


def test_a_trial_whose_node_dies_goes_on_elsewhere_and_tells_no_epoch_twice() -> None:
    """The second slot repeats what follows the checkpoint; the trial hears each epoch once."""

    async def scene(exchange: Exchange) -> None:
        first, second = await begin(exchange, "slot-0", "A"), await begin(exchange, "slot-1", "B")
        await exchange.offer(job("a"))
        assert await exchange.take("slot-0", first, 0, 0) == job("a")
        await exchange.report("a", 0, Started())
        for epoch in (1, 2, 3):
            await exchange.report("a", epoch, Epoch({"epoch": epoch}))
        await exchange.bury("slot-0", "worker 0: its node died", lost=True)
        again = await exchange.take("slot-1", second, 0, 0)
        assert again is not None
        await exchange.report("a", 4, Epoch({"epoch": 4}))  # late, from the slot that is gone
        start = again.first_message
        told = [Started(), *(Epoch({"epoch": e}) for e in (2, 3, 4, 5))]
        told.append(End("complete"))
        for number, message in enumerate(told):
            await exchange.report("a", start + number, message)
        heard = await exchange.receive("a")
        assert [m.number for m in heard if isinstance(m, Epoch)] == [1, 2, 3, 4, 5]
        assert [m.slot for m in heard if isinstance(m, Started)] == ["slot-0", "slot-1"]
        assert heard[-1].state == "complete"

    play(scene)


def test_a_job_whose_end_the_driver_knows_is_forgotten() -> None:
    """The exchange lives as long as the study: what it keeps must not grow with the trials."""

    async def scene(exchange: Exchange) -> None:
        generation = await exchange.register("slot-0", {})
        for serial in range(20):
            trial = asyncio.create_task(hear(exchange, f"job-{serial}"))
            await exchange.offer(job(f"job-{serial}"))
            await exchange.take("slot-0", generation, 0, serial)
            await exchange.report_all(f"job-{serial}", 0, [Started(), End("complete")])
            await trial
            await exchange.cancel(f"job-{serial}")
        assert len(exchange._jobs) == 0
        assert await exchange.receive("job-3") == [End("stopped")]

    play(scene)


def test_workers_that_lose_one_another_are_a_lost_node_only_if_they_are_on_several() -> None:
    """On one node it is the trial that killed one of them."""

    async def scene(exchange: Exchange) -> None:
        for name, nodes in {"one": ["A", "A"], "two": ["A", "B"]}.items():
            await exchange.place(name, nodes)
            generation = await exchange.register(name, {})
            await exchange.offer(job(name))
            await exchange.take(name, generation, 0, 0)
            await exchange.report(name, 0, Started())
            await exchange.bury(name, "gloo: connection reset", parted=True)
        assert (await ends(exchange, "one")).error == "its worker died: gloo: connection reset"
        assert (await exchange.status())["queued"] == ["two"]

    play(scene, retries=0)


def test_a_trial_under_which_nodes_keep_dying_fails() -> None:
    """It may be what kills them."""

    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        for _ in range(LOST_AT_MOST + 1):
            await start(exchange)
            await exchange.bury("slot-0", "node died", lost=True)
        assert (await ends(exchange, "a")).error == "its worker died: node died (tried 4 times)"

    play(scene)


def test_a_slot_on_a_node_that_goes_lets_its_trial_go_after_the_epoch() -> None:
    async def scene(exchange: Exchange) -> None:
        first = await begin(exchange, "slot-0", "A")
        await exchange.offer(job("a"))
        await exchange.take("slot-0", first, 0, 0)
        told = asyncio.create_task(exchange.until_stopped("a"))
        await asyncio.sleep(0)
        await exchange.vacate(["A"])
        assert await told == "move"
        stopped = asyncio.create_task(exchange.until_stopped("a", moving=True))
        await exchange.report("a", 0, Started())
        await exchange.report("a", 1, Epoch({"epoch": 1}))
        await exchange.report("a", 2, End("moved"))
        assert await exchange.take("slot-0", first, 0, 1) is None
        second = await begin(exchange, "slot-1", "B")
        again = await exchange.take("slot-1", second, 0, 0)
        assert again is not None
        assert again.id == "a"
        assert not stopped.done()  # its worker may still be told to stop
        await exchange.cancel("a")
        assert await stopped == "stop"

    play(scene)


def test_a_slot_that_starts_on_a_node_that_goes_gets_nothing() -> None:
    async def scene(exchange: Exchange) -> None:
        await exchange.vacate(["A"])
        await exchange.offer(job("a"))
        generation = await begin(exchange, "slot-0", "A")
        assert await exchange.take("slot-0", generation, 0, 0) is None
        assert (await exchange.status())["queued"] == ["a"]

    play(scene)


def test_slots_without_a_trial_to_come_end_and_the_busiest_node_keeps_its_own() -> None:
    """So that the other node becomes idle; one slot stays, for the export of the best model."""

    async def scene(exchange: Exchange) -> None:
        names = {"slot-0": "A", "slot-1": "B", "slot-2": "A"}
        generations = {name: await begin(exchange, name, node) for name, node in names.items()}
        takes = {
            name: asyncio.create_task(exchange.take(name, generation, 0, 0))
            for name, generation in generations.items()
        }
        await asyncio.sleep(0)
        await exchange.offer(job("a"))
        assert await takes["slot-0"] == job("a")
        await exchange.want(2)
        assert await takes["slot-1"] is None
        await exchange.want(0)
        assert await takes["slot-2"] is None
        assert await exchange.wanted() == 1
        await exchange.report("a", 0, Started())
        await exchange.report("a", 1, End("complete"))
        last = asyncio.create_task(exchange.take("slot-0", generations["slot-0"], 0, 1))
        await exchange.offer(job("export"))
        assert await last == job("export")

    play(scene)


def test_the_driver_hears_of_slots_that_come_and_go_and_of_notes() -> None:
    async def scene(exchange: Exchange) -> None:
        watching = asyncio.create_task(exchange.watch(0, 0))
        await asyncio.sleep(0)
        await begin(exchange, "slot-0", "A")
        nothing = {"arrays": 0, "images": 0, "seconds": 0.0}
        assert await watching == {"up": 1, "notes": [], "steps": {}, "shown": 0, "computed": nothing}
        await exchange.note("node 10.0.0.5: another torch")
        assert (await exchange.watch(1, 0))["notes"] == ["node 10.0.0.5: another torch"]
        await exchange.vacate(["A"])
        assert (await exchange.watch(1, 1))["up"] == 0

    play(scene)


def test_the_driver_hears_how_far_the_slots_are_with_long_steps() -> None:
    async def scene(exchange: Exchange) -> None:
        first = await begin(exchange, "slot-0", "A")
        await exchange.offer(job("a"))
        await exchange.take("slot-0", first, 0, 0)
        await exchange.watch(0, 0, 0)
        watching = asyncio.create_task(exchange.watch(1, 0, 0))
        await asyncio.sleep(0)
        step = Step(name="features of train", done=128, total=1300, unit="images", seconds=1.0)
        await exchange.show("slot-0", "a", step)
        told = await watching
        assert (told["steps"], told["shown"], told["notes"]) == ({"a": step}, 1, [])
        await exchange.show("slot-0", "b", step)  # late: the slot has another job by now
        await exchange.show("slot-0", "a", replace(step, done=1300, seconds=9.0, over=True))
        told = await exchange.watch(1, 0, 1)
        assert told["steps"] == {}
        assert told["computed"] == {"arrays": 1, "images": 1300, "seconds": 9.0}
        assert told["notes"] == ["features of train: 1,300 images in 9.0 s, 144/s (a in slot-0)"]
        await exchange.show("slot-0", "a", step)
        await exchange.report("a", 0, Started())
        await exchange.report("a", 1, End("complete"))
        await begin(exchange, "slot-1", "A")
        assert (await exchange.watch(1, 1, 3))["steps"] == {}

    play(scene)


def test_a_trial_that_lets_go_is_handed_on_though_its_slot_has_asked_for_another_first() -> None:
    """Calls to an actor may overtake one another; a study once waited for such a trial for ever."""

    async def scene(exchange: Exchange) -> None:
        first = await begin(exchange, "slot-0", "A")
        await exchange.offer(job("a"))
        await exchange.take("slot-0", first, 0, 0)
        await exchange.report("a", 0, Started())
        await exchange.vacate(["A"])
        assert await exchange.take("slot-0", first, 0, 1) is None
        await exchange.report("a", 1, End("moved"))
        assert (await start(exchange, "slot-1", "B")).id == "a"

    play(scene)


def test_a_slot_gets_its_next_job_once_the_end_of_the_last_is_heard() -> None:
    """A worker that dies in between would take the end with it, and nobody would know whose it was."""

    async def scene(exchange: Exchange) -> None:
        for name in "abc":
            await exchange.offer(job(name))
        generation = await begin(exchange, "slot-0", "A")
        for serial, end in enumerate(("reported", "cancelled", "lost")):
            taken = await exchange.take("slot-0", generation, 0, serial)
            assert taken == job("abc"[serial])
            await exchange.report(taken.id, 0, Started())
            following = asyncio.create_task(exchange.take("slot-0", generation, 0, serial + 1))
            await asyncio.sleep(0)
            assert not following.done()
            if end == "reported":
                await exchange.report("a", 1, End("complete"))
            elif end == "cancelled":
                await exchange.cancel("b")
            else:
                await exchange.bury("slot-0", "killed")
                assert (await exchange.status())["queued"] == ["c"]
                following.cancel()

    play(scene)


def test_a_job_that_a_slot_leaves_behind_when_it_ends_is_tried_again() -> None:
    """However it ended: the supervisor says of every slot that it is nowhere any more."""

    async def scene(exchange: Exchange) -> None:
        await exchange.offer(job("a"))
        await start(exchange)
        await exchange.place("slot-0", [])
        assert (await exchange.status())["queued"] == ["a"]
        assert (await exchange.watch(1, 0))["up"] == 0

    play(scene)


def test_what_a_trial_raised_is_told_from_what_happened_to_its_workers() -> None:
    """The first fails it; after anything else it is tried again."""
    raised = train_run.how_lost(ValueError("no such class"), RuntimeError("[gloo] Connection closed by peer"))
    assert raised == {"lost": False, "parted": True, "raised": True}
    for happened in (
        ActorDiedError(),
        WorkerHealthCheckTimeoutError("a health check has been hanging"),
        WorkerHealthCheckFailedError("a health check failed", ActorDiedError()),
        RuntimeError("NCCL communicator was aborted"),
    ):
        assert not train_run.how_lost(happened)["raised"], happened
    ended = WorkerGroupError("the workers failed", {1: ValueError("b"), 0: ValueError("a")})
    assert [str(error) for error in train_run.failures(ended)] == ["a", "b"]
    assert train_run.failures(ActorDiedError()) != []
