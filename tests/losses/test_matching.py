"""ITM against the reference, and pairs that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.matching import matching_loss


def test_equals_the_reference(golden, golden_model):
    text, mask = golden["text_embeds"], golden["text_mask"]
    image = golden["vision_embeds"]
    images, texts = golden["itm_image_neg"], golden["itm_text_neg"]
    fused = jax.jit(golden_model.fuse)(
        np.concatenate([text, text, text[texts]]),
        np.concatenate([mask, mask, mask[texts]]),
        np.concatenate([image, image[images], image]),
    )
    labels = jnp.array([1] * 3 + [0] * 6)
    loss = matching_loss(golden_model.match_logits(fused), labels, jnp.ones(9, bool))
    assert float(loss.value) == pytest.approx(float(golden["loss_itm"]), rel=1e-4)


def test_invalid_pairs_do_not_count():
    logits = jnp.array([[0.0, 0.0], [50.0, -50.0]])
    loss = matching_loss(logits, jnp.array([1, 1]), jnp.array([True, False]))
    assert float(loss.value) == pytest.approx(np.log(2))
    assert float(loss.count) == 1


def test_no_valid_pair_gives_a_loss_of_zero_and_finite_gradients():
    valid = jnp.zeros(3, bool)
    loss, gradient = jax.value_and_grad(lambda x: matching_loss(x, jnp.zeros(3, int), valid).value)(
        jnp.ones((3, 2))
    )
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)
