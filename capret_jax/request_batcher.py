"""Requests that come at the same time, answered by one call of the model."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class Overloaded(Exception):
    """More requests wait than there is room for."""


class Batcher(Generic[Input, Output]):
    """Collects what is asked while a call is running, and asks it all in the next one.

    Nobody waits for a batch to fill: a lone request starts at once, and under load batches grow by
    themselves.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Input]], Iterable[Output]],
        executor: Executor,
        largest: int,
        waiting: int,
    ):
        """
        Args:
            call: inputs -> as many outputs; runs in the executor, one call at a time.
            executor: where.
            largest: inputs of a call.
            waiting: inputs that may wait.
        """
        self._call, self._executor, self._largest = call, executor, largest
        self._queue: asyncio.Queue = asyncio.Queue(maxsize=waiting)
        self._worker: asyncio.Task | None = None

    async def __call__(self, value: Input) -> Output:
        """The output for one input.

        Raises:
            Overloaded: too many wait already.
            Exception: what the call raised.
        """
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((value, answer))
        except asyncio.QueueFull as error:
            raise Overloaded from error
        return await answer

    def waiting(self) -> int:
        """Inputs that no call has taken yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begins to answer; in a running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answers no more."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._largest and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Input, asyncio.Future]]) -> None:
        values = [value for value, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            called: Awaitable = loop.run_in_executor(self._executor, self._call, values)
            pairs = list(zip(batch, await called, strict=True))
        except Exception as error:  # whatever the call raises belongs to whoever asked for it
            if len(batch) == 1:
                _settle(batch[0][1], error)
            else:
                for one in batch:
                    await self._answer([one])
        else:
            for (_, answer), output in pairs:
                _settle(answer, output)


def _settle(answer: asyncio.Future, outcome) -> None:
    if answer.done():
        return  # whoever asked has gone
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
