"""ITC against the reference, closed forms and a dense version, in tiles and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from capret_jax.losses import contrastive
from capret_jax.losses.contrastive import SIGMOID_BIAS, ContrastiveFeatures
from capret_jax.losses.pairs import PairLabels, positive_pairs

ONE_DEVICE = make_mesh(MeshConfig(), jax.devices()[:1])
EVERY = np.ones(9, bool)
# Jitted, since eager execution compiles a hundred operations one by one.
contrastive_loss = jax.jit(contrastive.contrastive_loss, static_argnames=("mesh", "kind", "chunk"))


@pytest.mark.parametrize("name, ids", [("loss_itc", False), ("loss_itc_idx", True)])
def test_equals_the_reference(golden, golden_state, name, ids):
    identity = jnp.array(golden["itc_idx"]) if ids else jnp.full(3, -1)
    features = ContrastiveFeatures(golden["image_feat"], golden["text_feat"], golden_state["temp"])
    labels = PairLabels(identity, jnp.arange(3), EVERY[:3])
    loss = contrastive_loss(features, labels, ONE_DEVICE)
    assert float(loss.value) == pytest.approx(float(golden[name]), rel=1e-4)


def test_identical_features_give_the_logarithm_of_the_batch():
    features, rows = jnp.tile(jnp.array([[1.0, 0.0]]), (5, 1)), jnp.arange(5)
    inputs = ContrastiveFeatures(features, features, jnp.float32(0.07))
    labels = PairLabels(jnp.full(5, -1), rows, EVERY[:5])
    loss = contrastive_loss(inputs, labels, ONE_DEVICE)
    assert float(loss.value) == pytest.approx(np.log(5), rel=1e-6)
    assert float(loss.count) == 5


def test_positives_are_identities_and_captions_but_not_the_missing_identity():
    labels = PairLabels(jnp.array([4, 4, -1, -1, 7]), jnp.array([1, 2, 3, 4, 2]), EVERY[:5])
    pairs = positive_pairs(labels, labels)
    expected = np.eye(5, dtype=bool)
    expected[0, 1] = expected[1, 0] = True  # same identity
    expected[1, 4] = expected[4, 1] = True  # same caption
    np.testing.assert_array_equal(pairs, expected)


def test_a_positive_of_the_same_caption_is_not_pushed_away():
    def value(text):
        features = ContrastiveFeatures(jnp.eye(2), text, jnp.float32(1.0))
        labels = PairLabels(jnp.array([-1, -1]), jnp.array([3, 3]), EVERY[:2])
        return contrastive_loss(features, labels, ONE_DEVICE).value

    np.testing.assert_allclose(jax.grad(value)(jnp.ones((2, 2)) / np.sqrt(2)), 0, atol=1e-7)


B, E = 24, 5


@pytest.fixture(scope="module")
def batch():
    """Features, a temperature, and labels with repeated identities, captions and invalid rows."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, B, E)).astype(np.float32)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    identity = rng.integers(-1, 8, B)
    caption = rng.integers(0, 30, B)
    features = ContrastiveFeatures(image, text, np.float32(0.2))
    return features, PairLabels(identity, caption, rng.random(B) < 0.8)


def dense(features, labels, kind):
    """The loss by its definition, on (B, B) matrices without the invalid rows."""
    (image, text, temperature), (identity, caption, valid) = features, labels
    kept = np.flatnonzero(valid)
    image, text, identity, caption = (x[kept] for x in (image, text, identity, caption))
    same = (identity[:, None] == identity) & (identity[:, None] != -1)
    positives = same | (caption[:, None] == caption) | np.eye(len(kept), dtype=bool)
    logits = image @ text.T / temperature
    if kind == "sigmoid":
        sign = np.where(positives, 1.0, -1.0)
        return jnp.log1p(jnp.exp(-sign * (logits + SIGMOID_BIAS))).sum() / len(kept)
    targets = positives / positives.sum(axis=1, keepdims=True)
    rows = (targets * jax.nn.log_softmax(logits, axis=1)).sum()
    return -(rows + (targets.T * jax.nn.log_softmax(logits, axis=0)).sum()) / len(kept) / 2


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "mesh, chunk", [((1, 1, 1), 7), ((1, 1, 1), 100), ((2, 2, 2), 7), ((8, 1, 1), 24)]
)
def test_tiles_equal_the_dense_loss_and_its_gradients(batch, mesh, chunk, kind):
    mesh = make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])
    features, labels = batch

    def tiled(features):
        return contrastive_loss(features, labels, mesh, kind=kind, chunk=chunk).value

    ours = jax.jit(jax.value_and_grad(tiled), in_shardings=replicated(mesh))(features)
    theirs = jax.value_and_grad(dense)(features, labels, kind)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_accuracy_is_the_share_of_images_whose_best_text_is_a_positive(batch):
    (image, text, _), (identity, caption, valid) = batch
    kept = np.flatnonzero(valid)
    best = kept[(image[kept] @ text[kept].T).argmax(axis=1)]
    right = (identity[kept] == identity[best]) & (identity[kept] != -1)
    right |= (caption[kept] == caption[best]) | (kept == best)
    for chunk in (5, 100):
        loss = contrastive_loss(*batch, ONE_DEVICE, chunk=chunk)
        assert float(loss.metrics["accuracy"][0]) == right.sum() > 0
        assert float(loss.count) == len(kept)


def test_memory_per_device_does_not_grow_with_the_devices():
    rows, width, chunk = 256, 8, 512

    def scratch(devices):
        mesh = make_mesh(MeshConfig(devices), jax.devices()[:devices])

        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

        count = rows * devices
        ids = array(count, dtype=jnp.int32)
        labels = PairLabels(ids, ids, array(count, dtype=bool))

        def value(image, text, labels):
            features = ContrastiveFeatures(image, text, jnp.float32(0.1))
            return contrastive_loss(features, labels, mesh, chunk=chunk).value

        function = jax.jit(jax.grad(value, argnums=(0, 1)))
        compiled = function.lower(array(count, width), array(count, width), labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    two, eight = scratch(2), scratch(8)
    # A dense (rows, columns) matrix alone would grow by 256 x 1536 x 4 bytes.
    assert eight - two < 256 * 1536 * 4 / 2


def test_the_released_all_gather_trains_encoders_with_a_fraction_of_the_gradient():
    """W processes that differentiate their own features alone, and average their gradients."""
    processes, batch, width = 4, 12, 6
    keys = jax.random.split(jax.random.key(0), 4)
    images, texts = (jax.random.normal(key, (batch, width)) for key in keys[:2])
    weights = [jax.random.normal(key, (width, E)) / 3 for key in keys[2:]]

    def encode(weights, inputs):
        features = inputs @ weights
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)

    def loss(parameters, process=None):
        image_weights, text_weights, temperature = parameters
        sides = encode(image_weights, images), encode(text_weights, texts)
        if process is not None:
            own = jnp.arange(batch) // (batch // processes) == process
            sides = [jnp.where(own[:, None], x, jax.lax.stop_gradient(x)) for x in sides]
        labels = PairLabels(jnp.full(batch, -1), jnp.arange(batch), np.ones(batch, bool))
        features = ContrastiveFeatures(*sides, temperature)
        return contrastive_loss(features, labels, ONE_DEVICE).value

    parameters = (*weights, jnp.float32(0.3))
    ours = jax.grad(loss)(parameters)
    each = [jax.grad(loss)(parameters, process) for process in range(processes)]
    theirs = jax.tree.map(lambda *x: sum(x) / processes, *each)
    for whole, released in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(released, whole / processes, rtol=1e-4, atol=1e-6)
    # Every process has the whole gradient of the temperature.
    np.testing.assert_allclose(theirs[2], ours[2], rtol=1e-4)
