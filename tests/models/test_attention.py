"""Attention, compared with a loop in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES
from capret_jax.models.attention import attention
from capret_jax.models.x2vlm import abstract_model, bind, init_params


def test_attention_equals_a_numpy_loop():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, t, 3, 4)).astype(np.float32) for t in (5, 6, 6))
    bias = rng.normal(size=(3, 5, 6)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0]])
    expected = np.zeros((2, 5, 3, 4))
    for b in range(2):
        for h in range(3):
            logits = query[b, :, h] @ key[b, :, h].T / 2 + bias[h]  # sqrt(4) = 2
            weights = np.exp(logits) * mask[b]
            expected[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ value[b, :, h]
    actual = attention(query, key, value, bias=bias, mask=mask)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_dropped_weights_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(2, t, 3, 4)), jnp.float32) for t in (5, 6, 6))
    kept = rng.random((2, 3, 5, 6)) < 0.7
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key) / 2)
    expected = jnp.einsum("bhts,bshd->bthd", weights * kept / 0.7, value)
    actual = attention(query, key, value, drop=lambda weights: weights * kept / 0.7)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("part", ["text", "fusion", "decoder"])
def test_attention_dropout_alone_changes_every_part_in_training(part):
    config = dataclasses.replace(
        SIZES["tiny"], decoder_layers=1, drop_path=0.0, dropout=0.0, attention_dropout=0.5
    )
    params = init_params(config, jax.random.key(0))
    model = bind(abstract_model(config)[0], params)
    ids, mask = jnp.ones((2, 5), int), jnp.ones((2, 5), int)
    states, image = jnp.ones((2, 5, 48)), jax.random.normal(jax.random.key(1), (2, 17, 64))
    call = {
        "text": lambda key: model.encode_text(ids, mask, key),
        "fusion": lambda key: model.fuse(states, mask, image, key=key),
        "decoder": lambda key: model.answer_logits(ids, mask, image[:, :5, :48], mask, key),
    }[part]
    first, same, other = (call(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert jnp.abs(first - other).max() > 1e-3 < jnp.abs(first - call(None)).max()
