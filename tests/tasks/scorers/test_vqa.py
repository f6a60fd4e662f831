"""VQA accuracy: the official rules on hand-made answers, and leave-one-out sets one by one."""

import random

import pytest

from capret_jax.tasks.scorers.vqa import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("  Yes\n", "yes"),
        ("The two dogs", "2 dogs"),
        ("none", "0"),
        ("ten an a the", "10"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("yalld've", "yalld've"),
        ("yall'd've", "y'all'd've"),
        ("y'alld've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # the wrong way round in the official table, too
        ("Im", "im"),  # the official entry has a capital, and is never found
        # A mark between letters becomes a space; beside a space it goes away.
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("well-known, red", "well known red"),
        ("well-known - red", "wellknown red"),
        # With a comma in a number all marks go away.
        ("1,000", "1000"),
        ("a 1,000-year-old", "1000yearold"),
        # A period goes away unless a digit follows.
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("no. 5.", "no 5"),
        ("5:30", "5:30"),
        ("", ""),
    ],
)
def test_the_official_normalisation(answer, normal):
    assert normalize_answer(answer) == normal


@pytest.mark.parametrize(
    ("answer", "annotated", "accuracy"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("yes", ["yes"] + ["no"] * 9, 0.3),  # 9 of 10 sets have one match, one has none
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9),
        ("yes", ["yes"] * 4 + ["no"] * 6, 1.0),
        ("maybe", ["yes"] * 10, 0.0),
        # Punctuation of annotated answers is normalised where they differ, and only there.
        ("black white", ["black/white"] * 9 + ["red"], 1.0),
        ("black white", ["black/white"] * 10, 0.0),
        # Their articles and number words never are.
        ("2", ["two"] * 10, 0.0),
        ("two", ["2"] * 9 + ["3"], 1.0),
    ],
)
def test_hand_made_accuracies(answer, annotated, accuracy):
    assert vqa_accuracy(answer, annotated) == pytest.approx(accuracy)


def test_it_is_the_mean_over_the_sets_without_one_annotator():
    rng = random.Random(0)
    for _ in range(200):
        annotated = rng.choices(["yes", "no", "maybe"], k=10)
        sets = [annotated[:i] + annotated[i + 1 :] for i in range(10)]
        for answer in ("yes", "no", "blue"):
            expected = sum(min(1, given.count(answer) / 3) for given in sets) / 10
            assert vqa_accuracy(answer, annotated) == pytest.approx(expected)
