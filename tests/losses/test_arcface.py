"""ArcFace on any mesh against a dense NumPy version: loss, gradients and memory."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from capret_jax.config import LossConfig, MeshConfig
from capret_jax.distributed.mesh import AXES, batch_sharding, make_mesh, replicated
from capret_jax.losses import StepContext, arcface
from capret_jax.losses.arcface import ClassHead, arcface_loss, draw_classes

MARGIN, SCALE = 0.15, 30.0
CLASSES, ROWS, K, E = 11, 16, 2, 8
CLASS_SIZES = np.arange(2, CLASSES + 2)
# A label twice, one example without identity, the first class and the last.
LABELS = np.array([0, 3, -1, 10, 3, 7, 5, 6], np.int32)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 2, 4), (3, 1, 1)]
KEY = jax.random.key(0)


def mesh_of(shape):
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def config_of(**options) -> LossConfig:
    """Makes a config from `arcface_` settings without their prefix."""
    settings = {"margin": MARGIN, "scale": SCALE, **options}
    return LossConfig(**{f"arcface_{name}": value for name, value in settings.items()})


def make_inputs(rows=ROWS, subcentres=K):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(LABELS), E))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    # The loss must not depend on the norms.
    weights = rng.normal(size=(rows, subcentres, E)) * rng.uniform(0.1, 9, (rows, subcentres, 1))
    return features, weights


def dense_loss(features, weights, size_margin=0.0):
    """Loss and accuracy, one example at a time in float64."""
    directions = weights[:CLASSES] / np.linalg.norm(weights[:CLASSES], axis=2, keepdims=True)
    entropies, hits = [], []
    for feature, label in zip(features, LABELS, strict=True):
        if label < 0:
            continue
        cosine = (directions @ feature).max(axis=1)
        hits.append(cosine.argmax() == label)
        margin = MARGIN + size_margin * (CLASS_SIZES.min() / CLASS_SIZES[label]) ** 0.25
        logits = SCALE * cosine
        logits[label] = SCALE * np.cos(np.arccos(cosine[label]) + margin)
        entropies.append(np.log(np.exp(logits).sum()) - logits[label])
    return np.mean(entropies), np.mean(hits)


def finite_differences(function, x, epsilon=1e-6):
    slopes = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = epsilon
        slopes[index] = (function(x + step) - function(x - step)) / (2 * epsilon)
    return slopes


def loss_and_gradients(
    mesh, features, weights, labels=LABELS, sizes=CLASS_SIZES, key=KEY, **options
):
    def loss(features, weights):
        head, context = ClassHead(weights, sizes), StepContext(mesh, key)
        result = arcface_loss(features, head, labels, context, config_of(**options))
        return result.value, result

    function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, result), gradients = function(jnp.float32(features), jnp.float32(weights))
    return result, gradients


@pytest.fixture(scope="module", params=[(1, 0.0), (2, 0.0), (2, 0.4)], ids=str)
def dense(request):
    """Inputs, options, and the expected loss, accuracy and gradients."""
    subcentres, size_margin = request.param
    features, weights = make_inputs(subcentres=subcentres)
    value, accuracy = dense_loss(features, weights, size_margin)
    gradients = (
        finite_differences(lambda x: dense_loss(x, weights, size_margin)[0], features),
        finite_differences(lambda x: dense_loss(features, x, size_margin)[0], weights),
    )
    return features, weights, {"size_margin": size_margin}, value, accuracy, gradients


def check(result, gradients, value, accuracy, expected):
    assert float(result.value) == pytest.approx(value, rel=1e-5)
    assert float(result.count) == (LABELS >= 0).sum()
    hits, count = result.metrics["accuracy"]
    assert float(hits / count) == pytest.approx(accuracy)
    for gradient, slopes in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(gradients[0][2], 0.0)  # no identity
    np.testing.assert_array_equal(gradients[1][CLASSES:], 0.0)  # padding


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_equals_a_dense_numpy_version_on_any_mesh(dense, shape):
    features, weights, options, *expected = dense
    check(*loss_and_gradients(mesh_of(shape), features, weights, **options), *expected)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_of_the_batch_equal_the_dense_version(dense, chunk, monkeypatch):
    monkeypatch.setattr(arcface, "_MAX_LOGITS", 0)
    monkeypatch.setattr(arcface, "_MIN_CHUNK", chunk)
    features, weights, options, *expected = dense
    check(*loss_and_gradients(mesh_of((2, 1, 1)), features, weights, **options), *expected)


def test_a_share_that_rounds_to_all_classes_equals_the_dense_version(dense):
    features, weights, options, *expected = dense
    actual = loss_and_gradients(mesh_of((2, 2, 2)), features, weights, sampled=0.99, **options)
    check(*actual, *expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_the_straight_through_gradient_is_that_of_cross_entropy_alone(shape):
    # With unit vectors for weights, an example's features are its cosines.
    cosine = np.random.default_rng(0).uniform(-0.9, 0.9, (len(LABELS), ROWS))
    weights = np.eye(ROWS)[:, None]
    logits = SCALE * cosine[:, :CLASSES]
    expected = np.zeros_like(cosine)
    for i in np.flatnonzero(LABELS >= 0):
        true = LABELS[i]
        logits[i, true] = SCALE * np.cos(np.arccos(cosine[i, true]) + MARGIN)
        softmax = np.exp(logits[i]) / np.exp(logits[i]).sum()
        expected[i, :CLASSES] = SCALE * (softmax - np.eye(CLASSES)[true]) / (LABELS >= 0).sum()
    mesh = mesh_of(shape)
    straight = loss_and_gradients(mesh, cosine, weights, gradient="straight_through")
    np.testing.assert_allclose(straight[1][0], expected, rtol=1e-3, atol=1e-5)
    textbook = loss_and_gradients(mesh, cosine, weights)
    assert float(straight[0].value) == pytest.approx(float(textbook[0].value), rel=1e-6)
    assert np.abs(textbook[1][0] - expected).max() > 0.01


@pytest.mark.parametrize("angle", [0.0, np.pi])
def test_the_gradient_is_finite_at_the_poles(angle):
    features = np.array([[np.cos(angle), 0.0]])
    weights = np.eye(2)[:, None]
    _, gradients = loss_and_gradients(
        mesh_of((1, 1, 1)), features, weights, np.zeros(1, int), np.ones(2, int)
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_no_examples_no_rivals_and_padding_of_zeros_are_finite():
    features, weights = make_inputs()
    weights[1:] = 0.0
    for labels, value in ((np.full(8, -1), 0.0), (np.zeros(8, int), 0.0)):
        result, gradients = loss_and_gradients(
            mesh_of((2, 2, 2)), features, weights, labels, np.ones(1, int)
        )
        assert float(result.value) == value
        assert all(np.isfinite(gradient).all() for gradient in gradients)


class TestSampled:
    """PartialFC, the random choice of classes that examples are compared with."""

    @pytest.mark.parametrize("share, count", [(0.25, 16), (0.26, 17), (0.01, 8), (1.0, 64)])
    def test_the_batchs_classes_come_first_and_padding_last(self, share, count):
        class_ids = jnp.arange(64, 128)
        labels = jnp.array([-1, 3, 64, 99, 99, 100, 63, 128])
        for seed in range(20):
            rows = draw_classes(jax.random.key(seed), class_ids, labels, 110, share)
            kept = set(np.asarray(class_ids[rows]).tolist())
            assert len(kept) == len(rows) == count
            assert kept >= {64, 99, 100}
            assert share == 1.0 or max(kept) < 110

    def test_other_classes_have_equal_chances(self):
        keys = jax.random.split(KEY, 4000)
        draw = jax.vmap(lambda key: draw_classes(key, jnp.arange(32), jnp.array([5]), 32, 0.25))
        rates = np.bincount(np.asarray(draw(keys)).ravel(), minlength=32) / len(keys)
        assert rates[5] == 1.0
        np.testing.assert_allclose(np.delete(rates, 5), 7 / 31, atol=0.035)  # five sigma

    def test_the_sum_over_the_other_classes_is_a_share_of_the_whole(self):
        features, weights = make_inputs(rows=64, subcentres=1)
        mesh, sizes = mesh_of((1, 1, 1)), np.ones(64, int)

        def odds(key, sampled):
            loss = arcface_loss(
                jnp.float32(features[:1]),
                ClassHead(jnp.float32(weights), sizes),
                jnp.array([5]),
                StepContext(mesh, key),
                config_of(scale=1.0, sampled=sampled),
            )
            return jnp.expm1(loss.value)  # sum over the other classes / true class

        sampled = jax.jit(jax.vmap(lambda key: odds(key, 0.25)))(jax.random.split(KEY, 2000))
        assert len(np.unique(sampled)) > 1000
        assert float(sampled.mean()) == pytest.approx(float(odds(KEY, 1.0)) * 15 / 63, rel=0.02)

    def test_each_step_and_each_device_draws_its_own(self):
        features, weights = make_inputs(rows=128, subcentres=1)
        labels = np.array([9, 9, 70], np.int32)

        def compared(step):
            key = jax.random.fold_in(KEY, step)
            _, gradients = loss_and_gradients(
                mesh_of((2, 2, 2)),
                features[:3],
                weights,
                labels,
                np.ones(128, int),
                key,
                sampled=0.25,
            )
            return np.asarray(gradients[1]).any(axis=(1, 2)).reshape(8, 16)

        first, second = compared(0), compared(1)
        np.testing.assert_array_equal(first, compared(0))
        assert (first != second).any()
        for drawn in (first, second):
            np.testing.assert_array_equal(drawn.sum(axis=1), 4)
            assert drawn.reshape(-1)[[9, 70]].all()
            assert len(np.unique(drawn, axis=0)) > 4


def compile_head(shape, classes, batch, width):
    """Compiles loss and gradients; returns bytes per device and the largest collective."""
    mesh = mesh_of(shape)
    split, whole = NamedSharding(mesh, PartitionSpec(AXES)), replicated(mesh)
    examples = batch_sharding(mesh)

    def loss(features, weights, labels, key):
        head = ClassHead(weights, np.broadcast_to(1, classes))
        return arcface_loss(features, head, labels, StepContext(mesh, key), config_of()).value

    function = jax.jit(
        jax.value_and_grad(loss, (0, 1)),
        in_shardings=(examples, split, examples, whole),
        out_shardings=(whole, (examples, split)),
    )
    compiled = function.lower(
        jax.ShapeDtypeStruct((batch, width), jnp.float32),
        jax.ShapeDtypeStruct((classes, 1, width), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.eval_shape(lambda: KEY),
    ).compile()
    memory = compiled.memory_analysis()
    collectives = re.findall(
        r"= .*?\[([\d,]*)\].*? (?:all|reduce|collective)-\w+\(", compiled.as_text()
    )
    largest = max((math.prod(map(int, filter(None, d.split(",")))) for d in collectives), default=0)
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
        largest,
    )


def test_a_million_classes_on_eight_devices_take_an_eighth_of_the_memory_each():
    dense, _ = compile_head((1, 1, 1), 1_000_000, 64, 256)
    sharded, exchanged = compile_head((2, 2, 2), 1_000_000, 64, 256)
    # The weights, their gradient, and at most two copies.
    assert 2 * 1_000_000 * 256 * 4 < dense < 4 * 1_000_000 * 256 * 4
    assert sharded == pytest.approx(dense / 8, rel=0.01)
    assert 0 < exchanged <= 64 * 256


def test_large_batches_need_no_more_logits_at_once():
    small, _ = compile_head((2, 2, 2), 1_000_000, 128, 256)
    large, _ = compile_head((2, 2, 2), 1_000_000, 4096, 256)
    all_logits = 4096 * 1_000_000 // 8 * 4
    assert large - small < all_logits / 4
