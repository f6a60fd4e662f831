"""Angular margins of the true class: by closed form, by class size, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def class_margins(class_sizes: np.ndarray, margin: float, size_margin: float) -> np.ndarray:
    """Wider margins for rarer classes: margin + size_margin * (n_min / n_c)^(1/4).

    The power is LDAM's (arXiv 1906.07413, eq. 10), normalised as its authors' code does by the
    rarest class, which gets margin + size_margin; a class of endless examples gets margin.

    Args:
        class_sizes: (C,) int, n_c >= 1 training examples per class.
        margin, size_margin: radians.

    Returns:
        (C,) float32 radians.
    """
    rarity = (class_sizes.min() / class_sizes) ** 0.25
    return (margin + size_margin * rarity).astype(np.float32)


def shifted_cosine(cosine: jax.Array, margin: jax.Array | float) -> jax.Array:
    """cos(theta + margin) with its own gradient (ArcFace, arXiv 1801.07698, eq. 3).

    Past theta = pi - margin, where cos(theta + margin) would rise again, the true class gets the
    straight line cos(theta) - margin * sin(margin), as the authors' code does.

    Args:
        cosine: (B,) of the true class.
        margin: (B,) or one for all, radians.
    """
    # The square root's slope is infinite at 0, hence the floor.
    sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, 1e-12))
    shifted = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    return jnp.where(cosine > -jnp.cos(margin), shifted, cosine - margin * jnp.sin(margin))


def straight_through_cosine(cosine: jax.Array, margin: jax.Array | float) -> jax.Array:
    """The same value with the gradient of the plain cosine, 1.

    So do InsightFace's later heads, which shift the angle without recording it for the gradient
    (recognition/arcface_torch/losses.py): the pull on a feature no longer grows without bound
    where it meets its class.

    Args:
        cosine: (B,) of the true class.
        margin: (B,) or one for all, radians.
    """
    return cosine + jax.lax.stop_gradient(shifted_cosine(cosine, margin) - cosine)


# Values of `loss.arcface_gradient`.
GRADIENTS = {"textbook": shifted_cosine, "straight_through": straight_through_cosine}
