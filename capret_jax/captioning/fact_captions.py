"""Captions made of facts, and the comparison of any caption's words with the facts."""

from collections.abc import Sequence

from capret_jax.captioning.conversation import Turn
from capret_jax.captioning.words import split_words, stem_word

# Nouns that may describe a topic besides its name, and that are not answers.
_TOPIC_NOUNS = {"colour": ("color",), "neckline": ("neck",), "fabric": ("material",)}
# Answers to listed questions that mean the absence of something.
_ABSENT = ("", "none", "nothing", "no", "solid")
# Words that carry no meaning about a garment.
_FUNCTION_WORDS = frozenset(
    "a an the and with of in on from it its is are has have that this which for as by to at".split()
    + "made featuring features item garment clothing piece image photo picture style styled".split()
    + "design designed coloured colored type kind look".split()
)


def unsupported_words(caption: str, sources: Sequence[str]) -> list[str]:
    """Returns the words of a caption that occur in none of its sources.

    Words are compared by their stems ("striped" equals "stripes"); function words are allowed.

    Args:
        caption: the caption to check.
        sources: texts with the allowed words: answers and their topics, or other captions.
    """
    supported = {stem_word(word) for source in sources for word in split_words(source)}
    return [
        word
        for word in split_words(caption)
        if word not in _FUNCTION_WORDS and stem_word(word) not in supported
    ]


def fact_sources(facts: Sequence[Turn]) -> list[str]:
    """Returns texts with the words that a caption of the facts may use: answers and topics."""
    answers = [turn.answer for turn in facts]
    nouns = [noun for turn in facts for noun in (turn.topic, *_TOPIC_NOUNS.get(turn.topic, ()))]
    return answers + nouns


def positive_facts(facts: Sequence[Turn]) -> list[Turn]:
    """Returns the facts except those that mean an absence: no print, no sleeves."""
    return [turn for turn in facts if turn.answer not in _ABSENT]


def missing_answers(caption: str, facts: Sequence[Turn]) -> list[str]:
    """Returns the answers to listed questions that a caption does not contain."""
    return [
        turn.answer for turn in facts if turn.topic and unsupported_words(turn.answer, [caption])
    ]


def caption_from_facts(facts: Sequence[Turn]) -> str:
    """Joins the answers to listed questions to a caption, without a language model.

    Answers to open-ended questions are left out: without their questions they are not clear.
    """
    known = {turn.topic: turn.answer for turn in positive_facts(facts) if turn.topic}
    name = f"{known.get('colour', '')} {known.get('category', 'item')}".strip()
    article = "an" if name[0] in "aeiou" else "a"
    parts = [
        f"{known[topic]} {topic}"
        for topic in ("sleeve", "pattern", "print", "neckline", "length", "fabric")
        if topic in known
    ]
    if not parts:
        return f"{article} {name}"
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    return f"{article} {name} with {listed}"
