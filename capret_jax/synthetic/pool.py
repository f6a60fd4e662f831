"""Draws a catalogue with all cores.

`multiprocessing` would run the caller's main module again in every worker: with JAX's start-up
time, and endlessly from a script without a `__main__` guard. So the workers are plain Python
processes that read their work from a pipe, and answer through another.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from capret_jax.synthetic.identities import Entry, photograph


def photographs(entries: Sequence[Entry], workers: int | None = None) -> Iterator[list[dict]]:
    """Yields each entry's records, in the entries' order, whatever the number of workers.

    Raises RuntimeError if a worker stops; its own message is on the standard error stream.
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


def _start(entries: Sequence[Entry]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import _work; _work()"],
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


def _work() -> None:
    """The worker's side: entries from standard input, their records to standard output."""
    for entry in pickle.load(sys.stdin.buffer):
        pickle.dump(photograph(entry), sys.stdout.buffer)
        sys.stdout.buffer.flush()
