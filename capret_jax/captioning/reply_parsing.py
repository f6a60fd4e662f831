"""Parsers of questions and captions in the replies of a language model.

The messages of `InvalidReply` go back to the language model: they are part of its prompts.
"""

import re

from capret_jax.captioning.reply_text import clean_reply

_MAX_QUESTION_WORDS = 20
_MAX_CAPTION_WORDS = 40
# Longest question and caption, in characters: of languages without spaces, and of endless words.
MAX_QUESTION_CHARS = 200
MAX_CAPTION_CHARS = 400
# Tags of HTML and of chat templates, marks of Markdown, and quotation marks in pairs.
_MARKUP = re.compile(r"</?[a-zA-Z|][^<>]{0,40}>|[*_`#~|]+|[\"“”„«»‹›]")
# A label before a question or caption: "Question:", "1.", quotes.
_LABEL = re.compile(
    r"^[\s'‘’>•-]*(?:(?:question|q|caption|description|sentence|answer|assistant|user|human|ai|bot"
    r"|system)\s*\d*\s*[:.)]|\d+\s*[.)])?[\s'‘’]*",
    re.IGNORECASE,
)


class InvalidReply(ValueError):
    """Error: a reply has no usable question or caption; the message is the reason."""


def parse_question(reply: str) -> str | None:
    """Extracts the one question of a reply; None for the reply DONE.

    Models label their question, answer it themselves, or add the next one: everything after the
    first question mark is dropped.

    Raises:
        InvalidReply: there is no question, or one that is too long.
    """
    if re.match(r"\W*done\b", reply, re.IGNORECASE):
        return None
    line = next((line for line in _plain_lines(reply) if "?" in line), "")
    question = _remove_labels(line.split("?")[0])
    if not re.search(r"[A-Za-z]{2}", question):
        raise InvalidReply("there is no question in it")
    if len(question.split()) > _MAX_QUESTION_WORDS:
        raise InvalidReply(f"the question has more than {_MAX_QUESTION_WORDS} words")
    if len(question) >= MAX_QUESTION_CHARS:
        raise InvalidReply(f"the question has more than {MAX_QUESTION_CHARS} characters")
    return question + "?"


def parse_caption(reply: str) -> str:
    """Extracts the first line of a reply, without labels and quotes.

    Raises:
        InvalidReply: there is no caption, or one that is too long.
    """
    lines = map(_remove_labels, _plain_lines(reply))
    caption = next((line for line in lines if re.search(r"[A-Za-z]", line)), "")
    if not caption:
        raise InvalidReply("there is no caption in it")
    if len(caption.split()) > _MAX_CAPTION_WORDS:
        raise InvalidReply(f"the caption has more than {_MAX_CAPTION_WORDS} words")
    if len(caption) > MAX_CAPTION_CHARS:
        raise InvalidReply(f"the caption has more than {MAX_CAPTION_CHARS} characters")
    return caption


def _plain_lines(reply: str) -> list[str]:
    """Returns the lines of a reply without markup."""
    return [_MARKUP.sub(" ", line) for line in clean_reply(reply).splitlines()]


def _remove_labels(line: str) -> str:
    """Removes labels and quotes: "Assistant: Question 1: 'What colour is it" has two labels."""
    while (shorter := _LABEL.sub("", line, count=1)) != line:
        line = shorter
    return " ".join(line.split()).strip("'‘’ ")
