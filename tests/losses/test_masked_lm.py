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
