"""ArcFace by its closed form, swept over angles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.arcface import arcface_logits, arcface_loss


@pytest.mark.parametrize("margin", [0.0, 0.15, 0.5])
def test_the_true_class_has_its_angle_widened(margin):
    angles = np.linspace(0.01, np.pi - margin - 0.01, 50)
    logits = arcface_logits(jnp.cos(angles)[:, None], jnp.zeros(50, int), margin, 30.0)
    np.testing.assert_allclose(logits[:, 0], 30 * np.cos(angles + margin), atol=2e-4)


def test_other_classes_keep_their_cosine():
    cosine = jnp.array([[0.3, -0.2, 0.9]])
    logits = arcface_logits(cosine, jnp.array([1]), 0.15, 30.0)
    np.testing.assert_allclose(logits[0, [0, 2]], [9.0, 27.0], rtol=1e-6)


def test_the_true_logit_falls_monotonically_with_the_angle():
    angles = np.linspace(0, np.pi, 500)
    logits = arcface_logits(jnp.cos(angles)[:, None], jnp.zeros(500, int), 0.5, 30.0)
    assert (np.diff(logits[:, 0]) < 1e-4).all()


def test_equals_a_numpy_version_and_ignores_the_length_of_the_weights():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    weights = rng.normal(size=(5, 8)) * rng.uniform(0.1, 9, size=(5, 1))
    labels = np.array([0, 3, -1, 2])
    expected = []
    for row in (0, 1, 3):
        cosine = weights @ features[row] / np.linalg.norm(weights, axis=1)
        logits = 30 * cosine
        logits[labels[row]] = 30 * np.cos(np.arccos(cosine[labels[row]]) + 0.15)
        expected.append(np.log(np.exp(logits).sum()) - logits[labels[row]])
    loss = arcface_loss(*map(jnp.float32, (features, weights)), labels, 0.15, 30.0)
    assert float(loss.value) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(loss.count) == 3


@pytest.mark.parametrize("angle", [0.0, np.pi])
def test_the_gradient_is_finite_at_the_poles(angle):
    features = jnp.array([[jnp.cos(angle), 0.0]], jnp.float32)
    weights = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    gradient = jax.grad(lambda x: arcface_loss(x, weights, jnp.array([0]), 0.15, 30.0).value)
    assert np.isfinite(gradient(features)).all()
