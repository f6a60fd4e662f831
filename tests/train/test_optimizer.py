"""Schedule, parameter groups, moving average, and AdamW against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES, ExperimentConfig, LoopConfig, OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError
from capret_jax.train.optimizer import (
    make_optimizer,
    make_schedule,
    pull_to_start,
    update_average,
)
from capret_jax.train.parameter_groups import check_patterns, decay_mask, rate_factors
from capret_jax.train.state import TrainState, make_params


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(lambda: make_params(SIZES["tiny"], 5, jax.random.key(0)))


@pytest.mark.parametrize("decay, halfway", [("linear", 0.5), ("cosine", 0.5)])
def test_schedule_warms_up_and_decays_to_zero(decay, halfway):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay=decay)
    schedule = make_schedule(config, 110)
    values = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 2.0 * halfway, 0.0], abs=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_warmup_can_be_a_fraction_and_the_decay_end_above_zero(decay):
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=0, warmup_fraction=0.1, decay=decay, final_rate=0.5
    )
    schedule = make_schedule(config, 109)  # 10 steps of warm-up: rounded down
    values = [float(schedule(step)) for step in (0, 5, 10, 109)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 0.5], abs=1e-6)
    middle = [float(schedule(step)) for step in (43, 76)]  # a third and two thirds of the decay
    assert sum(middle) == pytest.approx(2.5, abs=1e-6)
    linear = decay == "linear"
    assert middle[0] == pytest.approx(1.5 if linear else 0.5 + 1.5 * 0.75, abs=1e-6)


def test_a_warmup_that_does_not_end_is_refused():
    with pytest.raises(InputError, match=r"warmup_steps=100 must be less than steps=50"):
        make_schedule(OptimizerConfig(warmup_steps=100), 50)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warmup_fraction": 0.1}, "warmup_steps=100 and optimizer.warmup_fraction=0.1 are two"),
        ({"warmup_fraction": 1.0, "warmup_steps": 0}, r"warmup_fraction=1.0 is not in \[0, 1\)"),
        ({"final_rate": 1e-3}, r"final_rate=0.001 is not in \[0, optimizer.learning_rate=3e-05"),
        ({"fresh_multiplier": -1.0}, "fresh_multiplier=-1.0 is negative"),
    ],
)
def test_impossible_rates_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_fresh_parameters_have_a_rate_of_their_own_unless_a_pattern_names_them():
    config = experiment(fresh_multiplier=2.0, rate_multipliers=(("model/text", 0.5),))
    params = {
        part: {"kernel": jnp.array([2.0])} for part in ("vision_proj", "text_proj", "itm_head")
    }
    params = {"model": params, "arcface": jnp.array([2.0])}
    fresh = {"arcface", "model/itm_head/kernel", "model/text_proj/kernel"}
    optimizer = make_optimizer(config, fresh)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = {
        path_name(path): float(update[0]) / -(0.1 * (1 + 0.01 * 2))
        for path, update in jax.tree.leaves_with_path(updates)
    }
    assert moved == pytest.approx(
        {
            "arcface": 2.0,
            "model/itm_head/kernel": 2.0,
            "model/text_proj/kernel": 0.5,
            "model/vision_proj/kernel": 1.0,
        },
        rel=1e-5,
    )
    with pytest.raises(InputError, match="fresh_multiplier=2.0 is for what config.init_from lacks"):
        ExperimentConfig(optimizer=OptimizerConfig(fresh_multiplier=2.0))


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


def experiment(**optimizer):
    """Settings of ten steps without warm-up."""
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=0, **optimizer)
    return ExperimentConfig(
        model=SIZES["tiny"], optimizer=optimizer, loop=LoopConfig(steps=10), init_from="start"
    )


def test_the_first_matching_group_scales_a_rate(params):
    groups = (("model/(itm|bbox)_head", 2.0), ("model/", 0.5))
    factors = rate_factors(params, OptimizerConfig(rate_multipliers=groups), SIZES["tiny"])
    assert factors["model"]["itm_head"]["up"]["kernel"] == 2.0
    assert factors["model"]["vision_proj"]["kernel"] == 0.5
    assert factors["arcface"] == 1.0


def test_rates_decay_from_layer_to_layer(params):
    # 3 vision layers; 2 text and 2 fusion layers are one stack.
    factors = rate_factors(params, OptimizerConfig(layer_decay=0.5), SIZES["tiny"])
    model, factor = factors["model"], 0.5
    blocks, text, fusion = (
        model["vision"]["blocks"], model["text"]["layers"], model["fusion"]["layers"],
    )  # fmt: skip
    assert [blocks[i]["gamma_1"] for i in "012"] == [factor**3, factor**2, factor]
    layers = (text["0"], text["1"], fusion["0"], fusion["1"])
    assert [layer["mlp"]["up"]["kernel"] for layer in layers] == [factor**d for d in (4, 3, 2, 1)]
    assert fusion["0"]["cross_attention"]["key"]["bias"] == factor**2
    assert model["vision"]["patch_embed"]["kernel"] == model["vision"]["cls_token"] == factor**4
    assert model["text"]["embeddings"]["word"]["embedding"] == factor**5
    others = (model["vision"]["norm"], model["vision_proj"], model["mlm_head"], factors["arcface"])
    assert {value for part in others for value in jax.tree.leaves(part)} == {1.0}


def test_frozen_parameters_have_no_moments_and_do_not_count_in_the_norm():
    config = experiment(frozen=("model/a",), clip_norm=1.0, weight_decay=0.5, eps=1e-12)
    params = {"model": {"a": {"kernel": jnp.ones(2)}, "b": {"kernel": jnp.ones(2)}}}
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 2 + 2  # and two counts
    # The step's gradient of a frozen parameter is 0.
    gradients = {"model": {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.full(2, 3.0)}}}
    updates, state = optimizer.update(gradients, state, params)
    np.testing.assert_array_equal(updates["model"]["a"]["kernel"], 0)
    np.testing.assert_allclose(updates["model"]["b"]["kernel"], -0.1 * (1 + 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"frozen": ("model/visoin",)}, "frozen: 'model/visoin' matches no parameter; .*model/vis"),
        ({"rate_multipliers": (("arc_face", 2.0),)}, "rate_multipliers: 'arc_face' matches no"),
        ({"frozen": ("model", "arcface")}, "matches every parameter that the losses train"),
        # The text encoder is left, which no loss trains.
        ({"frozen": ("model/vision", "arcface")}, "train, in arcface, model/vision, model/vision_"),
    ],
)
def test_patterns_that_do_nothing_are_refused(params, settings, message):
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    reached = {"arcface", "model/vision", "model/vision_proj"}
    check_patterns(OptimizerConfig(frozen=("model/vision/", "model/text")), names, reached)
    with pytest.raises(InputError, match=message):
        check_patterns(OptimizerConfig(**settings), names, reached)


def test_a_rate_of_zero_keeps_a_parameter_but_not_its_gradient_out_of_the_norm():
    config = experiment(rate_multipliers=(("model/a", 0.0),), clip_norm=1.0, weight_decay=0.5)
    params = {"model": {"a": {"kernel": jnp.ones(1)}, "b": {"kernel": jnp.ones(1)}}}
    optimizer = make_optimizer(config)
    gradients = {"model": {"a": {"kernel": jnp.array([4.0])}, "b": {"kernel": jnp.array([3.0])}}}
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["model"]["a"]["kernel"], 0)
    first_moment = state[1].mu["model"]["b"]["kernel"]
    np.testing.assert_allclose(first_moment, [0.1 * 3 / 5], rtol=1e-5)  # 5, the norm of both


def test_a_drift_penalty_pulls_towards_the_start():
    config = experiment(drift_penalty=0.5, layer_decay=0.5)
    model = {"vision_proj": {"kernel": jnp.array([3.0])}, "itm_head": {"bias": jnp.array([3.0])}}
    model["vision"] = {"blocks": {"2": {"gamma_1": jnp.array([3.0])}}}
    start = {"vision_proj/kernel": jnp.array([1.0]), "vision/blocks/2/gamma_1": jnp.array([1.0])}
    state = TrainState(jnp.int32(5), {"model": model}, (), start=start)
    updates = {"model": jax.tree.map(jnp.zeros_like, model)}
    pulled = pull_to_start(updates, state, config)["model"]
    rate = 0.1 / 2  # halfway of a linear decay
    np.testing.assert_allclose(pulled["vision_proj"]["kernel"], [-rate * 0.5 * 2], rtol=1e-6)
    np.testing.assert_allclose(pulled["vision"]["blocks"]["2"]["gamma_1"], [-rate * 0.5], rtol=1e-6)
    np.testing.assert_array_equal(pulled["itm_head"]["bias"], [0])  # has no start
    with pytest.raises(InputError, match="drift_penalty=0.5 .*set config.init_from"):
        ExperimentConfig(optimizer=OptimizerConfig(drift_penalty=0.5))


def test_the_average_warms_up_to_its_decay():
    average, expected = {"kernel": jnp.zeros(1)}, 0.0
    for step, value in enumerate((1.0, 5.0, 2.0, -3.0)):
        average = update_average(average, {"kernel": jnp.array([value])}, 0.2, jnp.int32(step))
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average["kernel"], [expected], rtol=1e-6)
    with pytest.raises(InputError, match=r"ema_decay=1\.0"):
        OptimizerConfig(ema_decay=1.0)


def test_the_average_of_a_frozen_parameter_keeps_its_bits():
    values = jax.random.normal(jax.random.key(0), (1000,))
    params = {"a": values, "b": values}
    average = jax.tree.map(jnp.copy, params)
    for step in range(100):
        average = update_average(average, params, 0.999, jnp.int32(step), ("model/a",))
    np.testing.assert_array_equal(average["a"], values)
    # Rounding alone changes the other one.
    assert not np.array_equal(average["b"], values)
    np.testing.assert_allclose(average["b"], values, rtol=1e-5)


def test_one_step_equals_the_formula_of_adamw():
    optimizer = make_optimizer(experiment(weight_decay=0.5, clip_norm=1.0, b1=0.9, b2=0.98))
    params = {"layer": {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}}
    gradients = {"layer": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Clipped to norm 1, bias-corrected: g / sqrt(g^2) = 1; decay adds 0.5 * 2 to the kernel alone.
    np.testing.assert_allclose(updates["layer"]["kernel"], [-0.1 * (1 + 1)], rtol=1e-5)
    np.testing.assert_allclose(updates["layer"]["bias"], [-0.1], rtol=1e-5)
