"""Collective concatenation of arrays whose length differs between processes."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Concatenates the rows of all processes, in their order.

    Args:
        rows: (n, ...) rows of this process. n may differ between processes and may be 0; the other
            axes and the dtype are the same on all of them.

    Returns:
        (total of n, ...) rows of all processes, bit for bit the same on every process.
    """
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.array(len(rows)))
    # As bytes: JAX would round float64 to float32.
    packed = np.zeros((int(counts.max()), _row_bytes(rows)), np.uint8)
    packed[: len(rows)] = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, packed.shape[1])
    gathered = multihost_utils.process_allgather(packed)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    return np.concatenate(parts).reshape(-1).view(rows.dtype).reshape(-1, *rows.shape[1:])


def _row_bytes(rows: np.ndarray) -> int:
    return int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize
