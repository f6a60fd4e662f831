"""Reading of raw DeepFashion2 (arXiv 1901.07973): a photograph and its annotation as one record.

    train/image/000001.jpg   train/annos/000001.json   validation/image/...   validation/annos/...

Images and items that cannot be used are left out, and reported with a reason.
"""

import io
import json
import math
import pathlib
from typing import Any, NamedTuple

from PIL import Image

from capret_jax.data.images import check_scans
from capret_jax.data.schema import CATEGORIES, LEVELS, SOURCES
from capret_jax.errors import InputError

SPLITS = ("train", "validation")
# EXIF's orientation tag; values of 5 and more exchange width and height.
_ORIENTATION = 0x0112


class Problem(NamedTuple):
    """An image or an item that was left out.

    Attributes:
        file: "000001", the number of the image and its annotation.
        item: "item1", or empty when the whole image was left out.
        reason: one of a small set of texts.
    """

    file: str
    item: str
    reason: str


class _BrokenError(ValueError):
    """Error: an image or an item cannot be used; the message is the reason."""


def list_files(source: pathlib.Path, split: str) -> list[str]:
    """Lists the numbers ("000001") of a split's images and annotations, sorted."""
    folder = source / split
    stems = {path.stem for path in folder.glob("image/*.jpg")}
    return sorted(stems | {path.stem for path in folder.glob("annos/*.json")})


def read_record(
    source: pathlib.Path, split: str, file: str
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Reads one photograph with its annotation.

    Args:
        source: the raw folder.
        split: "train" or "validation".
        file: number of the image, such as "000001".

    Returns:
        The record with the features of `schema.features(outlines=True)`, None where it cannot be
        used; and what was left out.
    """
    try:
        jpeg, size = _read_image(source / split / "image" / f"{file}.jpg")
        annotation = _read_annotation(source / split / "annos" / f"{file}.json")
    except _BrokenError as error:
        return None, [Problem(file, "", str(error))]
    items, problems = [], []
    names = [name for name in annotation if name.startswith("item")]
    for name in sorted(names, key=lambda name: (len(name), name)):
        try:
            items.append({"number": _number(name), **_read_item(annotation[name], size)})
        except _BrokenError as error:
            problems.append(Problem(file, name, str(error)))
    if not items:
        return None, [*problems, Problem(file, "", "image with no usable item")]
    record = {
        "image": io.BytesIO(jpeg),
        "image_id": int(file),
        "source": annotation["source"],
        "pair_id": annotation["pair_id"],
        "items": items,
    }
    return record, problems


def _read_image(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """Reads the file's bytes, and the width and height of the upright image."""
    if not path.stem.isdigit():
        raise _BrokenError("file name is no number")
    try:
        jpeg = path.read_bytes()
    except OSError as error:
        raise _BrokenError("annotation without image") from error
    try:
        check_scans(jpeg)
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            size = image.size
            # Decoding at an eighth of the size reads all bytes, which finds a truncated file.
            image.draft("RGB", (size[0] // 8, size[1] // 8))
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except InputError as error:
        raise _BrokenError("JPEG with too many scans") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _BrokenError("image does not decode") from error
    return jpeg, (size[::-1] if turned else size)


def _read_annotation(path: pathlib.Path) -> dict[str, Any]:
    try:
        annotation = json.loads(path.read_bytes())
    except OSError as error:
        raise _BrokenError("image without annotation") from error
    except (ValueError, RecursionError) as error:
        raise _BrokenError("annotation does not parse") from error
    if not isinstance(annotation, dict):
        raise _BrokenError("annotation does not parse")
    if annotation.get("source") not in SOURCES:
        raise _BrokenError("source is neither shop nor user")
    if not _is_int(annotation.get("pair_id")):
        raise _BrokenError("no pair_id")
    return annotation


def _number(name: str) -> int:
    if not name.removeprefix("item").isdigit():
        raise _BrokenError("item without number")
    return int(name.removeprefix("item"))


def _read_item(item: Any, size: tuple[int, int]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise _BrokenError("item is no object")
    category, style = item.get("category_id"), item.get("style")
    if not _is_int(category, 1, len(CATEGORIES)):
        raise _BrokenError("unknown category")
    if not _is_int(style, 0):
        raise _BrokenError("no style")
    levels = {name: item.get(name) for name in LEVELS}
    if not all(_is_int(level, 1, 3) for level in levels.values()):
        raise _BrokenError("condition outside 1 to 3")
    outline = {name: item.get(name, []) for name in ("landmarks", "segmentation")}
    return {
        "category_id": category,
        "style": style,
        "bounding_box": _clipped(item.get("bounding_box"), size),
        "outline": json.dumps(outline, separators=(",", ":")),
        **levels,
    }


def _clipped(box: Any, size: tuple[int, int]) -> list[float]:
    """Clips a box to the image; it must remain at least a pixel wide and high."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(x) for x in box):
        raise _BrokenError("no bounding box")
    if min(box) >= 0 and max(box) <= 1:
        raise _BrokenError("box in fractions of the image, not in pixels")
    x1, y1, x2, y2 = box
    x1, x2 = (min(max(x, 0), size[0]) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), size[1]) for y in (y1, y2))
    if x2 - x1 < 1 or y2 - y1 < 1:
        raise _BrokenError("box without area inside the image")
    return [float(x1), float(y1), float(x2), float(y2)]


def _is_int(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and low <= value <= high and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e9  # neither infinite nor NaN
