"""Put requests that come at about the same time through the model together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


class Batcher(Generic[X, Y]):
    """Collects items into batches and has a function work on one batch at a time, in a thread of its own.

    While a batch is worked on the next one fills, so a busy server has large batches and an idle one does not
    wait.

    Args:
        work: function from a list of items to a list of as many results.
        most: largest number of items in a batch.
    """

    def __init__(self, work: Callable[[Sequence[X]], Sequence[Y]], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: asyncio.Queue[tuple[X, asyncio.Future[Y]]] = asyncio.Queue()

    async def __call__(self, item: X) -> Y:
        """Return the result of one item.

        Raises:
            Exception: what `work` raised for the item's batch.
        """
        future: asyncio.Future[Y] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return await future

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while the context lasts; items that wait at its end are cancelled."""
        with ThreadPoolExecutor(1, "model") as thread:
            task = asyncio.create_task(self._run(thread))
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                while not self._waiting.empty():
                    self._waiting.get_nowait()[1].cancel()

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(item, future) for item, future in batch if not future.done()]  # of clients still there
            if batch:
                items = [item for item, _ in batch]
                _settle(
                    [future for _, future in batch], await loop.run_in_executor(thread, self._tried, items)
                )

    def _tried(self, items: Sequence[X]) -> Sequence[Y] | Exception:
        """Work on a batch, and return its error rather than raise it: one batch fails, the server goes on."""
        try:
            return self._work(items)
        except Exception as error:
            return error


def _settle(futures: Sequence[asyncio.Future[Y]], found: Sequence[Y] | Exception) -> None:
    for place, future in enumerate(futures):
        if future.done():  # the client has left
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found[place])
