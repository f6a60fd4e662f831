"""A teacher's embeddings of the training items, for distillation and for mining identities."""

import pathlib

import numpy as np

from capret_jax.buckets.access import staged
from capret_jax.buckets.urls import url_scheme
from capret_jax.errors import InputError

# File that `evaluation.training_embeddings` writes into the folder of an evaluation.
FILE = "training_embeddings.npy"
_ROWS_PER_CHECK = 65_536


def open_teacher(path: str, items: int) -> np.ndarray:
    """Opens a teacher's embeddings as a memory map.

    Row i is that of item i of the training split's table: photographs in the order of the prepared
    records, ascending image_id, and the items of a photograph by number.

    Args:
        path: a `.npy` file of (n, F) floats, or the workdir of a run that was evaluated with
            `evaluation.training_embeddings`.
        items: n, number of training items.

    Returns:
        (n, F) array of the file's dtype.

    Raises:
        InputError: there is no such file, or it does not fit; the message names what differs.
    """
    if url_scheme(path) and not path.endswith(".npy"):
        path = f"{path.rstrip('/')}/evaluation/{FILE}"  # of a workdir, nothing else is copied
    file = pathlib.Path(staged(path))
    if file.is_dir():
        file = file / "evaluation" / FILE
        if not file.exists():
            raise InputError(
                f"data.teacher={path} has no {file.relative_to(path)}: evaluate that run with "
                "--config.mode=evaluate --config.evaluation.training_embeddings=True first."
            )
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"data.teacher={path} is no .npy file of numbers: {error}") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f":
        raise InputError(
            f"data.teacher={path} must hold a table of floats, a row for each item, and holds "
            f"{table.dtype} of the shape {table.shape}."
        )
    if len(table) != items:
        raise InputError(
            f"data.teacher={path} has {len(table)} rows, and the training split {items} items: it "
            "is of other data."
        )
    for first in range(0, items, _ROWS_PER_CHECK):
        norms = np.linalg.norm(table[first : first + _ROWS_PER_CHECK].astype(np.float32), axis=1)
        if not np.all(np.isfinite(norms) & (norms > 0)):
            row = first + int(np.argmin(np.isfinite(norms) & (norms > 0)))
            raise InputError(f"data.teacher={path}: row {row} is zero, infinite or not a number.")
    return table
