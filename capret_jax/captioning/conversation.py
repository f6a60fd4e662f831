"""A conversation about one garment: its turns, its facts, and when it ends.

A questioner asks and X2-VLM answers with a probability. Only answers that are probable enough
become facts, and the caption at the end may contain nothing but the facts (`fact_captions`).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from capret_jax.captioning.words import split_words
from capret_jax.data.vqa import Question
from capret_jax.errors import InputError

# More would not fit a prompt of 2,048 tokens, past which llama.cpp's Phi-3 writes nonsense.
_MAX_TURNS = 24

# Words by which a question is recognised as one about a topic.
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
# Answers to open-ended questions that name nothing, or only something that is absent.
_UNINFORMATIVE_ANSWER = re.compile(
    r"$|.*\b(?:yes|no|not|none|nothing|maybe|unknown|unclear|unsure|cannot|n a"
    r"|(?:is|are|was|were|do|does|did|has|have|had|ca|wo|could|would|should)n t)\b"
)
_YES_OR_NO = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|may|might)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class ConversationConfig:
    """End of a conversation, and the threshold of a fact.

    Attributes:
        max_turns: questions at most.
        patience: turns in a row without a new fact, after which the conversation ends.
        sure: probability from which an answer is a fact.
    """

    max_turns: int = 8
    patience: int = 3
    sure: float = 0.5

    def __post_init__(self):
        if not 1 <= self.max_turns <= _MAX_TURNS:
            raise InputError(f"max_turns={self.max_turns} is not in 1..{_MAX_TURNS}.")
        if self.patience < 1:
            raise InputError(f"patience={self.patience} must be at least 1.")
        if not 0 <= self.sure < 1:
            raise InputError(f"sure={self.sure} is not in [0, 1).")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: the questioner's words.
        topic: topic of the listed question that it was recognised as; empty if it is open-ended.
        answer: the model's answer.
        probability: the model's probability of the answer.
        sure: True if the answer is a fact.
        new: True if no earlier turn had this fact.
    """

    question: str
    topic: str
    answer: str
    probability: float
    sure: bool
    new: bool


class Conversation:
    """Turns of one conversation.

    Attributes:
        turns: the turns so far.
        pending: a question without an answer yet, or None.
        ended: True when the questioner has no question left.
    """

    def __init__(self, questions: Sequence[Question], config: ConversationConfig):
        """
        Args:
            questions: the listed questions, those with lists of answers.
            config: end of the conversation, and threshold of a fact.
        """
        self._questions = {question.topic: question for question in questions}
        self._config = config
        self.turns: list[Turn] = []
        self.pending: str | None = None
        self.ended = False

    def finished(self) -> bool:
        """True when no question is left, nothing new came lately, or `max_turns` are reached."""
        recent = [turn.new for turn in self.turns[-self._config.patience :]]
        stale = len(recent) == self._config.patience and not any(recent)
        return self.ended or stale or len(self.turns) >= self._config.max_turns

    def add_question(self, question: str | None) -> None:
        """Adds a question that waits for its answer; None ends the conversation."""
        self.pending, self.ended = question, question is None

    def add_answer(self, text: str, probability: float) -> Turn:
        """Adds the answer to the pending question."""
        question = self.pending or ""
        topic = self.topic_of(question)
        known = any(turn.sure and turn.topic == topic for turn in self.turns if topic)
        earlier = {turn.answer for turn in self.turns if turn.sure}
        if topic:
            informative = bool(text.strip())
        else:
            informative = not _UNINFORMATIVE_ANSWER.match(" ".join(split_words(text)))
        sure = probability >= self._config.sure and informative and not known
        new = sure and (bool(topic) or text not in earlier)
        turn = Turn(question, topic, text, probability, sure, new)
        self.turns.append(turn)
        self.pending = None
        return turn

    def topic_of(self, question: str) -> str:
        """Topic of the listed question that a question is recognised as; empty if it is none."""
        return _topic_of(question, tuple(self._questions))

    def is_uninformative(self, question: str) -> bool:
        """True for a question that is not listed and can only be answered with yes or no."""
        return not self.topic_of(question) and bool(_YES_OR_NO.match(question))

    def vqa_question(self, question: str) -> Question:
        """The question in the words that the VQA model is asked, and the answers to rank."""
        topic = self.topic_of(question)
        return self._questions[topic] if topic else Question("", question, ())

    def remaining_questions(self) -> list[Question]:
        """Listed questions that apply to the garment and were not asked yet."""
        asked = {turn.topic for turn in self.turns}
        return [
            question
            for topic, question in self._questions.items()
            if topic not in asked and self.applies(topic)
        ]

    def applies(self, topic: str) -> bool:
        """False for a topic that the garment, if its category is known, cannot have."""
        known = (turn.answer for turn in self.turns if turn.sure and turn.topic == "category")
        return not topic or next(known, "") not in self._questions[topic].excluded_categories

    def facts(self) -> list[Turn]:
        """Turns whose answers are certain and whose topics apply to the garment."""
        return [turn for turn in self.turns if turn.sure and self.applies(turn.topic)]


@functools.lru_cache(maxsize=100_000)  # many items are asked the same
def _topic_of(question: str, topics: tuple[str, ...]) -> str:
    words = split_words(question)
    for topic in topics:
        if any(word in words for word in _SYNONYMS.get(topic, ())):
            return topic
    is_category = "category" in topics and _CATEGORY.search(" ".join(words))
    return "category" if is_category else ""
