"""The detectors of a model, by name."""

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from capret_jax.config import DetectionConfig, ModelConfig
from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.detector import Detection, Detector, DetectorModel
from capret_jax.detection.locations import LocationDetector, check_locations
from capret_jax.detection.phrases import PhraseDetector
from capret_jax.errors import InputError

# Kind of detector -> parts that have to be trained. Phrases are not refused: they are what is left
# for a model that was trained for embeddings alone, whose users are warned when it is loaded.
_READS = {"locations": {"locations"}, "both": {"locations", "fusion", "itm_head"}}
# Kind of detector -> settings that shape its scores, besides the overlap.
_SCORED_BY = {
    "phrases": ("windows", "refinements", "margin", "candidates"),
    "locations": ("top_p", "samples"),
    "both": ("top_p", "samples", "margin", "candidates"),
}


def resolve_kind(kind: str, model: ModelConfig, untrained: Collection[str] = ()) -> str:
    """Returns the kind of detector that "auto" stands for; any other kind is itself.

    Args:
        kind: `DetectionConfig.kind`.
        model: the model to detect with.
        untrained: parts of the model whose values are random ("itm_head").

    Raises:
        InputError: the model cannot write locations, and the kind needs them; or a part that the
            kind needs is untrained.
    """
    if kind == "auto":
        of_garments = model.location_layers and model.location_classes == len(CATEGORIES)
        return "locations" if of_garments and "locations" not in untrained else "phrases"
    if kind != "phrases":
        check_locations(model, kind)
    if random := sorted(_READS.get(kind, set()) & set(untrained)):
        raise InputError(
            f"detection.kind={kind!r} needs {', '.join(random)}, which nothing has trained: its "
            "values are random. Train it with its loss, or choose another kind."
        )
    return kind


def score_settings(kind: str, config: DetectionConfig) -> dict[str, Any]:
    """Returns the settings that the scores of a kind of detector depend on, as values of JSON."""
    names = sorted({"overlap", *_SCORED_BY[kind]})
    return json.loads(json.dumps({name: getattr(config, name) for name in names}))


def make_detector(kind: str, model: DetectorModel, config: DetectionConfig) -> Detector:
    """Makes a detector.

    Args:
        kind: "phrases", "locations" or "both".
        model: the model.
        config: settings of the detector.

    Raises:
        InputError: the model lacks the part that writes locations, or the vocabulary a phrase.
    """
    if kind == "phrases":
        return PhraseDetector(model, config)
    if kind == "locations":
        return LocationDetector(model, config)
    return RescoringDetector(LocationDetector(model, config), PhraseDetector(model, config))


class RescoringDetector:
    """Detects garments by writing locations, and scores them by their phrases, too.

    The score of a detection is the geometric mean of the probability of its category, and of that
    by which the phrase and the window around the box match.

    Attributes:
        config: settings of both; `candidates` boxes of a photograph are scored, and others dropped.
    """

    def __init__(self, locations: LocationDetector, phrases: PhraseDetector):
        """
        Args:
            locations: detector that writes boxes.
            phrases: detector that scores them.
        """
        self.config, self._locations, self._phrases = phrases.config, locations, phrases

    @property
    def call_sizes(self) -> tuple[int, ...]:
        """See `detector.Detector`: those of both."""
        return tuple(sorted({*self._locations.call_sizes, *self._phrases.call_sizes}))

    def __call__(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """Returns the detections of each photograph, highest score first, without a threshold.

        Raises:
            InputError: a photograph cannot be decoded.
        """
        written = [x[: self.config.candidates] for x in self._locations(photographs)]
        matches = self._phrases.match(photographs, written)
        return [_rescore(*pair) for pair in zip(written, matches, strict=True)]


def _rescore(detections: Sequence[Detection], matches: np.ndarray) -> list[Detection]:
    rescored = [
        detection._replace(score=float(np.sqrt(detection.score * match)))
        for detection, match in zip(detections, matches, strict=True)
    ]
    return sorted(rescored, key=lambda detection: -detection.score)
