"""Everything that a config's evaluators share: the protocol, and one reading of the photographs."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from capret_jax.detection.phrases import PhraseDetector
from capret_jax.distributed.gather import gather_rows
from capret_jax.evaluation.colour_histogram import BINS
from capret_jax.evaluation.detected_boxes import read_detections
from capret_jax.evaluation.detected_embeddings import (
    Detected,
    DetectionCollector,
    local_params,
)
from capret_jax.evaluation.photograph_reader import PhotographReader
from capret_jax.evaluation.protocol import make_protocol, read_ground_truth
from capret_jax.evaluation.ranking import Ranking, rank
from capret_jax.retrieval.embedding import Embedder
from capret_jax.retrieval.vision_tokens import VisionTokens, VisionTokenStore
from capret_jax.train.run import Run
from capret_jax.train.state import TrainState

MODEL, UNTRAINED, HISTOGRAM = "this model", "untrained model", "colour histogram"


@dataclasses.dataclass(frozen=True)
class Readings:
    """Results of one reading of the validation photographs.

    Attributes:
        embeddings: system -> (n, E) float32 by row of the item table; the model's come first.
        tokens: vision tokens of all items; None without re-ranking.
        detected: garments found; None without detection.
    """

    embeddings: dict[str, np.ndarray]
    tokens: VisionTokenStore | None = None
    detected: Detected | None = None


class EvaluationContext:
    """The validation split, its protocol, and what evaluators compute of a state only once.

    Attributes:
        run: whose states are evaluated.
        protocol: queries and gallery of the split.
        files: name -> content of the JSON files that evaluators leave.
    """

    def __init__(self, run: Run):
        """
        Args:
            run: of the states.

        Raises:
            InputError: the split has no queries or no gallery, or a file of detections does not fit
                it.
        """
        self.run = run
        self.files: dict[str, Any] = {}
        dataset, path = run.dataset, run.config.evaluation.detections
        items = dataset.validation.items
        self.protocol = make_protocol(items, read_ground_truth(dataset.folder))
        self._given_boxes = read_detections(path, items) if path else None
        self._readings: tuple[TrainState, Readings] | None = None
        self._rankings: tuple[TrainState, Ranking] | None = None

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The jitted embedding."""
        config = self.run.setup.config
        return Embedder(config.model, config.data.view, config.compute, self.run.mesh)

    def readings(self, state: TrainState) -> Readings:
        """Reads the photographs, or returns the results of the same state's last reading."""
        if self._readings is None or self._readings[0] is not state:
            self._readings = state, self._read(state)
        return self._readings[1]

    def ranking(self, state: TrainState) -> Ranking:
        """The model's exact ranking of the gallery."""
        if self._rankings is None or self._rankings[0] is not state:
            embeddings = self.readings(state).embeddings[MODEL]
            self._rankings = state, rank(self.protocol, embeddings)
        return self._rankings[1]

    @functools.cached_property
    def rows_of_photographs(self) -> np.ndarray:
        """(P,) row of the first item of each photograph."""
        return np.unique(self.run.dataset.validation.items.record, return_index=True)[1]

    def detector(self, state: TrainState) -> PhraseDetector:
        """The model as a detector of garments."""
        config = self.run.config
        return PhraseDetector(
            config.model, local_params(state.model), self.run.encode, config.evaluation.detection
        )

    def embed(self, state: TrainState) -> np.ndarray:
        """(n, E) float32 embeddings of the validation items, and nothing else."""
        reader = PhotographReader(self.run, self.run.dataset.validation)
        features = [self.embedder.embed(state.model, batch) for batch, _ in reader.batches()]
        return reader.by_item(np.concatenate(features))

    def _read(self, state: TrainState) -> Readings:
        """Reads every photograph once, for all that the config's evaluators need."""
        wanted, run = self.run.config.evaluation, self.run
        reader = PhotographReader(run, run.dataset.validation, wanted.baselines)
        untrained = run.fresh_state().model if wanted.baselines else None
        store = self._token_store() if wanted.rerank else None
        collector = self._collector(state)
        features: list[np.ndarray] = []
        baseline: list[np.ndarray] = []
        histograms: list[tuple[np.ndarray, np.ndarray]] = []
        for number, (batch, readings) in enumerate(reader.batches()):
            if store is None:
                features.append(self.embedder.embed(state.model, batch))
            else:
                encoded = self.embedder.encode(state.model, batch)
                features.append(encoded.features)
                rows, places = reader.batch_rows(number)
                tokens = VisionTokens(encoded.states[places], encoded.mask[places])
                store.write(rows, tokens)
            if untrained is not None:
                baseline.append(self.embedder.embed(untrained, batch))
            for reading in readings:
                histograms.append((reading.rows, reading.histograms))
                if collector is not None:
                    collector.add(reading)
        embeddings = {MODEL: reader.by_item(np.concatenate(features))}
        if wanted.baselines:
            embeddings[UNTRAINED] = reader.by_item(np.concatenate(baseline))
            embeddings[HISTOGRAM] = self._join_histograms(histograms)
        return Readings(embeddings, store, collector.finish() if collector else None)

    def _collector(self, state: TrainState) -> DetectionCollector | None:
        detect = self.run.config.evaluation.detect
        detector = self.detector(state) if detect else self._given_boxes
        return DetectionCollector(self.run, state.model, detector) if detector else None

    def _token_store(self) -> VisionTokenStore:
        config, items = self.run.config, self.run.dataset.validation.items
        folder = config.evaluation.cache_dir
        return VisionTokenStore(
            len(items),
            (1 + config.model.grid**2, config.model.vision_width),
            config.evaluation.cache_mb * 2**20,
            pathlib.Path(folder) if folder else None,
        )

    def _join_histograms(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Rows and histograms of this process's items -> (n, 512) of all items."""
        if not parts:
            parts = [(np.zeros(0, np.int64), np.zeros((0, BINS), np.float32))]
        rows, values = (gather_rows(np.concatenate(column)) for column in zip(*parts, strict=True))
        joined = np.empty((len(self.run.dataset.validation.items), BINS), np.float32)
        joined[rows] = values
        return joined
