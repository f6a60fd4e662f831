"""Items to embeddings, on all devices, a batch of pictures at a time."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.config import ReadConfig, ViewConfig
from capret_jax.data.pipeline import Split
from capret_jax.data.tokenizer import Tokens
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated, to_global
from capret_jax.distributed.part import Part
from capret_jax.models.beit import box_regions
from capret_jax.models.x2vlm import bind, normalize_pixels


class PictureBatch(NamedTuple):
    """A batch of pictures with M items each; where there are fewer, the first is repeated.

    Attributes:
        image: (b, S, S, 3) uint8.
        boxes: (b, M, 4) float32 cx, cy, w, h as fractions of the picture.
        token_ids, token_mask: (b, M, T) int32 of the items' captions; T is 0 where none are read.
    """

    image: np.ndarray
    boxes: np.ndarray
    token_ids: np.ndarray
    token_mask: np.ndarray

    @classmethod
    def without_captions(cls, image: np.ndarray, boxes: np.ndarray) -> "PictureBatch":
        """For embeddings that read none."""
        nothing = np.zeros((*boxes.shape[:2], 0), np.int32)
        return cls(image, boxes, nothing, nothing)


def no_caption(row: int) -> Tokens:
    """For embeddings that read none."""
    del row
    return Tokens(np.zeros(0, np.int32), np.zeros(0, np.int32))


class EvaluationViews:
    """Every item of a split as the model sees it at evaluation, read ahead in batches.

    Nothing but the batches in flight is in memory: DeepFashion2's validation items at 384 pixels
    would take 24 GB.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        view: ViewConfig,
        margin: float,
        batch_size: int,
        read: ReadConfig,
        shard: Part = Part(),
        captions: Callable[[int], Tokens] = no_caption,
    ):
        """
        Args:
            split: the items.
            size: S, pixels.
            view: what is seen of an item; where it is the whole photograph, all its items share
                one picture.
            margin: context around the box of a crop.
            batch_size: global, a multiple of `shard.count`.
            read: threads and batches to keep ready.
            shard: this process's part of every batch.
            captions: row -> (T,) tokens, for embeddings that read them.
        """
        self._captions = captions
        self.rows = _rows_of_photographs(split.items.record) if view.whole else _each_row(split)
        self._split, self._size, self._margin, self._read = split, size, margin, read
        self._whole = view.whole
        batches = -(-len(self.rows) // batch_size)
        # The last picture fills up the last batch.
        pictures = np.minimum(np.arange(batches * batch_size), len(self.rows) - 1)
        self._pictures = pictures.reshape(batches, shard.count, -1)[:, shard.index]

    def __iter__(self) -> Iterator[PictureBatch]:
        """This process's part of one batch after the other."""
        dataset = grain.MapDataset.source(self._pictures.reshape(-1)).map(self._load)
        options = grain.ReadOptions(
            num_threads=self._read.threads, prefetch_buffer_size=self._read.prefetch
        )
        batches = dataset.batch(self._pictures.shape[1]).to_iter_dataset(options)
        return iter(tqdm(batches, "reading items", len(self._pictures), unit="batch", leave=False))

    def _load(self, picture: int) -> PictureBatch:
        rows = self.rows[picture]
        tokens = [np.stack(column) for column in zip(*map(self._captions, rows), strict=True)]
        if self._whole:
            return PictureBatch(*self._split.whole_view(rows, self._size), *tokens)
        view = self._split.crop_view(int(rows[0]), self._size, self._margin)
        return PictureBatch(*view, *tokens)

    def by_item(self, values: np.ndarray) -> np.ndarray:
        """(pictures or more, M, ...) values of the items of each picture -> (n, ...) by row."""
        items = np.empty((len(self._split.items), *values.shape[2:]), values.dtype)
        items[self.rows] = values[: len(self.rows)]
        return items


def _each_row(split: Split) -> np.ndarray:
    return np.arange(len(split.items))[:, None]


def _rows_of_photographs(record: np.ndarray) -> np.ndarray:
    """(P, M) rows of the items of each photograph, the first one repeated to fill up."""
    _, first, counts = np.unique(record, return_index=True, return_counts=True)
    place = np.arange(counts.max())
    return first[:, None] + np.where(place < counts[:, None], place, 0)


class Embedder:
    """Embeddings of a model, as its config says; compiled once for a batch size.

    Attributes:
        features: the jitted (params, `PictureBatch`) -> (b, M, E or 2E) float32.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        abstract_params: dict,
        regions: bool,
        dtype: str,
        mesh: Mesh,
    ):
        """
        Args:
            graphdef: the model's structure.
            abstract_params: its parameters' shapes.
            regions: whether items are regions of their pictures.
            dtype: to compute in, see `ComputeConfig`.
            mesh: devices to use.
        """

        def features(params, pictures):
            images, items, _ = pictures.boxes.shape
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                model = bind(graphdef, params, dtype)
                states = model.encode_image(normalize_pixels(pictures.image))
                if model.embedding == "image" and not regions:
                    return jnp.repeat(model.image_features(states)[:, None], items, axis=1)
                mask = text = None
                if regions:
                    states, mask = box_regions(states, pictures.boxes.reshape(-1, 4))
                else:
                    states = jnp.repeat(states, items, axis=0)
                ids, token_mask = (
                    x.reshape(images * items, -1) for x in (pictures.token_ids, pictures.token_mask)
                )
                if model.embedding != "image":
                    text = model.encode_text(ids, token_mask)
                found = model.item_features(states, mask, text, token_mask)
                return found.reshape(images, items, -1)

        self._mesh = mesh
        self.features = jax.jit(
            features,
            in_shardings=(param_shardings(mesh, abstract_params), batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: dict, views: EvaluationViews) -> np.ndarray:
        """Embeds every item.

        Args:
            params: the model's.
            views: this process's part; its batch size a multiple of the devices.

        Returns:
            (n, E or 2E) float32, L2-normalised, by row of the item table, on every process.
        """
        return views.by_item(np.concatenate([self.embed(params, batch) for batch in views]))

    def embed(self, params: dict, pictures: PictureBatch) -> np.ndarray:
        """(b, M, E or 2E) of one batch, that of all processes."""
        return np.asarray(self.features(params, to_global(self._mesh, pictures)))
