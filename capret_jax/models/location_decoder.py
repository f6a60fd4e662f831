"""A decoder that writes where objects are: Pix2Seq (arXiv 2109.10852) on X2-VLM's vision states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.models.bert import EPSILON, BertLayer, causal_mask
from capret_jax.models.heads import TokenHead
from capret_jax.models.layers import (
    dropout,
    dropout_arguments,
    embedding,
    layer_norm,
    run_layers,
    split_key,
)
from capret_jax.models.location_tokens import BINS, TOKENS, LocationTokens

# Longest wavelength of sine features, in sides of a picture.
_LONGEST = 4.0


class LocationDecoder(nnx.Module):
    """Predicts each token of a picture's objects from those before it and the vision states.

    It is a causal BERT with cross-attention. Its tokens are `LocationTokens`, of which bins and
    patches have fixed sine features of their coordinates beside what they learn: BEiT knows
    distances between patches alone, and neighbouring bins are similar before they were ever seen.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        width = config.text_width
        self.tokens = LocationTokens(config.location_classes)
        self.items, self.compute = config.location_items, compute
        self.dropout_rate, self.drop_path_rate = config.dropout, config.text_drop_path
        self.bins = embedding(BINS, width)
        self.classes = embedding(config.location_classes, width)
        self.special = embedding(self.tokens.special, width)
        # Positions: which object, and which of its tokens.
        self.item = embedding(config.location_items, width)
        self.place = embedding(TOKENS, width)
        self.norm = layer_norm(width, EPSILON)
        self.layers = nnx.List(
            [
                BertLayer(config, compute, context_width=config.vision_width)
                for _ in range(config.location_layers)
            ]
        )
        self.head = TokenHead(width, self.tokens.size)

    def __call__(
        self, token_ids: jax.Array, image: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Computes next-token logits.

        Args:
            token_ids: (B, 5n) int: the start token, then the tokens of n objects but for the last.
            image: (B, 1+N, D') states of the pictures.
            key: random key, which turns dropout on.

        Returns:
            (B, 5n, V) logits; position t predicts token t, which the input has at t + 1.
        """
        first, *rest = split_key(key, 1 + len(self.layers))
        table = self.token_table()
        x = self.embed(table, token_ids, first)
        mask, context = causal_mask(jnp.ones_like(token_ids)), self.context(image)
        arguments = dropout_arguments(rest, self.drop_path_rate)
        x = run_layers(self.layers, x, (mask, context, None), arguments, self.compute)
        return self.head(x, table)

    def token_table(self) -> jax.Array:
        """Returns the (V, D) embeddings of all tokens."""
        learnt = self.bins.embedding[...]
        fixed = sine_features(np.arange(BINS) / (BINS - 1), 4 / BINS, learnt.shape[1])
        bins = learnt + jnp.asarray(fixed * learnt.shape[1] ** -0.5, learnt.dtype)
        return jnp.concatenate([bins, self.classes.embedding[...], self.special.embedding[...]])

    def embed(
        self,
        table: jax.Array,
        token_ids: jax.Array,
        key: jax.Array | None = None,
        start: jax.Array | int = 0,
    ) -> jax.Array:
        """Embeds (B, T) tokens from position `start` on as (B, T, D); `table` has all tokens."""
        position = start + jnp.arange(token_ids.shape[1])
        places = jnp.take(self.place.embedding[...], position % TOKENS, axis=0)
        items = jnp.take(self.item.embedding[...], position // TOKENS, axis=0)
        x = jnp.take(table, token_ids, axis=0) + places + items
        return dropout(self.norm(x), self.dropout_rate, key)

    def context(self, image: jax.Array) -> jax.Array:
        """Adds the positions of patches to (B, 1+N, D') vision states."""
        patches, width = image.shape[1] - 1, image.shape[2]
        return image + jnp.asarray(_patch_positions(patches, width), image.dtype)


def sine_features(coordinates: np.ndarray, shortest: float, width: int) -> np.ndarray:
    """Returns sines and cosines of coordinates, as in "Attention is all you need", section 3.5.

    Args:
        coordinates: (...,) fractions of a picture's side.
        shortest: the shortest wavelength; under two steps between coordinates, those of neighbours
            are no longer similar.
        width: D.

    Returns:
        (..., D) float64 in [-1, 1]; the last one is 0 if D is odd.
    """
    wavelengths = np.geomspace(shortest, _LONGEST, width // 2)
    angles = 2 * np.pi * coordinates[..., None] / wavelengths
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return np.pad(features, [(0, 0)] * coordinates.ndim + [(0, width % 2)])


@functools.lru_cache(maxsize=8)
def _patch_positions(patches: int, width: int) -> np.ndarray:
    """Returns (1+N, D') sine features: half of y, half of x; 0 for position 0, which has none."""
    grid = round(patches**0.5)
    centres = (np.arange(grid) + 0.5) / grid
    half, places = width // 2, np.meshgrid(centres, centres, indexing="ij")
    y, x = (sine_features(part, 2 / grid, half) for part in places)
    features = np.concatenate([y, x], axis=-1).reshape(patches, -1)
    return np.pad(features, [(1, 0), (0, width - 2 * half)])
