"""Parsers of questions and captions in the replies of a language model.

The messages of `InvalidReply` go back to the language model: they are part of its prompts.
"""

import re

_MAX_QUESTION_WORDS = 20
_MAX_CAPTION_WORDS = 40
# A label before a question or caption: "Question:", "1.", quotes.
_LABEL = re.compile(
    r"^[\s\"'*>-]*(?:(?:question|q|caption|description|answer|assistant)\s*\d*\s*[:.)]|\d+\s*[.)])?"
    r"[\s\"'*]*",
    re.IGNORECASE,
)


class InvalidReply(ValueError):
    """Error: a reply has no usable question or caption; the message is the reason."""


def parse_question(reply: str) -> str | None:
    """Extracts the one question of a reply; None for the reply DONE.

    Models label their question, answer it themselves, or add the next one: everything after the
    first question mark is dropped.

    Raises:
        InvalidReply: there is no question, or one of more than 20 words.
    """
    if re.match(r"\W*done\b", reply, re.IGNORECASE):
        return None
    line = next((line for line in reply.splitlines() if "?" in line), "")
    question = _LABEL.sub("", line.split("?")[0]).strip()
    if not re.search(r"[A-Za-z]{2}", question):
        raise InvalidReply("there is no question in it")
    if len(question.split()) > _MAX_QUESTION_WORDS:
        raise InvalidReply(f"the question has more than {_MAX_QUESTION_WORDS} words")
    return question + "?"


def parse_caption(reply: str) -> str:
    """Extracts the first line of a reply, without labels and quotes.

    Raises:
        InvalidReply: there is no caption, or one of more than 40 words.
    """
    line = next((line for line in reply.splitlines() if re.search(r"[A-Za-z]", line)), "")
    caption = _LABEL.sub("", line).strip(" \t\"'*")
    if not caption:
        raise InvalidReply("there is no caption in it")
    if len(caption.split()) > _MAX_CAPTION_WORDS:
        raise InvalidReply(f"the caption has more than {_MAX_CAPTION_WORDS} words")
    return caption
