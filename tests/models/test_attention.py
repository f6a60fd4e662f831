"""Attention, compared with a loop in NumPy."""

import numpy as np

from capret_jax.models.attention import attention


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
