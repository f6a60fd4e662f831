"""Visual question answering: ranks a list of answers as X2-VLM does (ALBEF, arXiv 2107.07651), or
generates one by beam search."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig, beam_search
from capret_jax.models.x2vlm import X2VLM

# Number of answers whose logits are in memory at once: 0.6 GB with 30,522 tokens and answers of 10;
# one for each question at least.
_SCORED_AT_ONCE = 512


class Answers(NamedTuple):
    """Tokens of answers, each `[CLS] answer [SEP]` and padding.

    Attributes:
        ids: (N, A) int.
        mask: (N, A) 0/1.
    """

    ids: jax.Array
    mask: jax.Array


class FusedQuestions(NamedTuple):
    """Questions fused with their images, from `encode_text` and `fuse`.

    Attributes:
        states: (Q, T, D) float.
        mask: (Q, T) 0/1 of the tokens.
    """

    states: jax.Array
    mask: jax.Array


def answer_losses(model: X2VLM, answers: Answers, question: FusedQuestions) -> jax.Array:
    """Computes the cross entropy of each answer, summed over its tokens after [CLS].

    Args:
        model: a model with an answer decoder.
        answers: Q*K answers; K consecutive ones belong to one question.
        question: Q questions.

    Returns:
        (Q*K,) float32, in nats.
    """
    ids, mask = answers
    logits = model.answer_logits(ids[:, :-1], mask[:, :-1], *question)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return jnp.sum(entropies * mask[:, 1:], axis=1)


def rank_answers(
    model: X2VLM, answers: Answers, question: FusedQuestions, k: int
) -> tuple[jax.Array, jax.Array]:
    """Ranks the best `k` answers of a list for each question.

    The k answers with the likeliest first token are scored as a whole. The score of an answer is
    log p(first token) - `answer_losses`, in which the first token counts a second time.

    Args:
        model: a model with an answer decoder.
        answers: the list of N answers, common to all questions.
        question: Q questions.
        k: number of answers, at most N.

    Returns:
        (Q, k) int32 rows of the list, best first, and (Q, k) float32 probabilities among these k.

    Raises:
        InputError: k is not in 1..N.
    """
    if not 1 <= k <= len(answers.ids):
        raise InputError(f"k={k} must be between 1 and the {len(answers.ids)} answers of the list.")
    ids, mask = jnp.asarray(answers.ids), jnp.asarray(answers.mask)
    questions = len(question.states)
    start = jnp.broadcast_to(ids[0, :1], (questions, 1))
    logits = model.answer_logits(start, jnp.ones_like(start), *question)[:, 0]
    first_log_probs = jax.nn.log_softmax(logits)[:, ids[:, 1]]
    first, rows = jax.lax.top_k(first_log_probs, k)

    def losses_of(columns: jax.Array) -> jax.Array:
        some = rows[:, columns].reshape(-1)
        return answer_losses(model, Answers(ids[some], mask[some]), question).reshape(questions, -1)

    # Parts of all questions' answers, not of the questions, which a mesh has split already. The
    # last part is padded with the last answer.
    size = -(-k // -(-questions * k // _SCORED_AT_ONCE))
    parts = jnp.arange(-(-k // size) * size).clip(max=k - 1).reshape(-1, size)
    losses = jax.lax.map(losses_of, parts).swapaxes(0, 1).reshape(questions, -1)[:, :k]
    scores, order = jax.lax.top_k(first - losses, k)
    return jnp.take_along_axis(rows, order, axis=1), jax.nn.softmax(scores)


def write_answers(
    model: X2VLM, question: FusedQuestions, start: int, end: int, config: BeamConfig
) -> tuple[jax.Array, jax.Array]:
    """Generates one answer for each question, without a list of answers.

    Args:
        model: a model with an answer decoder.
        question: Q questions.
        start, end: ids of [CLS] and [SEP].
        config: settings of the beam search.

    Returns:
        (Q, max_tokens) int32 token ids, 0 after the end; (Q,) float32 summed log-probabilities.
    """
    rows, length = len(question.states), config.max_tokens

    def next_token(last, written, tokens):
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, last[:, None], written, axis=1)
        mask = jnp.broadcast_to(jnp.arange(length) <= written, tokens.shape).astype(jnp.int32)
        # Answers are short, so the whole answer is computed again for each token.
        logits = model.answer_logits(tokens, mask, *question)
        logits = jax.lax.dynamic_index_in_dim(logits, written, axis=1, keepdims=False)
        return jax.nn.log_softmax(logits), tokens

    empty = jnp.zeros((rows * config.beams, length), jnp.int32)
    return beam_search(next_token, empty, jnp.full(rows, start, jnp.int32), end, config)
