"""Visual question answering: ranking a list of answers, as X2-VLM does (ALBEF, 2107.07651), or
writing one."""

import jax
import jax.numpy as jnp
import optax

from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig, beam_search
from capret_jax.models.x2vlm import X2VLM


def answer_losses(
    model: X2VLM,
    answer_ids: jax.Array,
    answer_mask: jax.Array,
    question: jax.Array,
    question_mask: jax.Array,
) -> jax.Array:
    """Cross entropy of each answer, summed over its tokens after [CLS].

    Args:
        model: with an answer decoder.
        answer_ids, answer_mask: (Q*K, A), `[CLS] answer [SEP]`; K consecutive answers belong to
            one question.
        question, question_mask: (Q, T, D) and (Q, T), from `encode_text` and `fuse`.

    Returns:
        (Q*K,) float32, in nats.
    """
    logits = model.answer_logits(answer_ids[:, :-1], answer_mask[:, :-1], question, question_mask)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, answer_ids[:, 1:])
    return jnp.sum(entropies * answer_mask[:, 1:], axis=1)


def rank_answers(
    model: X2VLM,
    answer_ids: jax.Array,
    answer_mask: jax.Array,
    question: jax.Array,
    question_mask: jax.Array,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """The best `k` of a list of answers for each question.

    The k answers whose first token is likeliest are scored whole; an answer's score is
    log p(first token) - `answer_losses`, in which the first token counts a second time.

    Args:
        model: with an answer decoder.
        answer_ids, answer_mask: (N, A) the list, each `[CLS] answer [SEP]` and padding.
        question, question_mask: (Q, T, D) and (Q, T), from `encode_text` and `fuse`.
        k: at most N.

    Returns:
        (Q, k) int32 rows of the list, best first, and (Q, k) float32 probabilities among these k.

    Raises:
        InputError: k is not in 1..N.
    """
    if not 1 <= k <= len(answer_ids):
        raise InputError(f"k={k} must be between 1 and the {len(answer_ids)} answers of the list.")
    answer_ids, answer_mask = jnp.asarray(answer_ids), jnp.asarray(answer_mask)
    questions = len(question)
    start = jnp.broadcast_to(answer_ids[0, :1], (questions, 1))
    logits = model.answer_logits(start, jnp.ones_like(start), question, question_mask)[:, 0]
    first_log_probs = jax.nn.log_softmax(logits)[:, answer_ids[:, 1]]
    first, rows = jax.lax.top_k(first_log_probs, k)
    candidates, mask = (x[rows].reshape(questions * k, -1) for x in (answer_ids, answer_mask))
    losses = answer_losses(model, candidates, mask, question, question_mask)
    scores, order = jax.lax.top_k(first - losses.reshape(questions, k), k)
    return jnp.take_along_axis(rows, order, axis=1), jax.nn.softmax(scores)


def write_answers(
    model: X2VLM,
    question: jax.Array,
    question_mask: jax.Array,
    first: int,
    end: int,
    config: BeamConfig,
) -> tuple[jax.Array, jax.Array]:
    """One answer for each question, whatever it may be.

    Args:
        model: with an answer decoder.
        question, question_mask: (Q, T, D) and (Q, T), from `encode_text` and `fuse`.
        first, end: ids of [CLS] and [SEP].
        config: of the search.

    Returns:
        (Q, max_tokens) int32, 0 after the end; (Q,) summed log-probabilities.
    """
    rows, length = len(question), config.max_tokens

    def next_token(last, written, tokens):
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, last[:, None], written, axis=1)
        mask = jnp.broadcast_to(jnp.arange(length) <= written, tokens.shape).astype(jnp.int32)
        # Answers are short: all of one is computed anew for each token.
        logits = model.answer_logits(tokens, mask, question, question_mask)
        logits = jax.lax.dynamic_index_in_dim(logits, written, axis=1, keepdims=False)
        return jax.nn.log_softmax(logits), tokens

    empty = jnp.zeros((rows * config.beams, length), jnp.int32)
    return beam_search(next_token, empty, jnp.full(rows, first, jnp.int32), end, config)
