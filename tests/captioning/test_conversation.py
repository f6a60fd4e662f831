"""Conversations: recognised questions, facts, and the end."""

import pytest

from capret_jax.captioning.conversation import Conversation, ConversationConfig
from capret_jax.captioning.fact_captions import caption_from_facts
from capret_jax.data.vqa import DEEPFASHION2_QUESTIONS, SYNTHETIC_QUESTIONS
from capret_jax.errors import InputError


def converse(*turns: tuple[str, str, float], **settings) -> Conversation:
    """A conversation of (question, answer, probability) turns."""
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig(**settings))
    for question, answer, probability in turns:
        conversation.add_question(question)
        conversation.add_answer(answer, probability)
    return conversation


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
def test_questions_are_recognised_by_topic(question, topic):
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig())
    assert conversation.topic_of(question) == topic
    vqa_question = conversation.vqa_question(question)
    if topic:
        assert vqa_question in SYNTHETIC_QUESTIONS
    else:
        assert (vqa_question.text, vqa_question.answers) == (question, ())


def test_only_probable_answers_become_facts():
    conversation = converse(
        ("What colour is it?", "navy", 0.9), ("What pattern?", "dots", 0.4), sure=0.5
    )
    assert [turn.answer for turn in conversation.facts()] == ["navy"]
    assert caption_from_facts(conversation.facts()) == "a navy item"


@pytest.mark.parametrize(
    "answer", ["yes", "No.", "not sure", "Unknown", "", "can't tell", "not visible", "no pockets"]
)
def test_uninformative_written_answers_are_no_facts(answer):
    conversation = converse(("Where are its pockets?", answer, 0.99))
    assert not conversation.facts() and not conversation.turns[0].new


def test_t_shirt_is_an_informative_answer():
    conversation = converse(("What type of shirt is worn under it?", "green t-shirt", 0.99))
    assert [turn.answer for turn in conversation.facts()] == ["green t-shirt"]


def test_yes_or_no_questions_are_uninformative_unless_listed():
    conversation = converse()
    assert conversation.is_uninformative("Does it have pockets?")
    assert not conversation.is_uninformative("Is it striped or plain?")
    assert not conversation.is_uninformative("Where are its pockets?")


def test_second_answer_about_a_topic_is_no_fact():
    conversation = converse(("What colour is it?", "navy", 0.9), ("Its color?", "red", 0.9))
    assert [turn.answer for turn in conversation.facts()] == ["navy"]


def test_conversation_ends_after_turns_without_a_new_fact():
    unsure = [("What print?", "star", 0.1), ("What pattern?", "dots", 0.2)]
    assert not converse(*unsure, patience=3).finished()
    assert converse(*unsure, patience=2).finished()
    fresh = [("What colour?", "navy", 0.9), unsure[0], ("What neckline?", "v", 0.9), unsure[1]]
    assert not converse(*fresh, patience=2).finished()


def test_conversation_ends_at_max_turns_or_without_a_question():
    assert converse(("What colour?", "navy", 0.9), max_turns=1).finished()
    conversation = converse()
    assert not conversation.finished()
    conversation.add_question(None)
    assert conversation.finished()


def test_questions_about_sleeves_do_not_apply_to_trousers():
    def topics(conversation):
        return {question.topic for question in conversation.remaining_questions()}

    assert topics(converse()) == {question.topic for question in SYNTHETIC_QUESTIONS}
    assert topics(converse(("What kind is it?", "trousers", 0.9))) == {"colour", "pattern", "print"}
    # An uncertain category excludes nothing.
    assert "sleeve" in topics(converse(("What kind is it?", "trousers", 0.1)))


def test_facts_about_sleeves_do_not_apply_to_bottoms():
    conversation = converse(
        ("What sleeves does it have?", "short", 0.9), ("What kind?", "vest", 0.1)
    )
    assert [turn.answer for turn in conversation.facts()] == ["short"]
    conversation = converse(
        ("What sleeves does it have?", "short", 0.9), ("What kind is it?", "skirt", 0.9)
    )
    assert [turn.answer for turn in conversation.facts()] == ["skirt"]
    assert (
        not conversation.applies("sleeve")
        and conversation.applies("colour")
        and conversation.applies("")
    )


@pytest.mark.parametrize(
    "values", [{"max_turns": 0}, {"max_turns": 25}, {"patience": 0}, {"sure": 1}]
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        ConversationConfig(**values)


@pytest.mark.parametrize("questions", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_every_listed_question_is_recognised_as_itself(questions):
    conversation = Conversation(questions, ConversationConfig())
    assert [conversation.topic_of(question.text) for question in questions] == [
        q.topic for q in questions
    ]
