"""Embeddings of items in batches of pictures, computed on all devices of a mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from capret_jax.config import ComputeConfig, ModelConfig, ViewConfig
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated
from capret_jax.models.beit import box_regions, pool_boxes
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind, normalize_pixels

# np.ndarray on the host, jax.Array in a jitted function.
Array = Any


class PictureBatch(NamedTuple):
    """A batch of I pictures with M items each; where there are fewer, the first is repeated.

    Attributes:
        image: (I, S, S, 3) uint8 RGB.
        boxes: (I, M, 4) float32 cx, cy, w, h of the items as fractions of the picture.
        token_ids, token_mask: (I, M, T) int32 tokens of the items' captions; T is 0 for embeddings
            that read no captions.
    """

    image: Array
    boxes: Array
    token_ids: Array
    token_mask: Array

    @classmethod
    def without_captions(cls, image: np.ndarray, boxes: np.ndarray) -> "PictureBatch":
        """Makes a batch for embeddings that read no captions."""
        empty = np.zeros((*boxes.shape[:2], 0), np.int32)
        return cls(image, boxes, empty, empty)


class Encoded(NamedTuple):
    """Embeddings and vision tokens of the items of I pictures.

    Attributes:
        features: (I, M, E or 2E) float32 embeddings, L2-normalised.
        states: (I, M, 1+N, D) float16 vision tokens.
        mask: (I, M, 1+N) bool, True for tokens that belong to the item.
    """

    features: np.ndarray
    states: np.ndarray
    mask: np.ndarray


class Embedder:
    """The jitted embedding of items.

    Attributes:
        features: the jitted function of parameters and a `PictureBatch` that returns
            (I, M, E or 2E) float32 embeddings.
    """

    def __init__(self, model: ModelConfig, view: ViewConfig, compute: ComputeConfig, mesh: Mesh):
        """
        Args:
            model: sizes of the model, and kind of embedding.
            view: view of items, which may be regions of their pictures.
            compute: precision and kernels, resolved for the mesh's platform.
            mesh: mesh of the devices to use.
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
        """Embeds one batch; every process of the mesh has to call it.

        Args:
            params: parameters of the model.
            pictures: this process's part of the batch, NumPy arrays.

        Returns:
            (I, M, E or 2E) float32, L2-normalised embeddings of the global batch.
        """
        return np.asarray(self.features(params, to_global(self._mesh, pictures)))

    def encode(self, params: dict, pictures: PictureBatch) -> Encoded:
        """Embeds one batch, see `embed`, and returns the vision tokens of its items, too."""
        return jax.device_get(self._encode(params, to_global(self._mesh, pictures)))

    def _features(self, model: X2VLM, states: jax.Array, pictures: PictureBatch) -> jax.Array:
        """Returns the (I, M, E or 2E) embeddings of items from (I, 1+N, D) vision states."""
        images, items, _ = pictures.boxes.shape
        if model.embedding == "image":
            if not self._regions:
                return jnp.repeat(model.image_features(states)[:, None], items, axis=1)
            pooled = pool_boxes(states, pictures.boxes.reshape(-1, 4))
            return model.image_features(pooled).reshape(images, items, -1)
        mask = None
        if self._regions:
            states, mask = box_regions(states, pictures.boxes.reshape(-1, 4))
        else:
            states = jnp.repeat(states, items, axis=0)
        ids, token_mask = (
            x.reshape(images * items, -1) for x in (pictures.token_ids, pictures.token_mask)
        )
        text = model.encode_text(ids, token_mask)
        features = model.item_features(states, mask, text, token_mask)
        return features.reshape(images, items, -1)

    def _tokens(self, states: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (I, M, 1+N, D) vision tokens of items, and their (I, M, 1+N) bool mask."""
        images, items, _ = boxes.shape
        if not self._regions:
            tokens = jnp.repeat(states[:, None], items, axis=1)
            return tokens, jnp.ones(tokens.shape[:3], bool)
        tokens, mask = box_regions(states, boxes.reshape(-1, 4))
        return tokens.reshape(images, items, *states.shape[1:]), mask.reshape(images, items, -1) > 0
