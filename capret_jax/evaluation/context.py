"""The inputs that a config's evaluators share, computed in one pass over the photographs."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from capret_jax.checkpoints.report import model_parts
from capret_jax.data.split import Split
from capret_jax.detection.detector import Detector, DetectorModel
from capret_jax.detection.detectors import make_detector, resolve_kind
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.local_mesh import local_model
from capret_jax.evaluation.colour_histogram import BINS
from capret_jax.evaluation.detected_boxes import (
    DetectedRanking,
    rank_detections,
    read_detections,
)
from capret_jax.evaluation.detected_embeddings import DetectionCollector, SplitDetections
from capret_jax.evaluation.mesh_ranking import Ranking
from capret_jax.evaluation.photograph_reader import PhotographReader
from capret_jax.evaluation.protocol import make_protocol, read_ground_truth
from capret_jax.evaluation.ranking import rank
from capret_jax.retrieval.embedding import Embedder
from capret_jax.retrieval.vision_tokens import VisionTokens, VisionTokenStore, check_space
from capret_jax.train.run import Run
from capret_jax.train.state import TrainState

T = TypeVar("T")
# Kind of the detections in a file of another detector.
GIVEN = "file"
# Names of the compared systems in metrics and reports.
MODEL, UNTRAINED, HISTOGRAM = "this model", "untrained model", "colour histogram"


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Embeddings, vision tokens and detections of the validation split.

    Attributes:
        embeddings: system -> (n, E) float32 embeddings by row of the item table; those of the model
            come first.
        tokens: vision tokens of all items; None without re-ranking.
        detections: kind of detector -> detections in all photographs; those of a file are of the
            kind `GIVEN`.
    """

    embeddings: dict[str, np.ndarray]
    tokens: VisionTokenStore | None = None
    detections: Mapping[str, SplitDetections] = dataclasses.field(default_factory=dict)


class EvaluationContext:
    """The validation split, its protocol, and results of a state that several evaluators use.

    Attributes:
        run: the run whose states are evaluated.
        protocol: queries and gallery of the split.
        detection_kinds: kinds of detection that are evaluated: first the one that retrieval is
            evaluated with.
        files: name -> content of the files to write beside the metrics: an array for a `.npy` file,
            anything else for JSON.
    """

    def __init__(self, run: Run):
        """
        Args:
            run: the run whose states are evaluated.

        Raises:
            InputError: the split has no queries or no gallery, a file of detections does not fit
                it, the model cannot detect as the config says, or the disk has no room for the
                vision tokens of re-ranking.
        """
        self.run = run
        self.files: dict[str, Any] = {}
        dataset, path = run.dataset, run.config.evaluation.detections
        items = dataset.validation.items
        self.protocol = make_protocol(items, read_ground_truth(dataset.folder))
        if run.config.evaluation.rerank:
            check_space(*self._token_store_arguments())
        self._given_boxes = read_detections(path, items) if path else None
        self.detection_kinds = self._resolve_kinds()
        self._state: TrainState | None = None
        self._results: dict[str, Any] = {}

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The jitted embedding of items."""
        setup = self.run.setup
        config = setup.config
        return Embedder(config.model, config.data.view, setup.compute, setup.mesh)

    def encoded(self, state: TrainState) -> EncodedSplit:
        """Encodes the validation split.

        Every process has to call it. This result and those below are kept for the last state.
        """
        return self._once("encoded", state, self._encode)

    def ranking(self, state: TrainState) -> Ranking:
        """Returns the exact ranking of the gallery by the model's embeddings."""
        return self._once("ranking", state, self._rank)

    def detectors(self, state: TrainState) -> dict[str, Detector]:
        """Returns the model's garment detectors by kind; every process has to call it."""
        return self._once("detectors", state, self._make_detectors)

    def detected_ranking(self, state: TrainState, kind: str) -> DetectedRanking:
        """Returns the ranking of the boxes of a kind of detection, which has some on both sides."""
        return self._once(f"ranking of {kind}", state, lambda state: self._rank_boxes(state, kind))

    def embed(self, models: Sequence[dict], split: Split | None = None) -> list[np.ndarray]:
        """Embeds the items of a split in one pass over the photographs, and keeps nothing.

        Args:
            models: parameters of each model.
            split: the photographs and items; None for the validation split.

        Returns:
            (n, E) float32 by row of the item table, for each model.
        """
        reader = PhotographReader(self.run, split or self.run.dataset.validation)
        batches = [
            [self.embedder.embed(model, batch) for model in models] for batch, _ in reader.batches()
        ]
        return [reader.by_item(np.concatenate(part)) for part in zip(*batches, strict=True)]

    def _once(self, name: str, state: TrainState, compute: Callable[[TrainState], T]) -> T:
        """Returns a result for a state, computed at the first call."""
        if self._state is not state:
            self._state, self._results = state, {}
        if name not in self._results:
            self._results[name] = compute(state)
        return self._results[name]

    def _resolve_kinds(self) -> tuple[str, ...]:
        config, model = self.run.config.evaluation, self.run.config.model
        if self._given_boxes:
            return (GIVEN,)
        if not config.detect:
            return ()
        kinds = (config.detection.kind, *config.detectors)
        untrained = model_parts(self.run.untrained_parameters())
        return tuple(dict.fromkeys(resolve_kind(kind, model, untrained) for kind in kinds))

    def _rank(self, state: TrainState) -> Ranking:
        return rank(self.protocol, self.encoded(state).embeddings[MODEL], self.run.mesh)

    def _rank_boxes(self, state: TrainState, kind: str) -> DetectedRanking:
        detected = self.encoded(state).detections[kind]
        return rank_detections(detected.boxes, detected.embeddings, self.protocol, self.run.mesh)

    def _make_detectors(self, state: TrainState) -> dict[str, Detector]:
        config, setup = self.run.config, self.run.setup
        mesh, params = local_model(self.run.mesh, state.model)
        model = DetectorModel(
            config.model, params, self.run.encode, mesh, config.data.view, setup.compute
        )
        settings = config.evaluation.detection
        return {kind: make_detector(kind, model, settings) for kind in self.detection_kinds}

    def _encode(self, state: TrainState) -> EncodedSplit:
        """Reads every photograph once, and computes all inputs of the config's evaluators."""
        config, run = self.run.config.evaluation, self.run
        reader = PhotographReader(run, run.dataset.validation, config.baselines)
        untrained = run.fresh_state().model if config.baselines else None
        store = VisionTokenStore(*self._token_store_arguments()) if config.rerank else None
        collectors = self._collectors(state)
        features: list[np.ndarray] = []
        baseline: list[np.ndarray] = []
        histograms: list[tuple[np.ndarray, np.ndarray]] = []
        for number, (batch, photographs) in enumerate(reader.batches()):
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
            for views in photographs:
                histograms.append((views.rows, views.histograms))
                for collector in collectors.values():
                    collector.add(views)
        embeddings = {MODEL: reader.by_item(np.concatenate(features))}
        if config.baselines:
            embeddings[UNTRAINED] = reader.by_item(np.concatenate(baseline))
            embeddings[HISTOGRAM] = self._join_histograms(histograms)
        detections = {kind: collector.finish() for kind, collector in collectors.items()}
        return EncodedSplit(embeddings, store, detections)

    def _collectors(self, state: TrainState) -> dict[str, DetectionCollector]:
        given = self._given_boxes
        sources = {GIVEN: given} if given else self.detectors(state)
        return {
            kind: DetectionCollector(self.run, state.model, source)
            for kind, source in sources.items()
        }

    def _token_store_arguments(self) -> tuple:
        config, items = self.run.config, self.run.dataset.validation.items
        folder = config.evaluation.cache_dir
        return (
            len(items),
            (1 + config.model.grid**2, config.model.vision_width),
            config.evaluation.cache_mb * 2**20,
            pathlib.Path(folder) if folder else None,
        )

    def _join_histograms(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Gathers the histograms of all processes: (n, 512) float32 by row of the item table.

        Args:
            parts: rows and histograms of this process's items.
        """
        if not parts:
            parts = [(np.zeros(0, np.int64), np.zeros((0, BINS), np.float32))]
        rows, values = (gather_rows(np.concatenate(column)) for column in zip(*parts, strict=True))
        joined = np.empty((len(self.run.dataset.validation.items), BINS), np.float32)
        joined[rows] = values
        return joined
