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
