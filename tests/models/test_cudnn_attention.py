"""Preparation of cuDNN's attention, with XLA's implementation in its place, and its choice."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import SIZES, ComputeConfig, ExperimentConfig, MeshConfig
from capret_jax.distributed.mesh import make_mesh, replicated
from capret_jax.errors import InputError
from capret_jax.models.attention import attention
from capret_jax.models.kernels import cudnn_attention
from capret_jax.models.layers import REMAT_POLICIES
from capret_jax.roofline.flops import program_flops

BASE, GPU = SIZES["base"], ComputeConfig("bfloat16", attention="cudnn")
# Name -> tokens T of the queries, S of the keys, bias or not, and shape of the mask.
CASES = {
    "odd with bias, as images": (5, 5, True, None),
    "bias and mask": (4, 7, True, (2, 7)),
    "mask of texts": (6, 6, False, (2, 6)),
    "a row that hides every key keeps its weights": (5, 7, True, (2, 7)),
    "causal mask": (5, 5, False, (2, 5, 5)),
    "cross-attention": (4, 7, False, None),
    "mask of regions": (4, 7, False, (2, 7)),
}


@pytest.fixture
def calls(monkeypatch):
    """Lets XLA compute what cuDNN would; lists the arguments of each call."""
    original, calls = jax.nn.dot_product_attention, []

    def on_xla(*arrays, implementation, **options):
        calls.append((implementation, [x.shape for x in arrays], options))
        return original(*arrays, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    # The kernel itself takes no float32, in which the comparison is sharp.
    monkeypatch.setattr("capret_jax.config.attention._CUDNN_DTYPES", ("float32",))
    return calls


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_plain_attention(case, calls):
    queries, keys, has_bias, mask_shape = CASES[case]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, t, 3, 8)).astype(np.float32) for t in (queries, keys, keys)]
    mask = None
    if mask_shape:
        mask = rng.random(mask_shape) < 0.6
        mask[0, ..., 0] = False
        mask[..., 1] = True
        mask[0] = mask[0] & ("every key" not in case)
    if has_bias:
        arrays.append(rng.normal(size=(3, queries, keys)).astype(np.float32))
    weight = rng.normal(size=arrays[0].shape)

    def results(implementation):
        def objective(query, key, value, bias=None):
            output = attention(
                query, key, value, bias=bias, mask=mask, implementation=implementation
            )
            return (output * weight).sum(), output

        every = tuple(range(len(arrays)))
        return jax.jit(jax.grad(objective, every, has_aux=True))(*arrays)

    # 10,000 added to a float32 logit leaves 3 digits behind its point.
    tolerance = 5e-3 if "every key" in case else 3e-6
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(check, results("cudnn"), results("xla"))
    ((library, shapes, options),) = calls
    assert library == "cudnn"
    assert all(shape[1] % 2 == 0 for shape in shapes)  # cuDNN refuses odd lengths in training


def test_under_a_mesh_each_device_has_its_rows_and_heads(calls):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(4, 5, 4, 8)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(4, 5, 5)).astype(np.float32)
    mask = np.tril(np.ones((4, 5, 5)))

    def loss(bias, implementation="xla"):
        output = attention(q, k, v, bias=bias, mask=mask, implementation=implementation)
        return jnp.sin(output).sum()

    @functools.partial(jax.jit, in_shardings=replicated(mesh))
    def sharded(bias):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss(bias, "cudnn")

    actual = jax.value_and_grad(sharded)(bias)
    (_, shapes, options), *_ = calls
    assert shapes == [(1, 6, 2, 8)] * 3 and options["bias"].shape == (1, 2, 6, 6)
    expected = jax.value_and_grad(loss)(bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), actual, expected)


@pytest.mark.parametrize(
    ("head_width", "dtype", "drop"),
    [
        (8, "float32", None),
        (12, "bfloat16", None),
        (136, "bfloat16", None),
        (8, "bfloat16", lambda weights: weights),
    ],
)
def test_what_does_not_fit_is_computed_by_xla(head_width, dtype, drop):
    # A call of cuDNN's kernel would fail here.
    x = jnp.ones((2, 5, 3, head_width), dtype)
    output = attention(x, x, x, implementation="cudnn", drop=drop)
    np.testing.assert_array_equal(output, x)


@pytest.fixture
def traceable(monkeypatch):
    """Lets `jax.nn` trace cuDNN's kernel without cuDNN."""
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91_000)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_flops_are_counted_and_dots_runs_the_kernel_forward_once(remat, traceable):
    x = jnp.ones((2, 5, 2, 8), "bfloat16")

    def layer(x):
        bias = jnp.zeros((2, 5, 5), "bfloat16")
        return attention(x, x, x, bias=bias, implementation="cudnn")

    policy = REMAT_POLICIES.get(remat)
    run = layer if policy is None else jax.checkpoint(layer, policy=policy)
    gradient = jax.make_jaxpr(jax.grad(lambda x: jnp.sin(run(x).astype("float32")).sum()))(x)
    product = 2 * 2 * 2 * 6 * 6 * 8  # lengths are padded to 6
    forward = 2 if remat == "full" else 1
    assert program_flops(gradient.jaxpr) == (2 * forward + 5) * product


def test_auto_is_the_kernel_of_the_platform():
    for dtype, platform, name in [
        ("bfloat16", "gpu", "cudnn"),
        ("float32", "gpu", "xla"),
        ("float32", "tpu", "tpu"),
        ("bfloat16", "cpu", "xla"),
    ]:
        assert ComputeConfig(dtype).on(platform).attention == name
        assert ComputeConfig(dtype, attention="xla").on(platform).attention == "xla"


@pytest.mark.parametrize(
    ("compute", "platform", "message"),
    [
        (GPU, "cpu", "attention='cudnn' is a kernel for gpu devices, and these are cpu devices"),
        (ComputeConfig(attention="tpu"), "gpu", "'tpu' is a kernel for tpu devices"),
    ],
)
def test_a_kernel_forced_on_another_platform_is_refused(compute, platform, message):
    with pytest.raises(InputError, match=message):
        compute.on(platform)


@pytest.mark.parametrize(
    ("compute", "changes", "tensor", "message"),
    [
        (ComputeConfig(attention="cudnn"), {}, 1, "computes in bfloat16, not in float32"),
        (GPU, {"attention_dropout": 0.1}, 1, r"drops no weights \(model.attention_dropout=0.1\)"),
        (GPU, {"text_heads": 64}, 1, r"width 12 are no .* 8 .*text_width=768, text_heads=64"),
        (GPU, {}, 5, "heads do not divide over the devices of mesh.tensor"),
        (ComputeConfig(attention="tpu"), {"vision_heads": 3}, 1, "3 heads of width 256 do not"),
    ],
)
def test_a_kernel_forced_where_it_does_not_fit_is_refused(compute, changes, tensor, message):
    model = dataclasses.replace(BASE, **changes)
    with pytest.raises(InputError, match=message) as refusal:
        ExperimentConfig(compute=compute, model=model, mesh=MeshConfig(tensor=tensor))
    assert "\n" not in str(refusal.value)


def test_forced_kernels_that_fit_are_accepted():
    for compute in (GPU, ComputeConfig(attention="tpu")):
        assert ExperimentConfig(compute=compute, model=BASE).compute is compute


def test_padding_goes_to_one_key_more():
    x = jnp.ones((1, 3, 1, 8))
    output = cudnn_attention.fused_attention(x, x, x, jnp.zeros((1, 3, 3)), None, library="xla")
    np.testing.assert_allclose(output, x, rtol=1e-6)
