"""Batches by threads and by worker processes: the same ones, from any position, and no orphans."""

import contextlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children

import jax
import numpy as np
import pytest

from capret_jax.config import ReadConfig
from capret_jax.data import batch_iterator
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.shared_object import SharedObject
from capret_jax.errors import InputError


class Squares:
    """Batches of a number's square; one of them is broken. Also tells who made them."""

    def __init__(self, steps=7, broken=None):
        self.steps, self.broken, self.table = steps, broken, np.arange(steps) ** 2

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        if step == self.broken:
            raise InputError(f"image {step} does not decode")
        devices = jax._src.xla_bridge.backends_are_initialized()
        return {
            "square": np.full((2, 3), self.table[step]),
            "process": np.array([os.getpid()]),
            "uses_devices": np.array([devices]),
        }


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(batch_iterator, "available_cores", lambda: 2)


def iterate(source, workers, threads=1):
    return BatchIterator(source, ReadConfig(threads=threads, prefetch=2, workers=workers))


def squares(batches):
    return [int(batch["square"][0, 0]) for batch in batches]


def test_workers_make_the_same_batches_and_go_on_anywhere():
    jax.devices()
    with contextlib.closing(iterate(Squares(), workers=2)) as iterator:
        first = [next(iterator) for _ in range(3)]
        position = iterator.get_state()
        rest = list(iterator)
    assert squares([*first, *rest]) == [0, 1, 4, 9, 16, 25, 36]
    made_by = [int(batch["process"][0]) for batch in (*first, *rest)]
    assert made_by[::2] == [made_by[0]] * 4 and made_by[1::2] == [made_by[1]] * 3
    assert len({os.getpid(), *made_by}) == 3
    # Else each worker would take memory of the accelerators.
    assert not any(batch["uses_devices"][0] for batch in (*first, *rest))
    assert not active_children()
    # The position is the next step, with any number of workers and threads.
    assert position == {"next_index": 3}
    for threads in (0, 1, 3):
        iterator = iterate(Squares(), workers=0, threads=threads)
        iterator.set_state(position)
        assert squares(iterator) == [9, 16, 25, 36]


def test_a_worker_continues_moves_and_names_what_is_broken():
    """One start of a worker for all of this, since it takes seconds."""
    with contextlib.closing(iterate(Squares(broken=5), workers=1)) as iterator:
        iterator.set_state({"next_index": 3})
        # Jobs are often stopped by a signal to all processes: it is for the main one.
        original = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            iterator.start_prefetch()
            while not active_children():
                time.sleep(0.01)
            (worker,) = active_children()
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
            assert squares([next(iterator), next(iterator)]) == [9, 16]
        finally:
            signal.signal(signal.SIGTERM, original)
        with pytest.raises(InputError, match="image 5 does not decode"):
            next(iterator)
    worker.join(10)
    assert not worker.is_alive()


def test_a_killed_worker_is_named():
    with contextlib.closing(iterate(Squares(10**6), workers=1)) as iterator:
        next(iterator)
        (worker,) = active_children()
        worker.kill()
        with pytest.raises(InputError, match="was ended by SIGKILL .memory was probably full.*=1"):
            for _ in iterator:
                pass


def test_a_worker_ends_with_the_main_process():
    reader, writer = os.pipe()
    ended = []
    waiting = threading.Thread(target=batch_iterator._die_with, args=(reader, ended.append))
    waiting.start()
    assert not ended
    os.close(writer)  # as the system does for a process that was killed
    waiting.join(10)
    os.close(reader)
    assert ended == [1]


def test_shared_memory_of_an_abrupt_end_is_removed_in_silence():
    program = """
import os
from multiprocessing.shared_memory import SharedMemory
from capret_jax.data import batch_iterator

batch_iterator._start_resource_tracker()
assert "PYTHONWARNINGS" not in os.environ
print(SharedMemory(create=True, size=8).name, flush=True)
os._exit(0)
"""
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not pathlib.Path("/dev/shm", done.stdout.strip()).exists()


def test_more_workers_than_cores_are_refused():
    message = r"config.data.read.workers=3 is more than the 2 cores that this process may use"
    with pytest.raises(InputError, match=message):
        iterate(Squares(), workers=3)


@pytest.mark.parametrize("name", ["threads", "prefetch", "workers", "cached_images"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(InputError, match=f"data.read.{name}=-1 is negative"):
        ReadConfig(**{name: -1})


def test_every_thread_has_a_batch_to_make():
    assert ReadConfig(threads=16, prefetch=8).batches_ahead == 16
    assert ReadConfig(threads=2, prefetch=8).batches_ahead == 8
    started = threading.Barrier(3)

    class Together(Squares):
        def __getitem__(self, step):
            if step < 3:
                started.wait(10)  # passes once three threads are at work
            return super().__getitem__(step)

    iterator = BatchIterator(Together(), ReadConfig(threads=3, prefetch=1))
    assert squares(iterator) == [0, 1, 4, 9, 16, 25, 36]


def test_a_shared_object_maps_its_arrays_and_names_files(tmp_path):
    np.save(tmp_path / "table.npy", np.arange(12.0).reshape(4, 3))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    value = {"a": np.arange(5), "b": [np.ones((2, 2), np.float32), "text"], "table": table}
    shared = SharedObject(value)
    pickled = pickle.dumps(shared)
    assert len(pickled) < 500
    opened = pickle.loads(pickled)
    jax.tree.map(np.testing.assert_array_equal, opened["a"], value["a"])
    np.testing.assert_array_equal(opened["b"][0], 1)
    assert opened["b"][1] == "text" and not opened["a"].flags.writeable
    np.testing.assert_array_equal(opened["table"], table)
    assert isinstance(opened["table"], np.memmap)
    assert opened["table"].filename == str(table.filename)
    path = shared.path
    del shared
    assert not os.path.exists(path)
