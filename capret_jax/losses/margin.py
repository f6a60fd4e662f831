"""Angular margins of the true class, constant or by class size, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def class_margins(class_sizes: np.ndarray, margin: float, size_margin: float) -> np.ndarray:
    """Returns margins that are wider for rarer classes: margin + size_margin * (n_min / n_c)^(1/4).

    The power is LDAM's (arXiv 1906.07413, eq. 10). As in its authors' code the rarest class gets
    margin + size_margin; the margin of a class tends to `margin` as its size grows.

    Args:
        class_sizes: (C,) int, n_c >= 1 training examples per class.
        margin: limit for large classes, radians.
        size_margin: additional margin of the rarest class, radians.

    Returns:
        (C,) float32 margins, radians.
    """
    rarity = (class_sizes.min() / class_sizes) ** 0.25
    return (margin + size_margin * rarity).astype(np.float32)


def shifted_cosine(cosine: jax.Array, margin: jax.Array | float) -> jax.Array:
    """Returns cos(theta + margin) with its exact gradient (ArcFace, arXiv 1801.07698, eq. 3).

    Past theta = pi - margin, where cos(theta + margin) would rise again, it is continued by the
    line cos(theta) - margin * sin(margin), as in the authors' code.

    Args:
        cosine: (B,) float32 cosines cos(theta) of the true class.
        margin: (B,) float32 margins, or one for all, radians.

    Returns:
        (B,) float32.
    """
    # The square root's slope is infinite at 0, hence the floor.
    sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, 1e-12))
    shifted = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    return jnp.where(cosine > -jnp.cos(margin), shifted, cosine - margin * jnp.sin(margin))


def straight_through_cosine(cosine: jax.Array, margin: jax.Array | float) -> jax.Array:
    """Returns the value of `shifted_cosine` with the gradient of the plain cosine, 1.

    InsightFace's later heads do the same: they shift the angle without recording it for the
    gradient (recognition/arcface_torch/losses.py). So the gradient of a feature stays bounded where
    it is equal to its class direction.

    Args:
        cosine: (B,) float32 cosines of the true class.
        margin: (B,) float32 margins, or one for all, radians.

    Returns:
        (B,) float32.
    """
    return cosine + jax.lax.stop_gradient(shifted_cosine(cosine, margin) - cosine)


# Values of `loss.arcface_gradient`.
GRADIENTS = {"textbook": shifted_cosine, "straight_through": straight_through_cosine}
