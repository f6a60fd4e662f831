"""X2-VLM as the one who answers: questions about many pictures at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.vqa import ANSWER_TOKENS
from capret_jax.models.answer_generation import rank_answers, write_answers
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind, normalize_pixels

# Of a list, as many answers are scored whole as their first token makes likely.
_SCORED = 32
_WRITTEN = BeamConfig(beams=3, min_tokens=1, max_tokens=ANSWER_TOKENS - 1, blocked_ngram=0)
# Probabilities under this are as good as none.
TINY = 1e-12


class VqaQuery(NamedTuple):
    """A question about a picture.

    Attributes:
        states: (1+N, D) of `VqaAnswerer.look`.
        question: in words.
        answers: to choose from; empty when any answer will do.
    """

    states: np.ndarray
    question: str
    answers: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What was answered, and how probable the model finds it."""

    text: str
    probability: float


class VqaAnswerer:
    """Answers questions in batches of one size, so that few programs are compiled.

    Attributes:
        temperature: probabilities are p^(1 / temperature), normalised over the list;
            `fit_temperature` finds the one that makes them mean what they say.
        written_temperature: the same for written answers, without a list to normalise over;
            `fit_written_temperature`.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: dict,
        encode: CaptionEncoder,
        batch_size: int = 64,
        compute: ComputeConfig = PLAIN,
    ):
        """
        Args:
            model: with an answer decoder.
            params: the model's, trained to answer.
            encode: texts -> tokens.
            batch_size: pictures, and questions, of one call.
            compute: how the model is computed.
        """
        graphdef, _ = abstract_model(model, compute)
        self._params, self._encode, self._batch = params, encode, batch_size
        self._encode_answer = CaptionEncoder(encode.tokenizer, ANSWER_TOKENS)
        self.temperature = self.written_temperature = 1.0
        tokenizer = encode.tokenizer
        first, end = tokenizer.cls_token_id, tokenizer.sep_token_id

        def fuse(model: X2VLM, states, ids, mask):
            text = model.encode_text(ids, mask)
            if len(ids) == 1:  # one question for all
                text, mask = (jnp.repeat(x, len(states), axis=0) for x in (text, mask))
            return model.fuse(text, mask, states.astype(compute.dtype)), mask

        def look(params, images):
            model = bind(graphdef, params, compute.dtype)
            return model.encode_image(normalize_pixels(images)).astype(jnp.float16)

        def rank(params, states, ids, mask, answer_ids, answer_mask):
            model = bind(graphdef, params, compute.dtype)
            k = min(_SCORED, len(answer_ids))
            return rank_answers(model, answer_ids, answer_mask, *fuse(model, states, ids, mask), k)

        def write(params, states, ids, mask):
            model = bind(graphdef, params, compute.dtype)
            return write_answers(model, *fuse(model, states, ids, mask), first, end, _WRITTEN)

        self._look, self._rank, self._write = jax.jit(look), jax.jit(rank), jax.jit(write)

    def look(self, images: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 -> (n, 1+N, D) float16, for any number of questions."""
        return self._in_batches(self._look, (images,))

    def __call__(self, asked: Sequence[VqaQuery]) -> list[Answer]:
        """All answers, in order; equal questions with lists are asked together."""
        together: dict[tuple, list[int]] = {}
        for place, (_, question, answers) in enumerate(asked):
            together.setdefault((question, answers) if answers else (), []).append(place)
        found: list[Answer] = [Answer("", 0.0)] * len(asked)
        for group, places in together.items():
            states = np.stack([asked[place].states for place in places])
            if group:
                replies = self._choose(states, *group)
            else:
                replies = self.written(states, [asked[place].question for place in places])
            for place, answer in zip(places, replies, strict=True):
                found[place] = answer
        return found

    def written(self, states: np.ndarray, questions: Sequence[str]) -> list[Answer]:
        """(n, 1+N, D) and n questions -> n answers in the model's own words."""
        ids, mask = (np.stack(column) for column in zip(*map(self._encode, questions), strict=True))
        ids, scores = self._in_batches(self._write, (states, ids, mask))
        texts = self._encode.tokenizer.batch_decode(ids, skip_special_tokens=True)
        sure = np.exp(scores / self.written_temperature)
        return [Answer(*each) for each in zip(texts, sure.tolist(), strict=True)]

    def probabilities(
        self, states: np.ndarray, question: str, answers: tuple[str, ...]
    ) -> np.ndarray:
        """(n, 1+N, D) -> (n, K) float32 of each answer of a list, at the temperature."""
        listed = np.stack([self._encode_answer(answer).ids for answer in answers])
        mask = np.stack([self._encode_answer(answer).mask for answer in answers])
        longest = mask.sum(axis=1).max()  # padding would cost as much as words
        listed, mask = listed[:, :longest], mask[:, :longest]
        tokens = self._encode(question)
        rows, found = self._in_batches(
            self._rank, (states,), (tokens.ids[None], tokens.mask[None], listed, mask)
        )
        table = np.zeros((len(states), len(answers)), np.float32)
        np.put_along_axis(table, rows, found, axis=1)
        return sharpen(table, self.temperature)

    def _choose(self, states, question, answers):
        table = self.probabilities(states, question, answers)
        best = table.argmax(axis=1)
        return [Answer(answers[i], float(p[i])) for i, p in zip(best, table, strict=True)]

    def _in_batches(self, function, columns: tuple[np.ndarray, ...], shared: tuple = ()):
        """A function of full batches, over columns of any number of rows."""
        parts, count = [], len(columns[0])
        for start in range(0, count, self._batch):
            rows = np.arange(start, start + self._batch).clip(max=count - 1)
            found = function(self._params, *(column[rows] for column in columns), *shared)
            left = count - start
            parts.append(jax.tree.map(lambda x, n=left: x[:n], jax.device_get(found)))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def sharpen(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n, K) -> (n, K) p^(1 / temperature), normalised again."""
    logs = np.log(np.maximum(probabilities, TINY)) / temperature
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
