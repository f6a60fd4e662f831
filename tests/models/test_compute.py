"""Compute settings: remat, scan, bfloat16 and the kernel give the same result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES, ComputeConfig, MeshConfig
from capret_jax.config.attention import misfit
from capret_jax.distributed.mesh import make_mesh, replicated
from capret_jax.errors import InputError
from capret_jax.models.attention import attention
from capret_jax.models.kernels import tpu_attention
from capret_jax.models.layers import REMAT_POLICIES
from capret_jax.models.x2vlm import abstract_model, bind, init_params
from capret_jax.roofline.flops import program_flops

MODEL = dataclasses.replace(
    SIZES["tiny"], image_size=32, vision_depth=2, text_layers=2, fusion_layers=2
)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    ids = rng.integers(5, 100, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    return image, ids, mask


@pytest.fixture(scope="module")
def run(inputs):
    """Loss and gradients in training mode, dropout and stochastic depth included."""
    params = init_params(MODEL, jax.random.key(0))
    image, ids, mask = inputs

    def compute(config: ComputeConfig):
        graphdef, _ = abstract_model(MODEL, config)

        def objective(params):
            model = bind(graphdef, params, config.dtype)
            keys = jax.random.split(jax.random.key(1), 3)
            states = model.encode_image(image, keys[0])
            texts = model.encode_text(ids, mask, keys[1])
            fused = model.fuse(texts, mask, states, key=keys[2])
            assert {x.dtype for x in (states, texts, fused)} == {jnp.dtype(config.dtype)}
            outputs = (model.match_logits(fused), model.predict_boxes(fused))
            features = model.image_features(states) * model.text_features(texts)
            assert {x.dtype for x in (*outputs, features)} == {jnp.dtype("float32")}
            return sum(jnp.sin(3 * x).sum() for x in outputs) + features.sum()

        return jax.jit(jax.value_and_grad(objective))(params)

    return compute


@pytest.fixture(scope="module")
def plain(run):
    return run(ComputeConfig(attention="xla"))


@pytest.mark.parametrize(
    "config",
    [
        ComputeConfig(attention="xla", remat="full"),
        ComputeConfig(attention="xla", remat="vision", scan=True),
    ],
    ids=str,
)
def test_remat_and_scan_change_nothing(config, run, plain):
    def check(actual, expected):
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=tolerance + 1e-6)

    jax.tree.map(check, run(config), plain)


def test_bfloat16_is_close_and_keeps_float32_gradients(run, plain):
    value, gradients = run(ComputeConfig("bfloat16", attention="xla"))
    assert float(value) == pytest.approx(float(plain[0]), abs=0.05)
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    actual, expected = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (gradients, plain[1])
    )
    assert actual @ expected / np.linalg.norm(actual) / np.linalg.norm(expected) > 0.99


class TestKernel:
    @pytest.mark.parametrize("width", [64, 32])
    def test_equals_xla_in_values_and_gradients(self, width):
        rng = np.random.default_rng(0)
        heads = 2 * 128 // width
        shape = (3, 19, heads, width)
        arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
        bias = rng.normal(size=(heads, 19, 19)).astype(np.float32)
        weight = rng.normal(size=shape).astype(np.float32)

        def value_and_gradients(function):
            def objective(q, k, v, bias):
                return (function(q, k, v, bias) * weight).sum()

            return jax.value_and_grad(objective, argnums=(0, 1, 2, 3))(*arrays, bias)

        actual = value_and_gradients(lambda *x: tpu_attention.biased_attention(*x, True))
        expected = value_and_gradients(lambda q, k, v, bias: attention(q, k, v, bias=bias))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), actual, expected)

    def test_only_heads_that_fill_a_register_are_supported(self):
        for heads, width in [(12, 64), (4, 32)]:
            assert misfit("tpu", heads, width, "float32") == ""
        for heads, width in [(11, 64), (12, 48), (0, 64)]:
            assert misfit("tpu", heads, width, "float32")

    def test_under_a_mesh_each_device_has_its_images_and_heads(self, monkeypatch):
        original, shapes = tpu_attention.biased_attention, []

        def kernel(*arrays):
            shapes.append([x.shape for x in arrays])
            return original(*arrays, True)

        monkeypatch.setattr(tpu_attention, "biased_attention", kernel)
        mesh = make_mesh(MeshConfig(2, 2, 2))
        rng = np.random.default_rng(0)
        q, k, v = (rng.normal(size=(4, 5, 4, 64)).astype(np.float32) for _ in range(3))
        bias = rng.normal(size=(4, 5, 5)).astype(np.float32)

        @functools.partial(jax.jit, in_shardings=replicated(mesh))
        def sharded(bias):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return jnp.sin(attention(q, k, v, bias=bias, implementation="tpu")).sum()

        def unsharded(bias):
            return jnp.sin(attention(q, k, v, bias=bias)).sum()

        actual = jax.value_and_grad(sharded)(bias)
        assert shapes[0] == [(1, 5, 2, 64)] * 3 + [(2, 5, 5)]
        expected = jax.value_and_grad(unsharded)(bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), actual, expected)

    @pytest.mark.parametrize(("remat", "forward"), [("attention", 1), ("dots", 1), ("full", 2)])
    def test_its_output_is_kept_for_the_backward_pass(self, remat, forward):
        mesh, bias = make_mesh(MeshConfig()), jnp.zeros((2, 4, 4))
        rows = len(mesh.devices.flat)
        layer = jax.checkpoint(
            lambda x: jnp.sin(attention(x, x, x, bias=bias, implementation="tpu")),
            policy=REMAT_POLICIES[remat],
        )

        def loss(x):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return layer(x).sum()

        traced = jax.make_jaxpr(jax.grad(loss))(jnp.ones((rows, 4, 2, 64)))
        product = 2 * rows * 2 * 4 * 4 * 64
        assert program_flops(traced.jaxpr) == (2 * forward + 5) * product


@pytest.mark.parametrize("key", ["dtype", "remat", "attention"])
def test_unknown_settings_are_refused(key):
    with pytest.raises(InputError, match=f"compute.{key}='fast' is none of"):
        ComputeConfig(**{key: "fast"})
