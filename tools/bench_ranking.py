"""Seconds of the exact ranking that an evaluation computes, beside a sort of the whole gallery.

    python tools/bench_ranking.py --devices=2

Random embeddings of DeepFashion2's size by default. The sort ranks a part of the queries, and its
seconds are scaled to all of them; both have to find the same metrics.
"""

import resource
import time

import jax
import numpy as np
from absl import app, flags

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings, rank_on_mesh
from capret_jax.retrieval.engines import ExactEngine
from capret_jax.retrieval.metrics import average_precision, first_hit

_QUERIES = flags.DEFINE_integer("queries", 12_377, "Number of queries.", lower_bound=1)
_GALLERY = flags.DEFINE_integer("gallery", 36_961, "Number of gallery items.", lower_bound=1)
_DIM = flags.DEFINE_integer("dim", 256, "Width of the embeddings.", lower_bound=1)
_IDENTITIES = flags.DEFINE_integer("identities", 5000, "Number of identities.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 2, "Number of CPU devices.", lower_bound=1)
_SORTED = flags.DEFINE_integer("sorted", 512, "Number of queries of the sort.", lower_bound=1)
_K = 20


def main(argv: list[str]) -> None:
    """Prints a line for each way to rank."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    rng = np.random.default_rng(0)
    queries, gallery = (_draw(rng, count.value) for count in (_QUERIES, _GALLERY))
    mesh = make_mesh(MeshConfig())
    for name in ("compilation included", "again"):
        start = time.perf_counter()
        ranking = rank_on_mesh(mesh, queries, gallery, _K)
        seconds = time.perf_counter() - start
        print(f"on a mesh of {mesh.size} devices, {name}: {seconds:.1f} s", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"largest memory so far: {memory:.1f} GB")
    some = slice(min(_SORTED.value, _QUERIES.value))
    start = time.perf_counter()
    order, _ = ExactEngine(gallery.vectors).search(queries.vectors[some], _GALLERY.value)
    identities, wanted = gallery.identities[order], queries.identities[some]
    precision, first = average_precision(identities, wanted), first_hit(identities, wanted)
    seconds = (time.perf_counter() - start) * _QUERIES.value / len(wanted)
    print(f"by sorting in NumPy: {seconds:.1f} s")
    moved = np.mean(ranking.neighbours[some] != order[:, :_K])
    difference = np.nanmax(np.abs(precision - ranking.precision[some]))
    print(
        f"largest difference in average precision {difference:.1e}; other neighbours "
        f"{moved:.1e}, other first ranks {np.mean(first != ranking.first[some]):.1e}"
    )


def _draw(rng: np.random.Generator, count: int) -> LabelledEmbeddings:
    vectors = rng.normal(size=(count, _DIM.value)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return LabelledEmbeddings(vectors, rng.integers(0, _IDENTITIES.value, count))


if __name__ == "__main__":
    app.run(main)
