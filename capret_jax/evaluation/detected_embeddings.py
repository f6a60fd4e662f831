"""Detection of garments in the photographs of a split, and embeddings of the detected boxes."""

import dataclasses
import itertools
import time

import numpy as np

from capret_jax.data.images import Photograph
from capret_jax.data.items import ItemTable
from capret_jax.data.split import evaluation_view
from capret_jax.data.transforms import View
from capret_jax.detection.average_precision import coco_entries
from capret_jax.detection.detector import Detection, Detector, suppress_across_categories
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.local_mesh import local_model
from capret_jax.evaluation.detected_boxes import DetectionTable, make_detections
from capret_jax.evaluation.photograph_reader import PhotographViews
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from capret_jax.train.run import Run

# Detections with a lower score are no gallery items, or no queries: the right category of a garment
# need not be its most probable one.
_MIN_SHOP, _MIN_CONSUMER = 0.05, 0.001
# Photographs passed to the detector in one call.
_PHOTOGRAPHS_PER_CALL = 32


@dataclasses.dataclass(frozen=True)
class SplitDetections:
    """Detections in all photographs of a split.

    Attributes:
        rows: (I,) int64 row of the first item of each photograph.
        by_photograph: detections in each photograph, highest score first, without a threshold;
            empty where the boxes were given.
        boxes: detections that serve as queries and gallery items.
        embeddings: (n, E) float32 embeddings of `boxes`.
        seconds: time that the detector took on the slowest process.
    """

    rows: np.ndarray
    by_photograph: list[list[Detection]]
    boxes: DetectionTable
    embeddings: np.ndarray
    seconds: float


class DetectionCollector:
    """Detects garments in photographs as they are read, and embeds the boxes.

    Each process handles the photographs that it reads; `finish` gathers the results of all.
    """

    def __init__(self, run: Run, params: dict, detector: Detector | DetectionTable):
        """
        Args:
            run: config and validation split.
            params: parameters of the model, sharded over the mesh.
            detector: detector of garments, or the detections of another detector.
        """
        self._run, self._detector = run, detector
        self._items = run.dataset.validation.items
        self._embed = _LocalEmbedding(run, params)
        self._waiting: list[PhotographViews] = []
        self._rows: list[int] = []
        self._detections: list[list[Detection]] = []
        self._boxes: list[DetectionTable] = []
        self._seconds = 0.0

    def add(self, views: PhotographViews) -> None:
        """Adds a photograph; ignores one whose first items another process reads."""
        if views.first_row == views.rows[0]:
            self._waiting.append(views)
            if len(self._waiting) == _PHOTOGRAPHS_PER_CALL:
                self._detect()

    def finish(self) -> SplitDetections:
        """Handles the remaining photographs, and gathers the results of all processes."""
        self._detect()
        embeddings = gather_rows(self._embed.finish())
        rows = gather_rows(np.array(self._rows, np.int64))
        detections = _unpack(
            gather_rows(_pack(self._detections)), gather_rows(_lengths(self._detections))
        )
        seconds = gather_rows(np.array([self._seconds])).max()
        boxes = self._detector
        if not isinstance(boxes, DetectionTable):
            boxes = _gather_boxes(self._boxes)
        return SplitDetections(rows, detections, boxes, embeddings, float(seconds))

    def _detect(self) -> None:
        if not self._waiting:
            return
        photographs, self._waiting = self._waiting, []
        rows = np.array([views.first_row for views in photographs])
        self._rows += rows.tolist()
        if isinstance(self._detector, DetectionTable):
            boxes = _in_photographs(self._detector, self._items.record[rows])
        else:
            kept = self._select(rows, self._timed([views.photograph for views in photographs]))
            boxes = make_detections(coco_entries(self._items["image_id"][rows], kept), self._items)
            self._boxes.append(boxes)
            known = [x.embedding for in_image in kept for x in in_image if x.embedding is not None]
            if known and len(known) == len(boxes.items):  # both in the order of photographs
                self._embed.extend(known)
                return
        for views, row in zip(photographs, rows, strict=True):
            in_photograph = boxes.items.record == self._items.record[row]
            self._embed.add(views.photograph, boxes.items.box[in_photograph])

    def _timed(self, photographs: list[Photograph]) -> list[list[Detection]]:
        """Detects garments, and adds the time that it takes after compilation."""
        assert not isinstance(self._detector, DetectionTable)
        if not self._detections:
            for size in self._detector.call_sizes:
                self._detector(list(itertools.islice(itertools.cycle(photographs), size)))
        start = time.perf_counter()
        detections = self._detector(photographs)
        self._seconds += time.perf_counter() - start
        self._detections += detections
        return detections

    def _select(
        self, rows: np.ndarray, by_photograph: list[list[Detection]]
    ) -> list[list[Detection]]:
        """Selects the detections that serve as queries and gallery items.

        In shop pictures there is one for each garment; in consumers' photographs one for each
        category phrase, since the official scorer assigns a query's detection by category.

        Args:
            rows: (I,) row of the first item of each photograph.
            by_photograph: detections in each photograph.
        """
        overlap = self._run.config.evaluation.detection.overlap
        kept = []
        for row, detections in zip(rows, by_photograph, strict=True):
            if self._items.is_shop[row]:
                kept.append(suppress_across_categories(detections, _MIN_SHOP, overlap))
            else:
                kept.append([x for x in detections if x.score >= _MIN_CONSUMER])
        return kept


class _LocalEmbedding:
    """Embeds boxes of photographs on this process's devices, in full batches."""

    def __init__(self, run: Run, params: dict):
        self._run = run
        config = run.config
        mesh, self._params = local_model(run.mesh, params)
        # This process's share of the batch, the same number on each of its devices.
        share = -(-config.evaluation.batch_size // run.part.count)
        self._batch = -(-share // mesh.size) * mesh.size
        compute = run.setup.compute
        self._embedder = Embedder(config.model, config.data.view, compute, mesh)
        self._views: list[View] = []
        self._features: list[np.ndarray] = []

    def add(self, photograph: Photograph, boxes: np.ndarray) -> None:
        """Adds the boxes of a photograph.

        Args:
            photograph: the photograph.
            boxes: (k, 4) float32 x1, y1, x2, y2 in pixels.
        """
        size, data = self._run.config.model.image_size, self._run.config.data
        for box in boxes:
            self._views.append(evaluation_view(photograph, box[None], size, data))
            if len(self._views) == self._batch:
                self._call()

    def extend(self, embeddings: list[np.ndarray]) -> None:
        """Adds boxes that are embedded already; a detector embeds all of its boxes or none."""
        self._features.append(np.array(embeddings).reshape(len(embeddings), -1))

    def finish(self) -> np.ndarray:
        """Embeds the remaining boxes; returns the (n, E) float32 embeddings of all, in order."""
        if self._views:
            self._call()
        width = self._run.config.model.item_width
        return np.concatenate([np.zeros((0, width), np.float32), *self._features])

    def _call(self) -> None:
        views, self._views = self._views, []
        padding = [views[-1]] * (self._batch - len(views))
        image, boxes = (np.stack(column) for column in zip(*views, *padding, strict=True))
        pictures = PictureBatch.without_captions(image, boxes)
        self._features.append(self._embedder.embed(self._params, pictures)[: len(views), 0])


def _in_photographs(detections: DetectionTable, records: np.ndarray) -> DetectionTable:
    """Selects the detections in the photographs of some records."""
    items, kept = detections.items, np.isin(detections.items.record, records)
    attributes = {name: column[kept] for name, column in items.attributes.items()}
    table = ItemTable(items.record[kept], items.is_shop[kept], items.box[kept], attributes)
    return DetectionTable(table, detections.scores[kept], 0)


def _lengths(by_photograph: list[list[Detection]]) -> np.ndarray:
    return np.array([len(detections) for detections in by_photograph], np.int64)


def _pack(by_photograph: list[list[Detection]]) -> np.ndarray:
    """Returns (n, 6) float64 rows of category, box and score."""
    rows = [(d.category_id, *d.box, d.score) for detections in by_photograph for d in detections]
    return np.array(rows, np.float64).reshape(-1, 6)


def _unpack(rows: np.ndarray, lengths: np.ndarray) -> list[list[Detection]]:
    ends = np.cumsum(lengths)
    return [
        [Detection(int(row[0]), row[1:5], float(row[5])) for row in rows[end - length : end]]
        for end, length in zip(ends, lengths, strict=True)
    ]


def _gather_boxes(boxes: list[DetectionTable]) -> DetectionTable:
    """Joins the detections in the photographs of all processes."""
    parts = [np.zeros((0, 9))]
    for detections in boxes:
        items, scores = detections.items, detections.scores
        ids = items["image_id"], items["category_id"]
        parts.append(np.column_stack([items.record, items.is_shop, items.box, *ids, scores]))
    columns = gather_rows(np.concatenate(parts)).T
    record, is_shop, *box, image_id, category_id, scores = columns
    attributes = {
        "image_id": image_id.astype(np.int64),
        "category_id": category_id.astype(np.int64),
    }
    corners = np.stack(box, axis=1).astype(np.float32)
    table = ItemTable(record.astype(np.int64), is_shop > 0, corners, attributes)
    return DetectionTable(table, scores, 0)
