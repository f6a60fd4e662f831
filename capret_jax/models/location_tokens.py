"""Tokens in which boxes and classes are written: Pix2Seq (arXiv 2109.10852), section 2.1.

An object is five tokens: y1, x1, y2, x2 in bins of the picture's sides, then its class.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Quantisation levels of a coordinate.
BINS = 1000
# Tokens of an object, and the place of its class among them.
TOKENS, CLASS = 5, 4


class LocationTokens(NamedTuple):
    """Ids of the tokens: bins first, then C classes, "fake", start and padding.

    Attributes:
        classes: C.
    """

    classes: int

    @property
    def fake(self) -> int:
        """Id of the class of boxes without an object, which follows the true classes."""
        return BINS + self.classes

    @property
    def start(self) -> int:
        """Id of the token before the first object."""
        return BINS + self.classes + 1

    @property
    def padding(self) -> int:
        """Id of a place without object; training fills all places, so that it has none."""
        return BINS + self.classes + 2

    @property
    def special(self) -> int:
        """Number of tokens after the classes."""
        return 3

    @property
    def size(self) -> int:
        """Number of tokens."""
        return BINS + self.classes + self.special


def to_bins(boxes: jax.Array) -> jax.Array:
    """Quantises boxes.

    Args:
        boxes: (..., 4) float32 cx, cy, w, h as fractions of the picture; edges outside of it are
            moved to its own.

    Returns:
        (..., 4) int32 bins of y1, x1, y2, x2.
    """
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    edges = jnp.concatenate([(centre - half)[..., ::-1], (centre + half)[..., ::-1]], axis=-1)
    return jnp.round(edges.clip(0, 1) * (BINS - 1)).astype(jnp.int32)


def from_bins(bins: jax.Array) -> jax.Array:
    """Returns the boxes of bins: the inverse of `to_bins`, with edges in order.

    Args:
        bins: (..., 4) int bins of y1, x1, y2, x2.

    Returns:
        (..., 4) float32 cx, cy, w, h as fractions of the picture.
    """
    y1, x1, y2, x2 = jnp.moveaxis(bins.astype(jnp.float32) / (BINS - 1), -1, 0)
    low = jnp.stack([jnp.minimum(x1, x2), jnp.minimum(y1, y2)], axis=-1)
    high = jnp.stack([jnp.maximum(x1, x2), jnp.maximum(y1, y2)], axis=-1)
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)
