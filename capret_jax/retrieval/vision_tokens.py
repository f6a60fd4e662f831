"""Vision tokens of a gallery's items, computed when first asked for and kept within bounds.

At base size a gallery of 37,000 items is 33 GB of tokens in float32: kept in half precision, and
either the most recent ones in memory, or all of them in a file that the system pages in and out.
"""

import collections
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from capret_jax.errors import InputError


class Tokens(NamedTuple):
    """What the fusion encoder attends to, of n items.

    Attributes:
        states: (n, 1+N, D) float16.
        mask: (n, 1+N) bool, the positions that belong to the item.
    """

    states: np.ndarray
    mask: np.ndarray


# Rows of a gallery -> their tokens.
Compute = Callable[[np.ndarray], Tokens]


class MemoryTokens:
    """Keeps the tokens that were asked for last, up to a number of bytes.

    Attributes:
        computed: items computed so far, some perhaps more than once.
    """

    def __init__(self, compute: Compute, max_bytes: int):
        """
        Args:
            compute: rows -> tokens.
            max_bytes: to hold; those being asked for come on top.
        """
        self._compute, self._max_bytes = compute, max_bytes
        self._kept: collections.OrderedDict[int, Tokens] = collections.OrderedDict()
        self._bytes = self.computed = 0

    def __call__(self, rows: np.ndarray) -> Tokens:
        """(n,) rows, of which some may be equal -> their tokens."""
        distinct, place = np.unique(rows, return_inverse=True)
        found = {int(row): self._kept[int(row)] for row in distinct if int(row) in self._kept}
        missing = np.array([row for row in distinct if int(row) not in found], np.int64)
        if len(missing):
            new = self._compute(missing)
            self.computed += len(missing)
            for i, row in enumerate(missing.tolist()):
                # Copies: a view would keep all of them in memory.
                found[row] = Tokens(new.states[i].astype(np.float16), new.mask[i].copy())
        for row, tokens in found.items():
            self._keep(row, tokens)
        parts = [found[int(row)] for row in distinct]
        return Tokens(*(np.stack(column)[place] for column in zip(*parts, strict=True)))

    def _keep(self, row: int, tokens: Tokens) -> None:
        if row not in self._kept:
            self._bytes += _size(tokens)
        self._kept[row] = tokens
        self._kept.move_to_end(row)
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)


class DiskTokens:
    """Keeps the tokens of all items asked for so far in a file, from one run to the next.

    Attributes:
        computed: items computed so far.
    """

    def __init__(self, compute: Compute, size: int, folder: pathlib.Path):
        """
        Args:
            compute: rows -> tokens.
            size: of the gallery.
            folder: of the files; they are for one model and one gallery.

        Raises:
            InputError: the folder has files of another gallery.
        """
        self._compute, self._size, self._folder = compute, size, folder
        self.computed = 0
        self._states: np.ndarray | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "done.npy").exists():
            self._open("r+")
            if len(self._done) != size:
                raise InputError(f"{folder} has the tokens of another gallery: remove it.")

    def __call__(self, rows: np.ndarray) -> Tokens:
        """(n,) rows, of which some may be equal -> their tokens."""
        distinct = np.unique(rows)
        missing = distinct if self._states is None else distinct[~self._done[distinct]]
        if len(missing):
            new = self._compute(missing)
            self.computed += len(missing)
            if self._states is None:
                self._create(*new.states.shape[1:])
            self._states[missing], self._mask[missing] = new
            # Only rows that are on the disk are marked.
            self._states.flush(), self._mask.flush()
            self._done[missing] = True
            self._done.flush()
        return Tokens(np.asarray(self._states[rows]), np.asarray(self._mask[rows]))

    def _create(self, positions: int, width: int) -> None:
        shapes = {
            "states": (np.float16, (self._size, positions, width)),
            "mask": (bool, (self._size, positions)),
            "done": (bool, (self._size,)),
        }
        for name, (dtype, shape) in shapes.items():
            np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", dtype, shape).flush()
        self._open("r+")

    def _open(self, mode: str) -> None:
        self._states, self._mask, self._done = (
            np.lib.format.open_memmap(self._folder / f"{name}.npy", mode)
            for name in ("states", "mask", "done")
        )


def _size(tokens: Tokens) -> int:
    return tokens.states.nbytes + tokens.mask.nbytes
