"""Captions from the template and from files, and their cleaning."""

import json

import numpy as np
import pytest

from capret_jax.config import CaptionConfig, Cleaning, DataConfig
from capret_jax.config.captions import EARLIER_CLEANING
from capret_jax.data.captions import (
    TrainingCaptions,
    clean_caption,
    read_captions,
    template_caption,
)
from capret_jax.errors import InputError

ITEM = {"category_id": 8, "viewpoint": 3, "occlusion": 1, "scale": 2, "zoom_in": 3, "style": 4}


@pytest.fixture(scope="module")
def items(splits):
    return splits["train"].items


@pytest.fixture
def write(items, tmp_path):
    """Writes two captions for each item, and further lines."""

    def make(*extra: str, skip: int = 0) -> str:
        keys = zip(items["image_id"].tolist(), items["number"].tolist(), strict=True)
        lines = [
            json.dumps({"image_id": image, "item": number, "caption": f"{word} {image} {number}"})
            for image, number in list(keys)[skip:]
            for word in ("one", "two")
        ]
        (tmp_path / "captions.jsonl").write_text("\n".join([*lines, *extra]))
        return str(tmp_path / "captions.jsonl")

    return make


def test_template_names_the_category_and_the_levels():
    assert template_caption(ITEM) == (
        "an image of a trousers with viewpoint side or back, occlusion level slight, "
        "scale modest, and zoom in large"
    )


@pytest.mark.parametrize(
    "fields, expected",
    [
        (("category",), "an image of a trousers"),
        (("scale",), "an image of an item with scale modest"),
        (
            ("zoom_in", "category", "scale"),
            "an image of a trousers with scale modest and zoom in large",
        ),
        ((), "an image of an item"),
    ],
)
def test_the_template_reveals_only_its_fields(fields, expected):
    assert template_caption(ITEM, fields) == expected


def test_each_item_has_its_own_captions_from_a_file(items, write):
    other = json.dumps(
        {"split": "validation", "image_id": 1, "item": 1, "caption": "not for training"}
    )
    captioner = TrainingCaptions(CaptionConfig(file=write(other)), items)
    rng = np.random.default_rng(0)
    for row in (0, 5, len(items) - 1):
        drawn = {captioner(row, rng) for _ in range(40)}
        place = f"{items['image_id'][row]} {items['number'][row]}"
        assert drawn == {f"one {place}", f"two {place}"}
    assert len(list(captioner)) == 2 * len(items)


def test_captions_are_dropped_with_the_given_probability(items):
    captioner = TrainingCaptions(CaptionConfig(dropout=0.25), items)
    rng = np.random.default_rng(0)
    dropped = np.mean([captioner(0, rng) == "" for _ in range(2000)])
    assert dropped == pytest.approx(0.25, abs=0.04)


def test_short_captions_are_the_category_with_the_given_probability(items):
    captioner = TrainingCaptions(CaptionConfig(short=0.25), items)
    rng = np.random.default_rng(0)
    phrase = template_caption(items.attributes_of(0), ("category",))
    said = [captioner(0, rng) for _ in range(2000)]
    assert np.mean([caption == phrase for caption in said]) == pytest.approx(0.25, abs=0.04)
    assert len(set(said)) == 2


def test_a_file_that_lacks_an_item_is_refused(items, write):
    path = write(skip=3)
    first = f"item {items['number'][0]} of image {items['image_id'][0]}"
    with pytest.raises(InputError, match=f"no caption for 3 of {len(items)} .* {first}"):
        TrainingCaptions(CaptionConfig(file=path), items)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"image_id": 1, "item": "first", "caption": "x"}',
        '{"image_id": 1, "item": 1, "caption": null}',
    ],
)
def test_a_line_that_is_no_caption_is_named(write, line, items):
    with pytest.raises(InputError, match=f"line {2 * len(items) + 1} is no caption"):
        read_captions(write(line))


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="'size', which is none of category"):
        CaptionConfig(fields=("size",))
    with pytest.raises(InputError, match=r"dropout=1\.0"):
        CaptionConfig(dropout=1.0)
    with pytest.raises(InputError, match="short=0.5 needs a template that reveals the category"):
        CaptionConfig(short=0.5, fields=("scale",))
    with pytest.raises(InputError, match="cannot be read"):
        read_captions("/absent/captions.jsonl")


@pytest.mark.parametrize(
    "text, reference, earlier",
    [
        ("What's", "what s", "whats"),
        ("black,white", "black white", "blackwhite"),
        ("3.5", "3 5", "35"),
        ("A <person> with a T-shirt", "a person with a t shirt", "a <person> with a t shirt"),
        ("red/blue\t (new):  it's #1!\n", "red blue new it s 1", "red blue new its 1"),
        ("""one,two.three'four!five?six"seven(eight)nine*ten#eleven:twelve;thirteen~fourteen""",)
        + ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen",)
        + ("onetwothreefourfivesixseveneightnineteneleventwelvethirteenfourteen",),
        ("a & b_c + d @ 5%", "a & b_c + d @ 5%", "a & b_c + d @ 5%"),
        ("?!", "", ""),
    ],
)
def test_cleaning_follows_the_reference(text, reference, earlier):
    assert clean_caption(text) == reference
    assert clean_caption(text, EARLIER_CLEANING) == earlier
    assert clean_caption(text, Cleaning("none")) == text.lower()


def test_a_caption_is_cut_at_the_words_of_its_task():
    text = " ".join(f"w{i}" for i in range(60))
    assert DataConfig().text_cleaning == Cleaning() == ("x2vlm", 30)
    for words in (30, 40, 50):
        assert clean_caption(text, Cleaning(max_words=words)).split() == text.split()[:words]
    assert clean_caption(text) == clean_caption(text, Cleaning(max_words=30))
    assert len(clean_caption(text, EARLIER_CLEANING).split()) == 40
    assert clean_caption(text, Cleaning("none")) == text
    # Marks make words: each side of one counts.
    assert clean_caption("a.b,c-d", Cleaning(max_words=3)) == "a b c"
