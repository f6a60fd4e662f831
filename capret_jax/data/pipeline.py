"""The input pipeline: records -> item views -> batches, as a Grain dataset."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import grain
import numpy as np
from PIL import Image

from capret_jax.batch import Batch
from capret_jax.data.captions import Captioner
from capret_jax.data.items import ItemTable
from capret_jax.data.masking import Masker
from capret_jax.data.records import Records
from capret_jax.data.sampler import Draw, IdentitySampler
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.transforms import (
    AugmentConfig,
    View,
    decode,
    evaluation_view,
    training_view,
)


class Split:
    """Records of photographs, and the table of the items in them."""

    def __init__(self, records: Records, items: ItemTable, cached_images: int = 0):
        """
        Args:
            records: the photographs.
            items: their items, from `read_items`.
            cached_images: decoded photographs to keep in memory.
        """
        self.records = records
        self.items = items
        self._decoded = functools.lru_cache(maxsize=cached_images)(self._decode)

    def _decode(self, record: int, name: str) -> Image.Image:
        return decode(self.records.image(record), name)

    def photograph(self, row: int) -> Image.Image:
        """The decoded photograph of the item in `row`; not to be changed, others may hold it."""
        return self._decoded(int(self.items.record[row]), str(self.items["image_id"][row]))

    def evaluation_view(self, row: int, size: int, margin: float) -> View:
        """The item in `row` as the model sees it at evaluation."""
        return evaluation_view(self.photograph(row), self.items.box[row], size, margin)


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    """How far and how wide to read ahead of the training step.

    Attributes:
        threads: that decode and crop.
        prefetch: batches to keep ready.
        cached_images: decoded photographs to keep in memory, for datasets that fit.
    """

    threads: int = 2
    prefetch: int = 4
    cached_images: int = 0


def training_iterator(
    split: Split,
    sampler: IdentitySampler,
    batch_size: int,
    image_size: int,
    augment: AugmentConfig,
    captioner: Captioner,
    encoder: CaptionEncoder,
    masker: Masker | None,
    read: ReadConfig,
) -> grain.DatasetIterator:
    """This process's `Batch`es, NumPy arrays, in an order that depends on the sampler alone.

    Args:
        split: the training split.
        sampler: which items, in which order.
        batch_size: examples per batch on this process.
        image_size: S, pixels.
        augment: the random changes.
        captioner: items -> captions.
        encoder: captions -> tokens.
        masker: hides tokens for masked language modelling; None for none.
        read: threads and batches to keep ready.

    Returns:
        An iterator whose position Orbax can save and restore.
    """
    example = functools.partial(
        _example,
        split=split,
        size=image_size,
        augment=augment,
        captioner=captioner,
        encoder=encoder,
        masker=masker,
    )
    dataset = grain.MapDataset.source(sampler).map(example).batch(batch_size, batch_fn=_collate)
    options = grain.ReadOptions(num_threads=read.threads, prefetch_buffer_size=read.prefetch)
    return iter(dataset.to_iter_dataset(options))


def _example(draw: Draw, split, size, augment, captioner, encoder, masker) -> Batch:
    rng = np.random.default_rng(draw.seed)
    view = training_view(split.photograph(draw.row), split.items.box[draw.row], size, augment, rng)
    caption = captioner(draw.row, rng)
    tokens = encoder(caption)
    masked = masker(tokens, rng) if masker else (None, None, None)
    return Batch(
        image=view.image,
        token_ids=tokens.ids,
        token_mask=tokens.mask,
        identity=np.int32(draw.identity),
        caption_id=np.int32(zlib.crc32(caption.encode()) & 0x7FFFFFFF),
        box=view.box,
        masked_ids=masked[0],
        masked_positions=masked[1],
        masked_labels=masked[2],
    )


def _collate(examples: Sequence[Batch]) -> Batch:
    columns = {
        field.name: [getattr(example, field.name) for example in examples]
        for field in dataclasses.fields(Batch)
    }
    return Batch(
        **{
            name: None if column[0] is None else np.stack(column)
            for name, column in columns.items()
        }
    )
