"""VQA answerer: batched equals single, and answers equal those of the model's functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.captioning.vqa_answerer import VqaQuery
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS
from capret_jax.models.answer_generation import Answers, FusedQuestions, rank_answers, write_answers
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels
from tests.captioning.conftest import ANSWERING


@pytest.fixture(scope="module")
def states(answerer, images):
    return answerer.encode_images(images)


def test_batched_answers_equal_single_answers_in_order(answerer, states):
    queries = [
        VqaQuery(states[i], SYNTHETIC_QUESTIONS[i % 3].text, SYNTHETIC_QUESTIONS[i % 3].answers)
        for i in range(len(states))
    ]
    together = answerer(queries)
    for query, answer in zip(queries, together, strict=True):
        (alone,) = answerer([query])
        assert answer.text == alone.text
        assert answer.text in query.answers
        assert answer.probability == pytest.approx(alone.probability, rel=1e-3)


@pytest.fixture(scope="module")
def bound():
    """Compiles a function of the model and arrays, as a function of parameters and arrays."""
    graphdef, _ = abstract_model(ANSWERING)

    def compile(function):
        return jax.jit(lambda params, *arrays: function(bind(graphdef, params), *arrays))

    return compile


def fuse(model, images, ids, mask):
    return model.fuse(
        model.encode_text(ids, mask), mask, model.encode_image(normalize_pixels(images))
    )


def test_probabilities_equal_those_of_rank_answers(
    answerer, answering_params, encode, images, states, bound
):
    question = SYNTHETIC_QUESTIONS[1]
    table = answerer.answer_probabilities(states[:3], question.text, question.answers)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    ids, mask = (np.repeat(x[None], 3, 0) for x in encode(question.text))
    answers = [encode(answer) for answer in question.answers]
    listed = [np.stack(column) for column in zip(*answers, strict=True)]
    rank = bound(
        lambda m, *x: rank_answers(m, Answers(*listed), FusedQuestions(fuse(m, *x), x[-1]), 3)
    )
    rows, probabilities = rank(answering_params, images[:3], ids, mask)
    expected = np.zeros((3, 3))
    np.put_along_axis(expected, np.asarray(rows), np.asarray(probabilities), axis=1)
    np.testing.assert_allclose(table, expected, atol=2e-3)  # states are float16


def test_at_most_128_answers_are_scored_as_a_whole(answerer, states):
    """X2-VLM's k_test; a shorter list is scored completely."""
    words = [word for word in answerer._tokenizer.get_vocab() if word.isalpha()][:12]
    pairs = tuple(f"{first} {second}" for first in words for second in words)
    for listed in (pairs, pairs[:100]):
        table = answerer.answer_probabilities(states[:2], "what is it", listed)
        assert ((table > 1e-9).sum(axis=1) == min(len(listed), 128)).all()
        np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)


def test_questions_have_50_words_and_answers_are_raw(answerer):
    """Neither is cut at the captions' 16 tokens."""
    assert answerer._question_tokens(["what is it"]).ids.shape == (1, 16)
    tokens = answerer._question_tokens(["what? " * 60, "what is it"])
    assert tokens.mask.sum(axis=1).tolist() == [52, 5] and tokens.ids.shape[1] == 64
    answer = answerer._encode_answer("Window-pane")
    text = answerer._tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert text == "window - pane"


def test_written_answer_is_the_likeliest_of_all_texts(answering_params, images, bound):
    """Compares with the decoder's log-probabilities of every text of two tokens."""
    mask, vocabulary = np.ones((2, 4), np.int32), ANSWERING.vocab_size
    first, end = 2, 3
    # As many beams as tokens make the search exhaustive.
    config = BeamConfig(beams=vocabulary, min_tokens=1, max_tokens=2, blocked_ngram=0)

    def both(model, images, ids, mask):
        question = fuse(model, images, ids, mask)
        pairs = jnp.stack([jnp.full(vocabulary, first), jnp.arange(vocabulary)], axis=1)
        pairs = jnp.tile(pairs, (2, 1))
        logits = model.answer_logits(pairs, jnp.ones_like(pairs), question, mask)
        written = write_answers(model, FusedQuestions(question, mask), first, end, config)
        return *written, jax.nn.log_softmax(logits).reshape(2, vocabulary, 2, vocabulary)

    ids = np.full((2, 4), 7, np.int32)
    found, scores, steps = jax.device_get(bound(both)(answering_params, images[:2], ids, mask))
    for text, score, step in zip(found, scores, steps, strict=True):
        totals = step[0, 0][:, None] + step[:, 1]
        totals[end] = -np.inf  # the first token must not end the text
        assert tuple(text) == np.unravel_index(totals.argmax(), totals.shape)
        assert score == pytest.approx(totals.max(), rel=1e-4)


def test_open_ended_questions_get_written_answers(answerer, states):
    answers = answerer([VqaQuery(state, "what is it") for state in states[:3]])
    assert all(0 < answer.probability <= 1 for answer in answers)
    assert all(answer.text.strip() for answer in answers)


def test_different_open_ended_questions_share_a_batch(answerer, states):
    questions = ["what is it", "what colour is it", "what print does it have"]
    together = answerer.write_answers(states[:3], questions)
    for state, question, answer in zip(states, questions, together, strict=False):
        (alone,) = answerer.write_answers(state[None], [question])
        assert answer.text == alone.text
        assert answer.probability == pytest.approx(alone.probability, rel=1e-3)
