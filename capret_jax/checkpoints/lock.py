"""Lock of a workdir: one run at a time writes into it, others may read."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from capret_jax.buckets.access import cache_folder
from capret_jax.buckets.urls import url_scheme
from capret_jax.errors import InputError

_FILE = ".training.lock"


@contextlib.contextmanager
def sole_writer(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a workdir; the operating system frees it when a process dies.

    Every process of the run has to enter; process 0 holds the lock for all of them.

    Args:
        workdir: an existing folder.

    Raises:
        InputError: another run holds the lock, in all processes.
    """
    lock = filelock.FileLock(_lock_file(workdir))
    held = jax.process_index() != 0 or _acquire(lock)
    if not multihost_utils.broadcast_one_to_all(np.array(held)):
        raise InputError(
            f"another run is training in {workdir}: wait until it ends, stop it, or choose another "
            "--workdir."
        )
    try:
        yield
    finally:
        lock.release()


def _lock_file(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the file to lock; for a bucket, which has no locks, a file of this machine."""
    if not url_scheme(workdir):
        return workdir / _FILE
    digest = hashlib.sha256(str(workdir).rstrip("/").encode()).hexdigest()
    return cache_folder() / f"{digest[:32]}{_FILE}"


def _acquire(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    return True
