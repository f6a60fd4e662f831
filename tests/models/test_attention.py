"""Attention, compared with a loop in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES, ComputeConfig
from capret_jax.models.attention import attention
from capret_jax.models.layers import dropout_arguments
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


RATES = ("dropout", "attention_dropout", "text_drop_path")


# The decoder has no stochastic depth, as in X2-VLM.
@pytest.mark.parametrize(
    "part, rate",
    [*itertools.product(["text", "fusion"], RATES), *itertools.product(["decoder"], RATES[:2])],
)
def test_dropout_of_each_kind_alone_changes_every_part_in_training(part, rate):
    rates = dict.fromkeys(RATES, 0.0) | {rate: 0.5}
    config = dataclasses.replace(SIZES["tiny"], decoder_layers=1, drop_path=0.0, **rates)
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


def test_text_drop_path_grows_from_the_first_layer_to_the_last():
    keys = list(jax.random.split(jax.random.key(0), 5))
    rates = [arguments["drop_path_rate"] for arguments in dropout_arguments(keys, 0.1)]
    np.testing.assert_allclose(rates, [0.0, 0.025, 0.05, 0.075, 0.1])
    assert [set(arguments) for arguments in dropout_arguments(keys, 0.0)] == [{"key"}] * 5


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_drops_whole_texts_of_the_last_layer(scan):
    """A dropped branch leaves the norm of its input; the others are scaled up."""
    config = dataclasses.replace(SIZES["tiny"], dropout=0.0, text_drop_path=0.5)
    params = init_params(config, jax.random.key(0))
    model = bind(abstract_model(config, ComputeConfig(attention="xla", scan=scan))[0], params)
    ids = jnp.tile(jnp.arange(5, 13), (64, 1))  # 64 equal texts
    states = model.encode_text(ids, jnp.ones_like(ids), jax.random.key(1))
    kinds = np.unique(np.round(np.asarray(states[:, 0]), 4), axis=0, return_counts=True)[1]
    # The first of two layers drops nothing; the second keeps both branches, one, or none.
    assert len(kinds) == 4 and kinds.sum() == 64 and kinds.min() >= 6
