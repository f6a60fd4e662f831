"""Words of captions, as COCO's caption evaluation splits them.

It runs Stanford's Penn Treebank tokenizer (CoreNLP 3.4.1) with `-lowerCase` and drops punctuation.
These are its rules as far as captions need them; web addresses, emoticons and signs such as ½ are
split in other ways there.
"""

import re

# Dropped; runs such as "!!" are not in pycocoevalcap's list, and brackets have names there.
_PUNCTUATION = {"'", "`", "?", "!", ",", ":", ";", '"'}
_BRACKETS = dict(zip("()[]{}", "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split(), strict=True))
_SIGNS = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": "."})
_JOINED = {
    word.replace(" ", ""): word
    for word in ("can not", "gon na", "wan na", "got ta", "lem me", "gim me", "y' all")
}
_ABBREVIATIONS = """
    mr mrs ms dr st mt ave jr sr vs etc co inc ft sgt gen prof jan feb aug sept oct nov dec
""".split()
_TOKEN = re.compile(
    r"""
    no\.(?=[ ]?\d) | (?<!\S)-\d+\b | \.\d+
    | -+ | \.{2,}                                    # dropped below
    | '(?=t(?:was|is)\b)t                            # 'twas
    | '\d0s\b | 'n'
    | (?:[a-z]\.){2,} | ph\.d\. | (?:ABBREVIATIONS)\.(?!\w) | [a-z]\.(?!\w)
    | n't\b | '(?:s|m|d|re|ve|ll)\b                  # cut off their words before
    | (?:o|d|l|qu)'\w+ | ma'am | s'mores | y'(?=all\b)
    | [@\#]?(?:(?<!\#)|(?!\d))\w+(?:(?:[-/.&@] | (?<=\d)[,:](?=\d))\w+)*
    | [?!]+
    | \S
    """.replace("ABBREVIATIONS", "|".join(_ABBREVIATIONS)),
    re.VERBOSE,
)
_CLITIC = re.compile(r"(?<=\w)(?=n't\b)|(?<=\w)(?='(?:s|m|d|re|ve|ll)\b)")


def ptb_words(caption: str) -> list[str]:
    """Splits a caption into lower-case words without punctuation."""
    text = " ".join(caption.lower().translate(_SIGNS).split())
    words = _TOKEN.findall(_CLITIC.sub(" ", text))
    kept = (word for word in words if word not in _PUNCTUATION and word.strip("-."))
    return [part for word in kept for part in _rewritten(word)]


def _rewritten(word: str) -> list[str]:
    return _JOINED.get(word, _BRACKETS.get(word, word)).split()
