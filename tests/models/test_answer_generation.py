"""VQA, compared with the reference: question states, decoder, ranking and loss."""

from unittest import mock

import jax
import numpy as np
import pytest

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.models import answer_generation
from capret_jax.models.answer_generation import Answers, FusedQuestions, answer_losses, rank_answers
from capret_jax.models.x2vlm import abstract_model, bind
from tests.conftest import DATA


@pytest.fixture(scope="module")
def vqa():
    return dict(np.load(DATA / "x2vlm_tiny_vqa.npz"))


@pytest.fixture(scope="module")
def outputs(vqa):
    """All values of the golden file, and those of the property tests, compiled once."""
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_vqa.th"))
    graphdef, _ = abstract_model(converted.config)
    answers, k = Answers(vqa["answer_ids"], vqa["answer_mask"]), int(vqa["k"])
    padded = Answers(
        np.pad(answers.ids, ((0, 0), (0, 2)), constant_values=7),
        np.pad(answers.mask, ((0, 0), (0, 2))),
    )
    rows = vqa["decoder_answer_rows"]
    of_question = np.repeat([0, 1], vqa["train_answers_per_question"])

    def rank_in_parts(*arguments):
        with mock.patch.object(answer_generation, "_SCORED_AT_ONCE", 5):
            return rank_answers(*arguments)

    def select(arrays, rows):
        return type(arrays)(*(array[rows] for array in arrays))

    @jax.jit
    def run(params, image, question_ids, question_mask):
        model = bind(graphdef, params)
        text = model.encode_text(question_ids, question_mask)
        states = model.fuse(text, question_mask, model.encode_image(image))
        question = FusedQuestions(states, question_mask)
        first = select(question, slice(1))
        return {
            "question_embeds": states,
            "decoder_logits": model.answer_logits(*select(answers, rows), *question),
            "ranking": rank_answers(model, answers, question, k),
            "all": rank_answers(model, answers, question, len(answers.ids)),
            "in_parts": rank_in_parts(model, answers, question, k),
            "padded": rank_answers(model, padded, question, k),
            "train_losses": answer_losses(
                model, select(answers, slice(3)), select(question, of_question)
            ),
            "four_at_once": answer_losses(model, select(answers, slice(4)), first),
            "one_by_one": [
                answer_losses(model, select(answers, slice(i, i + 1)), first) for i in range(4)
            ],
        }

    image = vqa["image"].transpose(0, 2, 3, 1)
    return run(converted.params, image, vqa["question_ids"], vqa["question_mask"])


@pytest.mark.parametrize("name", ["question_embeds", "decoder_logits"])
def test_states_equal_the_reference(name, outputs, vqa):
    np.testing.assert_allclose(outputs[name], vqa[name], rtol=0, atol=2e-5)


def test_ranking_equals_the_reference(outputs, vqa):
    ids, probabilities = outputs["ranking"]
    np.testing.assert_array_equal(ids, vqa["top_ids"])
    np.testing.assert_allclose(probabilities, vqa["top_probs"], rtol=1e-4)


def test_training_loss_equals_the_reference(outputs, vqa):
    loss = np.sum(outputs["train_losses"] * vqa["train_weights"]) / len(vqa["image"])
    np.testing.assert_allclose(loss, vqa["loss_train"], rtol=1e-4)


def test_answers_to_a_shared_question_are_scored_independently(outputs):
    np.testing.assert_allclose(
        outputs["four_at_once"], np.concatenate(outputs["one_by_one"]), rtol=1e-5
    )


def test_padding_does_not_change_a_ranking(outputs):
    for padded, plain in zip(outputs["padded"], outputs["ranking"], strict=True):
        np.testing.assert_allclose(padded, plain, rtol=1e-5)


def test_answers_are_scored_in_parts(outputs):
    """Three of five answers at once, to each of two questions."""
    for in_parts, plain in zip(outputs["in_parts"], outputs["ranking"], strict=True):
        np.testing.assert_allclose(in_parts, plain, rtol=1e-5)


def test_probabilities_of_the_candidates_sum_to_one(outputs):
    rows, probabilities = outputs["all"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.sort(rows, axis=1) == np.arange(8)).all()
    assert (np.diff(probabilities, axis=1) <= 0).all()
