"""Questions about garments that have short answers: asked in conversations, and to learn from."""

from typing import NamedTuple

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES, DETAILS
from capret_jax.data.tokenizer import CaptionEncoder, Tokens

# A, tokens of an answer with [CLS] and [SEP].
ANSWER_TOKENS = 10
NO_SLEEVES = "no"


class Question(NamedTuple):
    """A question and the answers it may have.

    Attributes:
        topic: what it is about: a word that a caption may say beside the answer.
        text: as it is asked.
        answers: the list that is ranked.
        except_for: categories that have nothing to answer.
    """

    topic: str
    text: str
    answers: tuple[str, ...]
    except_for: tuple[str, ...] = ()


_SLEEVES = ("short", "long", NO_SLEEVES)
_BOTTOMS = ("shorts", "trousers", "skirt")
# Of drawn garments, whose true answers are known.
SYNTHETIC_QUESTIONS = (
    Question("category", "what kind of garment is it", CATEGORIES),
    Question("sleeve", "what sleeves does it have", _SLEEVES, _BOTTOMS),
    Question("colour", "what colour is it", DETAILS["colour"]),
    Question("pattern", "what pattern does it have", DETAILS["pattern"]),
    Question("print", "what is printed on it", DETAILS["print"]),
    Question("neckline", "what neckline does it have", DETAILS["neckline"], _BOTTOMS),
)
# Of photographs; the lists are this project's, and the questions as people ask them of pictures.
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
    """The questions that suit a dataset, `DataConfig.name`."""
    return SYNTHETIC_QUESTIONS if dataset == "synthetic" else DEEPFASHION2_QUESTIONS


def known_topics(dataset: str) -> tuple[str, ...]:
    """The topics to which a dataset, `DataConfig.name`, knows the answers."""
    drawn = tuple(question.topic for question in SYNTHETIC_QUESTIONS)
    return drawn if dataset == "synthetic" else ("category", "sleeve")


def known_answers(item: dict[str, int]) -> dict[str, str]:
    """Topic -> the true answer, of what a dataset knows of an item (`ItemTable.attributes_of`)."""
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


class VqaExample(NamedTuple):
    """A question, (T,) tokens, and its answer, (A,) tokens."""

    question: Tokens
    answer: Tokens


class VqaSampler:
    """Questions whose answers a dataset knows, for learning to answer."""

    def __init__(self, questions: tuple[Question, ...], items: ItemTable, encode: CaptionEncoder):
        """
        Args:
            questions: that may be asked.
            items: of the training split.
            encode: captions -> tokens.
        """
        self._texts = {question.topic: question.text for question in questions}
        self._items, self._encode = items, encode
        self._encode_answer = CaptionEncoder(encode.tokenizer, ANSWER_TOKENS)

    def __call__(self, row: int, rng: np.random.Generator) -> VqaExample:
        """One of the questions about the item in `row`."""
        known = known_answers(self._items.attributes_of(row))
        topics = [topic for topic in self._texts if topic in known]
        topic = topics[rng.integers(len(topics))]
        return VqaExample(self._encode(self._texts[topic]), self._encode_answer(known[topic]))

    def padding(self) -> VqaExample:
        """For places without an item."""
        return VqaExample(self._encode(""), self._encode_answer(""))


def vocabulary_of(questions: tuple[Question, ...]) -> list[str]:
    """All that questions and answers say, to build a vocabulary from."""
    return [text for question in questions for text in (question.text, *question.answers)]
