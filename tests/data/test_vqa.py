"""Questions about garments, and the answers that a dataset annotates."""

import numpy as np
import pytest

from capret_jax.config import CaptionConfig, Cleaning, LossConfig
from capret_jax.config.captions import ALL_FIELDS, EARLIER_CLEANING
from capret_jax.data.captions import TrainingCaptions, template_caption
from capret_jax.data.items import ItemTable
from capret_jax.data.masking import Masker
from capret_jax.data.schema import CATEGORIES, DETAILS
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.data.vqa import (
    ANSWER_TOKENS,
    DEEPFASHION2_QUESTIONS,
    QUESTION_WORDS,
    SYNTHETIC_QUESTIONS,
    TEST_QUESTION_WORDS,
    VqaSampler,
    answer_encoder,
    answers_of,
    known_answers,
    question_encoder,
    questions_about,
    vocabulary_of,
)
from capret_jax.errors import InputError

TOP = {"category_id": 1, "colour": 3, "pattern": 1, "print": 5, "neckline": 2}
SKIRT = {"category_id": 9, "colour": 1, "pattern": 2, "print": 1, "neckline": 0}


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    texts, raw = vocabulary_of(SYNTHETIC_QUESTIONS), answers_of(SYNTHETIC_QUESTIONS)
    build_vocabulary(texts, path, 400, raw=raw)
    return CaptionEncoder(load_tokenizer(str(path)), 16)


def test_answers_follow_from_the_annotations():
    assert known_answers(TOP) == {
        "category": "short sleeve top",
        "sleeve": "short",
        "colour": "navy",
        "pattern": "solid",
        "print": "heart",
        "neckline": "v",
    }
    assert known_answers(SKIRT).keys() == {"category", "colour", "pattern", "print"}
    # Photographs have no annotation but the category.
    assert known_answers({"category_id": 6}) == {"category": "sling", "sleeve": "no"}
    assert known_answers({"category_id": 8}) == {"category": "trousers"}


@pytest.mark.parametrize("bank", [SYNTHETIC_QUESTIONS, DEEPFASHION2_QUESTIONS])
def test_every_known_answer_is_in_its_list(bank):
    lists = {question.topic: question.answers for question in bank}
    for category_id in range(1, len(CATEGORIES) + 1):
        for topic, answer in known_answers({"category_id": category_id}).items():
            assert answer in lists[topic]
    assert questions_about("synthetic") is SYNTHETIC_QUESTIONS
    assert questions_about("deepfashion2") is DEEPFASHION2_QUESTIONS


def test_synthetic_garments_have_all_details(splits):
    items = splits["train"].items
    tops = ~np.isin(items["category_id"], [7, 8, 9])
    for name, values in DETAILS.items():
        known = items[name][tops] if name == "neckline" else items[name]
        assert known.min() >= 1 and known.max() <= len(values)
    assert (items["neckline"][~tops] == 0).all()
    # All views of an identity are of one garment.
    for identity in np.unique(items.identities())[1:]:
        rows = items.identities() == identity
        assert {len(np.unique(items[name][rows])) for name in DETAILS} == {1}


def test_template_contains_annotated_details(splits):
    item = {**TOP, "viewpoint": 1, "occlusion": 1, "scale": 1, "zoom_in": 1}
    fields = ("category", "colour", "neckline")
    assert template_caption(item, fields) == (
        "an image of a short sleeve top with colour navy and neckline v"
    )
    assert template_caption({**item, "neckline": 0}, fields) == (
        "an image of a short sleeve top with colour navy"
    )
    items = splits["train"].items
    assert len(set(TrainingCaptions(CaptionConfig(ALL_FIELDS), items))) > len(CATEGORIES)
    unknown = ItemTable(
        items.record,
        items.is_shop,
        items.box,
        items.attributes | {"colour": np.zeros(len(items), np.int64)},
    )
    with pytest.raises(InputError, match="'colour', which the dataset does not annotate"):
        TrainingCaptions(CaptionConfig(fields), unknown)


def test_sampler_returns_annotated_answers_about_all_topics(splits, encode):
    items = splits["train"].items
    vqa = VqaSampler(SYNTHETIC_QUESTIONS, items, encode)
    decode = encode.tokenizer.decode
    rng = np.random.default_rng(0)
    texts = {question.text: question.topic for question in SYNTHETIC_QUESTIONS}
    row = int(np.flatnonzero(items["pattern"] == 1 + DETAILS["pattern"].index("window-pane"))[0])
    known, asked = known_answers(items.attributes_of(row)), set()
    for _ in range(60):
        question, answer = vqa(row, rng)
        topic = texts[decode(question.ids, skip_special_tokens=True)]
        text = decode(answer.ids, skip_special_tokens=True)
        assert text.replace(" - ", "-") == known[topic]
        assert len(answer.ids) == ANSWER_TOKENS
        asked.add(topic)
    assert asked == known.keys()


@pytest.mark.parametrize(
    "cleaning, answer, question",
    [
        (Cleaning(), "window - pane", "what s it"),
        # A run of an earlier version goes on as it was trained.
        (EARLIER_CLEANING, "window pane", "whats it"),
    ],
)
def test_answers_are_raw_and_questions_cleaned(encode, tmp_path, cleaning, answer, question):
    raw = answers_of(SYNTHETIC_QUESTIONS)
    build_vocabulary(["what s it whats", *raw], tmp_path / "vocab.txt", 400, raw=raw)
    captions = CaptionEncoder(load_tokenizer(str(tmp_path / "vocab.txt")), 16, cleaning)
    decode = captions.tokenizer.decode
    answers, questions = answer_encoder(captions, 8), question_encoder(captions, 30, 16)
    assert decode(answers("window-pane").ids, skip_special_tokens=True) == answer
    assert decode(questions("What's it?").ids, skip_special_tokens=True) == question


def test_questions_are_longer_in_tests_than_in_training(encode):
    long = "what " * 60
    for words, expected in ((QUESTION_WORDS, 30), (TEST_QUESTION_WORDS, 50)):
        assert question_encoder(encode, words, 128)(long).mask.sum() == expected + 2
    assert answer_encoder(encode, 128)("red " * 60).mask.sum() == 62


def test_end_of_a_caption_is_masked_only_where_enabled(encode):
    tokens = encode("what colour is it")
    end = encode.tokenizer.sep_token_id
    rng = np.random.default_rng(0)

    def hidden(masker):
        return {int(label) for _ in range(50) for label in masker(tokens, rng).labels}

    assert end in hidden(Masker(encode.tokenizer, LossConfig(mlm_causal=True)))
    assert end not in hidden(Masker(encode.tokenizer))
