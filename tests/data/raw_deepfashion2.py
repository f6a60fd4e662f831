"""Writes a raw DeepFashion2 folder from the synthetic dataset."""

import io
import json
import pathlib

from PIL import Image

from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.data.split import Split


def write_raw(root: pathlib.Path, splits: dict[str, Split]) -> None:
    """Writes `train/{image,annos}` and `validation/{image,annos}`, each numbered from 1."""
    for name, split in splits.items():
        for folder in ("image", "annos"):
            (root / name / folder).mkdir(parents=True)
        for index in range(len(split.records)):
            number = f"{index + 1:06}"
            jpeg = split.records.image(index)
            if index % 5 == 1:
                jpeg = in_mode(jpeg, "L" if index % 2 else "CMYK")
            (root / name / "image" / f"{number}.jpg").write_bytes(jpeg)
            annotation = annotation_of(split.records.annotation(index))
            (root / name / "annos" / f"{number}.json").write_text(json.dumps(annotation))


def in_mode(jpeg: bytes, mode: str) -> bytes:
    """Converts a picture to grey or CMYK."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def annotation_of(record: dict) -> dict:
    """Makes the content of DeepFashion2's JSON file."""
    annotation = {"source": record["source"].decode(), "pair_id": int(record["pair_id"])}
    items = record["items"]
    for i, style in enumerate(items["style"]):
        x1, y1, x2, y2 = (float(x) for x in items["bounding_box"][i])
        category = int(items["category_id"][i])
        annotation[f"item{items['number'][i]}"] = {
            "category_name": CATEGORIES[category - 1],
            "category_id": category,
            "style": int(style),
            "bounding_box": [x1, y1, x2, y2],
            "landmarks": [x1, y1, 2],
            "segmentation": [[x1, y1, x2, y1, x2, y2]],
            **{name: int(items[name][i]) for name in LEVELS},
        }
    return annotation
