"""Beam search with n-gram blocking, as one compiled loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.errors import InputError

# Added to a log-probability. It is finite, so that a beam with no allowed token still continues.
_FORBIDDEN = -10000.0

Cache = Any  # a pytree of (B*K, ...) arrays
# last tokens (B*K,), number of tokens written, cache -> log-probabilities (B*K, vocab), cache
NextToken = Callable[[jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


@dataclasses.dataclass(frozen=True)
class BeamConfig:
    """Settings of a beam search.

    Attributes:
        beams: K, number of texts kept at each step.
        min_tokens: number of tokens before the end token is allowed.
        max_tokens: L, length limit, end token included.
        blocked_ngram: n of the n-grams that may not occur twice; 0 allows all.
    """

    beams: int = 3
    min_tokens: int = 5
    max_tokens: int = 20
    blocked_ngram: int = 3

    def __post_init__(self):
        if self.beams < 1 or self.max_tokens < 1 or self.min_tokens > self.max_tokens:
            raise InputError(
                f"{self}: beams and max_tokens must be positive, min_tokens at most max_tokens."
            )
        if self.blocked_ngram < 0 or self.blocked_ngram == 1:
            raise InputError(f"blocked_ngram={self.blocked_ngram} must be 0, or 2 or more.")


class _State(NamedTuple):
    """Loop state. `best*` is the best text that has ended, or reached L tokens."""

    written: jax.Array  # () int32
    last: jax.Array  # (B, K) int32
    scores: jax.Array  # (B, K), summed log-probabilities
    tokens: jax.Array  # (B, K, L) int32, 0 after the written tokens
    best_score: jax.Array  # (B,)
    best: jax.Array  # (B, L)
    cache: Cache


def beam_search(
    next_token: NextToken, cache: Cache, first: jax.Array, end: int, config: BeamConfig
) -> tuple[jax.Array, jax.Array]:
    """Finds the text of the highest score for each example, without length penalty.

    Args:
        next_token: function that returns the log-probabilities after each beam's last token; it is
            called inside of a compiled loop.
        cache: initial cache of `next_token`; the K rows of an example are consecutive.
        first: (B,) int32, the token before each text.
        end: id of the token that ends a text.
        config: settings of the search.

    Returns:
        (B, L) int32 tokens, `end` included where it was written, 0 after it; and (B,) float32
        scores, the summed log-probabilities.
    """
    batch, beams, length = len(first), config.beams, config.max_tokens
    last = jnp.broadcast_to(first[:, None], (batch, beams)).astype(jnp.int32)
    # All beams are equal at first, so only one of them may be extended.
    initial_scores = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    state = _State(
        written=jnp.int32(0),
        last=last,
        scores=jnp.broadcast_to(initial_scores, (batch, beams)),
        tokens=jnp.zeros((batch, beams, length), jnp.int32),
        best_score=jnp.full((batch,), -jnp.inf),
        best=jnp.zeros((batch, length), jnp.int32),
        cache=cache,
    )

    def may_improve(state: _State) -> jax.Array:
        # Scores only fall, so a complete text with the highest score stays the best.
        bound = jnp.max(_open_scores(state, end), axis=1)
        return (state.written < length) & jnp.any(bound > state.best_score)

    final = jax.lax.while_loop(
        may_improve, lambda state: _advance(state, next_token, end, config), state
    )
    return final.best, final.best_score


def _open_scores(state: _State, end: int) -> jax.Array:
    """Returns (B, K) scores, lowered for beams whose last token ended the text."""
    ended = (state.last == end) & (state.written > 0)
    return state.scores + jnp.where(ended, _FORBIDDEN, 0.0)


def _advance(state: _State, next_token: NextToken, end: int, config: BeamConfig) -> _State:
    """Extends each beam by one token."""
    batch, beams = state.last.shape
    log_probs, cache = next_token(state.last.reshape(-1), state.written, state.cache)
    vocab = log_probs.shape[-1]
    log_probs = log_probs.reshape(batch, beams, vocab)
    too_early = (jnp.arange(vocab) == end) & (state.written < config.min_tokens)
    log_probs = jnp.where(too_early, _FORBIDDEN, log_probs)
    if config.blocked_ngram:
        log_probs = log_probs + _repetition_penalty(
            state.tokens, state.written, vocab, config.blocked_ngram
        )
    totals = _open_scores(state, end)[:, :, None] + log_probs
    scores, choice = jax.lax.top_k(totals.reshape(batch, -1), beams)
    parent, last = choice // vocab, choice % vocab

    tokens = jnp.take_along_axis(state.tokens, parent[:, :, None], axis=1)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, last[:, :, None], state.written, axis=2)
    rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
    written = state.written + 1

    complete = (last == end) | (written == config.max_tokens)
    candidates = jnp.where(complete, scores, -jnp.inf)
    winner = jnp.argmax(candidates, axis=1)[:, None]
    score = jnp.take_along_axis(candidates, winner, axis=1)[:, 0]
    better = score > state.best_score
    text = jnp.take_along_axis(tokens, winner[:, :, None], axis=1)[:, 0]
    return _State(
        written,
        last,
        scores,
        tokens,
        jnp.where(better, score, state.best_score),
        jnp.where(better[:, None], text, state.best),
        jax.tree.map(lambda leaf: leaf[rows], cache),
    )


def _repetition_penalty(tokens: jax.Array, written: jax.Array, vocab: int, n: int) -> jax.Array:
    """Returns (B, K, vocab): `_FORBIDDEN` or less for tokens that repeat an n-gram, else 0."""
    batch, beams, length = tokens.shape
    if length < n:
        return jnp.zeros((batch, beams, vocab))
    starts = length - n + 1
    # True where the n-gram at a position begins with the last n-1 tokens.
    recent = jax.lax.dynamic_slice_in_dim(tokens, jnp.maximum(written - n + 1, 0), n - 1, axis=2)
    matches = jnp.arange(starts) + n <= written
    for i in range(n - 1):
        matches = matches & (tokens[:, :, i : i + starts] == recent[:, :, i : i + 1])
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(beams)[None, :, None]
    penalty = jnp.where(matches, _FORBIDDEN, 0.0)
    return jnp.zeros((batch, beams, vocab)).at[rows, columns, tokens[:, :, n - 1 :]].add(penalty)
