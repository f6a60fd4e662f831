"""Margins against their closed form over all angles, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.margin import GRADIENTS, class_margins, shifted_cosine


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("margin", [0.0, 0.15, 0.5])
def test_the_angle_is_widened(gradient, margin):
    angles = np.linspace(0.01, np.pi - margin - 0.01, 50)
    shifted = GRADIENTS[gradient](jnp.cos(angles), margin)
    np.testing.assert_allclose(shifted, np.cos(angles + margin), atol=7e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_cosine_falls_monotonically_with_the_angle(gradient):
    shifted = GRADIENTS[gradient](jnp.cos(np.linspace(0, np.pi, 500)), 0.5)
    assert (np.diff(shifted) < 3e-6).all()


def test_every_example_may_have_its_own_margin():
    cosine, margins = jnp.array([0.9, -0.99, 0.2]), jnp.array([0.0, 0.3, 0.5])
    expected = [shifted_cosine(c, float(m)) for c, m in zip(cosine, margins, strict=True)]
    np.testing.assert_allclose(shifted_cosine(cosine, margins), expected, rtol=1e-6)


def test_the_textbook_slope_is_that_of_the_angle_and_straight_through_it_is_one():
    angles, margin = np.linspace(0.3, np.pi - 0.6, 20), 0.5
    slopes = {
        name: jax.vmap(jax.grad(function), (0, None))(jnp.cos(angles), margin)
        for name, function in GRADIENTS.items()
    }
    np.testing.assert_allclose(
        slopes["textbook"], np.sin(angles + margin) / np.sin(angles), rtol=1e-4
    )
    np.testing.assert_array_equal(slopes["straight_through"], 1.0)


def test_the_rarest_class_has_the_whole_size_margin_and_16_times_its_size_half():
    margins = class_margins(np.array([32, 2, 10**9]), 0.3, 0.2)
    np.testing.assert_allclose(margins, [0.4, 0.5, 0.3], atol=2e-3)
    assert margins.dtype == np.float32
