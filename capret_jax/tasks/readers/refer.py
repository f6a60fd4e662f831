"""Reader of REFER's references and COCO's instances, which together give the boxes of RefCOCO+.

`refs(unc).p`, a pickle, or the same as JSON: [{"ref_id": 0, "ann_id": 1, "image_id": 2,
"split": "train"}, ...]. `instances.json`: {"images": [{"id": 2, "file_name": "a.jpg", "width": 640,
"height": 480}, ...], "annotations": [{"id": 1, "bbox": [x, y, w, h]}, ...]}, boxes in pixels.
"""

import pathlib
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from capret_jax.data.json_values import as_box, as_int
from capret_jax.errors import MALFORMED_JSON, InputError
from capret_jax.tasks.readers.annotations import LARGEST_LOSS, load_json

# Pixels by which the box of a crowded annotation may reach outside of its picture.
_TOLERANCE = 2.0


class Reference(NamedTuple):
    """An object that phrases refer to.

    Attributes:
        split: split of its phrases: "train", "val", "testA" or "testB".
        file_name: name of its picture in COCO.
        image_id: id of its picture in COCO.
        size: width and height of the picture in pixels.
        box: x, y, w, h in pixels.
    """

    split: str
    file_name: str
    image_id: int
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def possible(self) -> bool:
        """Returns True if the box has an area and lies in the picture, a pixel or two aside."""
        x, y, width, height = self.box
        right, bottom = (side + _TOLERANCE for side in self.size)
        low = min(x, y) >= -_TOLERANCE and min(width, height) > 0
        return low and x + width <= right and y + height <= bottom


def read_references(refs: str, instances: str) -> dict[int, Reference]:
    """Reads all references by their ids.

    Args:
        refs: REFER's file, a pickle or JSON.
        instances: COCO's file of instances.

    Raises:
        InputError: a file cannot be read, they do not belong together, or the boxes are in another
            convention than x, y, w, h in pixels.
    """
    boxes, pictures = _read_instances(instances)
    entries = load_json(refs) if refs.endswith(".json") else _unpickle(refs)
    references = {}
    try:
        for entry in entries:
            image_id, annotation = as_int(entry["image_id"]), as_int(entry["ann_id"])
            if annotation not in boxes or image_id not in pictures:
                raise InputError(
                    f"reference {entry['ref_id']} of {refs} is of annotation {annotation} in image "
                    f"{image_id}, which {instances} lacks: the files do not belong together."
                )
            name, size = pictures[image_id]
            references[as_int(entry["ref_id"])] = Reference(
                str(entry["split"]), name, image_id, size, boxes[annotation]
            )
    except InputError:
        raise
    except MALFORMED_JSON as error:
        raise InputError(f"{refs} holds no references of REFER ({error!r}).") from error
    if not references:
        raise InputError(f"{refs} has no reference.")
    _check_convention(list(references.values()), instances)
    return references


def _read_instances(path: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """Returns annotation -> box, and image -> its name and size."""
    values = load_json(path)
    try:
        boxes = {as_int(a["id"]): tuple(as_box(a["bbox"])) for a in values["annotations"]}
        pictures = {}
        for image in values["images"]:
            size = as_int(image["width"]), as_int(image["height"])
            pictures[as_int(image["id"])] = str(image["file_name"]), size
    except MALFORMED_JSON as error:
        raise InputError(
            f"{path} holds no instances in COCO's format ({error!r}): images and annotations with "
            "boxes x, y, w, h are expected."
        ) from error
    return boxes, pictures


def _check_convention(references: Sequence[Reference], path: str) -> None:
    """Checks that boxes are x, y, w, h in pixels.

    Raises:
        InputError: they are fractions, or so many reach outside that they must be corners.
    """
    if np.max([reference.box for reference in references]) <= 1:
        raise InputError(
            f"the boxes of {path} are at most 1: fractions of the picture, where x, y, w, h in "
            "pixels are expected."
        )
    outside = [reference for reference in references if not reference.possible]
    if len(outside) > LARGEST_LOSS * len(references):
        first = outside[0]
        raise InputError(
            f"{len(outside)} of {len(references)} boxes of {path} have no area or reach out of "
            f"their pictures, such as {list(first.box)} in {first.size[0]} x {first.size[1]} "
            "pixels: x, y, w, h are expected; these may be corners x1, y1, x2, y2."
        )


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler of lists, dicts, numbers and texts, which calls nothing that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every class and function.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of REFER needs")


def _unpickle(path: str) -> list:
    try:
        with pathlib.Path(path).open("rb") as file:
            # Python 2 wrote REFER's files; its texts are bytes.
            values = _PlainUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle raises exceptions of any type
        raise InputError(f"{path} is no pickle of REFER ({error}).") from error
    if not isinstance(values, list):
        raise InputError(f"{path} holds a {type(values).__name__} where a list is expected.")
    return values
