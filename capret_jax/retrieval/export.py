"""Exports the embeddings of an index to NumPy, Parquet and FAISS files."""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from capret_jax.errors import InputError
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.items import Item
from capret_jax.retrieval.storage import write_items


def export(index: Index, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Writes the items that are not deleted, in the order of their rows.

    Args:
        index: the index.
        folder: folder to write to.
        name: name of a format, a key of `FORMATS`.

    Returns:
        The file with the embeddings.

    Raises:
        InputError: the format is unknown, or its library is not installed.
    """
    if name not in FORMATS:
        raise InputError(f"{name!r} is not an export format; there are {', '.join(FORMATS)}.")
    check_installed([name])
    rows = np.flatnonzero(index.active)
    return FORMATS[name](folder, index.vectors[rows], [index.items[row] for row in rows])


def exported(folder: pathlib.Path) -> list[str]:
    """Returns the names of the formats that a folder holds exports of."""
    return [name for name in FORMATS if (folder / f"export.{name}").is_file()]


def check_installed(names: Sequence[str]) -> None:
    """Checks that the libraries of some formats are installed.

    Raises:
        InputError: a library is missing.
    """
    for library in (_LIBRARIES[name] for name in names if name in _LIBRARIES):
        if importlib.util.find_spec(library) is None:
            raise InputError(f"{library} is missing: pip install 'capret_jax[export]'.")


def _npy(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    np.save(folder / "export.npy", vectors)
    write_items(folder / "export.jsonl", items)
    return folder / "export.npy"


def _parquet(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    """Writes a column per property, and `embedding`, a fixed-size list of float32."""
    import pyarrow
    import pyarrow.parquet

    names = sorted({name for item in items for name in item})
    columns = {name: _column(pyarrow, [item.get(name) for item in items]) for name in names}
    if "embedding" in columns:
        columns["item.embedding"] = columns.pop("embedding")
    flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "export.parquet")
    return folder / "export.parquet"


def _column(pyarrow, values: list):
    """Returns the values as an Arrow array; as text where they have several types."""
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if value is None else str(value) for value in values])


def _faiss(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    """Writes an exact inner-product index; vector i belongs to line i of export.jsonl."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    faiss.write_index(index, str(folder / "export.faiss"))
    write_items(folder / "export.jsonl", items)
    return folder / "export.faiss"


_LIBRARIES = {"parquet": "pyarrow", "faiss": "faiss"}
FORMATS: dict[str, Callable[[pathlib.Path, np.ndarray, list[Item]], pathlib.Path]] = {
    "npy": _npy,
    "parquet": _parquet,
    "faiss": _faiss,
}
