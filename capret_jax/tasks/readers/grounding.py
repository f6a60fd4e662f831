"""Reader of phrases with boxes: RefCOCO+.

[{"image": "train2014/COCO_train2014_000000000002.jpg", "text": "man in red", "ref_id": 0}, ...],
whose boxes come from REFER's references and COCO's instances (`readers.refer`).
"""

import os
import pathlib
import re

from PIL import ExifTags, Image

from capret_jax.config.task import TaskConfig
from capret_jax.errors import InputError
from capret_jax.tasks.examples import ReferringExpression
from capret_jax.tasks.readers.annotations import (
    Entry,
    Examples,
    check_left_out,
    join_files,
    keep_with_pictures,
    leave_out,
    read_entries,
)
from capret_jax.tasks.readers.refer import Reference, read_references

_TRAIN = "train"


def read_training_phrases(config: TaskConfig) -> Examples[ReferringExpression]:
    """Reads the phrases to train on.

    Raises:
        InputError: a file cannot be read, or has a phrase of another split.
    """
    references = read_references(config.refs, config.instances)
    files = []
    for path in config.train:
        joined = [_join(entry, references) for entry in read_entries(path)]
        for entry, _, reference in joined:
            if reference.split != _TRAIN:
                raise entry.error(
                    f"is of REFER's split {reference.split!r}: task.train needs phrases of 'train'"
                )
        files.append(_checked(joined, config, path))
    return join_files(files)


def read_test_phrases(config: TaskConfig) -> Examples[ReferringExpression]:
    """Reads the phrases to evaluate on, of one of REFER's splits other than "train".

    Raises:
        InputError: the file cannot be read, or mixes splits.
    """
    references = read_references(config.refs, config.instances)
    joined = [_join(entry, references) for entry in read_entries(config.test)]
    splits = sorted({reference.split for _, _, reference in joined})
    if len(splits) > 1 or _TRAIN in splits:
        raise InputError(
            f"{config.test} has phrases of REFER's {' and '.join(splits)}: task.test needs one "
            "split, which is none of training."
        )
    return _checked(joined, config, config.test)


_Joined = tuple[Entry, ReferringExpression, Reference]


def _join(entry: Entry, references: dict[int, Reference]) -> _Joined:
    """Finds the box of a phrase.

    Raises:
        InputError: there is none, or it is in another picture.
    """
    image, ref_id = entry.text("image"), entry.number("ref_id")
    reference = references.get(ref_id)
    if reference is None:
        raise entry.error(f"has ref_id={ref_id}, which task.refs lacks: they are of other data")
    if not _is_picture(image, reference):
        raise entry.error(
            f"has the picture {image}, and task.refs has {reference.file_name} for its ref_id="
            f"{ref_id}: they are of other data"
        )
    phrase = ReferringExpression(image, ref_id, entry.text("text"), reference.box, reference.size)
    return entry, phrase, reference


def _is_picture(image: str, reference: Reference) -> bool:
    """Returns True if a path names a reference's picture, by its name or the id in it."""
    name = pathlib.PurePath(image)
    number = re.search(r"(\d+)$", name.stem)
    same_id = number is not None and int(number[1]) == reference.image_id
    return same_id or name.name == pathlib.PurePath(reference.file_name).name


def _checked(joined: list[_Joined], config: TaskConfig, path: str) -> Examples[ReferringExpression]:
    """Leaves out phrases without picture, with an impossible box, or with a picture resized."""
    inside = [phrase for _, phrase, reference in joined if reference.possible]
    boxed = leave_out(inside, len(joined), "their boxes reach out of the pictures")
    pictured = keep_with_pictures(boxed.rows, lambda row: (row.image,), config.images)
    sizes = {row.image: _size(os.path.join(config.images, row.image)) for row in pictured.rows}
    right = [row for row in pictured.rows if sizes[row.image] == row.size]
    sized = leave_out(
        right,
        len(pictured.rows),
        "their pictures have not the size in task.instances, which boxes are in pixels of",
    )
    reasons = join_files((boxed, pictured, sized))._replace(rows=sized.rows)
    return check_left_out(reasons, path, config.allow_missing)


def _size(path: str) -> tuple[int, int]:
    """Reads the width and height that a picture is shown with from its header.

    A tag that mirrors it or turns it upside down leaves no size that tells which way boxes are:
    (0, 0), which no annotation has.

    Raises:
        InputError: the file is no picture.
    """
    try:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation in (2, 3, 4):
                return 0, 0
            return picture.size[::-1] if orientation in (5, 6, 7, 8) else picture.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no picture: {error}.") from error
