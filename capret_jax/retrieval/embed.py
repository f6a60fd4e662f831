"""Items to embeddings, on all devices, a batch of pictures at a time."""

from collections.abc import Iterable, Iterator

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.data.pipeline import ReadConfig, Split
from capret_jax.data.sampler import Shard
from capret_jax.mesh import batch_sharding, param_shardings, replicated, to_global
from capret_jax.models.x2vlm import bind, normalize_pixels


class Views:
    """Every item of a split as the model sees it at evaluation, read ahead in batches.

    Nothing but the batches in flight is in memory: DeepFashion2's validation items at 384 pixels
    would take 24 GB.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        margin: float,
        batch_size: int,
        read: ReadConfig,
        shard: Shard = Shard(),
    ):
        """
        Args:
            split: the items.
            size: S, pixels.
            margin: context around the box.
            batch_size: global, a multiple of `shard.count`.
            read: threads and batches to keep ready.
            shard: this process's part of every batch.
        """
        batches = -(-len(split.items) // batch_size)
        # The last item fills up the last batch.
        rows = np.minimum(np.arange(batches * batch_size), len(split.items) - 1)
        self._rows = rows.reshape(batches, shard.count, -1)[:, shard.index]
        self._split, self._size, self._margin, self._read = split, size, margin, read

    def __len__(self) -> int:
        """Items, each once."""
        return len(self._split.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(b, S, S, 3) uint8, this process's rows of one batch after the other."""
        dataset = grain.MapDataset.source(self._rows.reshape(-1)).map(self._load)
        options = grain.ReadOptions(
            num_threads=self._read.threads, prefetch_buffer_size=self._read.prefetch
        )
        batches = dataset.batch(self._rows.shape[1]).to_iter_dataset(options)
        return iter(tqdm(batches, "reading items", len(self._rows), unit="batch", leave=False))

    def _load(self, row: int) -> np.ndarray:
        return self._split.evaluation_view(int(row), self._size, self._margin).image


class Embedder:
    """Image embeddings of a model; compiled once for a batch size."""

    def __init__(self, graphdef: nnx.GraphDef, abstract_params: dict, mesh: Mesh):
        """
        Args:
            graphdef: the model's structure.
            abstract_params: its parameters' shapes.
            mesh: devices to use.
        """

        def features(params, image):
            model = bind(graphdef, params)
            return model.image_features(model.encode_image(normalize_pixels(image)))

        self._mesh = mesh
        self._features = jax.jit(
            features,
            in_shardings=(param_shardings(mesh, abstract_params), batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: dict, batches: Iterable[np.ndarray], count: int) -> np.ndarray:
        """Embeds batches of this process's pictures.

        Args:
            params: the model's.
            batches: each (b, S, S, 3) uint8, b times the processes a multiple of the devices.
            count: pictures in all, those that fill up the last batch not counted.

        Returns:
            (count, E) float32, L2-normalised, on every process.
        """
        embedded = [
            np.asarray(self._features(params, to_global(self._mesh, batch))) for batch in batches
        ]
        return np.concatenate(embedded)[:count]
