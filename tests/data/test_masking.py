"""Masking of captions: masked positions, their share and their replacements."""

import numpy as np
import pytest

from capret_jax.config import Cleaning, LossConfig
from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.masking import MaskedCaptions, Masker, insert_masks
from capret_jax.data.tokenizer import CaptionEncoder, Tokens, build_vocabulary, load_tokenizer

CAPTION = "red skirts and blue dresses " * 6
PRETRAINING = LossConfig(mlm_spans="x2vlm")
CAPTIONING = LossConfig(
    mlm_causal=True, mlm_spans="x2vlm", mlm_probability=0.6, mlm_max=18, mlm_insert=True
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    build_vocabulary(["red skirt and blue dress s es"], path, 60)
    return CaptionEncoder(load_tokenizer(str(path)), 48, Cleaning(max_words=40))


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
        assert len(positions) <= 12
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


@pytest.mark.parametrize("spans", ["words", "x2vlm"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_caption_without_words_is_not_masked(encoder, spans, causal):
    masker = Masker(encoder.tokenizer, LossConfig(mlm_spans=spans, mlm_causal=causal))
    tokens = Tokens(np.array([2, 3, 0], np.int32), np.array([1, 1, 0], np.int32))
    masked = masker(tokens, np.random.default_rng(0))
    assert (masked.labels == IGNORED_LABEL).all()


@pytest.mark.parametrize(
    "config, prompt, words, expected",
    [
        # X2-VLM's pre-training: half of the tokens with [CLS] and [SEP], 12 at most.
        (PRETRAINING, 0, 1, 2),
        (PRETRAINING, 0, 8, 5),
        (PRETRAINING, 0, 9, 6),
        (PRETRAINING, 0, 11, 6),
        (PRETRAINING, 0, 22, 12),
        (PRETRAINING, 0, 38, 12),
        # Its captioning: 0.6 of the tokens without the prompt, 18 at most.
        (CAPTIONING, 3, 13, 7),
        (CAPTIONING, 3, 31, 18),
        (CAPTIONING, 3, 38, 18),
        # The default counts words alone.
        (LossConfig(), 0, 8, 4),
        (LossConfig(mlm_probability=0.25, mlm_max=3), 0, 30, 3),
    ],
)
def test_budgets(encoder, config, prompt, words, expected):
    masker, tokens = Masker(encoder.tokenizer, config, prompt), encoder("red " * words)
    assert tokens.mask.sum() == words + 2
    drawn = [masker(tokens, np.random.default_rng(seed)).labels for seed in range(20)]
    counts = [(labels != IGNORED_LABEL).sum() for labels in drawn]
    assert max(counts) == expected and drawn[0].shape == (config.mlm_max,)
    # Runs of words that do not fit are left out.
    assert min(counts) == expected or config.mlm_spans == "words"


def reference_draw(pieces: list[str], budget: int, rng: np.random.Generator) -> set[int]:
    """Draws positions as X2-VLM does, on strings: an independent version."""
    taken: set[int] = set()
    for place in rng.permutation(np.arange(1, len(pieces))):
        if len(taken) < budget and place not in taken:
            end = place + (rng.integers(2, 4) if rng.random() < 0.2 else 1)
            while pieces[place].startswith("##"):
                place -= 1
            while end < len(pieces) and pieces[end].startswith("##"):
                end += 1
            taken |= {p for p in range(place, end) if p < len(pieces)}
    kept = rng.permutation(len(taken))[:budget]
    return {sorted(taken)[i] for i in kept}


def test_tokens_are_drawn_like_the_references(encoder):
    tokens = encoder("red skirts and dresses")
    count = tokens.mask.sum()
    pieces = encoder.tokenizer.convert_ids_to_tokens(tokens.ids[:count])
    assert pieces[2:4] == ["skirt", "##s"] and pieces[-1] == "[SEP]"
    masker, rng, draws = Masker(encoder.tokenizer, PRETRAINING), np.random.default_rng(0), 8000
    pairs, expected = np.zeros((2, count, count))
    for _ in range(draws):
        drawn = hidden(masker(tokens, rng))
        pairs[np.ix_(drawn, drawn)] += 1 / draws
        drawn = sorted(reference_draw(pieces, round(0.5 * count), rng))
        expected[np.ix_(drawn, drawn)] += 1 / draws
    # How often each token, and each two tokens, are drawn; [CLS] never, [SEP] often.
    np.testing.assert_allclose(pairs, expected, atol=0.03)
    assert not pairs[0].any() and pairs[-1, -1] > 0.3
    # Surplus tokens are dropped at random, so that words may be masked in part.
    assert pairs[2, 2] - pairs[2, 3] > 0.05


def test_replacements_are_drawn_from_the_whole_vocabulary_as_in_the_reference(encoder):
    tokens, rng = encoder(CAPTION), np.random.default_rng(0)
    masker = Masker(encoder.tokenizer, PRETRAINING)
    seen = np.concatenate([m.ids[hidden(m)] for m in (masker(tokens, rng) for _ in range(500))])
    counts = np.bincount(seen, minlength=len(encoder.tokenizer)) / len(seen)
    assert counts[encoder.tokenizer.mask_token_id] == pytest.approx(0.8, abs=0.02)
    assert 0 < counts[encoder.tokenizer.pad_token_id] < 0.01


def test_masks_are_inserted_before_the_tokens_that_they_predict():
    ids, positions = insert_masks(np.array([2, 10, 11, 12, 3, 0]), np.array([1, 3]), 4)
    assert ids.tolist() == [2, 4, 10, 11, 4, 12, 3, 0]
    assert positions.tolist() == [1, 4]


def test_a_prompted_caption_is_kept_and_its_words_are_predicted(tmp_path):
    build_vocabulary(["a picture of a red vest"], tmp_path / "vocab.txt", 100)
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    encode = CaptionEncoder(tokenizer, 9, prompt="a picture of")
    masker, rng = MaskedCaptions(encode, CAPTIONING), np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        masked = masker("red vest", rng)
        assert masked.ids.shape == (9 + 18,) and masked.labels.shape == (18,)
        used = masked.labels != IGNORED_LABEL
        # [CLS], red, vest and [SEP] count: round(0.6 * 4).
        assert used.sum() == 2
        np.testing.assert_array_equal(masked.ids[masked.positions[used]], tokenizer.mask_token_id)
        np.testing.assert_array_equal(masked.ids[masked.positions[used] + 1], masked.labels[used])
        kept = np.delete(masked.ids, masked.positions[used])
        np.testing.assert_array_equal(kept[:9], encode("red vest").ids)
        assert not kept[9:].any()
        seen |= set(tokenizer.convert_ids_to_tokens(masked.labels[used]))
    assert seen == {"red", "vest", "[SEP]"}
