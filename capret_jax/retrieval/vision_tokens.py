"""Vision tokens of all items of a split, in memory or in a temporary file.

At base size the tokens of 37,000 items take 33 GB in float32. They are stored in float16, and in a
memory-mapped file where that exceeds the memory limit.
"""

import math
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np

from capret_jax.errors import InputError


class VisionTokens(NamedTuple):
    """Vision states of n items, to which the fusion encoder attends.

    Attributes:
        states: (n, 1+N, D) float16.
        mask: (n, 1+N) bool, True for positions that belong to the item.
    """

    states: np.ndarray
    mask: np.ndarray


def check_space(
    items: int, shape: tuple[int, int], max_bytes: int, folder: pathlib.Path | None = None
) -> None:
    """Checks that a store would find room; it is made after training, when a refusal comes late.

    Args:
        items, shape, max_bytes, folder: the arguments of `VisionTokenStore`.

    Raises:
        InputError: the tokens need a file, and the disk has less space.
    """
    needed = _bytes(items, shape)
    if needed <= max_bytes:
        return
    existing = pathlib.Path(folder or tempfile.gettempdir())
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"re-ranking needs {needed / 1e9:.1f} GB for vision tokens, and {existing} has "
            f"{free / 1e9:.1f} GB: set evaluation.cache_dir, or raise evaluation.cache_mb."
        )


def _bytes(items: int, shape: tuple[int, int]) -> int:
    return 2 * items * math.prod(shape)


class VisionTokenStore:
    """Vision tokens by row of the item table.

    Attributes:
        in_memory: False where they are in a file, which is deleted with the store.
    """

    def __init__(
        self, items: int, shape: tuple[int, int], max_bytes: int, folder: pathlib.Path | None = None
    ):
        """
        Args:
            items: n, number of rows of the item table.
            shape: (1+N, D), positions and channels of an item.
            max_bytes: memory limit for the states; beyond it they are in a file.
            folder: folder of the file; None for the system's temporary folder.

        Raises:
            InputError: the file cannot be made in the folder.
        """
        size = (items, *shape)
        self._mask = np.zeros(size[:2], bool)
        self.in_memory = _bytes(items, shape) <= max_bytes
        if self.in_memory:
            self._states = np.zeros(size, np.float16)
            return
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            # Without a name, so that the system deletes it when its last memory map is closed.
            with tempfile.TemporaryFile(dir=folder) as file:
                # Allocated now, since a write to a memory map on a full disk kills the process.
                if hasattr(os, "posix_fallocate"):  # macOS has none
                    os.posix_fallocate(file.fileno(), 0, _bytes(items, shape))
                self._states = np.memmap(file, np.float16, "w+", shape=size)
        except OSError as error:
            raise InputError(
                f"evaluation.cache_dir={str(folder or tempfile.gettempdir())!r} cannot hold "
                f"{_bytes(items, shape) / 1e9:.1f} GB of vision tokens ({error.strerror}): "
                "choose another folder, or raise evaluation.cache_mb."
            ) from error

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._mask)

    def write(self, rows: np.ndarray, tokens: VisionTokens) -> None:
        """Stores tokens at rows of the item table; `rows` and `tokens` have equal leading axes."""
        self._states[rows], self._mask[rows] = tokens

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        """Returns the tokens of (n,) int rows, which need not be distinct."""
        return VisionTokens(np.asarray(self._states[rows]), self._mask[rows])
