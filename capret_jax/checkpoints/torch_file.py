"""Reads and writes PyTorch's zip files (torch >= 1.6) without PyTorch.

Such a file is an uncompressed zip archive. `data.pkl` is a pickle in which each tensor refers to a
storage, and `data/<key>` holds the raw bytes of a storage.
"""

import itertools
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from capret_jax.checkpoints.torch_pickle import (
    STORAGE_DTYPES,
    ForbiddenGlobal,
    unpickle_state_dict,
)
from capret_jax.errors import InputError

_BEFORE_1_6 = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # the first of several pickles
_RESAVE = (
    "; if you trust it, save it again with torch 1.6 or newer: "
    "torch.save(torch.load(old, map_location='cpu', weights_only=False), new)"
)
# Alignment of storages that torch can map into memory, in bytes.
_ALIGNMENT = 64
# A state dict of 1,000 tensors has a pickle of 200 kB.
_MAX_PICKLE_BYTES = 16 << 20
_SHOWN_CHARACTERS = 200
_STORAGES = {dtype.name: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}


def read_torch_file(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`, with NumPy arrays (views of the storages) for tensors.

    Never runs code of the file: its pickle may name only containers and tensors.

    Raises:
        InputError: the file is damaged or has another format, or its pickle names anything else.
    """
    path = os.fspath(path)
    # A tar archive may end with a zip archive, which is_zipfile would accept.
    if tarfile.is_tarfile(path):
        raise InputError(f"{path} {_describe_tar(path)}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} {_describe_other_file(path)}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, os.path.getsize(path))
    except (InputError, MemoryError):
        raise
    except ForbiddenGlobal as error:
        raise InputError(
            f"{path} was refused: its pickle names {error}, which no state dict needs and which "
            "can run code; if you trust it, load it with torch and save its state dict alone."
        ) from error
    # A damaged pickle can raise any exception, of any length.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
        raise InputError(f"{path} is damaged: {reason}.") from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    """Returns the content of a torch file of `size` bytes.

    Raises:
        InputError: an entry is compressed, or entries overlap: such a file could be a thousand
            times as large in memory, and torch writes neither. Also if there is no pickle.
        Exception: of any type, if the file is damaged.
    """
    compressed = [e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED]
    if compressed or sum(entry.file_size for entry in archive.infolist()) > size:
        problem = f"compresses {compressed[0]}" if compressed else "has overlapping entries"
        raise InputError(
            f"{archive.filename} {problem}, as torch never does; unpack it, and zip it with "
            "`zip -0`."
        )
    entry = next((e for e in archive.infolist() if f"/{e.filename}".endswith("/data.pkl")), None)
    if entry is None:
        raise InputError(f"{archive.filename} is not a readable torch file: it has no data.pkl.")
    root = entry.filename.removesuffix("data.pkl")
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise InputError(
            f"{archive.filename} has a pickle of {entry.file_size:,} bytes, and a state dict's has "
            f"at most {_MAX_PICKLE_BYTES:,}; save the state dict alone."
        )
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise InputError(f"{archive.filename} was written on a big-endian machine{_RESAVE}.")
    return unpickle_state_dict(archive.read(entry), lambda key: archive.read(f"{root}data/{key}"))


def _describe_tar(path: str) -> str:
    with tarfile.open(path) as archive:
        names = [member.name for member in itertools.islice(archive, 5)]
    if {"storages", "tensors"} <= set(names):
        return f"is a tar archive of torch before 0.1.10, which only torch reads{_RESAVE}"
    return f"is a tar archive ({', '.join(names)}, ...); unpack it and convert the checkpoint in it"


def _describe_other_file(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if start.startswith(b"PK"):
        return (
            f"is cut short: {os.path.getsize(path):,} bytes without the directory that ends a zip "
            "file; copy or download it again"
        )
    if start.startswith(_BEFORE_1_6):
        return f"was written by torch before 1.6, in a format that only torch reads{_RESAVE}"
    if start.startswith(b"\x80"):
        return (
            "is a bare pickle, not a torch zip file; it was not loaded, since unpickling can run "
            f"code (it names {', '.join(_globals(start)) or 'nothing'})"
        )
    return "is neither a torch zip file nor safetensors"


def _globals(data: bytes) -> list[str]:
    """Returns the functions and classes that a pickle names; `data` may be only its beginning."""
    names, strings = [], []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if isinstance(argument, str):
                strings.append(argument)
            if opcode.name == "GLOBAL":
                names.append(strings[-1].replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
    except ValueError:  # `data` ends early, or is not a pickle
        pass
    return names


def write_torch_file(
    path: str | os.PathLike,
    state: Mapping[str, np.ndarray],
    extras: Mapping[str, Mapping[str, int | float | str]] | None = None,
) -> None:
    """Writes `{"model": state}` so that `torch.load(path, weights_only=True)` reads it.

    An array under several names is written once and stays shared, as tied parameters are in torch.

    Args:
        path: file to write.
        state: name -> array.
        extras: dicts of plain values to write beside "model".
    """
    arrays = {id(array): array for array in state.values()}
    keys = {identity: str(i) for i, identity in enumerate(arrays)}
    tensors = {name: _tensor(array, keys[id(array)]) for name, array in state.items()}
    root = os.path.splitext(os.path.basename(path))[0]
    with open(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data) -> None:
            entry = zipfile.ZipInfo(f"{root}/{name}")
            header = file.tell() + 30 + len(entry.filename.encode()) + 4
            padding = -header % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
            archive.writestr(entry, data)

        content = {"model": _dict(tensors)}
        for name, values in (extras or {}).items():
            content[name] = _dict({key: _value(value) for key, value in values.items()})
        add("data.pkl", b"\x80\x02" + _dict(content) + pickle.STOP)
        add("byteorder", b"little")
        for identity, array in arrays.items():
            add(f"data/{keys[identity]}", _raw(array))
        add("version", b"3\n")


def _raw(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# The opcodes are written explicitly, because `pickle` only writes names that it can import.


def _dict(values: Mapping[str, bytes]) -> bytes:
    items = b"".join(_value(name) + value for name, value in values.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _tensor(array: np.ndarray, key: str) -> bytes:
    """Pickles _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    storage = _tuple(
        _value("storage"),
        _global("torch", _STORAGES[array.dtype.name]),
        _value(key),
        _value("cpu"),
        _value(array.size),
    )
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _value(0),
        _value(array.shape),
        _value(strides),
        _value(False),
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _value(value: Any) -> bytes:
    """Pickles a string, int, bool or tuple of ints, without the first and last opcode."""
    return pickle.dumps(value, protocol=2)[2:-1]
