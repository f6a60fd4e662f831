"""A conversation about one garment: its turns, when it ends, and what may be said of them.

A questioner asks, X2-VLM answers with a probability, and only answers that are probable enough
become facts. The caption at the end may say the facts and nothing else (`unsupported`).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import snowballstemmer

from capret_jax.data.vqa import Question
from capret_jax.errors import InputError

NOT_SURE = "not sure"
# More would not fit a prompt of 2,048 tokens, past which llama.cpp's Phi-3 writes nonsense.
_MOST_TURNS = 24
_MOST_QUESTION_WORDS = 20
MOST_CAPTION_WORDS = 40

# How people speak of what a question is about.
_SYNONYMS = {
    "sleeve": ("sleeve", "sleeves"),
    "colour": ("colour", "color", "shade"),
    "pattern": ("pattern", "patterned", "stripes", "striped"),
    "print": ("print", "printed", "logo", "graphic", "motif"),
    "neckline": ("neckline", "neck", "collar"),
    "length": ("length", "long"),
    "fabric": ("fabric", "material", "cloth"),
}
_GARMENTS = r"(?:garment|cloth(?:ing|es)|apparel|item|piece|top|dress|skirt|pants|jacket|coat)\b"
_CATEGORY = re.compile(
    rf"\b(?:kind|type|sort|category|piece) of (?:a |the )?{_GARMENTS}"
    r"|\b(?:what|which) (?:kind|type|category|garment)\b(?! of)"
    r"|\bthe (?:kind|type|category)\b(?! of)"
)
# What a caption may call it beside its topic: words that are no answers themselves.
_NOUNS = {"colour": ("color",), "neckline": ("neck",), "fabric": ("material",)}
# Answers that say that there is nothing to say.
_NOTHING = ("", "none", "nothing", "no", "solid")
# Written answers that say nothing either, or only what there is not.
_NO_ANSWER = re.compile(
    r"$|.*\b(?:yes|no|not|none|nothing|maybe|unknown|unclear|unsure|cannot|n a"
    r"|(?:is|are|was|were|do|does|did|has|have|had|ca|wo|could|would|should)n t)\b"
)
_YES_OR_NO = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|may|might)\b",
    re.IGNORECASE,
)
# What a sentence is held together by; it says nothing of a garment.
_GLUE = frozenset(
    "a an the and with of in on from it its is are has have that this which for as by to at".split()
    + "made featuring features item garment clothing piece image photo picture style styled".split()
    + "design designed coloured colored type kind look".split()
)
_STEMMER = snowballstemmer.stemmer("english")
_SPELLINGS = {"gray": "grey", "color": "colour", "outerwear": "outwear"}
_WHOLE = ("shorts",)  # are no sleeves
_LABEL = re.compile(
    r"^[\s\"'*>-]*(?:(?:question|q|caption|description|answer|assistant)\s*\d*\s*[:.)]|\d+\s*[.)])?"
    r"[\s\"'*]*",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class DialogueConfig:
    """When a conversation ends, and what counts as a fact.

    Attributes:
        max_turns: questions at most.
        patience: turns in a row that bring nothing new, after which it ends.
        sure: probability from which an answer is a fact.
    """

    max_turns: int = 8
    patience: int = 3
    sure: float = 0.5

    def __post_init__(self):
        if not 1 <= self.max_turns <= _MOST_TURNS:
            raise InputError(f"max_turns={self.max_turns} is not in 1..{_MOST_TURNS}.")
        if self.patience < 1:
            raise InputError(f"patience={self.patience} must be at least 1.")
        if not 0 <= self.sure < 1:
            raise InputError(f"sure={self.sure} is not in [0, 1).")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: as the questioner put it.
        topic: of the question of the list that it was taken for; empty of none.
        answer: of the model.
        probability: of it.
        sure: whether it is a fact.
        new: whether it says what no turn said before.
    """

    question: str
    topic: str
    answer: str
    probability: float
    sure: bool
    new: bool


class InvalidReply(ValueError):
    """A reply that is no question, or no caption; the message says why."""


class Dialogue:
    """The turns of one conversation.

    Attributes:
        turns: so far.
        pending: a question that waits for its answer, or None.
        over: whether the questioner has nothing left to ask.
    """

    def __init__(self, questions: Sequence[Question], config: DialogueConfig):
        """
        Args:
            questions: that have lists of answers.
            config: when it ends.
        """
        self._questions = {question.topic: question for question in questions}
        self._config = config
        self.turns: list[Turn] = []
        self.pending: str | None = None
        self.over = False

    def finished(self) -> bool:
        """Whether it ends here: nothing left to ask, nothing new, or the budget is spent."""
        stale = [turn.new for turn in self.turns[-self._config.patience :]]
        tired = len(stale) == self._config.patience and not any(stale)
        return self.over or tired or len(self.turns) >= self._config.max_turns

    def ask(self, question: str | None) -> None:
        """Takes a question; None ends the conversation."""
        self.pending, self.over = question, question is None

    def answer(self, text: str, probability: float) -> Turn:
        """Takes the answer to the pending question."""
        asked = self.pending or ""
        topic = self.topic_of(asked)
        known = any(turn.sure and turn.topic == topic for turn in self.turns if topic)
        said = {turn.answer for turn in self.turns if turn.sure}
        says = bool(text.strip()) if topic else not _NO_ANSWER.match(" ".join(_words(text)))
        sure = probability >= self._config.sure and says and not known
        new = sure and (bool(topic) or text not in said)
        turn = Turn(asked, topic, text, probability, sure, new)
        self.turns.append(turn)
        self.pending = None
        return turn

    def topic_of(self, question: str) -> str:
        """What a question is about, if it is of the list; else empty."""
        return _topic_of(question, tuple(self._questions))

    def says_nothing(self, question: str) -> bool:
        """Whether it is of no list, and its answer would be yes or no."""
        return not self.topic_of(question) and bool(_YES_OR_NO.match(question))

    def to_answer(self, question: str) -> Question:
        """The question as the model is asked it, and the answers to choose from."""
        topic = self.topic_of(question)
        return self._questions[topic] if topic else Question("", question, ())

    def open_questions(self) -> list[Question]:
        """Those of the list that suit the garment and were not asked yet."""
        asked = {turn.topic for turn in self.turns}
        return [
            question
            for topic, question in self._questions.items()
            if topic not in asked and self.suits(topic)
        ]

    def suits(self, topic: str) -> bool:
        """Whether the garment, if it is known, has anything of the kind."""
        known = (turn.answer for turn in self.turns if turn.sure and turn.topic == "category")
        return not topic or next(known, "") not in self._questions[topic].except_for

    def facts(self) -> list[Turn]:
        """The turns whose answers are certain, and of what the garment can have."""
        return [turn for turn in self.turns if turn.sure and self.suits(turn.topic)]


@functools.lru_cache(maxsize=100_000)  # many items are asked the same
def _topic_of(question: str, topics: tuple[str, ...]) -> str:
    words = _words(question)
    for topic in topics:
        if any(word in words for word in _SYNONYMS.get(topic, ())):
            return topic
    asked = "category" in topics and _CATEGORY.search(" ".join(words))
    return "category" if asked else ""


def parse_question(reply: str) -> str | None:
    """The one question in a reply; None when it says DONE.

    Models label their question, answer it themselves, or go on with the next one: whatever stands
    after the first question mark is dropped.

    Raises:
        InvalidReply: there is no question, or a long one.
    """
    if re.match(r"\W*done\b", reply, re.IGNORECASE):
        return None
    line = next((line for line in reply.splitlines() if "?" in line), "")
    question = _LABEL.sub("", line.split("?")[0]).strip()
    if not re.search(r"[A-Za-z]{2}", question):
        raise InvalidReply("there is no question in it")
    if len(question.split()) > _MOST_QUESTION_WORDS:
        raise InvalidReply(f"the question has more than {_MOST_QUESTION_WORDS} words")
    return question + "?"


def parse_caption(reply: str) -> str:
    """The first line of a reply without labels and quotes.

    Raises:
        InvalidReply: it is empty, or long.
    """
    line = next((line for line in reply.splitlines() if re.search(r"[A-Za-z]", line)), "")
    caption = _LABEL.sub("", line).strip(" \t\"'*")
    if not caption:
        raise InvalidReply("there is no caption in it")
    if len(caption.split()) > MOST_CAPTION_WORDS:
        raise InvalidReply(f"the caption has more than {MOST_CAPTION_WORDS} words")
    return caption


def unsupported(caption: str, sources: Sequence[str]) -> list[str]:
    """The words of a caption that none of its sources said.

    Words are compared by their stems, "striped" with "stripes"; words without meaning are free.

    Args:
        caption: to check.
        sources: what it may say: answers and their topics, or other captions.
    """
    said = {_stem(word) for source in sources for word in _words(source)}
    return [w for w in _words(caption) if w not in _GLUE and _stem(w) not in said]


def sources_of(facts: Sequence[Turn]) -> list[str]:
    """What a caption may say: the facts' answers, and the words for what they are about."""
    spoken = [turn.answer for turn in facts]
    return spoken + [noun for turn in facts for noun in (turn.topic, *_NOUNS.get(turn.topic, ()))]


def worth_saying(facts: Sequence[Turn]) -> list[Turn]:
    """Without those that there is nothing of: no print, no sleeves."""
    return [turn for turn in facts if turn.answer not in _NOTHING]


def left_out(caption: str, facts: Sequence[Turn]) -> list[str]:
    """The answers to the list's questions that a caption does not say."""
    return [turn.answer for turn in facts if turn.topic and unsupported(turn.answer, [caption])]


def plain_caption(facts: Sequence[Turn]) -> str:
    """A caption of the facts without a language model: all of the list's, and nothing else.

    An answer to a free question says little without it, and is left to language models.
    """
    facts = worth_saying(facts)
    known = {turn.topic: turn.answer for turn in facts if turn.topic}
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


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())  # of any script: Phi-3 slips into others


@functools.cache
def _stem(word: str) -> str:
    word = _SPELLINGS.get(word, word)
    return word if word in _WHOLE else _STEMMER.stemWord(word)
