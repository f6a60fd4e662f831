"""Settings of embedding, detection, re-ranking and evaluation."""

import dataclasses

from capret_jax.errors import InputError

DETECTORS = ("phrases", "locations", "both")
CAPTION_SOURCES = ("none", "oracle", "generated")


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """Settings of garment detection.

    Attributes:
        kind: "phrases": boxes predicted for the phrases of all categories; "locations": boxes and
            categories that the model writes, in one pass; "both": these, scored by their phrases,
            too; or "auto": locations where the model can write them, else phrases.
        top_p: share of the probability from which tokens of locations are drawn; 0.4 in Pix2Seq,
            and 0 takes the most probable one.
        samples: sequences of locations that are written of a photograph, from the same vision
            states; they vote.
        windows: sides of the windows for phrases as shares of the photograph's sides; 1 is the
            whole photograph, and 0.7 are four windows in its corners.
        refinements: number of times that a detection is predicted again from a closer view.
        margin: context around a box in the closer view, as a fraction of its sides.
        candidates: number of detections per photograph that are refined, or that are scored by
            their phrases with "both", which drops the others.
        overlap: IoU from which boxes are of one garment: written ones, those of one phrase, and
            those of different categories with `suppress_across_categories`.
        threshold: score from which a detection counts, where no threshold was calibrated.
        batch_size: photographs per call by phrases.
    """

    kind: str = "auto"
    top_p: float = 0.7
    samples: int = 4
    windows: tuple[float, ...] = (1.0,)
    refinements: int = 2
    margin: float = 0.3
    candidates: int = 13
    overlap: float = 0.6
    threshold: float = 0.5
    batch_size: int = 16

    def __post_init__(self):
        if not self.windows or not all(0 < share <= 1 for share in self.windows):
            raise InputError(f"detection.windows={self.windows} must be shares in (0, 1].")
        for name in ("samples", "refinements", "candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"detection.{name}={getattr(self, name)} must be at least 1.")
        if self.kind not in ("auto", *DETECTORS):
            raise InputError(
                f"detection.kind={self.kind!r} is none of auto, {', '.join(DETECTORS)}."
            )
        for name in ("overlap", "threshold", "top_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"detection.{name}={getattr(self, name)} is not in [0, 1].")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The evaluators to run and their settings.

    Attributes:
        batch_size: images per call, global.
        baselines: evaluate an untrained model and colour histograms for comparison.
        detections: file with a detector's boxes in the validation photographs, JSON in COCO's
            result format (`evaluation.detected_boxes`); empty evaluates the ground truth's boxes
            alone.
        detect: detect garments, calibrate the score threshold (which is kept beside the model, for
            serving), and evaluate with the detected boxes.
        detection: settings of this detection.
        detectors: kinds of detection that are measured besides `detection.kind`, with `detect`.
        training_embeddings: write the model's embeddings of the training items, for `data.teacher`.
        interpolate: shares of the trained model, in [0, 1], at which models between `init_from` and
            it are evaluated (WiSE-FT).
        rerank: number of nearest candidates of each query that the fusion encoder re-ranks; 0 for
            none.
        cache_mb: megabytes of vision tokens kept in memory for re-ranking; more go to a file.
        cache_dir: folder of that file, which is deleted when the evaluation ends; empty for the
            system's temporary folder.
    """

    batch_size: int = 128
    baselines: bool = True
    detections: str = ""
    detect: bool = False
    detection: DetectionConfig = DetectionConfig()
    detectors: tuple[str, ...] = ()
    training_embeddings: bool = False
    interpolate: tuple[float, ...] = ()
    rerank: int = 0
    cache_mb: int = 1024
    cache_dir: str = ""

    def __post_init__(self):
        for kind in self.detectors:
            if kind not in DETECTORS:
                raise InputError(
                    f"evaluation.detectors={self.detectors}: {kind!r} is none of "
                    f"{', '.join(DETECTORS)}."
                )
        if self.detect and self.detections:
            raise InputError(
                "evaluation.detect finds boxes itself and evaluation.detections names a file of "
                "others': set one of them."
            )
        if not all(0 <= share <= 1 for share in self.interpolate):
            raise InputError(f"evaluation.interpolate={self.interpolate} must be shares in [0, 1].")
        if self.rerank < 0 or self.cache_mb < 1:
            raise InputError("evaluation.rerank must not be negative, nor evaluation.cache_mb 0.")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Settings of the embedding that compares items, and of its validation captions.

    Attributes:
        kind: "image", "text", "joined" or "fusion", see `X2VLM.item_features`; trained by ArcFace.
        captions: "none"; "generated", by a model from the picture; or "oracle", from the
            annotations, which a shopper's photo does not have.
        file: JSON lines as in `data.captions.file`, of which those with the split "validation" are
            read. Without a file the oracle is the template of `data.captions.fields`.
    """

    kind: str = "image"
    captions: str = "none"
    file: str = ""

    def __post_init__(self):
        if self.captions not in CAPTION_SOURCES:
            raise InputError(
                f"embedding.captions={self.captions!r} is none of {', '.join(CAPTION_SOURCES)}."
            )
        if self.captions == "generated" and not self.file:
            raise InputError(
                "embedding.captions='generated' needs the captions: set embedding.file "
                "(tools/collect_captions.py)."
            )
        if self.captions == "none" and self.file:
            raise InputError(
                f"embedding.file={self.file!r} is not read: set embedding.captions to generated or "
                "oracle."
            )
        if self.kind == "image" and self.captions != "none":
            raise InputError(
                f"embedding.captions={self.captions!r}, but embedding.kind='image' reads no "
                "captions: choose text, joined or fusion."
            )
        if self.kind == "text" and self.captions == "none":
            raise InputError(
                "embedding.kind='text' without captions says the same of every item: set "
                "embedding.captions."
            )

    def describe(self, fields: tuple[str, ...]) -> str:
        """Describes the source of the validation items' captions, for the metrics.

        Args:
            fields: fields of the template.
        """
        sources = {
            "none": "none",
            "oracle": f"annotations: {self.file or ', '.join(fields)}",
            "generated": f"file {self.file}",
        }
        return sources[self.captions]
