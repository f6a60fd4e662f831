"""Vision tokens of all items of a split, in memory or in a temporary file.

At base size the tokens of 37,000 items take 33 GB in float32. They are stored in float16, and in a
memory-mapped file where that exceeds the memory limit.
"""

import os
import pathlib
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
        self.in_memory = 2 * int(np.prod(size)) <= max_bytes
        if self.in_memory:
            self._states = np.zeros(size, np.float16)
            return
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            # Without a name, so that the system deletes it when its last memory map is closed.
            with tempfile.TemporaryFile(dir=folder) as file:
                # Allocated now, since a write to a memory map on a full disk kills the process.
                os.posix_fallocate(file.fileno(), 0, 2 * int(np.prod(size)))
                self._states = np.memmap(file, np.float16, "w+", shape=size)
        except OSError as error:
            raise InputError(
                f"evaluation.cache_dir={str(folder or tempfile.gettempdir())!r} cannot hold "
                f"{2 * int(np.prod(size)) / 1e9:.1f} GB of vision tokens ({error.strerror}): "
                "choose another folder, or raise evaluation.cache_mb."
            ) from error

    def write(self, rows: np.ndarray, tokens: VisionTokens) -> None:
        """Stores tokens at rows of the item table; `rows` and `tokens` have equal leading axes."""
        self._states[rows], self._mask[rows] = tokens

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        """Returns the tokens of (n,) int rows, which need not be distinct."""
        return VisionTokens(np.asarray(self._states[rows]), self._mask[rows])
