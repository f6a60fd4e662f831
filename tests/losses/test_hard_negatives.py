"""Hard negatives: their distribution, and mining on one and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.losses import StepContext
from capret_jax.losses.contrastive import ContrastiveFeatures
from capret_jax.losses.hard_negatives import draw_negatives, mine_hard_negatives
from capret_jax.losses.pairs import PairLabels

INVALID = 9  # a row of the mined batch


def test_draws_follow_the_softmax_and_never_a_positive():
    similarity = jnp.tile(jnp.array([0.0, 1.0, 2.0, 3.0]), (4, 1))
    positives = jnp.eye(4, dtype=bool).at[0, 3].set(True)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(similarity, positives, key)[0]))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))
    weights = np.exp([0.0, 1.0, 2.0, 3.0]) / np.exp([0.0, 1.0, 2.0, 3.0]).sum() + 1e-5
    for row in range(4):
        allowed = np.where(positives[row], 0, weights)
        observed = np.bincount(drawn[:, row], minlength=4) / len(drawn)
        np.testing.assert_allclose(observed, allowed / allowed.sum(), atol=0.015)


def test_without_any_candidate_the_row_is_invalid():
    drawn, valid = draw_negatives(jnp.zeros((3, 3)), jnp.ones((3, 3), bool), jax.random.key(0))
    np.testing.assert_array_equal(drawn, [0, 1, 2])
    assert not valid.any()


@pytest.fixture(scope="module")
def mined():
    """The same batch of 32 mined on one and on eight devices, in groups of 4."""
    rng = np.random.default_rng(0)
    rows = np.arange(32)
    image, text = (rng.normal(size=(32, 3)).astype(np.float32) for _ in range(2))
    # The states hold the row number, to identify the drawn rows.
    states = np.broadcast_to(rows[:, None, None], (32, 2, 1)).astype(np.float32)
    mask = np.broadcast_to(rows[:, None], (32, 2))
    valid = rows != INVALID
    features = ContrastiveFeatures(image, text, jnp.float32(0.5))
    labels = PairLabels(rows // 2 % 16, rows, valid)
    trees = (states, None), (states + 100, mask)

    def mine_on(devices, group=4):
        mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
        context = StepContext(mesh, jax.random.key(3))
        run = jax.jit(lambda *args: mine_hard_negatives(context, *args, group_size=group))
        return jax.tree.map(np.asarray, run(features, labels, trees))

    return mine_on(1), mine_on(8), mine_on(2, 0)


def test_mining_does_not_depend_on_the_number_of_devices(mined):
    jax.tree.map(np.testing.assert_array_equal, *mined[:2])


def test_without_groups_negatives_come_from_the_whole_device(mined):
    ((images, _), _), ((texts, _), _) = mined[2]
    rows = np.arange(32)
    for source in (images[:, 0, 0], texts[:, 0, 0] - 100):
        np.testing.assert_array_equal(source // 16, rows // 16)  # two devices
        assert (source // 4 != rows // 4).any()
        assert (source // 2 != rows // 2).all()


def test_negatives_come_from_the_group_and_from_other_identities(mined):
    ((images, nothing), image_valid), ((texts, masks), text_valid) = mined[0]
    rows = np.arange(32)
    assert nothing is None
    for source in (images[:, 0, 0], texts[:, 0, 0] - 100, masks[:, 0]):
        np.testing.assert_array_equal(source // 4, rows // 4)
        assert (source // 2 != rows // 2).all()
        assert INVALID not in source
    for valid in (image_valid, text_valid):
        np.testing.assert_array_equal(valid, rows != INVALID)
