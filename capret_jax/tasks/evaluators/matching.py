"""Match logits of pairs of pictures and captions, by the fusion encoder.

Both directions of retrieval need the logit of the same pair, so each distinct pair is scored once.
Pairs are ordered by picture: the fusion encoder attends from many captions to one picture, whose
tokens are read and sent to a device once for all of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from capret_jax.distributed.mesh import batch_parts
from capret_jax.models.x2vlm import X2VLM
from capret_jax.retrieval.vision_tokens import VisionTokenStore
from capret_jax.tasks.evaluators.grouping import group_rows
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, compute_settings
from capret_jax.tasks.evaluators.mesh_model import MeshFunction, batch_rows

# Captions that a device fuses with a picture in one call.
_CAPTIONS = 128


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
        self._run, self._dtype = run, compute_settings(run).dtype
        self._logits = MeshFunction(run, self._match)

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
        groups = group_rows(image, min(_CAPTIONS, int(np.bincount(image).max())))
        logits, start = np.empty(len(pairs), np.float32), 0
        batches = self._batches(groups, image, text, images, texts)
        for values in self._logits(params, batches):
            rows = groups[start : start + len(values)]
            logits[rows] = values[: len(rows)]
            start += len(values)
        by_image, by_text = (logits[np.searchsorted(pairs, key)] for key in keys)
        return Matches(by_image, by_text, len(pairs))

    def _batches(self, groups, image, text, images, texts) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields this process's groups of pairs, one for each part of the mesh."""
        for rows in batch_rows(self._run, len(groups), batch_parts(self._run.mesh)):
            captions = texts(text[groups[rows]])
            yield images(image[groups[rows, 0]]).states, captions.states, captions.mask

    def _match(self, model: X2VLM, batch) -> jax.Array:
        image, text, mask = batch
        groups, captions = text.shape[:2]
        states = text.reshape(groups * captions, *text.shape[2:]).astype(self._dtype)
        token_mask = mask.reshape(groups * captions, -1)
        fused = model.fuse(states, token_mask, image.astype(self._dtype))
        return model.match_logits(fused)[:, 1].reshape(groups, captions)


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
