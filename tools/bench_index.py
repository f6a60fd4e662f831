"""Benchmarks the index against brute force and FAISS: building, search, recall, changes.

    pip install -e '.[export]'
    python tools/bench_index.py --vectors=100000 --dim=256 --json=OUT

Uses clustered vectors, as embeddings of garments are, and random ones, the worst case of an
approximate index. All systems get the same threads and the same queries, in one batch.
"""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import faiss
import numpy as np
from absl import app, flags

from capret_jax.retrieval.engines import ExactEngine
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.index_engine import IndexConfig
from capret_jax.retrieval.metrics import recall
from capret_jax.retrieval.storage import load_index, save_index

_VECTORS = flags.DEFINE_integer("vectors", 100_000, "Vectors in the index.", lower_bound=1000)
_DIM = flags.DEFINE_integer("dim", 256, "Width of the vectors.", lower_bound=2)
_QUERIES = flags.DEFINE_integer("queries", 1000, "Queries per search.", lower_bound=1)
_K = flags.DEFINE_integer("k", 20, "Neighbours per query.", lower_bound=1)
_TARGET = flags.DEFINE_float("target_recall", 0.99, "Recall that ScaNN is tuned for.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the vectors.")
_JSON = flags.DEFINE_string("json", None, "File to write the results to.")

# Items per cluster, and their distance from its centre: cosines within a cluster are about 0.8.
_CLUSTER, _SPREAD = 50, 0.5
_HNSW_LINKS, _HNSW_EF_SEARCH = 32, (64, 128, 256, 512)


def main(argv: list[str]) -> None:
    """Prints and writes a table for each kind of vectors."""
    del argv
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    results = {}
    for kind, make in (("clustered", _clustered), ("random", _random)):
        rng = np.random.default_rng(_SEED.value)
        count = _VECTORS.value + _VECTORS.value // 100 + _QUERIES.value + 512
        vectors = make(rng, count, _DIM.value)
        print(f"{kind}: {_VECTORS.value} x {_DIM.value}, {_QUERIES.value} queries, k={_K.value}")
        results[kind] = _benchmark(vectors)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


def _benchmark(vectors: np.ndarray) -> dict[str, dict]:
    n = _VECTORS.value
    gallery, new = vectors[:n], vectors[n : n + n // 100]
    held_out, queries = vectors[n + n // 100 : -_QUERIES.value], vectors[-_QUERIES.value :]
    exact_rows = ExactEngine(gallery).search(queries, _K.value).rows
    rows = {
        "brute force (NumPy)": _measure_search(ExactEngine(gallery).search, queries, exact_rows),
        "this index": _measure_index(gallery, held_out, new, queries, exact_rows),
        **_faiss_flat(gallery, queries, exact_rows),
        **_faiss_hnsw(gallery, queries, exact_rows),
    }
    columns = ("build", "queries_per_second", "recall", "save", "load", "add", "delete")
    print(f"{'':28}" + "".join(f"{name.replace('_per_second', '/s'):>11}" for name in columns))
    for name, row in rows.items():
        cells = (f"{row[c]:11.3f}" if c in row else f"{'':11}" for c in columns)
        print(f"{name:28}" + "".join(cells) + (f"  {row['kind']}" if "kind" in row else ""))
    return rows


def _measure_index(gallery, held_out, new, queries, exact_rows) -> dict:
    n = len(gallery)
    items = [{"id": str(i), "shop": f"shop {i % 7}"} for i in range(n + len(new))]
    config = IndexConfig("scann", _K.value, _TARGET.value)
    index, build = _timed(lambda: Index.build(gallery, items[:n], config, queries=held_out))
    row = {"kind": index.engine.description, "build": build, "tuned_recall": index.recall}
    row |= _measure_search(lambda q, k: index.search(q, k), queries, exact_rows)
    row["filtered_queries_per_second"] = _measure_search(
        lambda q, k: index.search(q, k, {"shop": "shop 3"}), queries, None
    )["queries_per_second"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index"
        _, row["save"] = _timed(lambda: save_index(index, path))
        index, row["load"] = _timed(lambda: load_index(path))
    _, row["add"] = _timed(lambda: index.add(new, items[n:]))
    deleted = [str(i) for i in range(0, n, 100)]
    _, row["delete"] = _timed(lambda: index.delete(deleted))
    changed = np.concatenate([gallery, new])
    active = np.setdiff1d(np.arange(len(changed)), np.arange(0, n, 100))
    expected = active[ExactEngine(changed[active]).search(queries, _K.value).rows]
    changed_row = _measure_search(lambda q, k: index.search(q, k), queries, expected)
    return row | {f"changed_{name}": value for name, value in changed_row.items()}


def _faiss_flat(gallery, queries, exact_rows) -> dict[str, dict]:
    index = faiss.IndexFlatIP(gallery.shape[1])
    _, build = _timed(lambda: index.add(gallery))
    return {
        "FAISS flat": {"build": build} | _measure_search(_faiss_search(index), queries, exact_rows)
    }


def _faiss_hnsw(gallery, queries, exact_rows) -> dict[str, dict]:
    index = faiss.IndexHNSWFlat(gallery.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    _, build = _timed(lambda: index.add(gallery))
    rows = {}
    for ef_search in _HNSW_EF_SEARCH:
        index.hnsw.efSearch = ef_search
        row = {"build": build} | _measure_search(_faiss_search(index), queries, exact_rows)
        rows[f"FAISS HNSW {_HNSW_LINKS}, ef {ef_search}"] = row
        if row["recall"] >= _TARGET.value:
            break
    return rows


def _faiss_search(index) -> Callable:
    return lambda queries, k: (index.search(queries, k)[1], None)


def _measure_search(search: Callable, queries: np.ndarray, exact_rows: np.ndarray | None) -> dict:
    """Returns queries per second, the fastest of three runs, and recall where rows are given."""
    runs = [_timed(lambda: search(queries, _K.value)) for _ in range(3)]
    row = {"queries_per_second": len(queries) / min(seconds for _, seconds in runs)}
    return row if exact_rows is None else row | {"recall": recall(runs[0][0][0], exact_rows)}


def _timed(function: Callable):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _random(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    return _unit(rng.normal(size=(count, width)))


def _clustered(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    centres = _unit(rng.normal(size=(-(-count // _CLUSTER), width)))
    offsets = _unit(rng.normal(size=(count, width)))
    return _unit(centres[rng.integers(0, len(centres), count)] + _SPREAD * offsets)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    app.run(main)
