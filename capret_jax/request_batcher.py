"""Batches concurrent requests: those that arrive together share a call of the model."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class Overloaded(Exception):
    """The queue of waiting requests is full."""


class Batcher(Generic[Input, Output]):
    """Collects the inputs that arrive during a call, and gives them all to the next call.

    A batch is never waited for: a single request starts at once, and batches grow with the load.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Input]], Iterable[Output]],
        executor: Executor,
        max_batch: int,
        max_waiting: int,
    ):
        """
        Args:
            call: inputs -> as many outputs; runs in the executor, one call at a time.
            executor: executor of the calls.
            max_batch: inputs of a call, at most.
            max_waiting: inputs in the queue, at most; 0 for no limit.
        """
        self._call, self._executor, self._max_batch = call, executor, max_batch
        self._queue: asyncio.Queue = asyncio.Queue(maxsize=max_waiting)
        self._worker: asyncio.Task | None = None

    async def __call__(self, value: Input) -> Output:
        """Returns the output for one input.

        Raises:
            Overloaded: the queue is full.
            Exception: whatever the call raised for this input.
        """
        output: asyncio.Future = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((value, output))
        except asyncio.QueueFull as error:
            raise Overloaded from error
        return await output

    def waiting(self) -> int:
        """Returns the number of inputs in the queue."""
        return self._queue.qsize()

    def start(self) -> None:
        """Starts the worker; needs a running event loop."""
        self._worker = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops the worker; inputs in the queue get no output."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._process(batch)

    async def _process(self, batch: list[tuple[Input, asyncio.Future]]) -> None:
        """Runs one call; if it fails, runs each input alone to find the culprit."""
        values = [value for value, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            called: Awaitable = loop.run_in_executor(self._executor, self._call, values)
            pairs = list(zip(batch, await called, strict=True))
        except Exception as error:  # whatever the call raises goes to the caller of the input
            if len(batch) == 1:
                _resolve(batch[0][1], error)
            else:
                for request in batch:
                    await self._process([request])
        else:
            for (_, future), output in pairs:
                _resolve(future, output)


def _resolve(future: asyncio.Future, outcome) -> None:
    if future.done():
        return  # the caller was cancelled
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
