"""Concurrent requests share calls, and get their own outputs or errors."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from capret_jax.request_batcher import Batcher, Overloaded


def run(call, requests, max_batch=4, max_waiting=100):
    async def main():
        batcher = Batcher(call, ThreadPoolExecutor(1), max_batch, max_waiting)
        batcher.start()
        try:
            return await asyncio.wait_for(requests(batcher), 20)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_requests_share_calls_and_get_their_own_outputs():
    sizes, gate = [], threading.Event()

    def call(values):
        gate.wait(5)
        sizes.append(len(values))
        return [2 * value for value in values]

    async def requests(batcher):
        tasks = [asyncio.create_task(batcher(value)) for value in range(10)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks)

    assert run(call, requests) == [2 * value for value in range(10)]
    assert sum(sizes) == 10 and max(sizes) == 4 and len(sizes) < 10


def test_error_goes_only_to_the_request_that_caused_it():
    def call(values):
        if "bad" in values:
            raise ValueError("bad")
        return values if "few" not in values else []

    async def requests(batcher):
        tasks = [asyncio.create_task(batcher(value)) for value in ("good", "bad", "few", "fine")]
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, few, fine = run(call, requests)
    assert (good, fine) == ("good", "fine")
    assert isinstance(bad, ValueError) and isinstance(few, ValueError)


def test_full_queue_refuses_and_cancelled_requests_are_skipped():
    gate = threading.Event()

    def call(values):
        gate.wait(5)
        return values

    async def requests(batcher):
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)  # the call has started
        waiting = [asyncio.create_task(batcher(i)) for i in (1, 2)]
        await asyncio.sleep(0.05)
        assert batcher.waiting() == 2
        with pytest.raises(Overloaded):
            await batcher(3)
        waiting[0].cancel()
        gate.set()
        return await asyncio.gather(first, waiting[1])

    assert run(call, requests, max_batch=1, max_waiting=2) == [0, 2]
