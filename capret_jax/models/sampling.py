"""Sampling of tokens from a model's distributions, inside of compiled loops."""

import jax
import jax.numpy as jnp


def sampling_scores(
    log_probs: jax.Array, keys: jax.Array, step: jax.Array, top_p: float = 1.0
) -> jax.Array:
    """Adds noise to log-probabilities so that the token of the highest score is a sample.

    Gumbel-max trick: the argmax of log-probabilities with Gumbel noise is a sample. With nucleus
    sampling (arXiv 1904.09751) only the nucleus is drawn from: the smallest set of the most
    probable tokens whose probabilities sum up to `top_p` or more.

    Args:
        log_probs: (B, V) float32, normalised.
        keys: (B,) random keys; a row's samples depend on its own key alone.
        step: () int, number of tokens written before.
        top_p: share of the probability that is drawn from; 1 for all, 0 for the most probable.

    Returns:
        (B, V) float32; -inf outside of the nucleus.
    """
    noise = jax.vmap(
        lambda key: jax.random.gumbel(jax.random.fold_in(key, step), log_probs.shape[1:])
    )(keys)
    return nucleus(log_probs, top_p) + noise


def nucleus(log_probs: jax.Array, top_p: float) -> jax.Array:
    """Returns (B, V) log-probabilities with -inf outside of the nucleus, see `sampling_scores`."""
    if top_p >= 1:
        return log_probs
    ordered = jnp.sort(log_probs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    # The most probable token is always in it.
    inside = (before < top_p).at[..., 0].set(True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(log_probs >= least, log_probs, -jnp.inf)
