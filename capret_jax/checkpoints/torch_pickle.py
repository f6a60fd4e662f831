"""Unpickles the state dicts in PyTorch's files: containers and tensors, and nothing else.

An ordinary unpickler calls whatever a pickle names. This one knows only what `torch.save` writes
for a state dict, and its work is bounded by the length of the pickle.
"""

import argparse
import collections
import io
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "UntypedStorage": np.dtype(np.uint8),
}
# Tensors of these dtypes name them, since their storages have no type.
_DTYPES = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
}
# They allocate what they announce, or hash tuples, which takes for ever if these are nested. No
# state dict has them.
_REFUSED_OPCODES = (
    pickle.BYTEARRAY8,
    pickle.EMPTY_SET,
    pickle.ADDITEMS,
    pickle.FROZENSET,
    pickle.DICT,
    pickle.INST,
    pickle.OBJ,
)


class ForbiddenGlobal(Exception):
    """A pickle names a function or class that no state dict needs; `args[0]` is its name."""


def unpickle_state_dict(data: bytes, read_storage: Callable[[str], bytes]) -> Any:
    """Returns the object of `data.pkl`, with NumPy arrays (views of the storages) for tensors.

    Args:
        data: the pickle.
        read_storage: key of a storage -> its little-endian bytes.

    Raises:
        ForbiddenGlobal: the pickle names anything but containers and tensors.
        Exception: of any type, if the pickle is damaged.
    """
    return _StateDictUnpickler(data, read_storage).load()


class _Dict(collections.OrderedDict):
    """A dict with plain keys: the hash of a nested tuple would take for ever."""

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int | float | None):
            raise TypeError(f"a key is a {type(key).__name__}")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Ignores the versions of modules, which torch keeps as an attribute of state dicts."""


# The unpickler in C allocates a table as long as the largest index that a pickle mentions.
class _StateDictUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    dispatch = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if bytes([opcode]) not in _REFUSED_OPCODES
    }

    def __init__(self, data: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._read_storage = read_storage
        self._storages: dict[str, np.ndarray] = {}

    def load_empty_dictionary(self) -> None:
        self.append(_Dict())  # type: ignore[attr-defined]

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        known = _GLOBALS.get((module, name))
        if known is None:
            raise ForbiddenGlobal(f"{module}.{name}")
        return known

    def persistent_load(self, reference: Any) -> np.ndarray:
        _, dtype, key, _, _ = reference
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._read_storage(key), dtype)
        return self._storages[key]


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> Any:
    """Returns a view of a storage; `offset` and `strides` count elements.

    Raises:
        ValueError: the view would reach beyond the storage.
    """
    size = storage.itemsize
    return np.ndarray(
        shape, storage.dtype, storage, offset * size, tuple(step * size for step in strides)
    )


def _rebuild_typed_tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *details
) -> Any:
    """Returns a view of a storage of bytes; `details` are gradient, hooks, dtype and metadata."""
    return _rebuild_tensor(storage.view(details[2]), offset, shape, strides)


def _rebuild_parameter(data: np.ndarray, *_) -> np.ndarray:
    return data


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    # Many training scripts save their command line with the weights; it is only data.
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "UntypedStorage"): STORAGE_DTYPES["UntypedStorage"],
    **{("torch", name): dtype for name, dtype in (STORAGE_DTYPES | _DTYPES).items()},
}
