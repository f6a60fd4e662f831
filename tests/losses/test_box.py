"""Box losses against the reference and cases computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.box import box_losses, corners, iou_and_giou


@pytest.mark.parametrize("suffix, all_valid", [("", True), ("_regions_only", False)])
def test_equals_the_reference(golden, suffix, all_valid):
    valid = np.ones(3, bool) if all_valid else golden["is_image"] == 0
    l1, giou = box_losses(golden["box_pred_cxcywh"], golden["box_target_cxcywh"], valid)
    assert float(l1.value) == pytest.approx(float(golden[f"loss_box_l1{suffix}"]), rel=1e-4)
    assert float(giou.value) == pytest.approx(float(golden[f"loss_box_giou{suffix}"]), rel=1e-4)


def test_corners_of_a_box():
    np.testing.assert_allclose(corners(jnp.array([0.5, 0.4, 0.2, 0.6])), [0.4, 0.1, 0.6, 0.7])


@pytest.mark.parametrize(
    "a, b, iou, giou",
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),  # union 7, hull 9
        ((0, 0, 1, 1), (2, 0, 3, 1), 0.0, -1 / 3),  # apart: hull 3, union 2
        ((0, 0, 2, 2), (0, 0, 1, 1), 1 / 4, 1 / 4),  # inside: the hull is the union
    ],
)
def test_iou_and_giou_of_simple_boxes(a, b, iou, giou):
    actual = iou_and_giou(jnp.array(a, float), jnp.array(b, float))
    np.testing.assert_allclose(actual, (iou, giou), atol=1e-6)


def test_a_degenerate_box_leaves_the_other_losses_and_the_gradient_finite():
    predicted = jnp.array([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.2]])
    target = jnp.array([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.4, 0.4]])
    loss, gradient = jax.value_and_grad(
        lambda boxes: box_losses(boxes, target, jnp.ones(2, bool))[1].value
    )(predicted)
    assert float(loss) == pytest.approx((1 + 0.75) / 2, rel=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0
