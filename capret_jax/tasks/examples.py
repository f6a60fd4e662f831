"""Examples of X2-VLM's tasks, as the readers of annotation files give them."""

from typing import NamedTuple


class ImageCaptions(NamedTuple):
    """A picture with the captions that belong to it: image-text retrieval and captioning.

    Attributes:
        image: path of the picture, below the folder of images.
        image_id: the picture's id, which several examples in training may share.
        captions: its captions: one in training files, several in test files.
    """

    image: str
    image_id: int | str
    captions: tuple[str, ...]


class VisualQuestion(NamedTuple):
    """A question about a picture, with its answers.

    Attributes:
        image: path of the picture, below the folder of images.
        question_id: the question's id.
        question: its text.
        answers: the annotators' answers, ten in VQAv2 and equal ones among them; empty in test
            files.
        weights: the loss weight of each distinct answer, in the order of its first occurrence.
    """

    image: str
    question_id: int
    question: str
    answers: tuple[str, ...]
    weights: tuple[float, ...]


class ReferringExpression(NamedTuple):
    """A phrase about one object of a picture, with the object's box: RefCOCO+.

    Attributes:
        image: path of the picture, below the folder of images.
        ref_id: the object's id in REFER's files.
        text: the phrase.
        box: x, y, w, h in pixels.
        size: width and height of the picture in pixels, as annotated.
    """

    image: str
    ref_id: int
    text: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]


class AnnotatedPicture(NamedTuple):
    """A picture with all of its objects: COCO's detection.

    Attributes:
        image: path of the picture, below the folder of images.
        image_id: the picture's id.
        boxes: x1, y1, x2, y2 of each object in pixels, inside the picture.
        classes: class of each, from 1.
        names: name of the class of each.
    """

    image: str
    image_id: int
    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[int, ...]
    names: tuple[str, ...]


class PairSentence(NamedTuple):
    """A sentence that is true of two pictures or not: NLVR2.

    Attributes:
        images: paths of the left and the right picture, below the folder of images.
        sentence: the sentence.
        label: 1 where it is true, 0 where it is not.
        identifier: the example's name.
    """

    images: tuple[str, str]
    sentence: str
    label: int
    identifier: str
