"""Vision tokens of all items of a split, in memory or in a temporary file.

At base size 37,000 items are 33 GB of tokens in float32: they are kept in half precision, and where
even that is more than may be held in memory, in a file that the system pages in and out.
"""

import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from capret_jax.errors import InputError


class VisionTokens(NamedTuple):
    """Keys of the fusion encoder's cross-attention, of n items.

    Attributes:
        states: (n, 1+N, D) float16.
        mask: (n, 1+N) bool, the positions that belong to the item.
    """

    states: np.ndarray
    mask: np.ndarray


class VisionTokenStore:
    """Vision tokens by row of the item table.

    Attributes:
        in_memory: False where they are in a file, which the system deletes with the store.
    """

    def __init__(
        self, items: int, shape: tuple[int, int], max_bytes: int, folder: pathlib.Path | None = None
    ):
        """
        Args:
            items: n, rows.
            shape: 1+N positions and D channels of an item.
            max_bytes: to hold in memory.
            folder: for the file of those that are more; the system's temporary folder when None.

        Raises:
            InputError: the folder cannot hold them.
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
            # Without a name: the system removes it with the last view of it.
            with tempfile.TemporaryFile(dir=folder) as file:
                self._states = np.memmap(file, np.float16, "w+", shape=size)
        except OSError as error:
            raise InputError(
                f"evaluation.cache_dir={str(folder or tempfile.gettempdir())!r} cannot hold "
                f"{2 * int(np.prod(size)) / 1e9:.1f} GB of vision tokens ({error.strerror}): "
                "choose another folder, or raise evaluation.cache_mb."
            ) from error

    def write(self, rows: np.ndarray, tokens: VisionTokens) -> None:
        """Stores the tokens of (n,) rows."""
        self._states[rows], self._mask[rows] = tokens

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        """(n,) rows, of which some may be equal -> their tokens."""
        return VisionTokens(np.asarray(self._states[rows]), self._mask[rows])
