"""Visual question answering by X2-VLM, in batches of many images."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.captioning.batched_model import BatchedModel
from capret_jax.data.tokenizer import Tokens
from capret_jax.data.vqa import (
    ANSWER_TOKENS,
    TEST_QUESTION_WORDS,
    answer_encoder,
    question_encoder,
)
from capret_jax.models import answer_generation
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.x2vlm import X2VLM, normalize_pixels

# Number of listed answers, those with the likeliest first tokens, that are scored as a whole;
# X2-VLM's k_test, of which its published results are.
MAX_SCORED_ANSWERS = 128
# Texts longer than the model's usual length are padded to a multiple, so that few programs are
# compiled.
_PADDED_TO = 16
_BEAM_SEARCH = BeamConfig(beams=3, min_tokens=1, max_tokens=ANSWER_TOKENS - 1, blocked_ngram=0)
# Smaller probabilities are clipped before their logarithm.
MIN_PROBABILITY = 1e-12

# ids and mask of `Tokens`, on the device
TokenArrays = tuple[jax.Array, jax.Array]


class VqaQuery(NamedTuple):
    """A question about an image.

    Attributes:
        states: (1+N, D) float16 vision states, from `VqaAnswerer.encode_images`.
        question: the question's text.
        answers: the answers to choose from; empty for an open-ended question.
    """

    states: np.ndarray
    question: str
    answers: tuple[str, ...] = ()


class Answer(NamedTuple):
    """An answer, and the model's probability of it."""

    text: str
    probability: float


class VqaAnswerer:
    """Answers questions about images: ranks a list of answers, or writes one.

    Attributes:
        temperature: T of the probabilities p^(1/T), normalised over the list; from
            `calibration.fit_temperature`.
        written_temperature: the same for written answers, which have no list to normalise over;
            from `calibration.fit_written_temperature`.
    """

    def __init__(self, model: BatchedModel):
        """
        Args:
            model: a model with a trained answer decoder.
        """
        self._model, self._dtype = model, model.compute.dtype
        self._tokenizer = model.encode.tokenizer
        # Neither questions nor listed answers are cut at a number of tokens, as in X2-VLM's tests.
        most = model.config.max_positions
        self._encode_question = question_encoder(model.encode, TEST_QUESTION_WORDS, most)
        self._encode_answer = answer_encoder(model.encode, most)
        self.temperature = self.written_temperature = 1.0
        self._encode_batch = model.compile(_encode_batch)
        self._rank_batch = model.compile(self._rank)
        self._write_batch = model.compile(self._write)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Encodes (n, S, S, 3) uint8 images as (n, 1+N, D) float16 vision states."""
        return self._model.call_in_batches(self._encode_batch, (images,))

    def __call__(self, queries: Sequence[VqaQuery]) -> list[Answer]:
        """Answers all queries, in their order; those with the same question share batches."""
        groups: dict[tuple, list[int]] = {}
        for row, query in enumerate(queries):
            group = (query.question, query.answers) if query.answers else ()
            groups.setdefault(group, []).append(row)
        answers: list[Answer] = [Answer("", 0.0)] * len(queries)
        for group, rows in groups.items():
            states = np.stack([queries[row].states for row in rows])
            if group:
                batch = self._choose_answers(states, *group)
            else:
                batch = self.write_answers(states, [queries[row].question for row in rows])
            for row, answer in zip(rows, batch, strict=True):
                answers[row] = answer
        return answers

    def write_answers(self, states: np.ndarray, questions: Sequence[str]) -> list[Answer]:
        """Answers open-ended questions by beam search.

        Args:
            states: (n, 1+N, D) float16 vision states, one image per question.
            questions: n questions.
        """
        tokens = self._question_tokens(questions)
        ids, scores = self._model.call_in_batches(self._write_batch, (states, tokens))
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        probabilities = np.exp(scores / self.written_temperature).tolist()
        return [Answer(*pair) for pair in zip(texts, probabilities, strict=True)]

    def answer_probabilities(
        self, states: np.ndarray, question: str, answers: tuple[str, ...]
    ) -> np.ndarray:
        """Returns the probabilities of a list of answers, at `temperature`.

        Args:
            states: (n, 1+N, D) float16 vision states.
            question: one question about all images.
            answers: K answers.

        Returns:
            (n, K) float32.

        Raises:
            InputError: the model's vocabulary has none of the words of an answer.
        """
        for answer in answers:
            self._encode_answer.check_words(answer)
        listed = _stack([self._encode_answer(answer) for answer in answers])
        # Padding would cost as much as words.
        shared = (self._question_tokens([question]), _first(listed, _longest(listed)))
        rows, ranked = self._model.call_in_batches(self._rank_batch, (states,), shared)
        probabilities = np.zeros((len(states), len(answers)), np.float32)
        np.put_along_axis(probabilities, rows, ranked, axis=1)
        return apply_temperature(probabilities, self.temperature)

    def _question_tokens(self, questions: Sequence[str]) -> Tokens:
        tokens = _stack([self._encode_question(question) for question in questions])
        usual, longest = self._model.encode.max_tokens, _longest(tokens)
        if longest > usual:
            usual = -(-longest // _PADDED_TO) * _PADDED_TO
        return _first(tokens, usual)

    def _choose_answers(self, states, question, answers) -> list[Answer]:
        probabilities = self.answer_probabilities(states, question, answers)
        best = probabilities.argmax(axis=1)
        return [Answer(answers[i], float(p[i])) for i, p in zip(best, probabilities, strict=True)]

    def _rank(self, model: X2VLM, states: jax.Array, question: TokenArrays, answers: TokenArrays):
        listed = answer_generation.Answers(*answers)
        k = min(MAX_SCORED_ANSWERS, len(listed.ids))
        return answer_generation.rank_answers(model, listed, self._fuse(model, states, question), k)

    def _write(self, model: X2VLM, states: jax.Array, question: TokenArrays):
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        fused = self._fuse(model, states, question)
        return answer_generation.write_answers(model, fused, start, end, _BEAM_SEARCH)

    def _fuse(
        self, model: X2VLM, states: jax.Array, question: TokenArrays
    ) -> answer_generation.FusedQuestions:
        ids, mask = question
        text = model.encode_text(ids, mask)
        if len(mask) == 1:  # one question about all images
            text, mask = (jnp.repeat(x, len(states), axis=0) for x in (text, mask))
        fused = model.fuse(text, mask, states.astype(self._dtype))
        return answer_generation.FusedQuestions(fused, mask)


def _encode_batch(model: X2VLM, images: jax.Array) -> jax.Array:
    return model.encode_image(normalize_pixels(images)).astype(jnp.float16)


def _stack(rows: Sequence[Tokens]) -> Tokens:
    return Tokens(np.stack([row.ids for row in rows]), np.stack([row.mask for row in rows]))


def _longest(tokens: Tokens) -> int:
    """Returns the number of tokens of the longest text."""
    return int(tokens.mask.sum(axis=1).max())


def _first(tokens: Tokens, count: int) -> Tokens:
    """Returns the first `count` tokens of texts; the rest is padding."""
    return Tokens(tokens.ids[:, :count], tokens.mask[:, :count])


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns (n, K) p^(1/temperature) of (n, K) probabilities p, normalised to sum 1 over K."""
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY)) / temperature
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
