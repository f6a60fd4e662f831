"""The iterator of training batches, read ahead by threads or by worker processes."""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any, Protocol

import grain
import jax
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from capret_jax.config import ReadConfig
from capret_jax.data.batch import Batch
from capret_jax.data.shared_object import SharedObject
from capret_jax.errors import InputError

# Signals that end a job. They are often sent to all of its processes, and are for the main one.
_STOPPING = (signal.SIGTERM, signal.SIGINT)
# What Grain says of a worker that ended before its time.
_DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")
_CAUSES = {
    signal.SIGKILL: "memory was probably full",
    signal.SIGBUS: "/dev/shm was probably full: give the container more (docker --shm-size)",
}
# A filter, as in PYTHONWARNINGS, for what Python's resource tracker says of that which it removes.
_NO_LEAKS = "ignore:resource_tracker:UserWarning"


class BatchSource(Protocol):
    """Batches by step; it can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Batch: ...


class BatchIterator(grain.DatasetIterator[Batch]):
    """Batches in the order of their steps.

    Its position is the next step, whatever reads ahead. So a run can be resumed with another number
    of threads or workers. Reading begins with the first batch that is asked for.
    """

    def __init__(self, batches: BatchSource, read: ReadConfig):
        """
        Args:
            batches: batches by step.
            read: threads, workers and number of batches to keep ready.

        Raises:
            InputError: there are more workers than cores.
        """
        super().__init__()
        self._batches, self._read = batches, read
        self._step = 0
        self._source: grain.MapDataset | None = None
        self._reading: grain.DatasetIterator | None = None
        _check_cores(read.workers)

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            InputError: an image does not decode, or a worker was killed.
        """
        self.start_prefetch()
        assert self._reading is not None
        try:
            batch = next(self._reading)
        except RuntimeError as error:
            raise _describe_death(error, self._read) or error from error
        self._step += 1
        jax.tree.map(_unlink, batch)
        return batch

    def start_prefetch(self) -> None:
        """Begins to read ahead, without waiting for it."""
        if self._closed:
            raise ValueError("the iterator is closed")
        if self._reading is None:
            if self._read.workers:
                _start_resource_tracker()  # first: it unblocks signals
            with _blocked_signals():
                self._reading = self._read_from(self._step)
                if self._read.workers:
                    # Grain starts the workers of the iterators that its state needs, each from a
                    # thread that is started here, and that signals are blocked in, too.
                    self._reading.get_state()
                    self._reading.start_prefetch()

    def _read_from(self, step: int) -> grain.DatasetIterator:
        read = self._read
        if self._source is None:
            self._source = _source(self._batches, read.workers)
        dataset = self._source.slice(slice(step, None))
        ahead = read.batches_ahead
        if not read.workers:
            return iter(dataset.to_iter_dataset(grain.ReadOptions(read.threads, ahead)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads some of its own, also where no command runs
        each = grain.MultiprocessingOptions(read.workers, -(-ahead // read.workers))
        reading = dataset.to_iter_dataset(grain.ReadOptions(read.threads, read.threads))
        return iter(reading.mp_prefetch(each, _start_worker))

    def get_state(self) -> dict[str, Any]:
        """Returns the position, in the format of Grain's own iterators in one process."""
        return {"next_index": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state`."""
        self._set_next_index(state["next_index"])

    def _get_next_index(self) -> int:
        return self._step

    def _set_next_index(self, index: int) -> None:
        """Moves to a step; `grain.experimental.set_next_index` calls this."""
        if not 0 <= index <= len(self._batches):
            raise IndexError(f"there are {len(self._batches)} batches, and none of step {index}")
        self._stop_reading()
        self._step = index

    def close(self) -> None:
        """Ends threads and workers; later calls of `next` raise `ValueError`."""
        super().close()
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def _source(batches: BatchSource, workers: int) -> grain.MapDataset:
    """Makes the dataset of all batches; workers get it by way of one file."""
    return grain.MapDataset.source(_WorkerSource(batches) if workers else batches)


def _unlink(array: Any) -> None:
    """Removes the name of an array's shared memory, so that none is left whatever ends the run."""
    if isinstance(array, SharedMemoryArray):
        array.shm.unlink()  # the memory itself lasts as long as the array
        array._unlink_on_del = False


def _start_resource_tracker() -> None:
    """Starts the process that removes shared memory after an abrupt end, without its warnings.

    A process of a group ends abruptly when another one failed, with one line that says so.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{_NO_LEAKS}" if before else _NO_LEAKS
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


class _WorkerSource:
    """Batches that become a `SharedObject` on their way to a worker."""

    def __init__(self, batches: BatchSource):
        self._batches, self._shared = batches, SharedObject(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> Batch:
        return self._batches[step]

    def __reduce__(self) -> tuple:
        return self._shared.__reduce__()


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_cores(workers: int) -> None:
    cores = available_cores()
    if workers > cores:
        raise InputError(
            f"config.data.read.workers={workers} is more than the {cores} cores that this process "
            f"may use: set it to {cores} or less; 0 reads in threads of one process."
        )


def _describe_death(error: RuntimeError, read: ReadConfig) -> InputError | None:
    """Returns the error for a worker that was killed; None for all other errors."""
    found = _DIED.search(str(error))
    if found is None or int(found[1]) >= 0:
        return None
    killed_by = signal.Signals(-int(found[1]))
    cause = _CAUSES.get(killed_by, "see the messages above")
    return InputError(
        f"a worker that reads batches was ended by {killed_by.name} ({cause}): run the same "
        f"command again; if it was memory, with less than config.data.read.workers={read.workers} "
        f"or config.data.read.prefetch={read.prefetch}."
    )


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Makes threads and processes that are started inside deaf to the signals that end a job.

    A signal that comes meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Keeps a worker off the accelerators, and ends it when the main process is gone."""
    del index, count
    jax.config.update("jax_platforms", "cpu")
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int, end: Callable[[int], Any] = os._exit) -> None:
    """Waits for the end of another process, then ends this one: it was killed without goodbye."""
    connection.wait([sentinel])
    end(1)
