"""Accuracy of visual question answering, as VQAv2's official evaluation defines it.

The rules, odd ones included, are those of `vqaEval.py` in github.com/GT-Vision-Lab/VQA, so that the
values equal published ones.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
""".split()


def _misspellings(contraction: str) -> Iterable[str]:
    """Yields a contraction without one of its apostrophes, for each of them."""
    for match in re.finditer("'", contraction):
        yield contraction[: match.start()] + contraction[match.end() :]


# The last pair is the wrong way round in the official table, too.
_CORRECTIONS = {
    **{wrong: right for right in _CONTRACTIONS for wrong in _misspellings(right)},
    "somebody'd": "somebodyd",
}


def vqa_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Computes the accuracy of one answer.

    It is the mean over the annotators of min(1, matches / 3) among the answers of the others.

    Args:
        answer: the model's answer.
        annotated: the annotators' answers, ten in VQAv2.

    Returns:
        A fraction.
    """
    given = [_strip(text) for text in annotated]
    if len(set(given)) > 1:
        given = [_without_punctuation(text) for text in given]
    answer = normalize_answer(answer)
    matches = Counter(given)[answer]
    return sum(min(1.0, (matches - (text == answer)) / 3) for text in given) / len(given)


def normalize_answer(answer: str) -> str:
    """Normalises a model's answer: punctuation, case, number words, articles and contractions."""
    words = _without_punctuation(_strip(answer)).lower().split()
    digits = (_DIGITS.get(word, word) for word in words)
    return " ".join(_CORRECTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Deletes marks beside a space, all marks of a text with a comma in a number, and periods that
    no digit follows; other marks become spaces."""
    delete_all = bool(_COMMA_IN_NUMBER.search(text))
    table: dict[str, str | int | None] = {
        mark: "" if delete_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION
    }
    return _PERIOD.sub("", text.translate(str.maketrans(table)))
