"""Vision tokens of a gallery's items, computed when first asked for and kept within bounds.

At base size a gallery of 37,000 items is 33 GB of tokens in float32: kept in half precision, and
either the most recent ones in memory, or all of them in a file that the system pages in and out.
"""

import collections
import pathlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from capret_jax.errors import InputError


class VisionTokens(NamedTuple):
    """What the fusion encoder attends to, of n items.

    Attributes:
        states: (n, 1+N, D) float16.
        mask: (n, 1+N) bool, the positions that belong to the item.
    """

    states: np.ndarray
    mask: np.ndarray


# Rows of a gallery -> their tokens.
Compute = Callable[[np.ndarray], VisionTokens]


class TokenSource(Protocol):
    """Rows of a gallery -> their tokens, of which it has computed so many."""

    computed: int

    def __call__(self, rows: np.ndarray) -> VisionTokens: ...


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
        self._kept: collections.OrderedDict[int, VisionTokens] = collections.OrderedDict()
        self._bytes = self.computed = 0

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        """(n,) rows, of which some may be equal -> their tokens."""
        distinct, place = np.unique(rows, return_inverse=True)
        found = {int(row): self._kept[int(row)] for row in distinct if int(row) in self._kept}
        missing = np.array([row for row in distinct if int(row) not in found], np.int64)
        if len(missing):
            new = self._compute(missing)
            self.computed += len(missing)
            for i, row in enumerate(missing.tolist()):
                # Copies: a view would keep all of them in memory.
                found[row] = VisionTokens(new.states[i].astype(np.float16), new.mask[i].copy())
        for row, tokens in found.items():
            self._keep(row, tokens)
        parts = [found[int(row)] for row in distinct]
        return VisionTokens(*(np.stack(column)[place] for column in zip(*parts, strict=True)))

    def _keep(self, row: int, tokens: VisionTokens) -> None:
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
        folder.mkdir(parents=True, exist_ok=True)
        self._files = self._open() if (folder / "done.npy").exists() else None
        if self._files and len(self._files.done) != size:
            raise InputError(f"{folder} has the tokens of another gallery: remove it.")

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        """(n,) rows, of which some may be equal -> their tokens."""
        distinct = np.unique(rows)
        missing = distinct if self._files is None else distinct[~self._files.done[distinct]]
        if len(missing):
            new = self._compute(missing)
            self.computed += len(missing)
            self._write(missing, new)
        assert self._files
        return VisionTokens(
            np.asarray(self._files.states[rows]), np.asarray(self._files.mask[rows])
        )

    def _write(self, rows: np.ndarray, tokens: VisionTokens) -> None:
        self._files = self._files or self._create(*tokens.states.shape[1:])
        self._files.states[rows], self._files.mask[rows] = tokens
        # Only rows that are on the disk are marked.
        self._files.states.flush()
        self._files.mask.flush()
        self._files.done[rows] = True
        self._files.done.flush()

    def _create(self, positions: int, width: int) -> "_Files":
        shapes: dict[str, tuple] = {
            "states": (np.float16, (self._size, positions, width)),
            "mask": (bool, (self._size, positions)),
            "done": (bool, (self._size,)),  # the last, since it stands for all
        }
        for name, (dtype, shape) in shapes.items():
            np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", dtype, shape).flush()
        return self._open()

    def _open(self) -> "_Files":
        paths = (self._folder / f"{name}.npy" for name in _Files._fields)
        return _Files(*(np.lib.format.open_memmap(path, "r+") for path in paths))


class _Files(NamedTuple):
    states: np.memmap
    mask: np.memmap
    done: np.memmap


def _size(tokens: VisionTokens) -> int:
    return tokens.states.nbytes + tokens.mask.nbytes
