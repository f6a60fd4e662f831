"""BERT's WordPiece tokenizer: loaded from a path or the hub, or built from a set of captions."""

import functools
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer, PreTrainedTokenizerBase

from capret_jax.buckets.access import staged
from capret_jax.config import Cleaning
from capret_jax.data.captions import clean_caption
from capret_jax.errors import InputError

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens(NamedTuple):
    """The tokens of one caption.

    Attributes:
        ids: (T,) int32 token ids.
        mask: (T,) int32, 1 for tokens including [CLS] and [SEP], 0 for padding.
    """

    ids: np.ndarray
    mask: np.ndarray


def build_vocabulary(
    captions: Iterable[str],
    path: str | os.PathLike,
    size: int,
    cleaning: Cleaning = Cleaning(),
    raw: Iterable[str] = (),
) -> None:
    """Learns a WordPiece vocabulary and writes it, one token a line, as BERT's vocab.txt.

    Args:
        captions: the texts to learn from.
        path: the file to write, atomically.
        size: maximal number of tokens.
        cleaning: preparation of the captions.
        raw: further texts, which are tokenised without preparation.
    """
    texts = {clean_caption(caption, cleaning) for caption in set(captions)}
    cleaned = sorted(texts | {text.lower() for text in raw})
    characters = sorted({*"".join("".join(cleaned).split())})
    # The trainer numbers characters in the order of a hash map and breaks ties between merges by
    # these numbers. Listing all characters first makes the vocabulary the same in every process.
    first = [*_SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    trainer = BertWordPieceTokenizer()
    trainer.train_from_iterator(
        cleaned, vocab_size=size, min_frequency=1, show_progress=False, special_tokens=first
    )
    vocabulary = trainer.get_vocab()
    path = pathlib.Path(path)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    partial.replace(path)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads a lower-casing BERT tokenizer from a vocab.txt, a folder, or a hub name.

    Raises:
        InputError: no tokenizer was found.
    """
    path = staged(name_or_path)
    try:
        if path.endswith(".txt"):
            return BertTokenizer(vocab=path)
        return BertTokenizer.from_pretrained(path)
    except Exception as error:  # `tokenizers` raises plain exceptions
        raise InputError(
            f"no BERT tokenizer at {name_or_path!r}: give a vocab.txt, a folder "
            "that has one, or a hub name such as bert-base-uncased."
        ) from error


def open_tokenizer(name_or_path: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """Loads a tokenizer, see `load_tokenizer`, for a model with `vocab_size` tokens.

    Raises:
        InputError: no tokenizer was found, or it has more tokens than the model, which would give
            values that are no numbers.
    """
    tokenizer = load_tokenizer(name_or_path)
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{name_or_path} has {len(tokenizer)} tokens and the model {vocab_size}: it is the "
            f"tokenizer of another model; a new one can have model.vocab_size={len(tokenizer)}."
        )
    return tokenizer


class CaptionEncoder:
    """Maps captions to token ids of a fixed length; equal captions are tokenised once.

    Attributes:
        tokenizer: a BERT tokenizer.
        max_tokens: T.
        cleaning: preparation of the captions.
        prompt_ids: (P,) int32, [CLS] and the tokens of the prompt, with which all texts begin.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        cleaning: Cleaning = Cleaning(),
        prompt: str = "",
    ):
        """
        Args:
            tokenizer: a BERT tokenizer.
            max_tokens: T.
            cleaning: preparation of the captions.
            prompt: words before each caption; empty for none.

        Raises:
            InputError: the prompt leaves no room for a caption, or the vocabulary lacks its words.
        """
        self.tokenizer, self.max_tokens, self.cleaning = tokenizer, max_tokens, cleaning
        self._prompt = prompt.strip()
        self.prompt_ids = np.array(self._whole(self._prompt)[:-1], np.int32)
        self._cached = functools.lru_cache(maxsize=100_000)(self._encode)
        if prompt and tokenizer.unk_token_id in self.prompt_ids:
            raise InputError(
                f"the vocabulary lacks words of the prompt {prompt!r}: use the tokenizer that the "
                "model was trained with."
            )
        if len(self.prompt_ids) + 1 >= max_tokens:
            raise InputError(
                f"the prompt {prompt!r} leaves no room for a caption of {max_tokens} tokens: raise "
                "data.max_tokens."
            )

    def __reduce__(self) -> tuple:
        return CaptionEncoder, (self.tokenizer, self.max_tokens, self.cleaning, self._prompt)

    def __call__(self, caption: str) -> Tokens:
        """Tokenises `[CLS] prompt caption [SEP]`, truncated or padded to T tokens."""
        return self._cached(self._prepare(caption))

    def cuts(self, caption: str) -> bool:
        """Returns True if a caption has too many words, or more than T tokens with [CLS], [SEP]."""
        uncut = self.cleaning._replace(max_words=len(caption) + 1)
        whole = clean_caption(caption, uncut)
        return (
            clean_caption(caption, self.cleaning) != whole
            or len(self._whole(whole)) + len(self.prompt_ids) - 1 > self.max_tokens
        )

    def check_words(self, caption: str) -> None:
        """Checks that the vocabulary has a word, or a part of one, of a caption.

        Raises:
            InputError: the caption has no words, or each of them is [UNK] to the model, so that all
                such captions look alike.
        """
        words = self._whole(clean_caption(caption, self.cleaning))[1:-1]
        if not words:
            raise InputError("the text has no words.")
        if all(word == self.tokenizer.unk_token_id for word in words):
            raise InputError(
                f"no word of {caption[:80]!r} is in the model's vocabulary: use other words."
            )

    def _prepare(self, caption: str) -> str:
        return f"{self._prompt} {clean_caption(caption, self.cleaning)}".strip()

    def _whole(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _encode(self, text: str) -> Tokens:
        # Truncated and padded here: a tokenizer stores both lengths as its state, and an encoder
        # of another length may use the same tokenizer in another thread.
        whole = self._whole(text)
        if len(whole) > self.max_tokens:
            whole = [*whole[: self.max_tokens - 1], self.tokenizer.sep_token_id]
        ids = np.full(self.max_tokens, self.tokenizer.pad_token_id, np.int32)
        ids[: len(whole)] = whole
        return Tokens(ids, (np.arange(self.max_tokens) < len(whole)).astype(np.int32))
