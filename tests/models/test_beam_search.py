"""Beam search on a random bigram language, compared with exhaustive and greedy searches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig, beam_search

VOCAB, END, FIRST = 6, 0, 1


@pytest.fixture(scope="module")
def language():
    """(2, VOCAB, VOCAB) log-probabilities of the next token, for two examples."""
    logits = np.random.default_rng(3).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
    return np.asarray(jax.nn.log_softmax(1.5 * logits))


@functools.partial(jax.jit, static_argnums=1)
def search(language, config: BeamConfig):
    """Beam search whose cache holds the example of each row, and the number of calls."""

    def next_token(last, written, cache):
        example, calls = cache
        return language[example, last], (example, calls + 1)

    batch = len(language)
    example = jnp.repeat(jnp.arange(batch), config.beams)
    cache = (example, jnp.zeros(batch * config.beams))
    return beam_search(next_token, cache, jnp.full(batch, FIRST), END, config)


def score(table, text) -> float:
    """Log-probability of a text, up to its end token if it has one."""
    total, last = 0.0, FIRST
    for token in text:
        total += table[last, token]
        if token == END:
            break
        last = token
    return total


def repeats(text, n: int) -> bool:
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return len(grams) != len(set(grams))


def best_text(table, config: BeamConfig):
    """Exhaustive search over all texts."""

    def legal(text):
        ended = END in text
        core = text[: text.index(END)] if ended else text
        if ended and (any(text[len(core) :]) or len(core) < config.min_tokens):
            return False
        return not (
            config.blocked_ngram and repeats(text[: len(core) + ended], config.blocked_ngram)
        )

    texts = itertools.product(range(VOCAB), repeat=config.max_tokens)
    return max((text for text in texts if legal(text)), key=lambda text: score(table, text))


@pytest.mark.parametrize("min_tokens", [0, 3])
@pytest.mark.parametrize("blocked_ngram", [0, 2])
def test_wide_beams_find_the_best_of_all_texts(language, min_tokens, blocked_ngram):
    config = BeamConfig(200, min_tokens, max_tokens=4, blocked_ngram=blocked_ngram)
    texts, scores = search(language, config)
    for table, text, text_score in zip(language, texts, scores, strict=True):
        expected = best_text(table, config)
        assert tuple(text.tolist()) == expected
        assert text_score == pytest.approx(score(table, expected), rel=1e-5)


def test_one_beam_is_greedy(language):
    texts, _ = search(language, BeamConfig(1, 0, max_tokens=6, blocked_ngram=0))
    for table, text in zip(language, texts, strict=True):
        last = FIRST
        for token in text:
            assert token == np.argmax(table[last])
            if token == END:
                break
            last = token


def test_each_beam_keeps_its_own_cache():
    """In a trigram language, whose second last token is in the cache."""
    logits = np.random.default_rng(5).normal(size=(VOCAB, VOCAB, VOCAB)).astype(np.float32)
    table = np.asarray(jax.nn.log_softmax(2 * logits))
    config = BeamConfig(200, 0, max_tokens=4, blocked_ngram=0)

    def next_token(last, written, before):
        return jnp.asarray(table)[before, last], last

    cache = jnp.full(config.beams, FIRST)
    actual, scores = jax.jit(
        lambda: beam_search(next_token, cache, jnp.array([FIRST]), END, config)
    )()

    def score_of(text):
        total, before, last = 0.0, FIRST, FIRST
        for token in text:
            total += table[before, last, token]
            before, last = last, token
            if token == END:
                break
        return total

    texts = itertools.product(range(VOCAB), repeat=4)
    legal = [text for text in texts if END not in text or not any(text[text.index(END) :])]
    best = max(legal, key=score_of)
    assert tuple(actual[0].tolist()) == best
    assert scores[0] == pytest.approx(score_of(best), rel=1e-5)


def test_no_ngram_comes_twice():
    # Without blocking, the likeliest text is 2 3 4 2 3 4 and so on.
    table = np.full((1, VOCAB, VOCAB), -9.0, np.float32)
    for last, following in ((FIRST, 2), (2, 3), (3, 4), (4, 2)):
        table[0, last, following] = -0.1
    for beams in (1, 3):
        free, _ = search(table, BeamConfig(beams, 0, max_tokens=9, blocked_ngram=0))
        assert free[0].tolist() == [2, 3, 4, 2, 3, 4, 2, 3, 4]
        blocked, _ = search(table, BeamConfig(beams, 9, max_tokens=9, blocked_ngram=3))
        assert not repeats(blocked[0].tolist(), 3)


def test_examples_are_independent(language):
    config = BeamConfig(3, 1, max_tokens=5)
    together, _ = search(language, config)
    for i in range(2):
        alone, _ = search(language[i : i + 1], config)
        np.testing.assert_array_equal(together[i], alone[0])


def test_nothing_follows_the_end(language):
    ends = np.array(language)
    ends[:, :, END] += 5
    texts, _ = search(ends, BeamConfig(3, 2, max_tokens=8))
    for text in texts.tolist():
        assert text.index(END) == 2
        assert not any(text[3:])


@pytest.mark.parametrize(
    "settings", [{"beams": 0}, {"max_tokens": 0}, {"min_tokens": 30}, {"blocked_ngram": 1}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        BeamConfig(**settings)
