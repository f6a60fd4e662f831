"""Inserted [MASK] tokens: positions, visibility, and the loss of a captioner trained with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.masking import insert_masks
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.bert import causal_mask
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels
from capret_jax.train.inserted_masks import inserted_masks, insertion_mask, shared_positions
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.small_model import SMALL_MODEL
from tests.train.test_reached import only
from tests.train.test_step import CLASSES, make_batch, make_setup

# [CLS] MASK a picture MASK [SEP] and padding, for a text of 5 tokens, of which 2 are predicted.
INSERTED = np.array([[0, 1, 0, 0, 1, 0, 0]], bool)


def test_used_positions_are_marked():
    labels = np.array([[7, 8, IGNORED_LABEL], [9, IGNORED_LABEL, IGNORED_LABEL]])
    positions = np.array([[1, 4, 0], [0, 0, 0]])
    expected = np.concatenate([INSERTED, [[1, 0, 0, 0, 0, 0, 0]]]).astype(bool)
    np.testing.assert_array_equal(inserted_masks(positions, labels, 7), expected)


def test_a_mask_shares_the_position_of_its_token():
    positions = shared_positions(INSERTED, 5)
    assert positions.dtype == jnp.int32
    assert positions.tolist() == [[0, 1, 1, 2, 3, 3, 4]]
    # Padding has no position beyond those of the text.
    assert shared_positions(INSERTED, 4).tolist() == [[0, 1, 1, 2, 3, 3, 3]]
    assert shared_positions(np.zeros_like(INSERTED), 5).tolist() == [[0, 1, 2, 3, 4, 4, 4]]


def test_no_other_token_sees_a_mask():
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 0, 1, 0],
        [1, 0, 1, 1, 0, 1, 1],
    ]
    assert insertion_mask(INSERTED)[0].astype(int).tolist() == expected


def inserted_batch(mask_id: int = 4):
    """A batch whose texts of 8 tokens have two, one or no predicted ones."""
    batch, most = make_batch(0), 3
    ids = np.zeros((16, 8 + most), np.int32)
    positions = np.zeros((16, most), np.int32)
    labels = np.full((16, most), IGNORED_LABEL, np.int32)
    chosen = [np.array(([2, 5], [7], [])[row % 3], np.int32) for row in range(16)]
    for row, places in enumerate(chosen):
        text, at = insert_masks(batch.token_ids[row], places, mask_id)
        ids[row, : len(text)], positions[row, : len(at)] = text, at
        labels[row, : len(at)] = batch.token_ids[row, places]
    masked = {"masked_ids": ids, "masked_positions": positions, "masked_labels": labels}
    return dataclasses.replace(batch, **masked), chosen


def test_the_loss_is_that_of_what_a_captioner_sees():
    """Compares with the logits of [MASK] behind each text's beginning, one at a time."""
    (batch, chosen), smoothing = inserted_batch(), 0.9
    settings = {"mlm_causal": True, "mlm_insert": True, "mlm_max": 3, "mlm_smoothing": smoothing}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    setup = make_setup(mesh, SMALL_MODEL, dataclasses.replace(only("mlm"), **settings))
    params = make_params(SMALL_MODEL, CLASSES, jax.random.key(0))
    metrics = jax.jit(make_loss(setup))(params, batch, jax.random.key(1))[1].metrics

    @jax.jit
    def all_logits(params):
        """(8, B, 8, vocab): [MASK] in the place of token p and of all after it."""
        model = bind(abstract_model(SMALL_MODEL)[0], params)
        image = model.encode_image(normalize_pixels(jnp.asarray(batch.image)))

        def logits(place):
            ids = jnp.where(jnp.arange(8) < place, batch.token_ids, 4)
            mask = causal_mask(jnp.ones_like(ids))
            return model.masked_lm_logits(model.fuse(model.encode_text(ids, mask), mask, image))

        return jax.lax.map(logits, jnp.arange(8))

    logits = np.asarray(all_logits(params["model"]), np.float64)
    losses = []
    for row, places in enumerate(chosen):
        for place in places:
            scores = logits[place, row, place]
            log_probs = scores - np.log(np.exp(scores).sum())
            target = np.full(len(scores), smoothing / (len(scores) - 2))
            target[batch.masked_ids[0, 0]] = 0
            target[batch.token_ids[row, place]] = 1 - smoothing
            used = target > 0
            losses.append((target[used] * (np.log(target[used]) - log_probs[used])).sum())
    assert metrics["loss/mlm"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics["mlm/accuracy"][1]) == len(losses)
