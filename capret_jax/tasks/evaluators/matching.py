"""Match logits of pairs of pictures and captions, by the fusion encoder.

Both directions of retrieval need the logit of the same pair, so each distinct pair is scored once.
Pairs are ordered by picture: the fusion encoder attends from many captions to one picture, whose
tokens are read and sent to a device once for all of them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.config import ExperimentConfig
from capret_jax.distributed.mesh import batch_parts
from capret_jax.models.x2vlm import X2VLM
from capret_jax.retrieval.vision_tokens import VisionTokenStore
from capret_jax.tasks.evaluators.grouping import group_rows
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, compute_settings
from capret_jax.tasks.evaluators.mesh_model import MeshFunction, batch_rows

# Captions that a device fuses with a picture in one call.
CAPTIONS_PER_CALL = 128


class PairBatch(NamedTuple):
    """U pictures, each with K captions.

    Attributes:
        image: (U, 1+N, D) float16 vision tokens.
        text: (U, K, T, D) float16 states of the captions.
        mask: (U, K, T) bool, True for tokens.
    """

    image: Any
    text: Any
    mask: Any


class Matches(NamedTuple):
    """Match logits of the candidates in both directions.

    Attributes:
        texts: (I, k) float32 logits of the captions of each picture.
        images: (Q, k') float32 logits of the pictures of each caption.
        pairs: number of distinct pairs.
    """

    texts: np.ndarray
    images: np.ndarray
    pairs: int


class PairMatcher:
    """Scores pairs on all devices of a mesh."""

    def __init__(self, run: EvaluationInputs):
        self._run, self._logits = run, match_function(run.config, run.mesh)

    def __call__(
        self,
        params: dict,
        candidates: tuple[np.ndarray, np.ndarray],
        images: VisionTokenStore,
        texts: VisionTokenStore,
    ) -> Matches:
        """Scores the candidates of both directions; every process has to call it.

        Args:
            params: parameters of the model, sharded over the mesh.
            candidates: (I, k) int rows of captions of the first I pictures, and (Q, k') rows of
                pictures of the first Q captions.
            images, texts: vision tokens, and states of captions, of all pictures and captions.
        """
        count = len(texts)
        keys = pair_keys(candidates, count)
        pairs = np.unique(np.concatenate([key.reshape(-1) for key in keys]))
        image, text = np.divmod(pairs, count)
        groups = group_rows(image, min(CAPTIONS_PER_CALL, int(np.bincount(image).max())))
        logits, start = np.empty(len(pairs), np.float32), 0
        batches = self._batches(groups, image, text, images, texts)
        total = -(-len(groups) // batch_parts(self._run.mesh))
        quiet = total < 2 or jax.process_index() > 0
        results = self._logits(params, batches)
        for values in tqdm(results, "re-ranking", total, disable=quiet, leave=False):
            rows = groups[start : start + len(values)]
            logits[rows] = values[: len(rows)]
            start += len(values)
        by_image, by_text = (logits[np.searchsorted(pairs, key)] for key in keys)
        return Matches(by_image, by_text, len(pairs))

    def _batches(self, groups, image, text, images, texts) -> Iterator[PairBatch]:
        """Yields this process's groups of pairs, one for each part of the mesh."""
        for rows in batch_rows(self._run, len(groups), batch_parts(self._run.mesh)):
            captions = texts(text[groups[rows]])
            tokens = images(image[groups[rows, 0]]).states
            yield PairBatch(tokens, captions.states, captions.mask)


def match_function(config: ExperimentConfig, mesh: Mesh) -> MeshFunction:
    """Makes the function of the model and a `PairBatch` that returns (U, K) float32 logits."""
    dtype = compute_settings(config, mesh).dtype

    def match(model: X2VLM, batch: PairBatch) -> jax.Array:
        groups, captions = batch.text.shape[:2]
        text, mask = (x.reshape(groups * captions, *x.shape[2:]) for x in (batch.text, batch.mask))
        fused = model.fuse(text.astype(dtype), mask, batch.image.astype(dtype))
        return model.match_logits(fused)[:, 1].reshape(groups, captions)

    return MeshFunction(config, mesh, match)


def abstract_pairs(config: ExperimentConfig, mesh: Mesh) -> PairBatch:
    """Returns shapes and dtypes of the largest batch of an evaluation with this config."""
    groups, tokens, model = batch_parts(mesh), config.data.max_tokens, config.model
    text = (groups, CAPTIONS_PER_CALL, tokens)
    image = (groups, 1 + model.grid**2, model.vision_width)
    return PairBatch(
        jax.ShapeDtypeStruct(image, np.float16),
        jax.ShapeDtypeStruct((*text, model.text_width), np.float16),
        jax.ShapeDtypeStruct(text, np.bool_),
    )


def pair_keys(
    candidates: tuple[np.ndarray, np.ndarray], captions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the pairs of both directions, as picture * `captions` + caption.

    Args:
        candidates: (I, k) rows of captions by picture, and (Q, k') rows of pictures by caption.
        captions: number of all captions.

    Returns:
        int64 numbers of the same shapes.
    """
    by_image, by_text = (np.asarray(rows, np.int64) for rows in candidates)
    return (
        np.arange(len(by_image))[:, None] * captions + by_image,
        by_text * captions + np.arange(len(by_text))[:, None],
    )
