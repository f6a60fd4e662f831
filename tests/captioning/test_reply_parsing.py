"""Questions and captions in the replies of language models."""

import pytest

from capret_jax.captioning.reply_parsing import InvalidReply, parse_caption, parse_question


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
def test_first_question_is_extracted(reply, question):
    assert parse_question(reply) == question


@pytest.mark.parametrize("reply", ["", "It is red.", "?", "why " * 30 + "?", "0?"])
def test_reply_without_a_question_is_invalid(reply):
    with pytest.raises(InvalidReply):
        parse_question(reply)


def test_caption_is_the_first_line_without_label_and_quotes():
    assert parse_caption('Caption: "A red vest."\nI hope this helps!') == "A red vest."
    with pytest.raises(InvalidReply, match="no caption"):
        parse_caption(" \n ...")
    with pytest.raises(InvalidReply, match="more than 40 words"):
        parse_caption("red " * 41)


@pytest.mark.parametrize(
    "reply",
    [
        "Assistant: What colour is it?",
        "Assistant: Question 2: “What colour is it?”",
        "<|assistant|> <b>What colour is it</b>?",
        "`What *colour* is it?`",
        "### 'What colour is it?'",
        "What\x00 colour\x1b is\u202e it\ud800?",
        "What colour is it?" + "\n" * 10_000_000,
    ],
    ids=range(7),
)
def test_roles_markup_and_invisible_characters_are_removed(reply):
    assert parse_question(reply) == "What colour is it?"


def test_endless_words_are_refused():
    with pytest.raises(InvalidReply, match="more than 200 characters"):
        parse_question("What" + "t" * 200 + "?")
    with pytest.raises(InvalidReply, match="more than 400 characters"):
        parse_caption("red" * 300)
    with pytest.raises(InvalidReply, match="no question"):
        parse_question("a" * 10_000_000 + "?")


def test_caption_without_role_and_markup():
    assert parse_caption("AI:\n**Sentence:** <p>A red vest.</p>") == "A red vest."
