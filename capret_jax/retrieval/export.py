"""An index's embeddings in the formats of others."""

import pathlib
from collections.abc import Callable

import numpy as np

from capret_jax.errors import InputError
from capret_jax.retrieval.index import Index, Item
from capret_jax.retrieval.storage import write_items


def export(index: Index, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Writes the items that are not deleted, in the order of their rows.

    Args:
        index: to export.
        folder: to write into.
        name: of `FORMATS`.

    Returns:
        The file.

    Raises:
        InputError: there is no such format, or its library is not installed.
    """
    if name not in FORMATS:
        raise InputError(f"{name!r} is no format to export; there are {', '.join(FORMATS)}.")
    rows = np.flatnonzero(index.alive)
    items = [index.items[row] for row in rows]
    try:
        return FORMATS[name](folder, index.vectors[rows], items)
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'capret_jax[export]'.") from error


def _npy(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    np.save(folder / "export.npy", vectors)
    write_items(folder / "export.jsonl", items)
    return folder / "export.npy"


def _parquet(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    """A column for each property, and `embedding`, a fixed-size list of float32."""
    import pyarrow
    import pyarrow.parquet

    names = sorted({name for item in items for name in item})
    columns = {name: pyarrow.array([item.get(name) for item in items]) for name in names}
    flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "export.parquet")
    return folder / "export.parquet"


def _faiss(folder: pathlib.Path, vectors: np.ndarray, items: list[Item]) -> pathlib.Path:
    """An exact inner-product index; the i-th vector is the i-th line of export.jsonl."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    faiss.write_index(index, str(folder / "export.faiss"))
    write_items(folder / "export.jsonl", items)
    return folder / "export.faiss"


FORMATS: dict[str, Callable[[pathlib.Path, np.ndarray, list[Item]], pathlib.Path]] = {
    "npy": _npy,
    "parquet": _parquet,
    "faiss": _faiss,
}
