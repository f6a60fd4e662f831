"""Captions made of facts, and words that the facts do not support."""

import itertools

import pytest

from capret_jax.captioning.conversation import Turn
from capret_jax.captioning.fact_captions import (
    caption_from_facts,
    caption_wordings,
    fact_sources,
    missing_answers,
    positive_facts,
    repeated_words,
    unsupported_words,
)
from capret_jax.data.vqa import DEEPFASHION2_QUESTIONS, SYNTHETIC_QUESTIONS
from tests.captioning.test_conversation import converse


@pytest.mark.parametrize(
    "caption, extra",
    [
        ("A navy vest dress with stripes.", []),
        ("The garment is a striped navy vest dress, coloured navy.", []),
        ("A navy vest dress with red stripes.", ["red"]),
        ("A hooded navy vest dress", ["hooded"]),
        ("A navy cotton dress without stripes", ["cotton", "without"]),
    ],
)
def test_unsupported_words_are_found(caption, extra):
    conversation = converse(
        ("What colour is it?", "navy", 0.9),
        ("What kind is it?", "vest dress", 0.9),
        ("What pattern?", "horizontal stripes", 0.9),
        ("What is printed on it?", "red heart", 0.2),
    )
    assert unsupported_words(caption, fact_sources(conversation.facts())) == extra


@pytest.mark.parametrize("questions", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_one_fact_supports_no_other_answer(questions):
    """The words of one topic's fact must not allow an answer about another topic."""
    for question in questions:
        for known in question.answers:
            fact = Turn("", question.topic, known, 1.0, True, True)
            free = {*known.split(), question.topic, "a", "an"}
            for other in questions:
                for answer in other.answers:
                    if answer in ("no", "none", "nothing", "solid") or set(answer.split()) <= free:
                        continue
                    assert unsupported_words(answer, fact_sources([fact])), (known, answer)


def test_words_of_other_scripts_are_checked():
    conversation = converse(("What colour is it?", "navy", 0.9))
    assert unsupported_words("navy 条纹 с полосами", fact_sources(conversation.facts())) == [
        "条纹",
        "с",
        "полосами",
    ]


def test_missing_answers_are_found():
    facts = [
        Turn("", "colour", "navy", 1.0, True, True),
        Turn("", "pattern", "horizontal stripes", 1.0, True, True),
        Turn("Who wears it?", "", "a child", 1.0, True, True),
    ]
    assert missing_answers("A navy item, horizontally striped", facts) == []
    assert missing_answers("A striped item", facts) == ["navy", "horizontal stripes"]


def test_absences_are_not_positive_facts():
    conversation = converse(("What sleeves does it have?", "no", 0.9), ("What print?", "none", 0.9))
    assert len(conversation.facts()) == 2 and positive_facts(conversation.facts()) == []


def test_caption_from_facts_contains_all_facts_and_nothing_else():
    conversation = converse(
        ("What kind is it?", "short sleeve top", 0.9),
        ("What colour is it?", "rose", 0.9),
        ("What pattern?", "dots", 0.9),
        ("What is printed on it?", "none", 0.9),
        ("What neckline?", "v", 0.9),
        ("Who wears it?", "a child", 0.9),
    )
    caption = caption_from_facts(conversation.facts())
    # The answer to an open-ended question is left out.
    assert caption == "a rose short sleeve top with dots pattern and v neckline"
    assert unsupported_words(caption, fact_sources(conversation.facts())) == []
    assert caption_from_facts([]) == "an item"


def fact(topic: str, answer: str) -> Turn:
    return Turn("", topic, answer, 1.0, True, True)


@pytest.mark.parametrize(
    "facts, caption",
    [
        ([("category", "long sleeve dress"), ("sleeve", "long")], "a long sleeve dress"),
        (
            [("category", "long sleeve dress"), ("sleeve", "short")],
            "a long sleeve dress with short sleeve",
        ),
        ([("category", "skirt"), ("length", "knee length")], "a skirt with knee length"),
        ([("category", "vest"), ("print", "animal print")], "a vest with animal print"),
        ([("colour", "red"), ("print", "red heart")], "a red item with red heart print"),
    ],
)
def test_caption_does_not_repeat_a_fact(facts, caption):
    assert caption_from_facts([fact(*pair) for pair in facts]) == caption


def test_repeated_words_are_found():
    facts = [fact("category", "long sleeve dress"), fact("sleeve", "long"), fact("colour", "red")]
    assert repeated_words("A long-sleeved dress with a long sleeve", facts) == [
        "long",
        "sleeved",
        "sleeve",
    ]
    assert repeated_words("A red dress with long sleeves, and with a", facts) == []
    facts = [fact("colour", "white"), fact("print", "white star")]
    assert repeated_words("A white item with a white star", facts) == []
    assert repeated_words("A white item with a white star in white", facts) == ["white"]


@pytest.mark.parametrize("questions", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_no_two_facts_make_a_caption_that_repeats_itself(questions):
    for first in questions:
        for second in questions:
            for answers in itertools.product(first.answers, second.answers):
                pair = [fact(first.topic, answers[0]), fact(second.topic, answers[1])]
                facts = pair if first != second else pair[:1]
                for caption in caption_wordings(facts):
                    assert repeated_words(caption, facts) == []
                    assert unsupported_words(caption, fact_sources(facts)) == []
