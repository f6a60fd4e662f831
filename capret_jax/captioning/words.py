"""Words of questions, answers and captions, and their stems."""

import functools
import re

import snowballstemmer

_STEMMER = snowballstemmer.stemmer("english")
_SPELLINGS = {"gray": "grey", "color": "colour", "outerwear": "outwear"}
# "shorts" would have the stem of "short", which is a kind of sleeve.
_UNSTEMMED = ("shorts",)


def split_words(text: str) -> list[str]:
    """Returns the lower-case words of a text in any script, since Phi-3 may mix scripts."""
    return re.findall(r"[^\W_]+", text.lower())


@functools.cache
def stem_word(word: str) -> str:
    """Returns the stem of a lower-case word, with American spellings made British."""
    word = _SPELLINGS.get(word, word)
    return word if word in _UNSTEMMED else _STEMMER.stemWord(word)
