"""Masking of captions: masked positions, their share and their replacements."""

import numpy as np
import pytest

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.masking import MAX_MASKED, Masker
from capret_jax.data.tokenizer import CaptionEncoder, Tokens, build_vocabulary, load_tokenizer

CAPTION = "red skirts and blue dresses " * 6


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    build_vocabulary(["red skirt and blue dress s es"], path, 60)
    return CaptionEncoder(load_tokenizer(str(path)), 48)


@pytest.fixture(scope="module")
def draws(encoder):
    masker, tokens = Masker(encoder.tokenizer), encoder(CAPTION)
    return tokens, [masker(tokens, np.random.default_rng(seed)) for seed in range(500)]


def hidden(masked):
    return masked.positions[masked.labels != IGNORED_LABEL]


def test_labels_are_the_true_tokens_and_the_rest_is_untouched(draws):
    tokens, maskeds = draws
    for masked in maskeds:
        positions = hidden(masked)
        assert len(set(positions)) == len(positions) > 0
        np.testing.assert_array_equal(masked.labels[: len(positions)], tokens.ids[positions])
        others = np.setdiff1d(np.arange(len(tokens.ids)), positions)
        np.testing.assert_array_equal(masked.ids[others], tokens.ids[others])


def test_special_tokens_and_padding_are_never_masked(encoder, draws):
    tokens, maskeds = draws
    special = np.isin(tokens.ids, encoder.tokenizer.all_special_ids)
    assert not any(special[hidden(masked)].any() for masked in maskeds)


def test_at_most_twelve_and_whole_words(encoder, draws):
    tokens, maskeds = draws
    names = encoder.tokenizer.convert_ids_to_tokens(tokens.ids)
    for masked in maskeds:
        positions = set(hidden(masked).tolist())
        assert len(positions) <= MAX_MASKED
        for position in positions:
            if names[position].startswith("##"):
                assert position - 1 in positions
            if names[position + 1].startswith("##"):
                assert position + 1 in positions


def test_eighty_ten_ten(encoder, draws):
    tokens, maskeds = draws
    seen = np.concatenate([m.ids[hidden(m)] for m in maskeds])
    true = np.concatenate([tokens.ids[hidden(m)] for m in maskeds])
    share_masked = (seen == encoder.tokenizer.mask_token_id).mean()
    assert share_masked == pytest.approx(0.8, abs=0.02)
    # A random token is sometimes the true one, so slightly more than 10 % are kept.
    assert (seen == true).mean() == pytest.approx(0.1, abs=0.02)


def test_a_caption_without_words_is_not_masked(encoder):
    masker = Masker(encoder.tokenizer)
    tokens = Tokens(np.array([2, 3, 0], np.int32), np.array([1, 1, 0], np.int32))
    masked = masker(tokens, np.random.default_rng(0))
    assert (masked.labels == IGNORED_LABEL).all()
