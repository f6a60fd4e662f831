"""The input pipeline: a Grain dataset from records to views of items to batches."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from capret_jax.config import ExperimentConfig
from capret_jax.config.task import VQA_ANSWERS
from capret_jax.data.batch import NO_IDENTITY, Batch, LocatedObjects
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.captions import TrainingCaptions, mentions_sides
from capret_jax.data.geometry import random_window_around, shares_inside
from capret_jax.data.located_objects import LocatedExamples
from capret_jax.data.masking import MaskedCaptions
from capret_jax.data.photograph_sampler import PhotographSampler
from capret_jax.data.sampler import Draw, Sampler, ShuffledOrder
from capret_jax.data.split import Split
from capret_jax.data.teacher import open_teacher
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.transforms import Augmentation, View
from capret_jax.data.vqa import ANSWER_TOKENS, VqaSampler

T = TypeVar("T")
# Share of an item's box that a window of regions must show to keep the item.
_MIN_INSIDE = 0.5


class TrainingText(NamedTuple):
    """Sources of the texts of training examples.

    Attributes:
        captions: captions of the items.
        encode: encoder of captions as tokens.
        masker: masker of captions for masked language modelling; None without it.
        vqa: sampler of questions and answers; None without visual question answering.
    """

    captions: TrainingCaptions
    encode: CaptionEncoder
    masker: MaskedCaptions | None = None
    vqa: VqaSampler | None = None


def training_iterator(
    split: Split, sampler: Sampler, text: TrainingText, config: ExperimentConfig
) -> BatchIterator:
    """Makes the iterator of this process's part of the training batches.

    Args:
        split: the training split.
        sampler: order of the items, and the identities that batches may reveal.
        text: sources of captions and questions.
        config: image size, view, augmentation and reading ahead.

    Returns:
        An iterator over `Batch`es of NumPy arrays, whose position Orbax can save and restore.

    Raises:
        InputError: there are more workers than cores, or fewer photographs than in a region batch.
    """
    items, further = split.items, {}
    if images := config.data.region_batch.images:
        order = dataclasses.replace(sampler.order, batch_size=images)
        photographs = PhotographSampler(items, order, "data.region_batch.images")
        of_regions = config.region_batch()
        examples = _Examples(split, sampler.identities, text._replace(vqa=None), of_regions)
        further["regions"] = Batches(photographs, examples)
    if config.located_images:
        settings = config.data.location_batch
        order = dataclasses.replace(sampler.order, batch_size=settings.images)
        photographs = PhotographSampler(items, order, stream=1)
        augment = Augmentation(config.data.augment, config.model.image_size)
        located = LocatedExamples(split, augment, settings, config.model.location_items)
        further["objects"] = Batches(photographs, located)
    examples = _Examples(split, sampler.identities, text, config)
    return BatchIterator(Batches(sampler, examples, further), config.data.read)


def abstract_batch(config: ExperimentConfig) -> Batch:
    """Returns the global shapes and dtypes of the batches that a run is trained on.

    Returns:
        A `Batch` of `jax.ShapeDtypeStruct`, with None for arrays that the config's losses do not
        need.
    """
    images, size, tokens = config.batch_size, config.model.image_size, config.data.max_tokens
    items = images * config.data.view.regions_per_image

    def array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = Batch(
        image=array(images * (2 if config.loss.nlvr else 1), size, size, 3, dtype=np.uint8),
        token_ids=array(items, tokens),
        token_mask=array(items, tokens),
        identity=array(items),
        caption_id=array(items),
        box=array(items, 4, dtype=np.float32),
        valid=array(items, dtype=bool),
        located=array(items, dtype=bool) if config.data.wide_share else None,
    )
    if config.loss.distill:
        # Its width is known only where the file is; plans assume the student's.
        width = config.model.item_width
        batch = dataclasses.replace(batch, teacher=array(items, width, dtype=np.float32))
    if config.loss.mlm:
        positions = array(items, config.loss.mlm_max)
        batch = dataclasses.replace(
            batch,
            masked_ids=array(items, tokens + config.loss.inserted_masks),
            masked_positions=positions,
            masked_labels=positions,
        )
    if config.loss.vqa:
        answers = items * (VQA_ANSWERS if config.task.name else 1)
        question, answer = array(items, tokens), array(answers, ANSWER_TOKENS)
        batch = dataclasses.replace(
            batch,
            question_ids=question,
            question_mask=question,
            answer_ids=answer,
            answer_mask=answer,
            answer_weight=array(answers, dtype=np.float32) if config.task.name else None,
        )
    if config.loss.nlvr:
        batch = dataclasses.replace(batch, pair_label=array(items))
    if config.loss.locations:
        photographs = images if config.task.name else config.data.location_batch.images
        most = config.model.location_items
        objects = LocatedObjects(
            box=array(photographs, most, 4, dtype=np.float32),
            category=array(photographs, most),
            image=None if config.task.name else array(photographs, size, size, 3, dtype=np.uint8),
        )
        batch = dataclasses.replace(batch, objects=objects)
    if config.data.region_batch.images:
        batch = dataclasses.replace(batch, regions=abstract_batch(config.region_batch()))
    return batch


class Batches:
    """This process's part of the batch of each step."""

    def __init__(
        self,
        sampler: ShuffledOrder | PhotographSampler,
        examples: Callable[[Draw], Any],
        further: Mapping[str, "Batches"] | None = None,
    ):
        """
        Args:
            sampler: order of the examples.
            examples: function from draws to batches of one example.
            further: other batches of the same steps, by their field of the batch.
        """
        self._sampler, self._examples, self._further = sampler, examples, further or {}

    def __len__(self) -> int:
        return self._sampler.order.steps

    def __getitem__(self, step: int) -> Any:
        size = self._sampler.order.local_batch_size
        draws = (self._sampler[index] for index in range(step * size, (step + 1) * size))
        batch = _collate([self._examples(draw) for draw in draws])
        further = {name: batches[step] for name, batches in self._further.items()}
        return dataclasses.replace(batch, **further)


class _Examples:
    """A function from draws to batches of one picture."""

    def __init__(
        self, split: Split, identities: np.ndarray, text: TrainingText, config: ExperimentConfig
    ):
        self._split, self._identities, self._text = split, identities, text
        self._view, self._wide = config.data.view, config.data.wide_share
        self._teacher = None
        if config.loss.distill:
            self._teacher = open_teacher(config.data.teacher, len(split.items))
        self._augment = Augmentation(config.data.augment, config.model.image_size)
        unlabelled = np.flatnonzero(identities == NO_IDENTITY)
        # Rows of wide views: items without identity, where there are any.
        self._wide_rows = unlabelled if len(unlabelled) else np.arange(len(split.items))

    def __call__(self, draw: Draw) -> Batch:
        rng = np.random.default_rng(draw.seed)
        wide = bool(self._wide) and rng.random() < self._wide
        rows = self._rows(int(rng.choice(self._wide_rows)) if wide else draw.row, rng)
        photograph, window = self._split.photograph(int(rows[0])), None
        if self._view.regions and self._augment.config.region_crop:
            boxes = self._split.items.box[rows]
            window = random_window_around(boxes[0], photograph.width, photograph.height, rng)
            rows = rows[np.append(True, shares_inside(boxes[1:], window) > _MIN_INSIDE)]
        rows = rows[: self._view.regions_per_image]
        captions = [self._text.captions(row, rng) for row in rows]
        may_flip = not any(map(mentions_sides, captions))
        augment = self._augmentation(wide, window)
        view = augment(photograph, self._split.items.box[rows], rng, may_flip=may_flip)
        identities = [NO_IDENTITY] if wide else self._identities[rows]
        padding = self._view.regions_per_image - len(rows)
        padded = [*captions, *[""] * padding]
        tokens = [self._text.encode(caption) for caption in padded]
        masker = self._text.masker
        masked = [masker(caption, rng) for caption in padded] if masker else None
        ids = [zlib.crc32(caption.encode()) & 0x7FFFFFFF for caption in captions]
        return Batch(
            image=view.image[None],
            token_ids=np.stack([x.ids for x in tokens]),
            token_mask=np.stack([x.mask for x in tokens]),
            identity=np.array([*identities, *[NO_IDENTITY] * padding], np.int32),
            caption_id=np.array([*ids, *[0] * padding], np.int32),
            box=np.concatenate([view.boxes, np.zeros((padding, 4), np.float32)]),
            valid=np.arange(self._view.regions_per_image) < len(rows),
            located=np.array([wide]) if self._wide else None,
            teacher=self._teacher_rows(rows, padding),
            **({} if masked is None else _stack_masked(masked)),
            **(_draw_questions(self._text.vqa, rows, padding, rng) if self._text.vqa else {}),
        )

    def _teacher_rows(self, rows: np.ndarray, padding: int) -> np.ndarray | None:
        """Returns the (M, F) float32 embeddings of the items; those of padding repeat the first."""
        if self._teacher is None:
            return None
        return self._teacher[[*rows, *[rows[0]] * padding]].astype(np.float32)

    def _rows(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the row of the drawn item, then of others of its photograph for regions."""
        if self._view.regions_per_image == 1:
            return np.array([row])
        return np.array([row, *rng.permutation(self._split.items.rows_beside(row))])

    def _augmentation(self, wide: bool, window: np.ndarray | None) -> Callable[..., View]:
        """Returns the augmentation of the view, called with the boxes (M, 4) of its items."""
        augment = self._augment
        if window is not None:
            return functools.partial(augment.window_view, window=window)
        if self._view.whole:
            return augment.whole_view if self._view.regions else augment.image_view
        view = augment.wide_view if wide else augment.crop_view
        return lambda photograph, boxes, *rng, **flip: view(photograph, boxes[0], *rng, **flip)


def _draw_questions(
    vqa: VqaSampler, rows: np.ndarray, padding: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    examples = [vqa(row, rng) for row in rows] + [vqa.padding()] * padding
    return {
        f"{kind}_{name}": np.stack([getattr(getattr(example, kind), name) for example in examples])
        for kind in ("question", "answer")
        for name in ("ids", "mask")
    }


def _stack_masked(masked) -> dict[str, np.ndarray]:
    names = ("masked_ids", "masked_positions", "masked_labels")
    return dict(zip(names, map(np.stack, zip(*masked, strict=True)), strict=True))


def _collate(examples: Sequence[T]) -> T:
    """Joins batches, or other trees of arrays, of one example each."""
    return jax.tree.map(lambda *column: np.concatenate(column), *examples)
