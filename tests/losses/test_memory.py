"""The memory of earlier batches, alone and in the loss between images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import ExperimentConfig, LossConfig, MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.losses.memory import Memory
from capret_jax.losses.supervised_contrastive import supervised_contrastive_loss

B, E, M, TEMPERATURE = 8, 5, 16, 0.2


def batch(seed):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, E)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, rng.integers(-1, 3, B), rng.random(B) < 0.8


def test_the_newest_examples_are_kept():
    memory = Memory.empty(M, E)
    for seed in range(3):
        memory = memory.pushed(*batch(seed))
    for name, columns in zip(
        ("embeddings", "identity", "filled"), zip(batch(2), batch(1), strict=True), strict=True
    ):
        np.testing.assert_array_equal(getattr(memory, name), np.concatenate(columns))
    gradient = jax.grad(lambda x: Memory.empty(M, E).pushed(x, *batch(0)[1:]).embeddings.sum())
    np.testing.assert_array_equal(gradient(batch(0)[0]), 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_loss_compares_with_filled_places_alone(devices):
    """As if the memory's examples were columns of the batch, but no rows."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    memory = Memory.empty(M, E).pushed(*batch(1))
    loss = supervised_contrastive_loss(*batch(0), mesh, temperature=TEMPERATURE, memory=memory)
    embeddings, identity, valid = (
        np.concatenate(pair) for pair in zip(batch(0), batch(1), strict=True)
    )
    losses = []
    for i in np.flatnonzero(valid[:B]):
        others = [j for j in np.flatnonzero(valid) if j != i]
        logits = embeddings[others] @ embeddings[i] / TEMPERATURE
        same = (identity[others] == identity[i]) & (identity[i] != -1)
        if same.any():
            losses.append(np.log(np.exp(logits).sum()) - logits[same].mean())
    assert float(loss.value) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(loss.count) == len(losses)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"supcon_memory": 64}, "supcon_memory=64 is of the loss between images"),
        ({"supcon": 1.0, "supcon_memory": 65}, "supcon_memory=65 is no multiple of the 64 items"),
    ],
)
def test_a_memory_that_cannot_work_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ExperimentConfig(loss=LossConfig(**settings))


def test_an_empty_memory_changes_nothing():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    plain, with_memory = (
        supervised_contrastive_loss(
            *map(jnp.asarray, batch(0)), mesh, temperature=TEMPERATURE, memory=memory
        )
        for memory in (None, Memory.empty(M, E))
    )
    assert float(plain.value) == pytest.approx(float(with_memory.value))
