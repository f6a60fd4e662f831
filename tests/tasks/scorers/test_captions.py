"""BLEU-4, CIDEr and words of captions against pycocoevalcap's values, and a plain version."""

import itertools
import json
import math
import random

import numpy as np
import pytest

from capret_jax.tasks.scorers.ngrams import bleu4, cider
from capret_jax.tasks.scorers.ptb import ptb_words
from tests.conftest import DATA

GOLDEN = json.loads((DATA / "coco_captions.json").read_text())


@pytest.mark.parametrize(("caption", "words"), GOLDEN["words"].items())
def test_words_are_those_of_the_penn_treebank_tokenizer(caption, words):
    assert " ".join(ptb_words(caption)) == words


@pytest.mark.parametrize("corpus", GOLDEN["corpora"], ids=lambda corpus: corpus["name"])
def test_scores_are_those_of_pycocoevalcap(corpus):
    candidates = [ptb_words(text) for text in corpus["candidates"]]
    references = [[ptb_words(text) for text in texts] for texts in corpus["references"]]
    assert bleu4(candidates, references) == pytest.approx(corpus["bleu4"], rel=1e-9)
    assert cider(candidates, references) == pytest.approx(corpus["cider"], rel=1e-9)


def plain_cider(candidates, references):
    """CIDEr-D by its equations, with dense vectors over all n-grams of one order."""

    def ngrams(text, n):
        return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

    total = np.zeros(len(candidates))
    for n in (1, 2, 3, 4):
        texts = [*candidates, *itertools.chain(*references)]
        axis = sorted({gram for text in texts for gram in ngrams(text, n)})
        found = [{gram for text in group for gram in ngrams(text, n)} for group in references]
        frequency = np.array([max(sum(gram in f for f in found), 1) for gram in axis])
        weight = np.log(len(references) / frequency)

        def vector(text, n=n, axis=axis, weight=weight):
            return np.array([ngrams(text, n).count(gram) for gram in axis]) * weight

        for row, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
            for text in group:
                a, b = vector(candidate), vector(text)
                cosine = np.minimum(a, b) @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)
                penalty = math.exp(-((len(candidate) - len(text)) ** 2) / 72)
                total[row] += 10 / 4 * cosine * penalty / len(group)
    return total.mean()


def plain_bleu4(candidates, references):
    precisions = []
    for n in (1, 2, 3, 4):
        hits = total = 0
        for candidate, group in zip(candidates, references, strict=True):
            grams = [candidate[i : i + n] for i in range(len(candidate) - n + 1)]
            total += len(grams)
            for gram in {tuple(gram) for gram in grams}:
                in_group = [sum(tuple(t[i : i + n]) == gram for i in range(len(t))) for t in group]
                hits += min(grams.count(list(gram)), max(in_group))
        precisions.append(hits / total)
    length = sum(map(len, candidates))
    closest = sum(
        min((len(t) for t in group), key=lambda n: (abs(n - len(c)), n))
        for c, group in zip(candidates, references, strict=True)
    )
    return math.prod(precisions) ** 0.25 * min(1, math.exp(1 - closest / length))


def test_scores_are_those_of_plain_versions():
    rng = random.Random(3)
    words = "a man dog on red bus with the".split()
    for _ in range(5):
        group = [
            [rng.choices(words, k=rng.randint(4, 9)) for _ in range(rng.randint(1, 4))]
            for _ in range(6)
        ]
        candidates = [rng.choices(words, k=3) + texts[0][:5] for texts in group]
        assert bleu4(candidates, group) == pytest.approx(plain_bleu4(candidates, group), rel=1e-6)
        assert cider(candidates, group) == pytest.approx(plain_cider(candidates, group), rel=1e-6)


def test_captions_equal_to_their_references_score_best():
    texts = ["a dog runs in the park", "two red buses on a street", "a cat on the old sofa"]
    words = [ptb_words(text) for text in texts]
    assert bleu4(words, [[w] for w in words]) == pytest.approx(1.0)
    assert cider(words, [[w] for w in words]) == pytest.approx(10.0)
