"""Embeddings of items, on all devices of a mesh, a batch of pictures at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from capret_jax.config import ComputeConfig, ModelConfig, ViewConfig
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated, to_global
from capret_jax.models.beit import box_regions
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind, normalize_pixels

# NumPy on the host, jax.Array in a compiled function.
Array = Any


class PictureBatch(NamedTuple):
    """A batch of pictures with M items each; where there are fewer, the first is repeated.

    Attributes:
        image: (b, S, S, 3) uint8.
        boxes: (b, M, 4) float32 cx, cy, w, h as fractions of the picture.
        token_ids, token_mask: (b, M, T) int32 of the items' captions; T is 0 where none are read.
    """

    image: Array
    boxes: Array
    token_ids: Array
    token_mask: Array

    @classmethod
    def without_captions(cls, image: np.ndarray, boxes: np.ndarray) -> "PictureBatch":
        """A batch for embeddings that read no captions."""
        empty = np.zeros((*boxes.shape[:2], 0), np.int32)
        return cls(image, boxes, empty, empty)


class Encoded(NamedTuple):
    """Items as the model encodes them, on the host.

    Attributes:
        features: (b, M, E or 2E) float32 embeddings, L2-normalised.
        states: (b, M, 1+N, D) float16 vision tokens.
        mask: (b, M, 1+N) bool, positions that belong to the item.
    """

    features: np.ndarray
    states: np.ndarray
    mask: np.ndarray


class Embedder:
    """A model's embedding of items; compiled once for a batch size.

    Attributes:
        features: the jitted function (params, `PictureBatch`) -> (b, M, E or 2E) float32.
    """

    def __init__(self, model: ModelConfig, view: ViewConfig, compute: ComputeConfig, mesh: Mesh):
        """
        Args:
            model: shapes, and the kind of embedding.
            view: tells whether items are regions of their pictures.
            compute: precision and kernels, decided for the mesh's platform.
            mesh: devices to use.
        """
        graphdef, abstract = abstract_model(model, compute)
        self._mesh, self._regions = mesh, view.regions

        def features(params, pictures):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                bound = bind(graphdef, params, compute.dtype)
                states = bound.encode_image(normalize_pixels(pictures.image))
                return self._features(bound, states, pictures)

        def encode(params, pictures):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                bound = bind(graphdef, params, compute.dtype)
                states = bound.encode_image(normalize_pixels(pictures.image))
                tokens, mask = self._tokens(states, pictures.boxes)
                features = self._features(bound, states, pictures)
                return Encoded(features, tokens.astype(jnp.float16), mask)

        inputs, outputs = (param_shardings(mesh, abstract), batch_sharding(mesh)), replicated(mesh)
        self.features = jax.jit(features, in_shardings=inputs, out_shardings=outputs)
        self._encode = jax.jit(encode, in_shardings=inputs, out_shardings=outputs)

    def embed(self, params: dict, pictures: PictureBatch) -> np.ndarray:
        """Embeds one batch.

        Args:
            params: the model's.
            pictures: this process's part of the batch.

        Returns:
            (b, M, E or 2E) float32, L2-normalised, of all processes' pictures, on every process.
        """
        return np.asarray(self.features(params, to_global(self._mesh, pictures)))

    def encode(self, params: dict, pictures: PictureBatch) -> Encoded:
        """Embeds one batch and returns its items' vision tokens too, see `embed`."""
        return jax.device_get(self._encode(params, to_global(self._mesh, pictures)))

    def _features(self, model: X2VLM, states: jax.Array, pictures: PictureBatch) -> jax.Array:
        """Vision states (b, 1+N, D) of the pictures -> (b, M, E or 2E) of their items."""
        images, items, _ = pictures.boxes.shape
        if model.embedding == "image" and not self._regions:
            return jnp.repeat(model.image_features(states)[:, None], items, axis=1)
        mask = text = None
        if self._regions:
            states, mask = box_regions(states, pictures.boxes.reshape(-1, 4))
        else:
            states = jnp.repeat(states, items, axis=0)
        ids, token_mask = (
            x.reshape(images * items, -1) for x in (pictures.token_ids, pictures.token_mask)
        )
        if model.embedding != "image":
            text = model.encode_text(ids, token_mask)
        features = model.item_features(states, mask, text, token_mask)
        return features.reshape(images, items, -1)

    def _tokens(self, states: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Vision states (b, 1+N, D), boxes (b, M, 4) -> (b, M, 1+N, D) and bool (b, M, 1+N)."""
        images, items, _ = boxes.shape
        if not self._regions:
            tokens = jnp.repeat(states[:, None], items, axis=1)
            return tokens, jnp.ones(tokens.shape[:3], bool)
        tokens, mask = box_regions(states, boxes.reshape(-1, 4))
        return tokens.reshape(images, items, *states.shape[1:]), mask.reshape(images, items, -1) > 0
