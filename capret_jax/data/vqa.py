"""Questions about garments with short answers, for conversations and for training a VQA model."""

from typing import NamedTuple

import numpy as np

from capret_jax.config import Cleaning
from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES, DETAILS
from capret_jax.data.tokenizer import CaptionEncoder, Tokens

# A, tokens of an answer in training, [CLS] and [SEP] included.
ANSWER_TOKENS = 10
# Most tokens of an answer of an annotation file: one long answer makes all as long.
MAX_ANSWER_TOKENS = 32
# Words of a question in training and in tests, as in X2-VLM.
QUESTION_WORDS, TEST_QUESTION_WORDS = 30, 50
NO_SLEEVES = "no"


class Question(NamedTuple):
    """A question and the list of its possible answers.

    Attributes:
        topic: subject of the question, a word that a caption may contain beside the answer.
        text: the question's text.
        answers: the answers to rank; empty for an open-ended question.
        excluded_categories: categories of garments to which the question does not apply.
    """

    topic: str
    text: str
    answers: tuple[str, ...]
    excluded_categories: tuple[str, ...] = ()


_SLEEVES = ("short", "long", NO_SLEEVES)
_BOTTOMS = ("shorts", "trousers", "skirt")
# For the synthetic dataset, which annotates all answers.
SYNTHETIC_QUESTIONS = (
    Question("category", "what kind of garment is it", CATEGORIES),
    Question("sleeve", "what sleeves does it have", _SLEEVES, _BOTTOMS),
    Question("colour", "what colour is it", DETAILS["colour"]),
    Question("pattern", "what pattern does it have", DETAILS["pattern"]),
    Question("print", "what is printed on it", DETAILS["print"]),
    Question("neckline", "what neckline does it have", DETAILS["neckline"], _BOTTOMS),
)
# For photographs; the lists of answers are this project's own.
DEEPFASHION2_QUESTIONS = (
    Question("category", "what kind of garment is it", CATEGORIES),
    Question("sleeve", "what kind of sleeves does it have", _SLEEVES, _BOTTOMS),
    Question(
        "colour",
        "what color is it",
        ("black", "white", "gray", "red", "blue", "navy", "green", "yellow", "orange", "pink")
        + ("purple", "brown", "beige", "cream", "khaki", "gold", "silver", "multicolored"),
    ),
    Question(
        "pattern",
        "what pattern does it have",
        ("solid", "striped", "plaid", "checkered", "polka dots", "floral", "animal print")
        + ("camouflage", "geometric", "tie dye", "color block", "lace"),
    ),
    Question(
        "print",
        "what is printed on it",
        ("nothing", "letters", "a logo", "an animal", "a face", "a cartoon", "flowers", "a number"),
    ),
    Question(
        "neckline",
        "what neckline does it have",
        ("round", "v neck", "square", "collar", "turtleneck", "hood", "off shoulder", "halter"),
        _BOTTOMS,
    ),
    Question("length", "how long is it", ("cropped", "short", "knee length", "midi", "long")),
    Question(
        "fabric",
        "what fabric is it made of",
        ("cotton", "denim", "leather", "wool", "knit", "silk", "lace", "chiffon", "fur"),
    ),
)


def questions_about(dataset: str) -> tuple[Question, ...]:
    """Returns the questions for a dataset, `DataConfig.name`."""
    return SYNTHETIC_QUESTIONS if dataset == "synthetic" else DEEPFASHION2_QUESTIONS


def known_topics(dataset: str) -> tuple[str, ...]:
    """Returns the topics whose answers a dataset, `DataConfig.name`, annotates."""
    if dataset == "synthetic":
        return tuple(question.topic for question in SYNTHETIC_QUESTIONS)
    return ("category", "sleeve")


def known_answers(item: dict[str, int]) -> dict[str, str]:
    """Derives the true answers about an item from its annotations.

    Args:
        item: attributes of the item, from `ItemTable.attributes_of`.

    Returns:
        Topic -> answer, for annotated topics.
    """
    answers = {"category": CATEGORIES[item["category_id"] - 1]}
    if sleeve := _sleeve(answers["category"]):
        answers["sleeve"] = sleeve
    known = {name: values[item[name] - 1] for name, values in DETAILS.items() if item.get(name)}
    return answers | known


def _sleeve(category: str) -> str | None:
    for length in ("short", "long"):
        if category.startswith(f"{length} sleeve"):
            return length
    bare = ("vest", "sling", "vest dress", "sling dress")
    return NO_SLEEVES if category in bare else None


def question_encoder(encode: CaptionEncoder, words: int, max_tokens: int) -> CaptionEncoder:
    """Makes the encoder of questions, which are cleaned like captions.

    Args:
        encode: the model's encoder of captions.
        words: maximal number of words.
        max_tokens: T.
    """
    return CaptionEncoder(encode.tokenizer, max_tokens, encode.cleaning._replace(max_words=words))


def answer_encoder(encode: CaptionEncoder, max_tokens: int) -> CaptionEncoder:
    """Makes the encoder of answers, which are not cleaned, as in X2-VLM.

    Those of a model that was trained with the cleaning "earlier" are cleaned, as they were then.

    Args:
        encode: the model's encoder of captions.
        max_tokens: A.
    """
    return CaptionEncoder(encode.tokenizer, max_tokens, answer_cleaning(encode.cleaning))


def answer_cleaning(cleaning: Cleaning) -> Cleaning:
    """Returns the preparation of answers, from that of captions."""
    return cleaning if cleaning.kind == "earlier" else cleaning._replace(kind="none")


class VqaExample(NamedTuple):
    """A question of (T,) tokens and its answer of (A,) tokens."""

    question: Tokens
    answer: Tokens


class VqaSampler:
    """Samples questions with annotated answers, for training a VQA model."""

    def __init__(self, questions: tuple[Question, ...], items: ItemTable, encode: CaptionEncoder):
        """
        Args:
            questions: the questions to sample from.
            items: the items of the training split.
            encode: the model's encoder of captions, T tokens.
        """
        self._texts = {question.topic: question.text for question in questions}
        self._items = items
        self._encode = question_encoder(encode, QUESTION_WORDS, encode.max_tokens)
        self._encode_answer = answer_encoder(encode, ANSWER_TOKENS)

    def __call__(self, row: int, rng: np.random.Generator) -> VqaExample:
        """Samples one of the questions about the item in a row of the item table."""
        known = known_answers(self._items.attributes_of(row))
        topics = [topic for topic in self._texts if topic in known]
        topic = topics[rng.integers(len(topics))]
        return VqaExample(self._encode(self._texts[topic]), self._encode_answer(known[topic]))

    def padding(self) -> VqaExample:
        """Returns the example for positions of a batch without an item."""
        return VqaExample(self._encode(""), self._encode_answer(""))


def vocabulary_of(questions: tuple[Question, ...]) -> list[str]:
    """Returns the texts of all questions and answers, to build a vocabulary from."""
    return [text for question in questions for text in (question.text, *question.answers)]


def answers_of(questions: tuple[Question, ...]) -> list[str]:
    """Returns the answers to all questions."""
    return [answer for question in questions for answer in question.answers]
