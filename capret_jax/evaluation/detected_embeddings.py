"""DetectionTable in photographs while these are decoded, and embeddings of the detected boxes."""

import dataclasses
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from capret_jax.config import MeshConfig
from capret_jax.data.images import Photograph
from capret_jax.data.items import ItemTable
from capret_jax.data.pipeline import evaluation_view
from capret_jax.data.transforms import View
from capret_jax.detection.average_precision import coco_entries
from capret_jax.detection.detector import Detection, Detector, suppress_across_categories
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation.detected_boxes import DetectionTable, make_detections
from capret_jax.evaluation.photograph_reader import Reading
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from capret_jax.train.run import Run

# DetectionTable of less confidence are neither queries nor gallery.
_MIN_SCORE = 0.05
# Photographs that are passed to the detector at once.
_PHOTOGRAPHS = 32


def local_params(params: dict) -> dict:
    """Parameters on this process's first device, for work that processes do on their own."""
    return jax.device_put(multihost_utils.process_allgather(params, tiled=True))


@dataclasses.dataclass(frozen=True)
class Detected:
    """Everything that a detector found in a split, on every process.

    Attributes:
        rows: (P,) row of the first item of each photograph.
        by_photograph: detections in each photograph, highest score first, without a threshold.
        boxes: those that are searched with and for.
        embeddings: (n, E) float32 of `boxes`.
        seconds: that the detector took, on the slowest process.
    """

    rows: np.ndarray
    by_photograph: list[list[Detection]]
    boxes: DetectionTable
    embeddings: np.ndarray
    seconds: float


class DetectionCollector:
    """Detects garments in photographs as they come, and embeds the boxes.

    Each process works on its own photographs; `finish` gathers what all of them found.
    """

    def __init__(self, run: Run, params: dict, detector: Detector | DetectionTable):
        """
        Args:
            run: view and sizes.
            params: of the model, on the mesh.
            detector: of garments, or the boxes that another one found.
        """
        self._run, self._detector = run, detector
        self._items = run.dataset.validation.items
        self._embed = _LocalEmbedding(run, params)
        self._waiting: list[Reading] = []
        self._rows: list[int] = []
        self._found: list[list[Detection]] = []
        self._boxes: list[DetectionTable] = []
        self._seconds = 0.0

    def add(self, reading: Reading) -> None:
        """Takes a photograph; one that an earlier process begins with is passed over."""
        if reading.first_row == reading.rows[0]:
            self._waiting.append(reading)
            if len(self._waiting) == _PHOTOGRAPHS:
                self._detect()

    def finish(self) -> Detected:
        """Completes the work, and gathers that of all processes."""
        self._detect()
        embeddings = gather_rows(self._embed.finish())
        rows = gather_rows(np.array(self._rows, np.int64))
        found = _unpack(gather_rows(_pack(self._found)), gather_rows(_lengths(self._found)))
        seconds = gather_rows(np.array([self._seconds])).max()
        boxes = self._detector
        if not isinstance(boxes, DetectionTable):
            boxes = _gather_boxes(self._boxes)
        return Detected(rows, found, boxes, embeddings, float(seconds))

    def _detect(self) -> None:
        if not self._waiting:
            return
        readings, self._waiting = self._waiting, []
        rows = np.array([reading.first_row for reading in readings])
        self._rows += rows.tolist()
        if isinstance(self._detector, DetectionTable):
            boxes = _of_photographs(self._detector, self._items.record[rows])
        else:
            start = time.perf_counter()
            found = self._detector([reading.photograph for reading in readings])
            self._seconds += time.perf_counter() - start
            self._found += found
            boxes = self._searchable(rows, found)
            self._boxes.append(boxes)
        for reading, row in zip(readings, rows, strict=True):
            of_this = boxes.items.record == self._items.record[row]
            self._embed.add(reading.photograph, boxes.items.box[of_this])

    def _searchable(self, rows: np.ndarray, found: list[list[Detection]]) -> DetectionTable:
        """Boxes to search with and for.

        In shop pictures one for each garment; in consumers' photographs one for each phrase, since
        the official scorer assigns a query's detection by category.
        """
        overlap = self._run.config.evaluation.detection.overlap
        kept = []
        for row, detections in zip(rows, found, strict=True):
            if self._items.is_shop[row]:
                kept.append(suppress_across_categories(detections, _MIN_SCORE, overlap))
            else:
                kept.append([each for each in detections if each.score >= _MIN_SCORE])
        return make_detections(coco_entries(self._items["image_id"][rows], kept), self._items)


class _LocalEmbedding:
    """Embeds boxes of photographs on this process's devices, in full batches."""

    def __init__(self, run: Run, params: dict):
        self._run = run
        config = run.config
        mesh, self._params, batch = run.mesh, params, config.evaluation.batch_size
        if run.part.count > 1:
            devices = jax.local_devices()
            mesh, self._params = make_mesh(MeshConfig(), devices), local_params(params)
            batch = -(-batch // len(devices)) * len(devices)
        self._batch = batch
        compute = run.setup.config.compute
        self._embedder = Embedder(config.model, config.data.view, compute, mesh)
        self._views: list[View] = []
        self._features: list[np.ndarray] = []

    def add(self, photograph: Photograph, boxes: np.ndarray) -> None:
        """Takes the (k, 4) boxes of a photograph."""
        size, data = self._run.config.model.image_size, self._run.config.data
        for box in boxes:
            self._views.append(evaluation_view(photograph, box[None], size, data))
            if len(self._views) == self._batch:
                self._call()

    def finish(self) -> np.ndarray:
        """Embeds what is left; returns the (n, E) embeddings of all boxes."""
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


def _of_photographs(detections: DetectionTable, records: np.ndarray) -> DetectionTable:
    """The detections in some photographs."""
    items, kept = detections.items, np.isin(detections.items.record, records)
    attributes = {name: column[kept] for name, column in items.attributes.items()}
    table = ItemTable(items.record[kept], items.is_shop[kept], items.box[kept], attributes)
    return DetectionTable(table, detections.scores[kept], 0)


def _lengths(found: list[list[Detection]]) -> np.ndarray:
    return np.array([len(each) for each in found], np.int64)


def _pack(found: list[list[Detection]]) -> np.ndarray:
    """(n, 6) float64: category, box, score."""
    rows = [(d.category_id, *d.box, d.score) for each in found for d in each]
    return np.array(rows, np.float64).reshape(-1, 6)


def _unpack(rows: np.ndarray, lengths: np.ndarray) -> list[list[Detection]]:
    ends = np.cumsum(lengths)
    return [
        [Detection(int(row[0]), row[1:5], float(row[5])) for row in rows[end - length : end]]
        for end, length in zip(ends, lengths, strict=True)
    ]


def _gather_boxes(boxes: list[DetectionTable]) -> DetectionTable:
    """Joins the detections of all photographs of all processes."""
    parts = [np.zeros((0, 9))]
    for each in boxes:
        items = each.items
        ids = items["image_id"], items["category_id"]
        parts.append(np.column_stack([items.record, items.is_shop, items.box, *ids, each.scores]))
    columns = gather_rows(np.concatenate(parts)).T
    record, is_shop, *box, image_id, category_id, scores = columns
    attributes = {
        "image_id": image_id.astype(np.int64),
        "category_id": category_id.astype(np.int64),
    }
    corners = np.stack(box, axis=1).astype(np.float32)
    table = ItemTable(record.astype(np.int64), is_shop > 0, corners, attributes)
    return DetectionTable(table, scores, 0)
