"""One reading of a split's photographs, each decoded once for everything that needs its pixels."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from capret_jax.data.images import Photograph
from capret_jax.data.pipeline import Split, evaluation_view
from capret_jax.data.tokenizer import Tokens
from capret_jax.data.transforms import crop_view
from capret_jax.evaluation.colour_histogram import histograms
from capret_jax.retrieval.embedding import PictureBatch
from capret_jax.train.run import Run

# Photographs that are ready and wait; decoded ones are large.
_MAX_READY = 256


class Reading(NamedTuple):
    """A photograph and the views of its items.

    Attributes:
        first_row: row of its first item in the item table.
        rows: (m,) rows of the items that are read here.
        pictures: one for each item, or one of the whole photograph; arrays as in `PictureBatch`,
            without the batch axis.
        histograms: (m, 512) float32 colour histograms of the items' boxes; empty if not wanted.
        photograph: for other windows of it.
    """

    first_row: int
    rows: np.ndarray
    pictures: list[PictureBatch]
    histograms: np.ndarray
    photograph: Photograph


class PhotographReader:
    """The pictures of a split as the model sees them at evaluation, read ahead in batches.

    Pictures are ordered as the item table is, and process p of n reads the p-th of n equal runs of
    them: the items of a photograph lie together, so it is read by one process, but for those where
    two runs meet. Only the batches in flight are in memory: DeepFashion2's validation items at 384
    pixels would take 24 GB.

    Attributes:
        rows: (P, M) rows of the items of each picture; where there are fewer than M, the first is
            repeated.
    """

    def __init__(self, run: Run, split: Split, with_histograms: bool = False):
        """
        Args:
            run: view, image size, batch size and this process's part.
            split: the photographs and items.
            with_histograms: compute the items' colour histograms, too.
        """
        self._run, self._split, self._with_histograms = run, split, with_histograms
        self._data, self._size = run.config.data, run.config.model.image_size
        self._reads_captions = run.config.embedding.kind != "image"
        record = split.items.record
        self.rows = _rows_of_photographs(record) if self._data.view.whole else _each_row(record)
        batch_size, part = run.config.evaluation.batch_size, run.part
        self._batches = -(-len(self.rows) // batch_size)
        self._local = batch_size // part.count
        own = slice(part.index * self._run_length, (part.index + 1) * self._run_length)
        self._records, starts = np.unique(record[self.rows[own, 0]], return_index=True)
        self._own = np.split(np.arange(len(self.rows))[own], starts[1:])

    @property
    def _run_length(self) -> int:
        """Pictures of each process, some perhaps padding."""
        return self._batches * self._local

    def batches(self) -> Iterator[tuple[PictureBatch, list[Reading]]]:
        """Yields this process's part of one batch after the other.

        Every process yields the same number of batches. Beside each come the photographs that were
        completed with it. The last pictures may be padding.
        """
        ready: list[Reading] = []
        waiting: list[PictureBatch] = []
        readings = self._readings()
        progress = tqdm(
            total=self._batches,
            desc="reading items",
            unit="batch",
            leave=False,
            disable=self._run.part.index != 0,
        )
        with progress:
            for _ in range(self._batches):
                while len(waiting) < self._local and (reading := next(readings, None)):
                    waiting += reading.pictures
                    ready.append(reading)
                pictures, waiting = waiting[: self._local], waiting[self._local :]
                yield self._stack(pictures), ready
                ready = []
                progress.update()

    def by_item(self, values: np.ndarray) -> np.ndarray:
        """Values of all pictures, batch by batch -> values by row of the item table.

        Args:
            values: (pictures and padding, M, ...), global batches one after the other.

        Returns:
            (n, ...).
        """
        processes = self._run.part.count
        batch, process, place = np.ogrid[: self._batches, :processes, : self._local]
        picture = (process * self._run_length + batch * self._local + place).reshape(-1)
        known = picture < len(self.rows)
        items = np.empty((len(self._split.items), *values.shape[2:]), values.dtype)
        items[self.rows[picture[known]]] = values[known]
        return items

    def batch_rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Item rows of a global batch, and which of its pictures are no padding.

        Args:
            number: of the batch, from 0.

        Returns:
            (p, M) int64 rows of the p pictures, and their (p,) int64 places in the batch.
        """
        processes = self._run.part.count
        process, place = np.ogrid[:processes, : self._local]
        picture = (process * self._run_length + number * self._local + place).reshape(-1)
        places = np.flatnonzero(picture < len(self.rows))
        return self.rows[picture[places]], places

    def _readings(self) -> Iterator[Reading]:
        if not len(self._records):
            return iter(())
        dataset = grain.MapDataset.source(np.arange(len(self._records))).map(self._read)
        read = self._data.read
        ready = min(read.prefetch * self._local, _MAX_READY)
        options = grain.ReadOptions(num_threads=read.threads, prefetch_buffer_size=max(ready, 1))
        return iter(dataset.to_iter_dataset(options))

    def _read(self, index: int) -> Reading:
        pictures = self._own[index]
        photograph = self._split.photograph(int(self.rows[pictures[0], 0]))
        rows = np.unique(self.rows[pictures])
        first = int(np.searchsorted(self._split.items.record, self._records[index]))
        found = np.zeros((0, 0), np.float32)
        if self._with_histograms:
            boxes = self._split.items.box[rows]
            crops = [crop_view(photograph, box, self._size, 0.0).image for box in boxes]
            found = histograms(np.stack(crops))
        views = [self._picture(photograph, self.rows[picture]) for picture in pictures]
        return Reading(first, rows, views, found, photograph)

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
            # A process without pictures of its own still takes part in every batch.
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
    """(P, M) rows of the items of each photograph, the first one repeated to fill up."""
    _, first, counts = np.unique(record, return_index=True, return_counts=True)
    place = np.arange(counts.max())
    return first[:, None] + np.where(place < counts[:, None], place, 0)
