"""Items to embeddings, on all devices."""

from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.data.pipeline import Split
from capret_jax.mesh import batch_sharding, param_shardings, replicated, to_global
from capret_jax.models.x2vlm import bind, normalize_pixels


def load_views(split: Split, size: int, margin: float) -> np.ndarray:
    """(n, S, S, 3) uint8, every item of the split as the model sees it at evaluation."""
    rows = tqdm(range(len(split.items)), desc="reading", unit="item", leave=False)
    return np.stack([split.evaluation_view(row, size, margin).image for row in rows])


class Embedder:
    """Image embeddings of a model; compiled once for a batch size."""

    def __init__(self, graphdef: nnx.GraphDef, abstract_params: dict, mesh: Mesh, batch_size: int):
        """
        Args:
            graphdef: the model's structure.
            abstract_params: its parameters' shapes.
            mesh: devices to use.
            batch_size: images per call, a multiple of the devices.
        """

        def features(params, image):
            model = bind(graphdef, params)
            return model.image_features(model.encode_image(normalize_pixels(image)))

        self._mesh = mesh
        self._batch_size = batch_size
        self._features = jax.jit(
            features,
            in_shardings=(param_shardings(mesh, abstract_params), batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: dict, images: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 -> (n, E) float32, L2-normalised."""
        chunks = [self._embed(params, chunk) for chunk in self._chunks(images)]
        return np.concatenate(chunks)[: len(images)]

    def _chunks(self, images) -> Iterable[np.ndarray]:
        for start in range(0, len(images), self._batch_size):
            chunk = images[start : start + self._batch_size]
            missing = self._batch_size - len(chunk)
            yield np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))

    def _embed(self, params, chunk):
        processes, process = jax.process_count(), jax.process_index()
        local = len(chunk) // processes
        mine = chunk[process * local : (process + 1) * local]
        return np.asarray(self._features(params, to_global(self._mesh, mine)))
