"""Reader of objects with boxes: COCO's `instances_train2017.json`.

{"images": [{"id": 2, "file_name": "000000000002.jpg", "width": 640, "height": 480}, ...],
"annotations": [{"image_id": 2, "category_id": 18, "bbox": [x, y, w, h], "iscrowd": 0}, ...],
"categories": [{"id": 18, "name": "dog"}, ...]}, boxes in pixels.
"""

import os
import pathlib
from typing import Any, NamedTuple

from capret_jax.config.task import TaskConfig
from capret_jax.data.json_values import as_box, as_int
from capret_jax.errors import MALFORMED_JSON, InputError
from capret_jax.tasks.examples import AnnotatedPicture
from capret_jax.tasks.readers.annotations import (
    LARGEST_LOSS,
    Examples,
    check_left_out,
    join_files,
    keep_with_pictures,
    load_json,
)

_PREFIX = "instances_"


class Categories(NamedTuple):
    """The categories of a file, in the order of their ids.

    Attributes:
        ids: (C,) ids; the class of a category is its place, from 1.
        names: (C,) names.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]


def read_training_instances(config: TaskConfig) -> Examples[AnnotatedPicture]:
    """Reads the pictures to train on.

    Raises:
        InputError: a file cannot be read, or has other categories than the test file.
    """
    known = read_categories(config.test)
    files = []
    for path in config.train:
        if read_categories(path) != known:
            raise InputError(f"{path} has other categories than task.test={config.test}.")
        files.append(_read(path, config))
    return join_files(files)


def read_test_instances(config: TaskConfig) -> Examples[AnnotatedPicture]:
    """Reads the pictures to evaluate on, like `read_training_instances`.

    Raises:
        InputError: the file cannot be read, or has no objects.
    """
    found = _read(config.test, config)
    if not any(row.boxes for row in found.rows):
        raise InputError(f"{config.test} has no objects: there is nothing to measure detection by.")
    return found


def read_categories(path: str) -> Categories:
    """Reads the categories of a file.

    Raises:
        InputError: it cannot be read, or has none.
    """
    with_names = _checked(path, lambda values: _categories(values["categories"]))
    if not with_names.ids:
        raise InputError(f"{path} has no categories.")
    return with_names


def _categories(values: list) -> Categories:
    pairs = sorted((as_int(value["id"]), str(value["name"])) for value in values)
    return Categories(tuple(key for key, _ in pairs), tuple(name for _, name in pairs))


def _checked(path: str, convert) -> Any:
    try:
        return convert(load_json(path))
    except MALFORMED_JSON as error:
        raise InputError(
            f"{path} holds no instances in COCO's format ({error!r}): images, categories, and "
            "annotations with boxes x, y, w, h are expected."
        ) from error


def _read(path: str, config: TaskConfig) -> Examples[AnnotatedPicture]:
    """Reads the pictures of a file with their objects, cut at the edges, without crowds."""
    read_categories(path)
    folder = _folder_of(path, config.images)
    rows, outside, objects = _checked(path, lambda values: _pictures(values, folder))
    if outside > LARGEST_LOSS * max(objects, 1):
        raise InputError(
            f"{outside} of {objects} boxes of {path} have no area or lie outside of their "
            "pictures: x, y, w, h in pixels are expected."
        )
    found = keep_with_pictures(rows, lambda row: (row.image,), config.images)
    found = check_left_out(found, path, config.allow_missing)
    if outside:
        note = f"{path}: {outside} of {objects} boxes are left out, since they have no area inside."
        found = found._replace(notes=(*found.notes, note))
    return found


def _folder_of(path: str, images: str) -> str:
    """Returns the folder below `images` in which COCO keeps the pictures of a file, or ""."""
    split = pathlib.PurePath(path).stem.removeprefix(_PREFIX)
    return split if os.path.isdir(os.path.join(images, split)) else ""


def _pictures(values: dict, folder: str) -> tuple[list[AnnotatedPicture], int, int]:
    """Returns the pictures, the number of boxes without area inside, and that of all boxes."""
    categories = _categories(values["categories"])
    classes = {key: number for number, key in enumerate(categories.ids, 1)}
    sizes = {as_int(x["id"]): (as_int(x["width"]), as_int(x["height"])) for x in values["images"]}
    objects: dict[int, list] = {key: [] for key in sizes}
    outside = count = 0
    for annotation in values["annotations"]:
        if annotation.get("iscrowd"):
            continue
        image, box = as_int(annotation["image_id"]), as_box(annotation["bbox"])
        corners = _inside(box, sizes[image])
        count += 1
        if corners is None:
            outside += 1
        else:
            objects[image].append((corners, classes[as_int(annotation["category_id"])]))
    rows = []
    for image in values["images"]:
        key, name = as_int(image["id"]), str(pathlib.PurePosixPath(folder, image["file_name"]))
        boxes, numbers = zip(*objects[key], strict=True) if objects[key] else ((), ())
        names = tuple(categories.names[number - 1] for number in numbers)
        rows.append(AnnotatedPicture(name, key, boxes, numbers, names))
    return rows, outside, count


def _inside(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Returns x1, y1, x2, y2 of the part of a box that is in a picture; None where none is."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, size[0]), min(y + height, size[1])
    return (left, top, right, bottom) if left < right and top < bottom else None
