"""Decides whether a checkpoint that cannot be read is damaged, or only out of reach."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from capret_jax.checkpoints.fingerprints import checksum
from capret_jax.errors import InputError

# What an attempt to read a checkpoint showed, the worst last.
WHOLE, DAMAGED, UNREADABLE = range(3)
# Signs in errors of TensorStore and XLA of reasons outside of the checkpoint.
_PASSING = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "ABORTED",
    "Too many open files",
    "Input/output error",
    "Cannot allocate memory",
)


class Damaged(Exception):
    """The content of a checkpoint is not what was saved."""


def check_sum(metadata: dict, name: str, tree: Any) -> None:
    """Compares restored arrays with those that were saved, if their checksum was saved, too.

    Args:
        metadata: metadata of the checkpoint.
        name: name of the checksum.
        tree: the restored arrays.

    Raises:
        Damaged: they differ.
    """
    saved = metadata.get("checksums", {}).get(name)
    if saved is not None and saved != int(checksum(tree)):
        raise Damaged("its arrays are not those that were saved")


def severity(error: Exception | None) -> int:
    """Returns whether an error proves damage (`DAMAGED`), or not (`UNREADABLE`).

    Args:
        error: what an attempt to read a checkpoint raised; None for `WHOLE`.
    """
    if error is None:
        return WHOLE
    if isinstance(error, Damaged):
        return DAMAGED
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, InputError | MemoryError | PermissionError) for one in chain):
        return UNREADABLE
    text = " ".join(map(str, chain))
    return UNREADABLE if any(sign in text for sign in _PASSING) else DAMAGED


def worst(verdict: int) -> int:
    """Returns the worst verdict of all processes, which have to agree on what to do."""
    if jax.process_count() == 1:
        return verdict
    return int(multihost_utils.process_allgather(np.array(verdict)).max())
