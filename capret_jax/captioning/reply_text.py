"""Cleaning of texts that other programs send, before they are printed, stored or sent on."""

import re
import unicodedata

# Longest reply of a language model that is looked at, in characters: a few times that of a caption
# of the longest words. The rest is dropped.
MAX_REPLY_CHARS = 1_000
# Unicode categories of characters that are invisible, rearrange a line or cannot be encoded:
# controls (which move a terminal's cursor), formats (which reverse a text), lone surrogates,
# private ones, and those without a meaning yet.
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")


def clean_reply(text: str) -> str:
    """Returns the first `MAX_REPLY_CHARS` characters without invisible ones, in lines."""
    lines = text[:MAX_REPLY_CHARS].splitlines()
    return "\n".join(map(_clean_characters, lines))


def clean_line(text: str, length: int) -> str:
    """Returns a text as one line without invisible characters, of so many characters at most."""
    return " ".join(clean_reply(text).split())[:length].strip()


def _clean_characters(text: str) -> str:
    """Composes letters and accents, and replaces invisible characters by spaces."""
    visible = "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in text)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", visible)).strip()
