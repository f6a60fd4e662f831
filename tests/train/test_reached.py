"""The parts of the model that each term trains, the VQA loss, and kinds of embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import DataConfig, EmbeddingConfig, LossConfig, MeshConfig
from capret_jax.config.loss import TERMS
from capret_jax.config.model import EMBEDDINGS
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.answer_generation import Answers, FusedQuestions, answer_losses
from capret_jax.models.x2vlm import abstract_model, bind, init_params, normalize_pixels
from capret_jax.train.forward import trained_parts
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.small_model import SMALL_MODEL
from tests.train.test_step import CLASSES, make_batch, make_setup

ANSWERING = dataclasses.replace(SMALL_MODEL, decoder_layers=1)


def vqa_batch():
    """A batch with answers of one and two tokens."""
    rng = np.random.default_rng(1)
    mask = (np.arange(5) < np.array([[3], [4]] * 8)).astype(np.int32)
    return dataclasses.replace(
        make_batch(0),
        question_ids=rng.integers(5, 120, (16, 8), np.int32),
        question_mask=np.ones((16, 8), np.int32),
        answer_ids=rng.integers(5, 120, (16, 5), np.int32) * mask,
        answer_mask=mask,
    )


def evaluate(config, loss, batch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = make_params(config, CLASSES, jax.random.key(0))
    source = "oracle" if config.embedding == "text" else "none"
    embedding = EmbeddingConfig(config.embedding, source)
    data = DataConfig(teacher="teacher.npy" if loss.distill else "")
    setup = make_setup(mesh, config, loss, embedding=embedding, data=data)
    compute = jax.value_and_grad(make_loss(setup), has_aux=True)
    (_, details), gradients = jax.jit(compute)(params, batch, jax.random.key(1))
    reached = {
        part
        for part, tree in gradients["model"].items()
        if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
    }
    return details.metrics, reached, params["model"]


def only(term: str) -> LossConfig:
    return LossConfig(**{**dict.fromkeys(TERMS, 0.0), term: 1.0}, matching_group=2)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_arcface_trains_what_items_are_compared_by(kind):
    config = dataclasses.replace(SMALL_MODEL, embedding=kind)
    _, reached, _ = evaluate(config, only("arcface"), make_batch(0))
    assert reached == trained_parts(only("arcface"), kind)


@pytest.mark.parametrize("term", ["itc", "mlm", "box_l1", "supcon", "distill"])
def test_other_terms_train_their_parts(term):
    batch = make_batch(0)
    if term == "distill":
        batch = dataclasses.replace(batch, teacher=np.eye(16, 20, dtype=np.float32))
    _, reached, _ = evaluate(SMALL_MODEL, only(term), batch)
    assert reached == trained_parts(only(term))


def test_the_fusion_embedding_is_that_of_the_matched_pair():
    """ArcFace reuses the fused states of the matching loss."""
    config = dataclasses.replace(SMALL_MODEL, embedding="fusion")
    both = dataclasses.replace(only("arcface"), itm=1.0)
    alone, _, _ = evaluate(config, only("arcface"), make_batch(0))
    together, _, _ = evaluate(config, both, make_batch(0))
    assert together["loss/arcface"][0] == pytest.approx(float(alone["loss/arcface"][0]), rel=1e-4)


def test_answers_are_learnt_token_by_token():
    batch = vqa_batch()
    metrics, reached, params = evaluate(ANSWERING, only("vqa"), batch)
    assert reached == trained_parts(only("vqa"))

    @jax.jit
    def losses(params):
        model = bind(abstract_model(ANSWERING)[0], params)
        image = model.encode_image(normalize_pixels(jnp.asarray(batch.image)))
        text = model.encode_text(batch.question_ids, batch.question_mask)
        question = model.fuse(text, batch.question_mask, image)
        answers = Answers(batch.answer_ids, batch.answer_mask)
        return answer_losses(model, answers, FusedQuestions(question, batch.question_mask))

    expected = losses(params).sum() / batch.answer_mask[:, 1:].sum()
    assert metrics["loss/vqa"][0] == pytest.approx(float(expected), rel=1e-4)


def test_a_causally_masked_token_does_not_depend_on_later_tokens():
    def loss(causal, last):
        batch = make_batch(0)
        ids = batch.masked_ids.copy()
        ids[:, -1] = last
        config = dataclasses.replace(only("mlm"), mlm_causal=causal)
        metrics, _, _ = evaluate(SMALL_MODEL, config, dataclasses.replace(batch, masked_ids=ids))
        return float(metrics["loss/mlm"][0])

    assert loss(True, 7) == loss(True, 99)
    assert loss(False, 7) != loss(False, 99)


def test_embeddings_are_made_of_their_modalities():
    params = init_params(SMALL_MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, SMALL_MODEL.vision_width)).astype(np.float32)
    text = rng.normal(size=(2, 4, SMALL_MODEL.text_width)).astype(np.float32)
    mask = np.ones((2, 4), np.int32)

    def features(kind, **missing):
        graphdef, _ = abstract_model(dataclasses.replace(SMALL_MODEL, embedding=kind))
        arguments = {"image": image, "image_mask": None, "text": text, "token_mask": mask}
        return np.asarray(bind(graphdef, params).item_features(**arguments | missing))

    alone, words, joined = (features(kind) for kind in ("image", "text", "joined"))
    np.testing.assert_allclose(joined, np.concatenate([alone, words], 1) / np.sqrt(2), rtol=1e-5)
    assert features("image", text=None).shape == (2, SMALL_MODEL.embed_dim)
    for kind in ("text", "joined"):
        with pytest.raises(InputError, match=f"the {kind} embedding reads captions"):
            features(kind, text=None)
