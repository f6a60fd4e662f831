"""The protocol of garment detectors, and the detections that they return."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from capret_jax.config import ComputeConfig, DetectionConfig, ModelConfig, ViewConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.images import Photograph
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.detection.boxes import non_max_suppression


class Detection(NamedTuple):
    """A detected garment.

    Attributes:
        category_id: 1..13.
        box: (4,) float64 x1, y1, x2, y2 in pixels of the photograph.
        score: confidence in [0, 1].
        embedding: (E,) float32 embedding of the garment, L2-normalised, where the detector has it
            from the vision states of the photograph; None otherwise.
    """

    category_id: int
    box: np.ndarray
    score: float
    embedding: np.ndarray | None = None


class DetectorModel(NamedTuple):
    """A model, and what its detectors need of its training.

    Attributes:
        config: sizes of the model.
        params: its parameters, on the mesh.
        encode: encoder of captions as tokens, for phrases.
        mesh: mesh of this process's devices to use.
        view: view of items; of regions, locations get embeddings.
        compute: the numerics, resolved for the platform.
    """

    config: ModelConfig
    params: dict
    encode: CaptionEncoder
    mesh: Mesh
    view: ViewConfig = ViewConfig()
    compute: ComputeConfig = PLAIN


class Detector(Protocol):
    """A model that finds garments in photographs.

    Attributes:
        config: the detection settings, which also hold the IoU of `suppress_across_categories`.
        call_sizes: numbers of photographs that are compiled for, ascending; more are split into
            calls of the last one.
    """

    config: DetectionConfig

    @property
    def call_sizes(self) -> tuple[int, ...]: ...

    def __call__(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """Returns the detections of each photograph, highest score first, without a threshold.

        Boxes of different categories may overlap.

        Raises:
            InputError: a photograph cannot be decoded.
        """


def suppress_across_categories(
    detections: Sequence[Detection], threshold: float, overlap: float
) -> list[Detection]:
    """Keeps one detection per garment, of whichever category scores highest.

    Args:
        detections: detections in one photograph, highest score first.
        threshold: the lowest score that is kept.
        overlap: IoU from which two boxes count as the same garment.

    Returns:
        The remaining detections, highest score first.
    """
    confident = [detection for detection in detections if detection.score >= threshold]
    boxes = np.array([detection.box for detection in confident]).reshape(-1, 4)
    scores = np.array([detection.score for detection in confident])
    return [confident[i] for i in non_max_suppression(boxes, scores, overlap)]
