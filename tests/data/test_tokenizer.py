"""Building of a vocabulary and encoding of captions."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from capret_jax.config import Cleaning
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.errors import InputError

CAPTIONS = ["an image of a skirt with scale small", "an image of a vest with scale large"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    build_vocabulary(CAPTIONS, path, 200)
    return path


def test_every_word_of_the_captions_is_a_token(vocabulary):
    tokenizer = load_tokenizer(str(vocabulary))
    words = {word for caption in CAPTIONS for word in caption.split()}
    assert words <= set(tokenizer.get_vocab())
    assert tokenizer.pad_token_id == 0


def test_encoding_cleans_adds_special_tokens_and_pads(vocabulary):
    encoder = CaptionEncoder(load_tokenizer(str(vocabulary)), 8)
    tokens = encoder("An image, of: a VEST")
    names = encoder.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert names == ["[CLS]", "an", "image", "of", "a", "vest", "[SEP]", "[PAD]"]
    np.testing.assert_array_equal(tokens.mask, [1] * 7 + [0])


def test_long_captions_are_cut_and_still_end_in_sep(vocabulary):
    encoder = CaptionEncoder(load_tokenizer(str(vocabulary)), 5)
    tokens = encoder(CAPTIONS[0])
    assert encoder.tokenizer.convert_ids_to_tokens(tokens.ids[-1:]) == ["[SEP]"]


def test_encoders_of_two_lengths_share_a_tokenizer_across_threads(vocabulary):
    tokenizer = load_tokenizer(str(vocabulary))
    captions = [f"{CAPTIONS[0]} {'vest ' * (i % 7)}{i}" for i in range(400)]

    def encode(max_tokens: int) -> list[int]:
        encoder = CaptionEncoder(tokenizer, max_tokens)
        return [len(encoder(caption).ids) + encoder(caption).mask.sum() for caption in captions]

    alone = [encode(5), encode(12)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(encode, (5, 12))) == alone


def test_the_vocabulary_is_the_same_in_every_process(vocabulary, tmp_path):
    again = tmp_path / "again.txt"
    code = (
        "import sys; from capret_jax.data.tokenizer import build_vocabulary as build;"
        f"build({CAPTIONS[::-1]!r}, {str(again)!r}, 200)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert again.read_bytes() == vocabulary.read_bytes()


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"at .*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


def names(encoder, text):
    tokens = encoder(text)
    return encoder.tokenizer.convert_ids_to_tokens(tokens.ids[tokens.mask > 0])


def test_the_prompt_is_before_every_caption(tmp_path):
    build_vocabulary(["a picture of a red vest"], tmp_path / "vocab.txt", 100)
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    encoder = CaptionEncoder(tokenizer, 9, Cleaning(max_words=2), " a picture of ")
    start = ["[CLS]", "a", "picture", "of"]
    assert tokenizer.convert_ids_to_tokens(encoder.prompt_ids) == start
    # Its words do not count, its tokens do.
    assert names(encoder, "A red vest!") == [*start, "a", "red", "[SEP]"]
    assert names(encoder, "") == [*start, "[SEP]"]
    again = pickle.loads(pickle.dumps(encoder))
    assert names(again, "vest") == [*start, "vest", "[SEP]"]
    assert CaptionEncoder(tokenizer, 9).prompt_ids.tolist() == [tokenizer.cls_token_id]
    with pytest.raises(InputError, match="lacks words of the prompt 'the vest'"):
        CaptionEncoder(tokenizer, 9, prompt="the vest")
    with pytest.raises(InputError, match="leaves no room for a caption of 5 tokens"):
        CaptionEncoder(tokenizer, 5, prompt="a picture of")


def test_raw_texts_keep_their_marks(tmp_path):
    raw = ["window-pane", "3.5", "St. Mary's"]
    build_vocabulary(["a window pane"], tmp_path / "vocab.txt", 100, raw=raw)
    encoder = CaptionEncoder(load_tokenizer(str(tmp_path / "vocab.txt")), 12, Cleaning("none"))
    assert names(encoder, "Window-Pane") == ["[CLS]", "window", "-", "pane", "[SEP]"]
    for text in raw:
        assert encoder.tokenizer.unk_token not in names(encoder, text)
    cleaned = CaptionEncoder(encoder.tokenizer, 12)
    assert names(cleaned, "Window-Pane") == ["[CLS]", "window", "pane", "[SEP]"]


def test_lost_words_and_lost_tokens_are_noticed(vocabulary):
    encoder = CaptionEncoder(load_tokenizer(str(vocabulary)), 6, Cleaning(max_words=3))
    assert not encoder.cuts("an image, of")
    assert encoder.cuts("an image, of a")
    assert encoder.cuts("an image scalescalescale")
    assert not CaptionEncoder(encoder.tokenizer, 6, Cleaning("none", 3)).cuts("an image of a")


def test_a_text_of_unknown_words_alone_is_refused(vocabulary):
    encoder = CaptionEncoder(load_tokenizer(str(vocabulary)), 8)
    encoder.check_words("платье vest")
    with pytest.raises(InputError, match="no word of 'платье 裙子' is in the model's vocabulary"):
        encoder.check_words("платье 裙子")
    with pytest.raises(InputError, match="has no words"):
        encoder.check_words("?!")
