"""Muon against its formula, the matrices that it is for, any mesh, and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import ExperimentConfig, LoopConfig, MeshConfig, OptimizerConfig
from capret_jax.distributed.mesh import make_mesh, param_shardings, path_name
from capret_jax.errors import InputError
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.state import TrainState, make_params
from tests.small_model import WRITING_MODEL

LAYER = {"model": {"vision": {"blocks": {"0": {"mlp": {"up": {"kernel": None}}}}}}}
RATE, DECAY = 0.1, 0.5


def optimizer(**settings):
    """An optimizer of ten steps, without warm-up."""
    settings = OptimizerConfig(
        **{"name": "muon", "learning_rate": RATE, "warmup_steps": 0, **settings}
    )
    return make_optimizer(
        ExperimentConfig(model=WRITING_MODEL, optimizer=settings, loop=LoopConfig(steps=10))
    )


def of_layer(matrix):
    return jax.tree.map(lambda _: jnp.asarray(matrix), LAYER, is_leaf=lambda x: x is None)


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """The quintic Newton-Schulz iteration of Jordan and others, on the singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_steps_equal_the_formula(shape):
    rng = np.random.default_rng(0)
    rule, params = optimizer(weight_decay=DECAY), rng.normal(size=shape)
    state, momentum = rule.init(of_layer(params)), np.zeros(shape)
    for step in range(3):
        gradient = rng.normal(size=shape)
        updates, state = rule.update(
            of_layer(np.float32(gradient)), state, of_layer(np.float32(params))
        )
        # Nesterov's momentum, with the bias of the zeros at the start taken out.
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.95 * momentum / (1 - 0.95 ** (step + 2))
        ahead = ahead + 0.05 * gradient / (1 - 0.95 ** (step + 1))
        direction = 0.2 * np.sqrt(6) * orthogonalised(ahead) + DECAY * params
        expected = -RATE * (1 - step / 10) * direction
        np.testing.assert_allclose(jax.tree.leaves(updates)[0], expected, rtol=1e-3, atol=1e-5)
        params = params + expected


def test_updates_are_as_large_as_those_of_adamw():
    """So the rate of one is a rate for the other, whatever the shape."""
    for shape in ((8, 8), (96, 8), (8, 96)):
        gradient = of_layer(jax.random.normal(jax.random.key(1), shape))
        rule = optimizer(weight_decay=0.0)
        update, _ = rule.update(gradient, rule.init(gradient), gradient)
        size = jnp.sqrt(jnp.mean(jax.tree.leaves(update)[0] ** 2)) / RATE
        assert 0.5 * 0.2 < size < 1.5 * 0.2


@pytest.fixture(scope="module")
def params():
    return make_params(WRITING_MODEL, 5, jax.random.key(0))


@pytest.fixture(scope="module")
def few_params(params):
    """Those of an encoder and of the class directions, which compile faster."""
    return {"model": {"vision": params["model"]["vision"]}, "arcface": params["arcface"]}


def test_matrices_of_layers_alone_have_it(params):
    state = optimizer().init(params)[1].inner_states
    moments = (state["muon"].inner_state[0].mu, state["adam"].inner_state.mu)
    by_muon, by_adam = (
        {path_name(path) for path, _ in jax.tree.leaves_with_path(tree)} for tree in moments
    )
    assert by_muon | by_adam == set(flatten_dict(params, sep="/")) and not by_muon & by_adam
    parts = ("vision/blocks/0/attention/qkv", "text/layers/0/mlp/up", "fusion/layers/0/mlp/down")
    assert {f"model/{part}/kernel" for part in parts} <= by_muon
    assert "model/locations/layers/0/cross_attention/key/kernel" in by_muon
    rest = ("text/embeddings/word/embedding", "itm_head/up/kernel", "vision_proj/kernel")
    assert {f"model/{part}" for part in rest} | {"arcface"} <= by_adam
    assert all(path.endswith("/kernel") for path in by_muon)


def test_frozen_matrices_have_no_momentum(params):
    state = optimizer(frozen=("model/text/",)).init(params)
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(state)]
    assert any("model/vision/blocks" in name for name in names)
    assert not any("model/text/" in name for name in names)


def test_eight_devices_step_like_one(few_params):
    rule, params = optimizer(clip_norm=1.0, frozen=("model/vision/patch_embed",)), few_params
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    gradients = tree.unflatten(
        [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    )
    updates = []
    for count, shape in ((1, (1, 1, 1)), (8, (2, 2, 2))):
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[:count])
        placed = jax.device_put((gradients, params), param_shardings(mesh, (gradients, params)))
        step = jax.jit(lambda g, p: rule.update(g, rule.init(p), p)[0])
        updates.append(flatten_dict(jax.device_get(step(*placed)), sep="/"))
    for path, update in updates[0].items():
        np.testing.assert_allclose(update, updates[1][path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_a_resumed_run_has_the_same_momentum(tmp_path, few_params):
    rule, params = optimizer(weight_decay=DECAY), few_params
    step = jax.jit(lambda state: rule.update(params, state, params))
    _, state = step(rule.init(params))
    saved = TrainState(jnp.int32(1), params, state)
    checkpoints = Checkpoints(tmp_path)
    saving = checkpoints._checkpointer
    saving.save_checkpointables(1, {"state": saved}, custom_metadata={"config": {}})
    restored = checkpoints.restore(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved)
    )
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, step(state)[0], step(restored.opt_state)[0])


def test_other_names_are_refused():
    with pytest.raises(InputError, match=r"optimizer\.name='lion' is neither 'adamw' nor 'muon'"):
        OptimizerConfig(name="lion")
