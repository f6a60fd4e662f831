"""Tiny sets of pictures in the standard format of each task, written into a folder."""

import dataclasses
import json
import pathlib
import pickle

import numpy as np
from PIL import Image

from capret_jax.config import CaptionConfig, TaskConfig

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "pink": (250, 130, 190),
    "brown": (120, 70, 30),
}
WIDTH, HEIGHT = 64, 48
# x, y, w, h of the two squares in the pictures with boxes.
LEFT, RIGHT = (4, 12, 20, 24), (36, 8, 24, 30)


def write_json(path: pathlib.Path, values) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def paint(path: pathlib.Path, colour: str, boxes=()) -> None:
    """Writes a picture of one colour; with boxes, of coloured boxes on grey."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = (128, 128, 128) if boxes else COLOURS[colour]
    for name, (x, y, w, h) in boxes:
        pixels[y : y + h, x : x + w] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _paint_all(folder: pathlib.Path) -> dict[str, str]:
    """Writes a picture of each colour; returns colour -> its path below `images`."""
    names = {}
    for number, colour in enumerate(COLOURS, 1):
        kind = "png" if number % 2 else "jpg"
        names[colour] = f"val/picture_{number:06d}.{kind}"
        paint(folder / "images" / names[colour], colour)
    return names


def write_retrieval(folder: pathlib.Path, name: str = "retrieval") -> TaskConfig:
    """Pictures of one colour with two captions each; the test pictures are those of training."""
    texts = ("a {} picture", "this is plain {}")
    train, test = [], []
    for number, (colour, image) in enumerate(_paint_all(folder).items()):
        captions = [text.format(colour) for text in texts]
        train += [{"image": image, "caption": c, "image_id": f"c_{number}"} for c in captions]
        test.append({"image": image, "caption": captions})
    return TaskConfig(
        name=name,
        train=(write_json(folder / "train.json", train),),
        test=write_json(folder / "test.json", test),
        images=str(folder / "images"),
    )


def write_captioning(folder: pathlib.Path) -> TaskConfig:
    """The same files as for retrieval."""
    return dataclasses.replace(write_retrieval(folder, "captioning"), min_tokens=2, max_tokens=12)


def captions_of(task: str) -> CaptionConfig:
    """Settings of the captions of a task: only captioners write behind a prompt."""
    return CaptionConfig(prompt="a picture of" if task == "captioning" else "")


def write_vqa(folder: pathlib.Path) -> TaskConfig:
    """A question of VQAv2 about the colour of each picture, and one of Visual Genome."""
    train, test, answers = [], [], []
    for number, (colour, image) in enumerate(_paint_all(folder).items()):
        answers.append(colour)
        entry = {"question_id": number, "question": "what colour is it?", "image": image}
        ten = [colour] * 8 + ["dark"] * 2
        train.append(entry | {"answer": ten, "dataset": "vqa"})
        train.append(entry | {"question": "which colour?", "answer": colour, "dataset": "vg"})
        test.append(entry | {"answer": ten, "dataset": "vqa"})
    return TaskConfig(
        name="vqa",
        train=(write_json(folder / "train.json", train),),
        test=write_json(folder / "test.json", test),
        images=str(folder / "images"),
        answers=write_json(folder / "answer_list.json", [*answers, "dark"]),
        answers_ranked=4,
    )


def write_grounding(folder: pathlib.Path) -> TaskConfig:
    """Pictures of two squares, each named by its colour; the test pictures are others' copies."""
    colours = list(COLOURS)
    rows: dict[str, list] = {"train": [], "val": []}
    references, annotations, pictures = [], [], []
    for number, first in enumerate(colours):
        second = colours[(number + 3) % len(colours)]
        for split in rows:
            picture = 1 + len(pictures)
            name = f"COCO_train2014_{picture:012d}.jpg"
            boxes = [(first, LEFT), (second, RIGHT)]
            paint(folder / "images" / "train2014" / name, "", boxes)
            pictures.append({"id": picture, "file_name": name, "width": WIDTH, "height": HEIGHT})
            for colour, box in boxes:
                key = len(references)
                annotations.append({"id": 100 + key, "bbox": list(box), "image_id": picture})
                reference = {"ref_id": key, "ann_id": 100 + key, "image_id": picture}
                references.append(reference | {"split": split})
                row = {"image": f"train2014/{name}", "text": f"the {colour} box", "ref_id": key}
                rows[split].append(row)
    refs = folder / "refs(unc).p"
    refs.write_bytes(pickle.dumps(references, protocol=2))
    instances = {"images": pictures, "annotations": annotations}
    return TaskConfig(
        name="grounding",
        train=(write_json(folder / "train.json", rows["train"]),),
        test=write_json(folder / "val.json", rows["val"]),
        images=str(folder / "images"),
        refs=str(refs),
        instances=write_json(folder / "instances.json", instances),
    )


def write_detection(folder: pathlib.Path) -> TaskConfig:
    """Pictures of one or two squares, in COCO's format; a category is a colour."""
    ids = {colour: 10 * number for number, colour in enumerate(COLOURS, 1)}
    colours, pictures, annotations = list(COLOURS), [], []
    for number, first in enumerate(colours * 2):
        boxes = [(first, LEFT), (colours[(number + 3) % len(colours)], RIGHT)][: 1 + number % 2]
        name = f"{number:012d}.png"
        paint(folder / "images" / "tiny" / name, "", boxes)
        pictures.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for colour, box in boxes:
            # What the reader needs and no more: neither id nor area.
            row = {"image_id": number, "category_id": ids[colour], "bbox": list(box)}
            annotations.append(row)
    categories = [{"id": key, "name": colour} for colour, key in ids.items()]
    content = {"images": pictures, "annotations": annotations, "categories": categories}
    path = write_json(folder / "instances_tiny.json", content)
    return TaskConfig(name="detection", train=(path,), test=path, images=str(folder / "images"))


def write_nlvr2(folder: pathlib.Path) -> TaskConfig:
    """Pairs of pictures, and whether the left or the right one is of a colour."""
    images = _paint_all(folder)
    rows = []
    colours = list(COLOURS)
    for number, colour in enumerate(colours):
        other = colours[(number + 1) % len(colours)]
        for label, second in (("True", colour), ("False", other)):
            pair = [images[colour], images[second]]
            name = f"dev-{number}-{label}"
            rows.append(
                {"sentence": "both have one colour", "label": label, "images": pair}
                | {"identifier": name}
            )
    return TaskConfig(
        name="nlvr2",
        train=(write_json(folder / "train.json", rows),),
        test=write_json(folder / "dev.json", rows),
        images=str(folder / "images"),
    )


WRITERS = {
    "retrieval": write_retrieval,
    "vqa": write_vqa,
    "grounding": write_grounding,
    "captioning": write_captioning,
    "detection": write_detection,
    "nlvr2": write_nlvr2,
}
