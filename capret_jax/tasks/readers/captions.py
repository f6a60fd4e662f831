"""Readers of pictures with captions: image-text retrieval and captioning (COCO, Flickr30k).

Training: [{"image": "a.jpg", "caption": "a cat", "image_id": "coco_1"}, ...], an entry a caption.
Test of retrieval: [{"image": "a.jpg", "caption": ["a cat", ...]}, ...], an entry a picture.
Test of captioning: either of them; the captions of a picture are joined.
"""

import pathlib
import re

from capret_jax.config.task import TaskConfig
from capret_jax.tasks.examples import ImageCaptions
from capret_jax.tasks.readers.annotations import (
    Examples,
    check_left_out,
    check_unique,
    join_files,
    keep_with_pictures,
    read_entries,
)

# The number that ends the name of a picture: COCO_val2014_000000000042.jpg.
_NUMBER = re.compile(r"(\d+)$")


def read_training_captions(config: TaskConfig) -> Examples[ImageCaptions]:
    """Reads the captions to train on, one an example.

    Raises:
        InputError: a file cannot be read, or is a test file.
    """
    files = []
    for path in config.train:
        rows = []
        for entry in read_entries(path):
            if isinstance(entry.value("caption"), list):
                raise entry.error(
                    "has a list of captions, as in a test file; task.train needs one caption an "
                    "entry"
                )
            caption = (entry.text("caption"),)
            rows.append(ImageCaptions(entry.text("image"), entry.identifier("image_id"), caption))
        files.append(_checked(rows, config, path))
    return join_files(files)


def read_test_captions(config: TaskConfig) -> Examples[ImageCaptions]:
    """Reads the pictures to evaluate on, each with all of its captions.

    Pictures without "image_id" have the number at the end of their names as their id, or else the
    name.

    Raises:
        InputError: the file cannot be read, is a training file, or has a picture twice, or
            in captioning an id.
    """
    pictures: dict[str, ImageCaptions] = {}
    for entry in read_entries(config.test):
        image = entry.text("image")
        several = isinstance(entry.value("caption"), list)
        if not several and config.name == "retrieval":
            raise entry.error(
                "has one caption, as in a training file; task.test needs all captions of a "
                "picture in one entry, or each would count as an error of the others"
            )
        captions = entry.texts("caption") if several else (entry.text("caption"),)
        if image in pictures:
            if several:
                raise entry.error(f"has {image} once more: results would be ambiguous")
            captions = (*pictures[image].captions, *captions)
        image_id = entry.identifier("image_id") if entry.has("image_id") else _id_of(image)
        pictures[image] = ImageCaptions(image, image_id, captions)
    rows = list(pictures.values())
    if config.name == "captioning":  # results name pictures by these ids; retrieval reads none
        check_unique((row.image_id for row in rows), "image_id", config.test)
    return _checked(rows, config, config.test)


def _checked(rows: list[ImageCaptions], config: TaskConfig, path: str) -> Examples[ImageCaptions]:
    kept = keep_with_pictures(rows, lambda row: (row.image,), config.images)
    return check_left_out(kept, path, config.allow_missing)


def _id_of(image: str) -> int | str:
    number = _NUMBER.search(pathlib.PurePath(image).stem)
    return int(number[1]) if number else image
