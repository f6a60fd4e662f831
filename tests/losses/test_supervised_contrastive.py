"""The loss between images: closed forms, its definition in NumPy, and any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.losses.supervised_contrastive import supervised_contrastive_loss

B, E, TEMPERATURE = 24, 5, 0.2
REAL = np.ones(4, bool)


def loss_on(devices: int):
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    return jax.jit(
        lambda *arrays: supervised_contrastive_loss(*arrays, mesh, temperature=TEMPERATURE)  # type: ignore
    )


@pytest.fixture(scope="module")
def batch():
    """Embeddings with repeated identities, some without identity, and padding."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(B, E)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, rng.integers(-1, 8, B), rng.random(B) < 0.8


def by_definition(embeddings, identity, valid):
    losses, hits = [], []
    for i in np.flatnonzero(valid):
        others = [j for j in np.flatnonzero(valid) if j != i]
        positives = [j for j in others if identity[j] == identity[i] != -1]
        if positives:
            logits = {j: embeddings[i] @ embeddings[j] / TEMPERATURE for j in others}
            total = np.log(sum(np.exp(logit) for logit in logits.values()))
            losses.append(np.mean([total - logits[j] for j in positives]))
            hits.append(max(logits, key=logits.get) in positives)
    return np.mean(losses), len(losses), sum(hits)


@pytest.mark.parametrize("devices", [1, 8])
def test_equals_its_definition_on_any_mesh(batch, devices):
    loss = loss_on(devices)(*batch)
    value, count, hits = by_definition(*batch)
    assert float(loss.value) == pytest.approx(value, rel=1e-5)
    assert float(loss.count) == count > 0
    assert float(loss.metrics["accuracy"][0]) == hits


def test_gradients_are_the_same_on_any_mesh(batch):
    embeddings, *labels = batch
    one, eight = (
        jax.jit(jax.grad(lambda x, loss=loss_on(devices): loss(x, *labels).value))(embeddings)
        for devices in (1, 8)
    )
    np.testing.assert_allclose(one, eight, atol=1e-6)
    assert np.abs(one).max() > 0


def test_equal_embeddings_give_the_logarithm_of_the_other_examples():
    loss = loss_on(1)(jnp.tile(jnp.eye(1, E), (4, 1)), np.array([0, 0, 1, 1]), REAL)
    assert float(loss.value) == pytest.approx(np.log(3), rel=1e-6)


def test_without_a_positive_nothing_counts():
    loss = loss_on(1)(jnp.eye(4, E), np.array([-1, -1, 0, 1]), REAL)
    assert float(loss.value) == float(loss.count) == 0
