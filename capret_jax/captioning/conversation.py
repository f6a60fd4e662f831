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

# More turns would not fit into 2,048 tokens; llama.cpp's Phi-3 fails beyond that.
_MAX_TURNS = 24

# Words that identify the topic of a question.
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
# Wordings of a listed question, from its topic and its text.
_WORDINGS = (
    "{1}?",
    "What is its {0}?",
    "How would you describe the {0}?",
)
_CATEGORY = re.compile(
    rf"\b(?:kind|type|sort|category|piece) of (?:a |the )?{_GARMENTS}"
    r"|\b(?:what|which) (?:kind|type|category|garment)\b(?! of)"
    r"|\bthe (?:kind|type|category)\b(?! of)"
)
# Answers to open-ended questions that contain no information, or only an absence.
_UNINFORMATIVE_ANSWER = re.compile(
    r"$|.*\b(?:yes|no|not|none|nothing|maybe|unknown|unclear|unsure|cannot|n a"
    r"|(?:is|are|was|were|do|does|did|has|have|had|ca|wo|could|would|should)n t)\b"
)
# Words of questions that name nothing of a garment: "What is this?"
_EMPTY_WORDS = frozenset(
    "what which how who where when why whose is are was were be do does did can could would will"
    " may it its this that these those they he she i you your me we us one a an the of on in at to"
    " for about and or there here else more so please tell say think know see look looking like"
    " question answer thing things something anything garment item piece clothing photo picture"
    " image".split()
)
_YES_OR_NO = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|may|might)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class ConversationConfig:
    """Settings of when a conversation ends, and of which answers are facts.

    Attributes:
        max_turns: maximal number of questions.
        patience: turns in a row without a new fact, after which the conversation ends.
        sure: lowest probability at which an answer is a fact.
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
        topic: topic of the listed question that it matches; empty if it is open-ended.
        answer: the model's answer.
        probability: the model's probability of the answer.
        sure: True if the answer is a fact.
        new: True if no earlier turn had this fact.
        source: origin of the question: "written", "chosen" or "scripted"; empty if unknown.
    """

    question: str
    topic: str
    answer: str
    probability: float
    sure: bool
    new: bool
    source: str = ""


class Conversation:
    """Turns of one conversation.

    Attributes:
        turns: the turns so far.
        pending: a question without an answer yet, or None.
        pending_source: the origin of that question, as in `Turn.source`.
        ended: True when the questioner has no question left.
        refusals: replies of the questioner's language model that were refused.
    """

    def __init__(self, questions: Sequence[Question], config: ConversationConfig):
        """
        Args:
            questions: the listed questions, those with lists of answers.
            config: when the conversation ends, and which answers are facts.
        """
        self._questions = {question.topic: question for question in questions}
        self._config = config
        self.turns: list[Turn] = []
        self.pending: str | None = None
        self.pending_source = ""
        self.ended = False
        self.refusals = 0

    def finished(self) -> bool:
        """Returns True if no question is left, recent turns had no new fact, or at `max_turns`."""
        recent = [turn.new for turn in self.turns[-self._config.patience :]]
        stale = len(recent) == self._config.patience and not any(recent)
        return self.ended or stale or len(self.turns) >= self._config.max_turns

    def add_question(self, question: str | None, source: str = "") -> None:
        """Adds a question that waits for its answer; None ends the conversation."""
        self.pending, self.pending_source, self.ended = question, source, question is None

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
        turn = Turn(question, topic, text, probability, sure, new, self.pending_source)
        self.turns.append(turn)
        self.pending = None
        return turn

    def topic_of(self, question: str) -> str:
        """Returns the topic of the listed question that a question matches; empty if none."""
        return _topic_of(question, tuple(self._questions))

    def is_uninformative(self, question: str) -> bool:
        """Returns True for a question that is not listed and has only the answers yes and no."""
        return not self.topic_of(question) and bool(_YES_OR_NO.match(question))

    def is_empty(self, question: str) -> bool:
        """Returns True for a question that names nothing of a garment: "What is this?"."""
        return not self.topic_of(question) and _EMPTY_WORDS.issuperset(split_words(question))

    def vqa_question(self, question: str) -> Question:
        """Returns the question to ask the VQA model, and the answers to rank."""
        topic = self.topic_of(question)
        return self._questions[topic] if topic else Question("", question, ())

    def remaining_questions(self) -> list[Question]:
        """Returns the listed questions that apply to the garment and were not asked yet."""
        asked = {turn.topic for turn in self.turns}
        return [
            question
            for topic, question in self._questions.items()
            if topic not in asked and self.applies(topic)
        ]

    def question_wordings(self) -> list[str]:
        """Lists questions, in several wordings each, that a model may choose from."""
        return [
            wording
            for question in self.remaining_questions()
            for template in _WORDINGS
            if self.topic_of(wording := template.format(question.topic, question.text))
            == question.topic
        ]

    def applies(self, topic: str) -> bool:
        """Returns False for a topic that a garment of the known category cannot have."""
        known = (turn.answer for turn in self.turns if turn.sure and turn.topic == "category")
        return not topic or next(known, "") not in self._questions[topic].excluded_categories

    def facts(self) -> list[Turn]:
        """Returns the turns whose answers are facts and whose topics apply to the garment."""
        return [turn for turn in self.turns if turn.sure and self.applies(turn.topic)]


@functools.lru_cache(maxsize=100_000)  # cached, since many items get the same questions
def _topic_of(question: str, topics: tuple[str, ...]) -> str:
    words = split_words(question)
    for topic in topics:
        if any(word in words for word in _SYNONYMS.get(topic, ())):
            return topic
    is_category = "category" in topics and _CATEGORY.search(" ".join(words))
    return "category" if is_category else ""
