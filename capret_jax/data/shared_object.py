"""Objects that worker processes open from one file, with their arrays mapped instead of copied."""

import io
import mmap
import pathlib
import pickle
import tempfile
import weakref
from typing import Any

import numpy as np

# Arrays begin at multiples of a cache line.
_ALIGNMENT = 64


class SharedObject:
    """An object that is pickled once, into a temporary file, however many processes open it.

    A pickle of a `SharedObject` holds only the path of the file and the places in it. Whoever
    unpickles it gets the object itself, whose arrays are read-only maps of the file: all processes
    share their memory. The file is removed with the `SharedObject`.

    Attributes:
        path: the file.
    """

    def __init__(self, value: Any):
        """
        Args:
            value: an object that can be pickled; its memory maps of files stay maps of these files.
        """
        buffers: list[pickle.PickleBuffer] = []
        head = io.BytesIO()
        _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
        self._spans: list[tuple[int, int]] = []
        number, self.path = tempfile.mkstemp(prefix="capret_jax_")
        weakref.finalize(self, pathlib.Path(self.path).unlink, missing_ok=True)
        with open(number, "wb") as file:
            for part in (head.getbuffer(), *(buffer.raw() for buffer in buffers)):
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                self._spans.append((file.tell(), len(part)))
                file.write(part)

    def __reduce__(self) -> tuple:
        return _open, (self.path, self._spans)


class _Pickler(pickle.Pickler):
    """A pickler that names the files of memory maps, instead of copying what is in them."""

    def reducer_override(self, value: Any) -> Any:
        whole = isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)
        if not whole or value.filename is None or not value.flags.c_contiguous:
            return NotImplemented
        return np.memmap, (str(value.filename), value.dtype, "r", value.offset, value.shape)


def _open(path: str, spans: list[tuple[int, int]]) -> Any:
    """Returns the object in a file; `spans` are the places of its pickle and of its arrays."""
    with open(path, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head, *buffers = (content[start : start + length] for start, length in spans)
    return pickle.loads(head, buffers=buffers)
