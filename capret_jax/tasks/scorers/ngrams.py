"""Captioning metrics of n-grams: corpus BLEU-4 and CIDEr-D, as pycocoevalcap defines them.

Texts are lists of words, from `ptb_words`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Words = Sequence[str]
_ORDERS = (1, 2, 3, 4)
# Standard deviation, in words, of CIDEr-D's penalty on lengths.
_SIGMA = 6.0
# pycocoevalcap's: the score is defined where no n-gram is found, or texts are too short for one.
_TINY, _SMALL = 1e-15, 1e-9


def bleu4(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Computes BLEU-4 (Papineni et al., 2002) of a corpus.

    The reference length of a caption is the closest one, the shorter one of two that are equally
    close.

    Args:
        candidates: n captions.
        references: the references of each of them.

    Returns:
        A fraction.
    """
    found, possible = [0] * len(_ORDERS), [0] * len(_ORDERS)
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min((abs(len(t) - len(candidate)), len(t)) for t in texts)[1]
        for place, order in enumerate(_ORDERS):
            counts, most = _ngrams(candidate, order), Counter[tuple[str, ...]]()
            for text in texts:
                most |= _ngrams(text, order)
            found[place] += (counts & most).total()
            possible[place] += counts.total()
    ratios = ((f + _TINY) / (p + _SMALL) for f, p in zip(found, possible, strict=True))
    precision = math.prod(ratios) ** (1 / len(_ORDERS))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    return precision * (1.0 if ratio >= 1 else math.exp(1 - 1 / ratio))


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Computes CIDEr-D (Vedantam et al., 2015), with document frequencies of these references.

    Args:
        candidates: n captions.
        references: the references of each of them.

    Returns:
        The mean over captions; tables show it times 100.
    """
    scores = [0.0] * len(candidates)
    for order in _ORDERS:
        vectors = _TfIdf(references, order)
        for row, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
            similarity = sum(vectors.similarity(candidate, text) for text in texts)
            scores[row] += 10 * similarity / len(texts) / len(_ORDERS)
    return sum(scores) / len(scores)


class _TfIdf:
    """Similarities of texts by their n-grams of one order, weighted by inverse frequency."""

    def __init__(self, references: Sequence[Sequence[Words]], order: int):
        self._order, self._log_documents = order, math.log(len(references))
        self._frequency: dict[tuple[str, ...], int] = defaultdict(int)
        for texts in references:
            for ngram in {ngram for text in texts for ngram in _ngrams(text, order)}:
                self._frequency[ngram] += 1

    def similarity(self, candidate: Words, reference: Words) -> float:
        """Returns the cosine of clipped counts, times the Gaussian penalty of the lengths."""
        a, b = self._weights(candidate), self._weights(reference)
        product = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
        norm = math.hypot(*a.values()) * math.hypot(*b.values())
        # The lengths are numbers of bigrams, which matters for texts without words.
        difference = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
        return (product / norm if norm else product) * math.exp(-(difference**2) / (2 * _SIGMA**2))

    def _weights(self, text: Words) -> dict[tuple[str, ...], float]:
        return {
            ngram: count * (self._log_documents - math.log(self._frequency.get(ngram, 1)))
            for ngram, count in _ngrams(text, self._order).items()
        }


def _ngrams(text: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(order)), strict=False))
