"""The input pipeline: records -> item views -> batches, as a Grain dataset."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import grain
import numpy as np

from capret_jax.config import AugmentConfig, ReadConfig, ViewConfig
from capret_jax.data.batch import NO_IDENTITY, Batch
from capret_jax.data.captions import TrainingCaptions, tells_sides
from capret_jax.data.images import Photograph
from capret_jax.data.items import ItemTable
from capret_jax.data.masking import Masker
from capret_jax.data.records import Records
from capret_jax.data.sampler import Draw, Sampler
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.transforms import (
    View,
    crop_view,
    training_crop_view,
    training_whole_view,
    training_wide_view,
    whole_view,
)
from capret_jax.data.vqa import VqaSampler


class Split:
    """Records of photographs, and the table of the items in them."""

    def __init__(self, records: Records, items: ItemTable, cached_images: int = 0):
        """
        Args:
            records: the photographs.
            items: their items, from `read_items`.
            cached_images: photographs to keep in memory.
        """
        self.records = records
        self.items = items
        self._cached = functools.lru_cache(maxsize=cached_images)(self._read)

    def _read(self, record: int, name: str) -> Photograph:
        return Photograph(self.records.image(record), name)

    def photograph(self, row: int) -> Photograph:
        """The photograph of the item in `row`."""
        return self._cached(int(self.items.record[row]), str(self.items["image_id"][row]))

    def crop_view(self, row: int, size: int, margin: float) -> View:
        """The item in `row` with a margin."""
        return crop_view(self.photograph(row), self.items.box[row], size, margin)

    def whole_view(self, rows: np.ndarray, size: int) -> View:
        """The photograph of the items in `rows`, whole."""
        return whole_view(self.photograph(int(rows[0])), self.items.box[rows], size)


def training_iterator(
    split: Split,
    sampler: Sampler,
    batch_size: int,
    image_size: int,
    view: ViewConfig,
    augment: AugmentConfig,
    captioner: TrainingCaptions,
    encoder: CaptionEncoder,
    masker: Masker | None,
    read: ReadConfig,
    vqa: VqaSampler | None = None,
) -> grain.DatasetIterator:
    """This process's `Batch`es, NumPy arrays, in an order that depends on the sampler alone.

    Args:
        split: the training split.
        sampler: which items, in which order, and what may be told of their identities.
        batch_size: pictures per batch on this process.
        image_size: S, pixels.
        view: what the model sees of an item.
        augment: the random changes.
        captioner: items -> captions.
        encoder: captions -> tokens.
        masker: hides tokens for masked language modelling; None for none.
        read: threads and batches to keep ready.
        vqa: asks questions for learning to answer them; None for none.

    Returns:
        An iterator whose position Orbax can save and restore.
    """
    examples = _Examples(
        split, sampler.identities, image_size, view, augment, captioner, encoder, masker, vqa
    )
    dataset = grain.MapDataset.source(sampler).map(examples).batch(batch_size, batch_fn=_collate)
    options = grain.ReadOptions(num_threads=read.threads, prefetch_buffer_size=read.prefetch)
    return iter(dataset.to_iter_dataset(options))


class _Examples:
    """Draws -> batches of one picture."""

    def __init__(self, split, identities, size, view, augment, captioner, encoder, masker, vqa):
        self._split = split
        self._size = size
        self._view = view
        self._augment = augment
        self._captioner = captioner
        self._encoder = encoder
        self._masker = masker
        self._vqa = vqa
        self._identities = identities
        nameless = np.flatnonzero(self._identities == NO_IDENTITY)
        self._nameless = nameless if len(nameless) else np.arange(len(split.items))

    def __call__(self, draw: Draw) -> Batch:
        rng = np.random.default_rng(draw.seed)
        wide = bool(self._augment.wide) and rng.random() < self._augment.wide
        rows = self._rows(int(rng.choice(self._nameless)) if wide else draw.row, rng)
        captions = [self._captioner(row, rng) for row in rows]
        view = self._look(rows, wide, not any(map(tells_sides, captions)), rng)
        identities = [NO_IDENTITY] if wide else self._identities[rows]
        empty = self._view.regions_per_image - len(rows)
        tokens = [self._encoder(caption) for caption in (*captions, *[""] * empty)]
        masked = [self._masker(each, rng) for each in tokens] if self._masker else None
        ids = [zlib.crc32(caption.encode()) & 0x7FFFFFFF for caption in captions]
        return Batch(
            image=view.image[None],
            token_ids=np.stack([each.ids for each in tokens]),
            token_mask=np.stack([each.mask for each in tokens]),
            identity=np.array([*identities, *[NO_IDENTITY] * empty], np.int32),
            caption_id=np.array([*ids, *[0] * empty], np.int32),
            box=np.concatenate([view.boxes, np.zeros((empty, 4), np.float32)]),
            valid=np.arange(self._view.regions_per_image) < len(rows),
            **({} if masked is None else _stack_masked(masked)),
            **(self._questions(rows, empty, rng) if self._vqa else {}),
        )

    def _questions(self, rows: np.ndarray, empty: int, rng) -> dict[str, np.ndarray]:
        examples = [self._vqa(row, rng) for row in rows] + [self._vqa.padding()] * empty
        return {
            f"{kind}_{name}": np.stack(
                [getattr(getattr(example, kind), name) for example in examples]
            )
            for kind in ("question", "answer")
            for name in ("ids", "mask")
        }

    def _rows(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """The item drawn, and those of its photograph that come along."""
        if self._view.regions_per_image == 1:
            return np.array([row])
        others = self._split.items.rows_beside(row)
        return np.array([row, *rng.permutation(others)[: self._view.regions_per_image - 1]])

    def _look(self, rows: np.ndarray, wide: bool, may_flip: bool, rng: np.random.Generator) -> View:
        photograph, boxes = self._split.photograph(int(rows[0])), self._split.items.box[rows]
        if self._view.whole:
            return training_whole_view(photograph, boxes, self._size, self._augment, rng, may_flip)
        look = training_wide_view if wide else training_crop_view
        return look(photograph, boxes[0], self._size, self._augment, rng, may_flip)


def _stack_masked(masked) -> dict[str, np.ndarray]:
    names = ("masked_ids", "masked_positions", "masked_labels")
    return dict(zip(names, map(np.stack, zip(*masked, strict=True)), strict=True))


def _collate(examples: Sequence[Batch]) -> Batch:
    columns = {
        field.name: [getattr(example, field.name) for example in examples]
        for field in dataclasses.fields(Batch)
    }
    return Batch(
        **{
            name: None if column[0] is None else np.concatenate(column)
            for name, column in columns.items()
        }
    )
