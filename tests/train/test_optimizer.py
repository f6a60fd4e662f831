"""Schedule, parameter groups, moving average, and AdamW against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES, OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError
from capret_jax.train.optimizer import (
    decay_mask,
    make_optimizer,
    make_schedule,
    scale_by_group,
    update_average,
)
from capret_jax.train.state import make_params


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(lambda: make_params(SIZES["tiny"], 5, jax.random.key(0)))


@pytest.mark.parametrize("decay, halfway", [("linear", 0.5), ("cosine", 0.5)])
def test_schedule_warms_up_and_decays_to_zero(decay, halfway):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay=decay)
    schedule = make_schedule(config, 110)
    values = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 2.0 * halfway, 0.0], abs=1e-6)


def test_a_warmup_that_does_not_end_is_refused():
    with pytest.raises(InputError, match=r"warmup_steps=100 must be less than steps=50"):
        make_schedule(OptimizerConfig(warmup_steps=100), 50)


def test_decay_is_for_matrices_and_embeddings_alone(params):
    mask = jax.tree.leaves_with_path(decay_mask(params))
    decayed = {path_name(path) for path, value in mask if value}
    kept = {path_name(path) for path, value in mask if not value}
    assert {
        "arcface",
        "model/text/embeddings/word/embedding",
        "model/vision_proj/kernel",
    } <= decayed
    assert all(name.endswith(("kernel", "embedding", "arcface")) for name in decayed)
    endings = ("bias", "scale", "gamma_1", "gamma_2", "cls_token", "temperature")
    assert all(name.endswith(endings) for name in kept)


def test_the_first_matching_group_scales_a_rate(params):
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    scaled = scale_by_group(ones, (("model/(itm|bbox)_head", 2.0), ("model/", 0.5)))
    assert scaled["model"]["itm_head"]["up"]["kernel"].max() == 2.0
    assert scaled["model"]["vision_proj"]["kernel"].max() == 0.5
    assert scaled["arcface"].max() == 1.0


def test_the_average_warms_up_to_its_decay():
    average, expected = {"kernel": jnp.zeros(1)}, 0.0
    for step, value in enumerate((1.0, 5.0, 2.0, -3.0)):
        average = update_average(average, {"kernel": jnp.array([value])}, 0.2, jnp.int32(step))
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average["kernel"], [expected], rtol=1e-6)
    with pytest.raises(InputError, match=r"ema_decay=1\.0"):
        OptimizerConfig(ema_decay=1.0)


def test_one_step_equals_the_formula_of_adamw():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0, b1=0.9, b2=0.98
    )
    optimizer = make_optimizer(config, 10)
    params = {"layer": {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}}
    gradients = {"layer": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Clipped to norm 1, bias-corrected: g / sqrt(g^2) = 1; decay adds 0.5 * 2 to the kernel alone.
    np.testing.assert_allclose(updates["layer"]["kernel"], [-0.1 * (1 + 1)], rtol=1e-5)
    np.testing.assert_allclose(updates["layer"]["bias"], [-0.1], rtol=1e-5)
