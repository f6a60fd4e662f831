"""Concurrent requests share calls, and get their own answers or errors."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from capret_jax.request_batcher import Batcher, Overloaded


def run(call, work, largest=4, waiting=100):
    async def main():
        batcher = Batcher(call, ThreadPoolExecutor(1), largest, waiting)
        batcher.start()
        try:
            return await asyncio.wait_for(work(batcher), 20)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_everyone_gets_an_own_answer_and_calls_are_shared():
    sizes, gate = [], threading.Event()

    def call(values):
        gate.wait(5)
        sizes.append(len(values))
        return [2 * value for value in values]

    async def work(batcher):
        tasks = [asyncio.create_task(batcher(value)) for value in range(10)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks)

    assert run(call, work) == [2 * value for value in range(10)]
    assert sum(sizes) == 10 and max(sizes) == 4 and len(sizes) < 10


def test_an_error_is_only_theirs_whose_input_it_was():
    def call(values):
        if "bad" in values:
            raise ValueError("bad")
        return values if "few" not in values else []

    async def work(batcher):
        tasks = [asyncio.create_task(batcher(value)) for value in ("good", "bad", "few", "fine")]
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, few, fine = run(call, work)
    assert (good, fine) == ("good", "fine")
    assert isinstance(bad, ValueError) and isinstance(few, ValueError)


def test_too_many_are_turned_away_and_those_who_left_disturb_nobody():
    gate = threading.Event()

    def call(values):
        gate.wait(5)
        return values

    async def work(batcher):
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)  # it is being answered
        waiting = [asyncio.create_task(batcher(i)) for i in (1, 2)]
        await asyncio.sleep(0.05)
        assert batcher.waiting() == 2
        with pytest.raises(Overloaded):
            await batcher(3)
        waiting[0].cancel()
        gate.set()
        return await asyncio.gather(first, waiting[1])

    assert run(call, work, largest=1, waiting=2) == [0, 2]
