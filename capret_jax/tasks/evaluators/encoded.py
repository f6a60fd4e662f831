"""Embeddings and states of the pictures and captions of image-text retrieval."""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.retrieval.vision_tokens import VisionTokens, VisionTokenStore, check_space
from capret_jax.tasks.evaluators.inputs import EvaluationInputs
from capret_jax.tasks.evaluators.mesh_model import MeshFunction, array_batches
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.evaluators.texts import stack_tokens


class EncodedSide(NamedTuple):
    """Pictures or captions.

    Attributes:
        features: (n, E) float32 embeddings, L2-normalised.
        states: states by row, to which, or with which, the fusion encoder attends; in a file where
            they exceed `evaluation.cache_mb`.
    """

    features: np.ndarray
    states: VisionTokenStore


class RetrievalEncoder:
    """Encodes all pictures and captions in one pass, with bounded memory on the devices."""

    def __init__(self, run: EvaluationInputs):
        """
        Args:
            run: the examples, and the limits of memory.

        Raises:
            InputError: the disk has no room for the states.
        """
        self._run = run
        self._encode_images = MeshFunction(run.config, run.mesh, _encode_images)
        self._encode_texts = MeshFunction(run.config, run.mesh, _encode_texts)
        model = run.config.model
        self._vision_shape = (1 + model.grid**2, model.vision_width)
        check_space(len(run.test.rows), self._vision_shape, *self._cache)
        captions = sum(len(row.captions) for row in run.test.rows)
        check_space(captions, (run.config.data.max_tokens, model.text_width), *self._cache)

    def images(self, params: dict) -> EncodedSide:
        """Encodes the pictures, (1+N, D) states each; every process has to call it."""
        rows = self._run.test.rows
        batches = picture_batches(self._run, [row.image for row in rows])
        return self._collect(self._encode_images(params, batches), len(rows), self._vision_shape)

    def texts(self, params: dict, texts: list[str]) -> EncodedSide:
        """Encodes captions, (T, D) states each; every process has to call it."""
        tokens = stack_tokens(self._run.encode, texts)
        batches = array_batches(self._run, tuple(tokens), self._run.config.evaluation.batch_size)
        shape = (tokens.ids.shape[1], self._run.config.model.text_width)
        return self._collect(self._encode_texts(params, batches), len(texts), shape)

    @property
    def _cache(self) -> tuple[int, pathlib.Path | None]:
        config = self._run.config.evaluation
        return config.cache_mb * 2**20, pathlib.Path(config.cache_dir) if config.cache_dir else None

    def _collect(
        self, results: Iterable[tuple[np.ndarray, ...]], count: int, shape: tuple[int, int]
    ) -> EncodedSide:
        store, features, start = VisionTokenStore(count, shape, *self._cache), [], 0
        for embeddings, states, mask in results:
            rows = np.arange(start, min(start + len(states), count))
            features.append(embeddings[: len(rows)])
            store.write(rows, VisionTokens(states[: len(rows)], mask[: len(rows)]))
            start += len(rows)
        return EncodedSide(np.concatenate(features), store)


def _encode_images(model: X2VLM, batch):
    states = model.encode_image(normalize_pixels(batch[0]))
    mask = jnp.ones(states.shape[:2], bool)
    return model.image_features(states), states.astype(jnp.float16), mask


def _encode_texts(model: X2VLM, batch):
    ids, mask = batch
    states = model.encode_text(ids, mask)
    return model.text_features(states), states.astype(jnp.float16), mask > 0
