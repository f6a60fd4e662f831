"""Conversations: what is asked, what becomes a fact, when it ends, and what may be said."""

import pytest

from capret_jax.captioning.conversation import (
    Dialogue,
    DialogueConfig,
    InvalidReply,
    Turn,
    left_out,
    parse_caption,
    parse_question,
    plain_caption,
    sources_of,
    unsupported,
    worth_saying,
)
from capret_jax.data.vqa import DEEPFASHION2_QUESTIONS, SYNTHETIC_QUESTIONS
from capret_jax.errors import InputError


def dialogue(*turns: tuple[str, str, float], **settings) -> Dialogue:
    talk = Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig(**settings))
    for question, answer, probability in turns:
        talk.ask(question)
        talk.answer(answer, probability)
    return talk


@pytest.mark.parametrize(
    "reply, question",
    [
        ("What colour is it?", "What colour is it?"),
        ('Question: "What colour is it?"', "What colour is it?"),
        ("1. What colour is it?\n2. What print?", "What colour is it?"),
        ("Q: What colour is it? A: It is red. Q: Is it long?", "What colour is it?"),
        ("Sure! Here it is:\n**What colour is it?**\nThe answer is red.", "What colour is it?"),
        ("DONE", None),
        ("done.", None),
    ],
)
def test_one_question_is_taken_and_no_answer(reply, question):
    assert parse_question(reply) == question


@pytest.mark.parametrize("reply", ["", "It is red.", "?", "why " * 30 + "?", "0?"])
def test_what_is_no_question_is_refused(reply):
    with pytest.raises(InvalidReply):
        parse_question(reply)


def test_a_caption_is_one_line_without_its_label():
    assert parse_caption('Caption: "A red vest."\nI hope this helps!') == "A red vest."
    with pytest.raises(InvalidReply, match="no caption"):
        parse_caption(" \n ...")
    with pytest.raises(InvalidReply, match="more than 40 words"):
        parse_caption("red " * 41)


@pytest.mark.parametrize(
    "question, topic",
    [
        ("What kind of neckline does it have?", "neckline"),
        ("What color is the garment?", "colour"),
        ("Is it striped or plain?", "pattern"),
        ("What type of garment is this?", "category"),
        ("What category is it?", "category"),
        ("What kind of dress is it?", "category"),
        ("Who made it?", ""),
        ("What kind of closure does it have?", ""),
        ("Where does the garment have pockets?", ""),
        ("What type of buttons does the garment have?", ""),
    ],
)
def test_questions_are_taken_for_those_of_the_list(question, topic):
    talk = Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig())
    assert talk.topic_of(question) == topic
    asked = talk.to_answer(question)
    if topic:
        assert asked in SYNTHETIC_QUESTIONS
    else:
        assert (asked.text, asked.answers) == (question, ())


def test_only_what_is_certain_becomes_a_fact():
    talk = dialogue(("What colour is it?", "navy", 0.9), ("What pattern?", "dots", 0.4), sure=0.5)
    assert [turn.answer for turn in talk.facts()] == ["navy"]
    assert plain_caption(talk.facts()) == "a navy item"


@pytest.mark.parametrize(
    "answer", ["yes", "No.", "not sure", "Unknown", "", "can't tell", "not visible", "no pockets"]
)
def test_a_written_answer_that_says_nothing_is_no_fact(answer):
    talk = dialogue(("Where are its pockets?", answer, 0.99))
    assert not talk.facts() and not talk.turns[0].new


def test_a_t_shirt_is_an_answer():
    talk = dialogue(("What type of shirt is worn under it?", "green t-shirt", 0.99))
    assert [turn.answer for turn in talk.facts()] == ["green t-shirt"]


def test_questions_of_yes_and_no_say_nothing_unless_they_have_a_list():
    talk = dialogue()
    assert talk.says_nothing("Does it have pockets?")
    assert not talk.says_nothing("Is it striped or plain?")
    assert not talk.says_nothing("Where are its pockets?")


def test_a_second_answer_to_the_same_question_is_no_fact():
    talk = dialogue(("What colour is it?", "navy", 0.9), ("Its color?", "red", 0.9))
    assert [turn.answer for turn in talk.facts()] == ["navy"]


def test_it_ends_when_nothing_new_comes():
    unsure = [("What print?", "star", 0.1), ("What pattern?", "dots", 0.2)]
    assert not dialogue(*unsure, patience=3).finished()
    assert dialogue(*unsure, patience=2).finished()
    fresh = [("What colour?", "navy", 0.9), unsure[0], ("What neckline?", "v", 0.9), unsure[1]]
    assert not dialogue(*fresh, patience=2).finished()


def test_it_ends_with_the_budget_or_the_last_question():
    assert dialogue(("What colour?", "navy", 0.9), max_turns=1).finished()
    talk = dialogue()
    assert not talk.finished()
    talk.ask(None)
    assert talk.finished()


def test_trousers_are_not_asked_for_sleeves():
    def topics(talk):
        return {question.topic for question in talk.open_questions()}

    assert topics(dialogue()) == {question.topic for question in SYNTHETIC_QUESTIONS}
    assert topics(dialogue(("What kind is it?", "trousers", 0.9))) == {"colour", "pattern", "print"}
    # When in doubt, they are.
    assert "sleeve" in topics(dialogue(("What kind is it?", "trousers", 0.1)))


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
def test_words_that_nobody_said_are_found(caption, extra):
    talk = dialogue(
        ("What colour is it?", "navy", 0.9),
        ("What kind is it?", "vest dress", 0.9),
        ("What pattern?", "horizontal stripes", 0.9),
        ("What is printed on it?", "red heart", 0.2),
    )
    assert unsupported(caption, sources_of(talk.facts())) == extra


@pytest.mark.parametrize("questions", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_no_answer_is_said_that_was_not_given(questions):
    """Whatever else is known, the words of one topic's fact free no other answer."""
    for question in questions:
        for known in question.answers:
            fact = Turn("", question.topic, known, 1.0, True, True)
            free = {*known.split(), question.topic, "a", "an"}
            for other in questions:
                for answer in other.answers:
                    if answer in ("no", "none", "nothing", "solid") or set(answer.split()) <= free:
                        continue
                    assert unsupported(answer, sources_of([fact])), (known, answer)


def test_words_of_other_scripts_are_words():
    talk = dialogue(("What colour is it?", "navy", 0.9))
    assert unsupported("navy 条纹 с полосами", sources_of(talk.facts())) == [
        "条纹",
        "с",
        "полосами",
    ]


def test_trousers_have_no_sleeves_whatever_was_answered():
    talk = dialogue(("What sleeves does it have?", "short", 0.9), ("What kind?", "vest", 0.1))
    assert [turn.answer for turn in talk.facts()] == ["short"]
    talk = dialogue(
        ("What sleeves does it have?", "short", 0.9), ("What kind is it?", "skirt", 0.9)
    )
    assert [turn.answer for turn in talk.facts()] == ["skirt"]
    assert not talk.suits("sleeve") and talk.suits("colour") and talk.suits("")


def test_facts_that_a_caption_leaves_out_are_found():
    facts = [
        Turn("", "colour", "navy", 1.0, True, True),
        Turn("", "pattern", "horizontal stripes", 1.0, True, True),
        Turn("Who wears it?", "", "a child", 1.0, True, True),
    ]
    assert left_out("A navy item, horizontally striped", facts) == []
    assert left_out("A striped item", facts) == ["navy", "horizontal stripes"]


def test_what_a_garment_has_not_is_not_said():
    talk = dialogue(("What sleeves does it have?", "no", 0.9), ("What print?", "none", 0.9))
    assert len(talk.facts()) == 2 and worth_saying(talk.facts()) == []


def test_the_plain_caption_says_all_facts_and_nothing_else():
    talk = dialogue(
        ("What kind is it?", "short sleeve top", 0.9),
        ("What colour is it?", "rose", 0.9),
        ("What pattern?", "dots", 0.9),
        ("What is printed on it?", "none", 0.9),
        ("What neckline?", "v", 0.9),
        ("Who wears it?", "a child", 0.9),
    )
    caption = plain_caption(talk.facts())
    # What was asked freely says nothing without its question.
    assert caption == "a rose short sleeve top with dots pattern and v neckline"
    assert unsupported(caption, sources_of(talk.facts())) == []
    assert plain_caption([]) == "an item"


@pytest.mark.parametrize(
    "values", [{"max_turns": 0}, {"max_turns": 25}, {"patience": 0}, {"sure": 1}]
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        DialogueConfig(**values)


@pytest.mark.parametrize("questions", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_every_question_is_found_by_its_own_words(questions):
    talk = Dialogue(questions, DialogueConfig())
    assert [talk.topic_of(question.text) for question in questions] == [q.topic for q in questions]
