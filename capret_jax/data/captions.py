"""Captions of items, from a template of their attributes or from a file; caption cleaning."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from capret_jax.buckets.access import staged
from capret_jax.config import CaptionConfig, Cleaning
from capret_jax.config.captions import FIELDS
from capret_jax.data.items import ItemTable
from capret_jax.data.json_values import as_int
from capret_jax.data.schema import CATEGORIES, DETAILS, LEVELS
from capret_jax.errors import MALFORMED_JSON, InputError

# The template's phrase of each field, in the template's order.
_PHRASES = {
    "viewpoint": "viewpoint {}",
    "occlusion": "occlusion level {}",
    "scale": "scale {}",
    "zoom_in": "zoom in {}",
    **{detail: f"{detail} {{}}" for detail in DETAILS},
}
_VALUES = {**LEVELS, **DETAILS}
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SPLITS = ("train", "validation", "test")
_MARKS = re.compile(r"[,.'!?\"()*#:;~]")
_JOINTS = re.compile("[-/]")


def template_phrases(fields: tuple[str, ...]) -> list[str]:
    """Lists all phrases that the template can make of some fields."""
    return [
        _PHRASES[field].format(value)
        for field in fields
        if field in _PHRASES
        for value in _VALUES[field]
    ] + [category_phrase(i + 1) for i in range(len(CATEGORIES)) if "category" in fields]


class TrainingCaptions:
    """The captions of a training split."""

    def __init__(self, config: CaptionConfig, items: ItemTable):
        """
        Args:
            config: source of the captions.
            items: items of the training split.

        Raises:
            InputError: the file cannot be read or lacks an item, or the dataset does not annotate
                a field.
        """
        self._dropout, self._short = config.dropout, config.short
        self._categories = items["category_id"]
        if config.file:
            self._captions = load_captions(config.file, items, "train")
        else:
            self._captions = [(caption,) for caption in template_captions(config.fields, items)]

    def __call__(self, row: int, rng: np.random.Generator) -> str:
        """Draws the caption of one example of the item in `row`; empty when dropped."""
        if self._dropout and rng.random() < self._dropout:
            return ""
        if self._short and rng.random() < self._short:
            return category_phrase(int(self._categories[row]))
        choices = self._captions[row]
        return choices[rng.integers(len(choices))] if len(choices) > 1 else choices[0]

    def some(self, count: int) -> list[str]:
        """Returns at most `count` captions, of items evenly spaced over the split."""
        rows = np.unique(np.linspace(0, len(self._captions) - 1, count).astype(int))
        return [self._captions[row][0] for row in rows]

    def __iter__(self) -> Iterator[str]:
        """Iterates over all captions of all items."""
        return (caption for choices in self._captions for caption in choices)


def _check_known(fields: tuple[str, ...], items: ItemTable) -> None:
    for field in fields:
        if field in DETAILS and not items[field].any():
            raise InputError(
                f"data.captions.fields has {field!r}, which the dataset does not annotate: only "
                "the synthetic dataset does."
            )


def template_captions(fields: tuple[str, ...], items: ItemTable) -> list[str]:
    """Makes the template's caption of every item.

    Raises:
        InputError: the dataset does not annotate a field.
    """
    _check_known(fields, items)
    return [template_caption(items.attributes_of(row), fields) for row in range(len(items))]


def load_captions(path: str, items: ItemTable, split: str) -> list[tuple[str, ...]]:
    """Loads the captions of every item from a file as described in `CaptionConfig.file`.

    Args:
        path: the file.
        items: items of the split.
        split: "train" or "validation".

    Returns:
        The captions of each row of `items`.

    Raises:
        InputError: the file cannot be read, or lacks an item.
    """
    captions = read_captions(path, split)
    keys = list(zip(items["image_id"].tolist(), items["number"].tolist(), strict=True))
    missing = [key for key in keys if key not in captions]
    if missing:
        image, number = missing[0]
        raise InputError(
            f"{path} has no caption for {len(missing)} of {len(keys)} {split} items, the first "
            f"being item {number} of image {image}."
        )
    return [captions[key] for key in keys]


def category_phrase(category_id: int) -> str:
    """Makes the template's caption of a category, 1..13, without other attributes."""
    return template_caption({"category_id": category_id}, ("category",))


def template_caption(item: dict[str, int], fields: tuple[str, ...] = FIELDS) -> str:
    """Makes the template's caption of one item.

    Args:
        item: `category_id` (1..13), the levels `viewpoint`, `occlusion`, `scale`, `zoom_in`
            (1..3), and the `DETAILS` that are annotated; other keys are ignored.
        fields: fields of `ALL_FIELDS` that the caption reveals; without the category the item is
            "an item".
    """
    name = f"a {CATEGORIES[item['category_id'] - 1]}" if "category" in fields else "an item"
    phrases = [
        phrase.format(_VALUES[field][item[field] - 1])
        for field, phrase in _PHRASES.items()
        if field in fields and item.get(field)
    ]
    if not phrases:
        return f"an image of {name}"
    if len(phrases) > 1:
        comma = "," if len(phrases) > 2 else ""
        phrases = [", ".join(phrases[:-1]) + f"{comma} and {phrases[-1]}"]
    return f"an image of {name} with {phrases[0]}"


def read_captions(path: str, split: str = "train") -> dict[tuple[int, int], tuple[str, ...]]:
    """Reads the captions of a split from a file as described in `CaptionConfig.file`.

    Returns:
        (image id, item number) -> captions.

    Raises:
        InputError: the file cannot be read, or a line is not a caption; the message names it.
    """
    captions: dict[tuple[int, int], list[str]] = defaultdict(list)
    try:
        # Lines end at line feeds alone: captions may contain Unicode's other separators.
        with open(staged(path), encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    key, caption, line_split = _read_caption(json.loads(line))
                except MALFORMED_JSON as error:
                    raise InputError(
                        f"{path}, line {number} is no caption ({error}): expected "
                        '{"image_id": 1, "item": 1, "caption": "..."}.'
                    ) from error
                if line_split == split:
                    captions[key].append(caption)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8 (byte {error.start}): convert it.") from error
    except OSError as error:
        raise InputError(f"the captions in {path!r} cannot be read: {error.strerror}.") from error
    return {key: tuple(texts) for key, texts in captions.items()}


def _read_caption(entry: Any) -> tuple[tuple[int, int], str, str]:
    """Returns the image and item, the caption, and the split of a line."""
    if not isinstance(entry, dict):
        raise TypeError(f"a {type(entry).__name__}, one object a line is expected")
    caption, split = entry["caption"], entry.get("split", "train")
    if not isinstance(caption, str):
        raise TypeError("the caption is no text")
    if split not in _SPLITS:
        raise ValueError(f"the split {ascii(split)[:40]} is none of {', '.join(_SPLITS)}")
    return (as_int(entry["image_id"]), as_int(entry["item"])), caption, split


def mentions_sides(caption: str) -> bool:
    """Returns True if the caption contains "left" or "right", which a flip would make wrong."""
    return bool(_SIDES.search(caption))


def clean_caption(text: str, cleaning: Cleaning = Cleaning()) -> str:
    """Prepares a text for the tokenizer, as X2-VLM does for captions and questions.

    Args:
        text: the text.
        cleaning: "x2vlm" puts a space in the place of each of `,.'!?"()*#:;~-/`, and "person" in
            that of "<person>"; "earlier" deletes the marks, but for - and /, and leaves "<person>".
            Both fold spaces and cut the text at `max_words`. "none" does neither.

    Returns:
        The text in lower case.
    """
    text = text.lower()
    if cleaning.kind == "none":
        return text
    spaced = cleaning.kind == "x2vlm"
    text = _JOINTS.sub(" ", _MARKS.sub(" " if spaced else "", text))
    if spaced:
        text = text.replace("<person>", "person")
    return " ".join(text.split()[: cleaning.max_words])
