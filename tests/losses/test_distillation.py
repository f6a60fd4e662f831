"""Distillation of similarities: closed forms, its definition in NumPy, and any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import DataConfig, ExperimentConfig, LossConfig, MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.losses.distillation import distillation_loss

B, TEMPERATURE = 24, 0.2


def loss_on(devices: int):
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    return jax.jit(lambda *arrays: distillation_loss(*arrays, mesh, TEMPERATURE))  # type: ignore


def normalise(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def batch():
    """Embeddings of student and teacher, of other widths, and padding."""
    rng = np.random.default_rng(0)
    student = normalise(rng.normal(size=(B, 5))).astype(np.float32)
    return student, rng.normal(size=(B, 9)).astype(np.float32), rng.random(B) < 0.8


def by_definition(student, teacher, valid):
    teacher, rows = normalise(teacher), np.flatnonzero(valid)
    divergences, agreed = [], 0
    for i in rows:
        others = [j for j in rows if j != i]
        p, q = (np.exp(x[others] @ x[i] / TEMPERATURE) for x in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        divergences.append((p * np.log(p / q)).sum())
        agreed += p.argmax() == q.argmax()
    return np.mean(divergences), len(rows), agreed


@pytest.mark.parametrize("devices", [1, 8])
def test_equals_its_definition_on_any_mesh(batch, devices):
    loss = loss_on(devices)(*batch)
    value, count, agreed = by_definition(*batch)
    assert float(loss.value) == pytest.approx(value, rel=1e-4)
    assert float(loss.count) == count > 0
    assert [float(x) for x in loss.metrics["agreement"]] == [agreed, count]


def test_gradients_are_the_same_on_any_mesh(batch):
    student, *rest = batch
    one, eight = (
        jax.jit(jax.grad(lambda x, loss=loss_on(devices): loss(x, *rest).value))(student)
        for devices in (1, 8)
    )
    np.testing.assert_allclose(one, eight, atol=1e-6)
    assert np.abs(one).max() > 0


def test_nothing_is_to_learn_from_oneself(batch):
    student, _, valid = batch
    value, gradient = jax.value_and_grad(lambda x: loss_on(1)(x, 3 * student, valid).value)(student)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_without_a_second_example_nothing_counts(batch):
    loss = loss_on(1)(*batch[:2], jnp.arange(B) == 0)
    assert float(loss.value) == float(loss.count) == 0


def test_a_teacher_and_distillation_need_each_other():
    with pytest.raises(InputError, match="config.data.teacher='' is for config.loss.distill"):
        ExperimentConfig(loss=LossConfig(distill=1.0))
    with pytest.raises(InputError, match="config.data.teacher='t.npy' is for config.loss.distill"):
        ExperimentConfig(data=DataConfig(teacher="t.npy"))
    with pytest.raises(InputError, match="distill_temperature=0.0 is not positive"):
        LossConfig(distill_temperature=0.0)
