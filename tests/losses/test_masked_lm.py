"""MLM against the reference, and labels that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.masked_lm import masked_lm_loss


def test_equals_the_reference(golden, golden_model):
    mask = golden["text_mask"]

    @jax.jit
    def fuse(ids, image):
        return golden_model.fuse(golden_model.encode_text(ids, mask), mask, image)

    fused = fuse(golden["mlm_ids"], golden["vision_embeds"])
    masked = np.take_along_axis(np.asarray(fused), golden["mlm_pos"][:, :, None], axis=1)
    loss = masked_lm_loss(golden_model.masked_lm_logits(masked), golden["mlm_labels"])
    assert float(loss.value) == pytest.approx(float(golden["loss_mlm"]), rel=1e-4)


def test_ignored_labels_do_not_count():
    logits = jnp.zeros((1, 3, 7)).at[0, 2, 0].set(100.0)
    loss = masked_lm_loss(logits, jnp.array([[2, 4, -100]]))
    assert float(loss.value) == pytest.approx(np.log(7), rel=1e-6)
    assert float(loss.count) == 2


def test_a_batch_without_masked_tokens_is_zero():
    assert float(masked_lm_loss(jnp.ones((2, 3, 5)), jnp.full((2, 3), -100)).value) == 0


def test_smoothed_targets_on_a_hand_made_case():
    """Uniform predictions of 6 tokens: 0.9 for the label, 0.025 for each but label and [CLS]."""
    loss = masked_lm_loss(jnp.zeros((1, 2, 6)), jnp.array([[3, -100]]), 0.1, 2)
    expected = 0.9 * np.log(0.9 * 6) + 4 * 0.025 * np.log(0.025 * 6)
    assert float(loss.value) == pytest.approx(expected, rel=1e-5)
    # Nothing is left to learn where the prediction is the target.
    target = np.array([0.025, 0.025, 1e-12, 0.9, 0.025, 0.025])
    loss = masked_lm_loss(jnp.log(target)[None, None], jnp.array([[3]]), 0.1, 2)
    assert float(loss.value) == pytest.approx(0.0, abs=1e-5)


def test_smoothed_loss_equals_an_independent_one():
    """The Kullback-Leibler divergence in NumPy, token by token, at BERT's size."""
    rng, vocab, smoothing, never = np.random.default_rng(0), 30_522, 0.1, 101
    logits = rng.normal(0, 3, (2, 3, vocab)).astype(np.float32)
    labels = np.array([[5, 2003, -100], [30_521, -100, 102]])
    divergences = []
    for row, place in zip(*np.nonzero(labels >= 0), strict=True):
        scores = logits[row, place].astype(np.float64)
        log_probs = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        target = np.full(vocab, smoothing / (vocab - 2))
        target[never], target[labels[row, place]] = 0.0, 1 - smoothing
        used = target > 0
        divergences.append((target[used] * (np.log(target[used]) - log_probs[used])).sum())
    loss = masked_lm_loss(jnp.asarray(logits), jnp.asarray(labels), smoothing, never)
    assert float(loss.value) == pytest.approx(np.mean(divergences), rel=1e-5)
    assert float(loss.count) == 4
    # Without smoothing it is the cross entropy.
    plain = masked_lm_loss(jnp.asarray(logits), jnp.asarray(labels))
    assert float(plain.value) == pytest.approx(
        float(masked_lm_loss(jnp.asarray(logits), jnp.asarray(labels), 1e-9, never).value), rel=1e-4
    )
