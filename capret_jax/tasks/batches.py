"""Training batches of X2-VLM's tasks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from capret_jax.config import ExperimentConfig
from capret_jax.config.task import VQA_ANSWERS
from capret_jax.data.batch import NO_IDENTITY, Batch
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.captions import mentions_sides
from capret_jax.data.geometry import random_window_around
from capret_jax.data.located_objects import pad_objects, scaled_view
from capret_jax.data.masking import MaskedCaptions
from capret_jax.data.pipeline import Batches
from capret_jax.data.sampler import BatchOrder, Draw, RowSampler
from capret_jax.data.tokenizer import CaptionEncoder, Tokens
from capret_jax.data.transforms import Augmentation, View, frame
from capret_jax.data.vqa import (
    ANSWER_TOKENS,
    MAX_ANSWER_TOKENS,
    QUESTION_WORDS,
    answer_encoder,
    question_encoder,
)
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.tasks.examples import (
    AnnotatedPicture,
    ImageCaptions,
    PairSentence,
    ReferringExpression,
    VisualQuestion,
)
from capret_jax.tasks.pictures import PictureFolder

# The box of the whole picture: cx, cy, w, h.
_WHOLE = np.array([[0.5, 0.5, 1.0, 1.0]], np.float32)


def make_batches(
    rows: Sequence[Any], encode: CaptionEncoder, config: ExperimentConfig, share: BatchShare
) -> BatchIterator:
    """Makes the iterator of this process's part of the training batches of a task.

    Args:
        rows: training examples of `config.task.name`.
        encode: encoder of texts, T tokens.
        config: task, image size, augmentation, batch size, steps, seed and reading ahead.
        share: the rows of each batch that this process reads.

    Raises:
        InputError: there are fewer examples than a batch has, or more workers than cores.
    """
    read = config.data.read
    order = BatchOrder(config.batch_size, config.loop.steps, config.seed, share)
    views = TrainingViews(
        PictureFolder(config.task.images, read.resize, read.cached_images),
        Augmentation(config.data.augment, config.model.image_size),
    )
    examples = _EXAMPLES[config.task.name](rows, encode, views, config)
    return BatchIterator(Batches(RowSampler(len(rows), order), examples), read)


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """Augmented views of the pictures in a folder.

    Attributes:
        pictures: the folder.
        augment: random changes.
    """

    pictures: PictureFolder
    augment: Augmentation

    def whole(self, path: str, text: str, rng: np.random.Generator) -> np.ndarray:
        """Returns a view of a picture, (S, S, 3) uint8, unflipped if the text mentions sides."""
        photograph, may_flip = self.pictures.photograph(path), not mentions_sides(text)
        boxes = frame(photograph)[None]
        return self.augment.image_view(photograph, boxes, rng, may_flip=may_flip).image

    def boxed(self, path: str, text: str, box: tuple[float, ...], rng: np.random.Generator) -> View:
        """Returns a view that shows a box, with the box in it.

        Args:
            path: path of the picture in the folder.
            text: phrase about the box; the view is not flipped if it mentions left or right.
            box: x, y, w, h in pixels.
            rng: source of the changes.
        """
        photograph, may_flip = self.pictures.photograph(path), not mentions_sides(text)
        x, y, width, height = box
        corners = np.array([x, y, x + width, y + height])
        window = frame(photograph)
        if self.augment.config.region_crop:
            window = random_window_around(corners, photograph.width, photograph.height, rng)
        return self.augment.window_view(
            photograph, corners[None], rng, window=window, may_flip=may_flip
        )


class _Examples:
    """A function from draws to batches of one example."""

    def __init__(
        self,
        rows: Sequence[Any],
        encode: CaptionEncoder,
        views: TrainingViews,
        config: ExperimentConfig,
    ):
        """
        Args:
            rows: the training examples.
            encode: encoder of texts, T tokens.
            views: views of their pictures.
            config: the losses.
        """
        self._rows, self._encode, self._views = rows, encode, views

    def __call__(self, draw: Draw) -> Batch:
        return self._make(self._rows[draw.row], draw, np.random.default_rng(draw.seed))

    def _make(self, row: Any, draw: Draw, rng: np.random.Generator) -> Batch:
        raise NotImplementedError


class _CaptionExamples(_Examples):
    """Batches of one picture with its caption, masked if a masked language model is trained."""

    def __init__(self, rows, encode, views, config):
        super().__init__(rows, encode, views, config)
        self._identities = _number([row.image_id for row in rows])
        self._masker = None
        if config.loss.mlm:
            prompt = config.data.captions.prompt
            prompted = CaptionEncoder(encode.tokenizer, encode.max_tokens, encode.cleaning, prompt)
            self._masker = MaskedCaptions(prompted, config.loss)

    def _make(self, row: ImageCaptions, draw: Draw, rng: np.random.Generator) -> Batch:
        (caption,) = row.captions
        image, tokens = self._views.whole(row.image, caption, rng), self._encode(caption)
        batch = _example(image, tokens, draw, identity=self._identities[draw.row])
        if self._masker is None:
            return batch
        masked = self._masker(caption, rng)
        return dataclasses.replace(
            batch,
            masked_ids=masked.ids[None],
            masked_positions=masked.positions[None],
            masked_labels=masked.labels[None],
        )


class _QuestionExamples(_Examples):
    """Batches of one picture with a question and all of its answers, weighted."""

    def __init__(self, rows, encode, views, config):
        super().__init__(rows, encode, views, config)
        self._encode = question_encoder(encode, QUESTION_WORDS, encode.max_tokens)
        # Longer ones are cut, in the list of an evaluation too.
        longest = min(MAX_ANSWER_TOKENS, config.model.max_positions)
        answers = {answer for row in rows for answer in row.answers}
        whole = answer_encoder(encode, longest)
        tokens = max((int(whole(answer).mask.sum()) for answer in answers), default=0)
        self._encode_answer = answer_encoder(encode, max(ANSWER_TOKENS, tokens))
        cut = sum(map(whole.cuts, answers)) if tokens == longest else 0
        if cut and jax.process_index() == 0:
            print(f"training: {cut} answers are cut to {longest} tokens.", flush=True)

    def _make(self, row: VisualQuestion, draw: Draw, rng: np.random.Generator) -> Batch:
        distinct = list(dict.fromkeys(row.answers))
        image = self._views.whole(row.image, " ".join((row.question, *distinct)), rng)
        question = self._encode(row.question)
        padding = VQA_ANSWERS - len(distinct)
        answers = [self._encode_answer(text) for text in (*distinct, *[""] * padding)]
        return dataclasses.replace(
            _example(image, question, draw),
            question_ids=question.ids[None],
            question_mask=question.mask[None],
            answer_ids=np.stack([answer.ids for answer in answers]),
            answer_mask=np.stack([answer.mask for answer in answers]),
            answer_weight=np.array([*row.weights, *[0.0] * padding], np.float32),
        )


class _PhraseExamples(_Examples):
    """Batches of one picture with a phrase and its box."""

    def _make(self, row: ReferringExpression, draw: Draw, rng: np.random.Generator) -> Batch:
        view = self._views.boxed(row.image, row.text, row.box, rng)
        batch = _example(view.image, self._encode(row.text), draw)
        return dataclasses.replace(batch, box=view.boxes)


class _ObjectExamples(_Examples):
    """Batches of one picture with all of its objects, at a random scale."""

    def __init__(self, rows, encode, views, config):
        super().__init__(rows, encode, views, config)
        self._scale, self._most = config.data.location_batch.scale, config.model.location_items
        more = sum(len(row.boxes) > self._most for row in rows)
        if more and jax.process_index() == 0:
            print(
                f"training: {more} of {len(rows)} pictures have more than {self._most} objects, of "
                "which the largest are learnt: config.model.location_items.",
                flush=True,
            )

    def _make(self, row: AnnotatedPicture, draw: Draw, rng: np.random.Generator) -> Batch:
        photograph = self._views.pictures.photograph(row.image)
        boxes = np.array(row.boxes, np.float64).reshape(-1, 4)
        view, kept = scaled_view(photograph, boxes, self._views.augment, self._scale, rng)
        objects = pad_objects(view, np.array(row.classes, np.int64)[kept], self._most)
        batch = _example(view.image, self._encode(""), draw)
        return dataclasses.replace(batch, objects=dataclasses.replace(objects, image=None))


class _PairExamples(_Examples):
    """Batches of one sentence with its left and its right picture."""

    def _make(self, row: PairSentence, draw: Draw, rng: np.random.Generator) -> Batch:
        both = [self._views.whole(path, row.sentence, rng) for path in row.images]
        return dataclasses.replace(
            _example(both[0], self._encode(row.sentence), draw),
            image=np.stack(both),
            pair_label=np.array([row.label], np.int32),
        )


def _number(ids: Sequence[int | str]) -> list[int]:
    """Numbers ids from 0, equal ones alike, in the order of their first occurrence."""
    numbers: dict[int | str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in ids]


_EXAMPLES: dict[str, type[_Examples]] = {
    "retrieval": _CaptionExamples,
    "captioning": _CaptionExamples,
    "vqa": _QuestionExamples,
    "grounding": _PhraseExamples,
    "detection": _ObjectExamples,
    "nlvr2": _PairExamples,
}


def _example(image: np.ndarray, tokens: Tokens, draw: Draw, identity: int = NO_IDENTITY) -> Batch:
    """Returns a batch of one picture with a text about all of it.

    Args:
        image: (S, S, 3) uint8.
        tokens: tokens of the text.
        draw: the draw. The row is the caption's id: only pictures of one identity share texts.
        identity: class of the picture.
    """
    return Batch(
        image=image[None],
        token_ids=tokens.ids[None],
        token_mask=tokens.mask[None],
        identity=np.array([identity], np.int32),
        caption_id=np.array([draw.row], np.int32),
        box=_WHOLE,
        valid=np.array([True]),
    )
