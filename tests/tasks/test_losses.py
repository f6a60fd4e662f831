"""The losses of VQA and NLVR2 in a training step, against the model called example by example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import ExperimentConfig, LossConfig, MeshConfig, TaskConfig
from capret_jax.config.loss import TERMS
from capret_jax.data.batch import Batch
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.answer_generation import Answers, FusedQuestions, answer_losses
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels
from capret_jax.train.forward import trained_parts
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.tasks.conftest import LOSSES, MODELS

B, T, SIZE = 4, 6, 32


def make_batch(pictures: int, **arrays) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(0, 256, (B * pictures, SIZE, SIZE, 3), np.uint8),
        token_ids=rng.integers(5, 120, (B, T), np.int32),
        token_mask=(np.arange(T) < np.array([[6], [5], [4], [6]])).astype(np.int32),
        identity=np.full(B, -1, np.int32),
        caption_id=np.arange(B, dtype=np.int32),
        box=np.full((B, 4), 0.5, np.float32),
        valid=np.ones(B, bool),
        **arrays,
    )


def evaluate(name: str, term: str, batch: Batch, **further):
    """Returns the term's value, the parts with a gradient, and the model."""
    weights = dict.fromkeys(TERMS, 0.0) | {term: 1.0}
    config = ExperimentConfig(
        batch_size=B,
        task=TaskConfig(name, ("train",), "test", "images", **further),
        model=MODELS[name],
        loss=LossConfig(**weights, **LOSSES.get(name, {})),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = make_params(config.model, 1, jax.random.key(0))
    setup = StepSetup.create(config, mesh, np.ones(1, int))
    compute = jax.jit(jax.value_and_grad(make_loss(setup), has_aux=True))
    (value, _), gradients = compute(params, batch, jax.random.key(1))
    reached = {
        part
        for part, tree in gradients["model"].items()
        if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
    }
    assert reached == trained_parts(config.loss)
    return float(value), bind(abstract_model(config.model)[0], params["model"])


def test_a_sentence_is_judged_by_both_of_its_pictures():
    labels = np.array([1, 0, 0, 1], np.int32)
    batch = make_batch(2, pair_label=labels)
    value, model = evaluate("nlvr2", "nlvr", batch)
    images = model.encode_image(normalize_pixels(jnp.asarray(batch.image)))
    texts = model.encode_text(batch.token_ids, batch.token_mask)
    total = 0.0
    for b in range(B):
        mask = batch.token_mask[b : b + 1]
        left, right = (
            model.fuse(texts[b : b + 1], mask, images[i : i + 1])[:, 0] for i in (2 * b, 2 * b + 1)
        )
        logits = model.nlvr_head(jnp.concatenate([left, right], axis=-1))[0]
        total -= float(jax.nn.log_softmax(logits)[labels[b]])
    assert value == pytest.approx(total / B, rel=1e-4)


def test_answers_are_weighted_and_summed_over_their_tokens():
    rng = np.random.default_rng(1)
    lengths = np.array([3, 4, 0, 5, 3, 3, 4, 0, 0, 3, 5, 0])  # three to each question
    mask = (np.arange(5) < lengths[:, None]).astype(np.int32)
    weights = np.array([0.7, 0.3, 0, 0.5, 0.3, 0.2, 1.0, 0, 0, 0.6, 0.4, 0], np.float32)
    batch = make_batch(1)
    batch = dataclasses.replace(
        batch,
        question_ids=batch.token_ids,
        question_mask=batch.token_mask,
        answer_ids=rng.integers(5, 120, (12, 5), np.int32) * mask,
        answer_mask=mask,
        answer_weight=weights,
    )
    value, model = evaluate("vqa", "vqa", batch, answers="answer_list.json")
    images = model.encode_image(normalize_pixels(jnp.asarray(batch.image)))
    texts = model.encode_text(batch.question_ids, batch.question_mask)
    fused = model.fuse(texts, batch.question_mask, images)
    real = np.flatnonzero(weights)
    # Each answer to a question of its own.
    questions = FusedQuestions(fused[real // 3], batch.question_mask[real // 3])
    sums = answer_losses(model, Answers(batch.answer_ids[real], mask[real]), questions)
    assert value == pytest.approx(float((weights[real] * sums).sum()) / B, rel=1e-4)
