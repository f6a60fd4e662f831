"""Drawing of many garments in parallel processes.

`multiprocessing` would run the caller's main module again in every worker: with JAX's start-up
time, and endlessly from a script without a `__main__` guard. So the workers are plain Python
processes that read garments from one pipe and write records to another.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from capret_jax.synthetic.identities import GarmentEntry, draw_records


def draw_all(entries: Sequence[GarmentEntry], workers: int | None = None) -> Iterator[list[dict]]:
    """Yields each entry's records, in the entries' order, for any number of workers.

    Args:
        entries: the garments.
        workers: number of processes; None for one per core.

    Raises:
        RuntimeError: a worker stopped; its own message is on the standard error stream.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(entries))
    processes = [_start(entries[i::workers]) for i in range(workers)]
    try:
        for i in range(len(entries)):
            yield _receive(processes[i % workers])
    finally:
        for process in processes:
            process.kill()
            assert process.stdout
            process.stdout.close()
            process.wait()


def _start(entries: Sequence[GarmentEntry]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import _run_worker; _run_worker()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin
    with process.stdin as pipe:
        pickle.dump(entries, pipe)
    return process


def _receive(process: subprocess.Popen) -> Any:
    assert process.stdout
    try:
        return pickle.load(process.stdout)
    except EOFError:
        raise RuntimeError(
            f"a drawing process stopped early, exit status {process.wait()}; its message is above"
        ) from None


def _run_worker() -> None:
    """Runs in the worker: reads entries from standard input, writes records to standard output."""
    for entry in pickle.load(sys.stdin.buffer):
        pickle.dump(draw_records(entry), sys.stdout.buffer)
        sys.stdout.buffer.flush()
