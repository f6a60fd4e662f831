"""A kept index against brute force and FAISS: build, save, load, search, add, delete, with recall.

    pip install -e '.[export]'
    python tools/bench_index.py --vectors=100000 --dim=256 --json=OUT

On clustered vectors, as embeddings of garments are, and on random ones, which no index likes. All
systems have the same threads, the same queries, and answer them in one batch.
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
from capret_jax.retrieval.index import Index, IndexConfig
from capret_jax.retrieval.metrics import recall
from capret_jax.retrieval.storage import load_index, save_index

_VECTORS = flags.DEFINE_integer("vectors", 100_000, "In the index.", lower_bound=1000)
_DIM = flags.DEFINE_integer("dim", 256, "Of each.", lower_bound=2)
_QUERIES = flags.DEFINE_integer("queries", 1000, "Searched for.", lower_bound=1)
_K = flags.DEFINE_integer("k", 20, "Neighbours.", lower_bound=1)
_TARGET = flags.DEFINE_float("target_recall", 0.99, "That ScaNN is tuned for.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the vectors.")
_JSON = flags.DEFINE_string("json", None, "Write the figures here, too.")

# Items of a cluster, and how far they lie from its centre; cosines inside are about 0.8.
_CLUSTER, _SPREAD = 50, 0.5
_HNSW_LINKS, _HNSW_EXPLORED = 32, (64, 128, 256, 512)


def main(argv: list[str]) -> None:
    """Prints, and writes, a table for each kind of vectors."""
    del argv
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    results = {}
    for kind, make in (("clustered", _clustered), ("random", _random)):
        rng = np.random.default_rng(_SEED.value)
        count = _VECTORS.value + _VECTORS.value // 100 + _QUERIES.value + 512
        vectors = make(rng, count, _DIM.value)
        print(f"{kind}: {_VECTORS.value} x {_DIM.value}, {_QUERIES.value} queries, k={_K.value}")
        results[kind] = _bench(vectors)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


def _bench(vectors: np.ndarray) -> dict[str, dict]:
    n = _VECTORS.value
    gallery, new = vectors[:n], vectors[n : n + n // 100]
    held_out, queries = vectors[n + n // 100 : -_QUERIES.value], vectors[-_QUERIES.value :]
    truth = ExactEngine(gallery).search(queries, _K.value).rows
    rows = {
        "brute force (NumPy)": _searched(ExactEngine(gallery).search, queries, truth),
        "this index": _ours(gallery, held_out, new, queries, truth),
        **_faiss_flat(gallery, queries, truth),
        **_faiss_hnsw(gallery, queries, truth),
    }
    columns = ("build", "queries_per_second", "recall", "save", "load", "add", "delete")
    print(f"{'':28}" + "".join(f"{name.replace('_per_second', '/s'):>11}" for name in columns))
    for name, row in rows.items():
        cells = (f"{row[c]:11.3f}" if c in row else f"{'':11}" for c in columns)
        print(f"{name:28}" + "".join(cells) + (f"  {row['kind']}" if "kind" in row else ""))
    return rows


def _ours(gallery, held_out, new, queries, truth) -> dict:
    n = len(gallery)
    items = [{"id": str(i), "shop": f"shop {i % 7}"} for i in range(n + len(new))]
    config = IndexConfig("scann", _K.value, _TARGET.value)
    index, build = _timed(lambda: Index.build(gallery, items[:n], config, queries=held_out))
    row = {"kind": index.engine.kind, "build": build, "tuned_recall": index.recall}
    row |= _searched(lambda q, k: index.search(q, k), queries, truth)
    row["filtered_queries_per_second"] = _searched(
        lambda q, k: index.search(q, k, {"shop": "shop 3"}), queries, None
    )["queries_per_second"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index"
        _, row["save"] = _timed(lambda: save_index(index, path))
        index, row["load"] = _timed(lambda: load_index(path))
    _, row["add"] = _timed(lambda: index.add(new, items[n:]))
    gone = [str(i) for i in range(0, n, 100)]
    _, row["delete"] = _timed(lambda: index.delete(gone))
    after = np.concatenate([gallery, new])
    alive = np.setdiff1d(np.arange(len(after)), np.arange(0, n, 100))
    expected = alive[ExactEngine(after[alive]).search(queries, _K.value).rows]
    row |= {
        f"changed_{name}": value
        for name, value in _searched(lambda q, k: index.search(q, k), queries, expected).items()
    }
    return row


def _faiss_flat(gallery, queries, truth) -> dict[str, dict]:
    index = faiss.IndexFlatIP(gallery.shape[1])
    _, build = _timed(lambda: index.add(gallery))
    return {"FAISS flat": {"build": build} | _searched(_faiss_search(index), queries, truth)}


def _faiss_hnsw(gallery, queries, truth) -> dict[str, dict]:
    index = faiss.IndexHNSWFlat(gallery.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    _, build = _timed(lambda: index.add(gallery))
    rows = {}
    for explored in _HNSW_EXPLORED:
        index.hnsw.efSearch = explored
        row = {"build": build} | _searched(_faiss_search(index), queries, truth)
        rows[f"FAISS HNSW {_HNSW_LINKS}, ef {explored}"] = row
        if row["recall"] >= _TARGET.value:
            break
    return rows


def _faiss_search(index) -> Callable:
    return lambda queries, k: (index.search(queries, k)[1], None)


def _searched(search: Callable, queries: np.ndarray, truth: np.ndarray | None) -> dict:
    """Queries a second, the fastest of three, and the share of the true neighbours found."""
    runs = [_timed(lambda: search(queries, _K.value)) for _ in range(3)]
    row = {"queries_per_second": len(queries) / min(seconds for _, seconds in runs)}
    return row if truth is None else row | {"recall": recall(runs[0][0][0], truth)}


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
