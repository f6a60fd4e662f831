"""A single pass over the photographs of a split, each decoded once for all evaluators."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from capret_jax.data.images import Photograph
from capret_jax.data.split import Split, evaluation_view
from capret_jax.data.tokenizer import Tokens
from capret_jax.data.transforms import crop_view
from capret_jax.evaluation.colour_histogram import histograms
from capret_jax.retrieval.embedding import PictureBatch
from capret_jax.train.run import Run

# Largest number of decoded photographs that are read ahead; they are large.
_MAX_READY = 256


class PhotographViews(NamedTuple):
    """A decoded photograph and the views of its items.

    Attributes:
        first_row: row of the photograph's first item in the item table.
        rows: (m,) int64 rows of those of its items that this process reads.
        pictures: one picture for each item, or one of the whole photograph; arrays as in
            `PictureBatch` without the batch axis.
        histograms: (m, 512) float32 colour histograms of the items' boxes; (0, 0) if they are not
            computed.
        photograph: the decoded photograph.
    """

    first_row: int
    rows: np.ndarray
    pictures: list[PictureBatch]
    histograms: np.ndarray
    photograph: Photograph


class PhotographReader:
    """Reads the model's input pictures at evaluation, in batches and ahead of their use.

    Pictures are in the order of the item table, and the g-th of G groups of processes reads the
    g-th of G equal parts of them (`BatchShare`). The items of a photograph are adjacent, so one
    group reads it, unless two parts meet in it. Only the batches that are read ahead are in memory:
    all of DeepFashion2's validation items at 384 pixels would take 24 GB.

    Attributes:
        rows: (I, M) int64 rows of the items of each of I pictures; where there are fewer than M,
            the first one is repeated.
    """

    def __init__(self, run: Run, split: Split, with_histograms: bool = False):
        """
        Args:
            run: config and this process's share of a batch.
            split: the photographs and items.
            with_histograms: compute colour histograms of the items.
        """
        self._run, self._split, self._with_histograms = run, split, with_histograms
        self._data, self._size = run.config.data, run.config.model.image_size
        self._reads_captions = run.config.embedding.kind != "image"
        record = split.items.record
        self.rows = _rows_of_photographs(record) if self._data.view.whole else _each_row(record)
        batch_size, share = run.config.evaluation.batch_size, run.share
        self._batches = -(-len(self.rows) // batch_size)
        self._slots = share.rows(batch_size)
        self._local = batch_size // share.count
        local = slice(share.index * self._per_group, (share.index + 1) * self._per_group)
        self._records, starts = np.unique(record[self.rows[local, 0]], return_index=True)
        # Pictures of each record.
        self._pictures = np.split(np.arange(len(self.rows))[local], starts[1:])

    @property
    def _per_group(self) -> int:
        """Number of pictures that each group of processes yields, padding included."""
        return self._batches * self._local

    def batches(self) -> Iterator[tuple[PictureBatch, list[PhotographViews]]]:
        """Yields this process's share of each batch, with the photographs read for it.

        Every process yields the same number of batches, and the first one of a group each
        photograph once, the others none. The last pictures may be padding.
        """
        read: list[PhotographViews] = []
        waiting: list[PictureBatch] = []
        photographs = self._photographs()
        progress = tqdm(
            total=self._batches,
            desc="reading items",
            unit="batch",
            leave=False,
            disable=self._run.share.index != 0 or not self._run.share.is_first,
        )
        with progress:
            for _ in range(self._batches):
                while len(waiting) < self._local and (views := next(photographs, None)):
                    waiting += views.pictures
                    read += [views] * self._run.share.is_first
                pictures, waiting = waiting[: self._local], waiting[self._local :]
                yield self._stack(pictures), read
                read = []
                progress.update()

    def by_item(self, values: np.ndarray) -> np.ndarray:
        """Orders values of all pictures by row of the item table.

        Args:
            values: (pictures and padding, M, ...) values of the concatenated global batches.

        Returns:
            (n, ...) values of the n items.
        """
        picture = np.concatenate([self._pictures_of(batch) for batch in range(self._batches)])
        is_real = picture < len(self.rows)
        items = np.empty((len(self._split.items), *values.shape[2:]), values.dtype)
        items[self.rows[picture[is_real]]] = values[is_real]
        return items

    def batch_rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pictures of a global batch that are not padding.

        Args:
            number: index of the batch, from 0.

        Returns:
            (i, M) int64 item rows of the i pictures, and their (i,) int64 places in the batch.
        """
        picture = self._pictures_of(number)
        places = np.flatnonzero(picture < len(self.rows))
        return self.rows[picture[places]], places

    def _pictures_of(self, number: int) -> np.ndarray:
        """Returns the (B,) int64 picture at each place of a global batch."""
        group, place = np.ogrid[: len(self._slots), : self._local]
        pictures = np.empty(self._slots.size, np.int64)
        pictures[self._slots] = group * self._per_group + number * self._local + place
        return pictures

    def _photographs(self) -> Iterator[PhotographViews]:
        if not len(self._records):
            return iter(())
        dataset = grain.MapDataset.source(np.arange(len(self._records))).map(self._read)
        read = self._data.read
        ready = min(read.prefetch * self._local, _MAX_READY)
        options = grain.ReadOptions(num_threads=read.threads, prefetch_buffer_size=max(ready, 1))
        return iter(dataset.to_iter_dataset(options))

    def _read(self, index: int) -> PhotographViews:
        pictures = self._pictures[index]
        photograph = self._split.photograph(int(self.rows[pictures[0], 0]))
        rows = np.unique(self.rows[pictures])
        first = int(np.searchsorted(self._split.items.record, self._records[index]))
        colours = np.zeros((0, 0), np.float32)
        if self._with_histograms:
            boxes = self._split.items.box[rows]
            crops = [crop_view(photograph, box, self._size, 0.0).image for box in boxes]
            colours = histograms(np.stack(crops))
        views = [self._picture(photograph, self.rows[picture]) for picture in pictures]
        return PhotographViews(first, rows, views, colours, photograph)

    def _picture(self, photograph: Photograph, rows: np.ndarray) -> PictureBatch:
        view = evaluation_view(photograph, self._split.items.box[rows], self._size, self._data)
        tokens = [self._tokens(row) for row in rows]
        ids, mask = (np.stack(column) for column in zip(*tokens, strict=True))
        return PictureBatch(view.image, view.boxes, ids, mask)

    def _tokens(self, row: int) -> Tokens:
        if self._reads_captions:
            return self._run.encode(self._run.evaluation_captions[row])
        return Tokens(np.zeros(0, np.int32), np.zeros(0, np.int32))

    def _stack(self, pictures: list[PictureBatch]) -> PictureBatch:
        if not pictures:
            # A process without pictures takes part in every batch, too.
            size, items = self._size, self.rows.shape[1]
            tokens = np.zeros((items, self._data.max_tokens * self._reads_captions), np.int32)
            image = np.zeros((size, size, 3), np.uint8)
            pictures = [PictureBatch(image, np.zeros((items, 4), np.float32), tokens, tokens)]
        padding = [pictures[-1]] * (self._local - len(pictures))
        columns = zip(*pictures, *padding, strict=True)
        return PictureBatch(*map(np.stack, columns))


def _each_row(record: np.ndarray) -> np.ndarray:
    return np.arange(len(record))[:, None]


def _rows_of_photographs(record: np.ndarray) -> np.ndarray:
    """Returns (I, M) rows of the items of each photograph, the first one repeated as padding."""
    _, first, counts = np.unique(record, return_index=True, return_counts=True)
    place = np.arange(counts.max())
    return first[:, None] + np.where(place < counts[:, None], place, 0)
