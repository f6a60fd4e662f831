"""Precision of the layers' matrix products: on GPUs the default would round float32 to TF32."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.lax import Precision

from capret_jax.config import SIZES
from capret_jax.models.kernels import tpu_attention
from capret_jax.models.x2vlm import abstract_model, bind

MODEL = dataclasses.replace(
    SIZES["tiny"],
    image_size=32,
    vision_depth=1,
    text_layers=1,
    fusion_layers=1,
    decoder_layers=1,
    attention_dropout=0.1,
)


def products(jaxpr: Jaxpr) -> Iterator:
    """Yields every matrix product of a traced program, kernels included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from products(getattr(inner, "jaxpr", inner))


def every_output(params: dict, dtype: str) -> jax.Array:
    """Sums what all parts of the model compute from constants."""
    model = bind(abstract_model(MODEL)[0], params, dtype)
    ids, key = np.ones((2, 6), int), jax.random.key(0)
    image = model.encode_image(np.ones((2, 32, 32, 3), np.float32), key)
    text = model.encode_text(ids, ids, key)
    fused = model.fuse(text, ids, image, key=key)
    outputs = (
        model.image_features(image),
        model.text_features(text),
        model.match_logits(fused),
        model.predict_boxes(fused),
        model.masked_lm_logits(fused),
        model.answer_logits(ids, ids, fused, ids, key),
    )
    return sum(x.sum().astype(jnp.float32) for x in outputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_float32_are_exact_forward_and_backward(dtype):
    _, params = abstract_model(MODEL)
    traced = jax.make_jaxpr(jax.grad(every_output), static_argnums=1)(params, dtype)
    found = list(products(traced.jaxpr))
    assert len(found) > 100
    for product in found:
        dtypes, precision = {x.aval.dtype.name for x in product.invars}, product.params["precision"]
        if dtypes == {"float32"}:
            assert precision == (Precision.HIGHEST, Precision.HIGHEST), product
        else:  # in bfloat16 some gradients are float32, and what they multiply is not
            assert precision in (None, (Precision.DEFAULT, Precision.DEFAULT)), product
        assert dtype in dtypes, product


def test_products_in_the_tpu_kernel_are_exact_too():
    x, bias = jnp.ones((1, 4, 2, 64)), jnp.ones((2, 4, 4))

    def attend(x):
        return tpu_attention.biased_attention(x, x, x, bias).sum()

    found = list(products(jax.make_jaxpr(jax.grad(attend))(x).jaxpr))
    assert len(found) == 2 * (2 + 5)  # of two heads, forward and backward
    assert {x.params["precision"] for x in found} == {(Precision.HIGHEST, Precision.HIGHEST)}
