"""Captions made of facts, and the comparison of any caption's words with the facts."""

from collections import Counter
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


def distinct_facts(facts: Sequence[Turn]) -> list[Turn]:
    """Returns the facts except those that another one contains: long sleeves of a long sleeve top.

    A caption with both would say the same twice.
    """
    said = [_stems(turn.answer) for turn in facts]
    return [
        turn
        for turn, own in zip(facts, said, strict=True)
        if not turn.topic
        or not any(_stems(f"{turn.answer} {turn.topic}") <= other for other in said if other != own)
    ]


def repeated_words(caption: str, facts: Sequence[Turn]) -> list[str]:
    """Returns the words of a caption that occur in it more often than in the distinct facts."""
    allowed = Counter(
        stem
        for turn in distinct_facts(facts)
        for stem in _stems(f"{turn.answer} {turn.topic} {turn.question if not turn.topic else ''}")
    )
    words = [word for word in split_words(caption) if word not in _FUNCTION_WORDS]
    counts = Counter(map(stem_word, words))
    repeated = {stem for stem, count in counts.items() if count > max(1, allowed[stem])}
    return list(dict.fromkeys(word for word in words if stem_word(word) in repeated))


def _stems(text: str) -> set[str]:
    return {*map(stem_word, split_words(text))}


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
    distinct = distinct_facts(positive_facts(facts))
    known = {turn.topic: turn.answer for turn in distinct if turn.topic}
    name = f"{known.get('colour', '')} {known.get('category', 'item')}".strip()
    article = "an" if name[0] in "aeiou" else "a"
    parts = [
        _noun_phrase(known[topic], topic)
        for topic in ("sleeve", "pattern", "print", "neckline", "length", "fabric")
        if topic in known
    ]
    if not parts:
        return f"{article} {name}"
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    return f"{article} {name} with {listed}"


def caption_wordings(facts: Sequence[Turn]) -> list[str]:
    """Lists sentences that say the facts and nothing else, for a model that chooses one."""
    caption = caption_from_facts(facts)
    return [f"{caption[0].upper()}{caption[1:]}.", f"This is {caption}.", f"It is {caption}."]


def _noun_phrase(answer: str, topic: str) -> str:
    """Joins an answer and its topic, unless the answer names it: "knee length"."""
    return answer if stem_word(topic) in _stems(answer) else f"{answer} {topic}"
