"""What an evaluation embeds, detects and re-ranks."""

import dataclasses

from capret_jax.errors import InputError

CAPTION_SOURCES = ("none", "oracle", "generated")


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """How thoroughly to look.

    Attributes:
        windows: shares of the photograph's sides that windows have; 1 is the whole photograph, and
            0.7 are four windows in its corners.
        refinements: times that an answer is looked at from close by.
        margin: context around a box when it is, as a fraction of its sides.
        candidates: answers per photograph that are.
        overlap: IoU from which two answers to one phrase are taken for one; and answers to several,
            when a garment must have one (`garments`).
        threshold: match probability from which an answer counts, where none was calibrated.
        batch_size: photographs at once.
    """

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
        for name in ("refinements", "candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"detection.{name}={getattr(self, name)} must be at least 1.")
        for name in ("overlap", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"detection.{name}={getattr(self, name)} is not in [0, 1].")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How embeddings are made, and of what.

    Attributes:
        batch_size: images per call, global.
        baselines: measure an untrained model and colour histograms beside the model.
        detections: boxes of a detector in the validation photographs, COCO's result format as JSON
            (`retrieval.detected`); empty evaluates the ground truth's boxes alone.
        detect: look for garments by phrases, calibrate from which score they count (which is kept
            beside the model, for serving), and evaluate with the boxes found.
        detection: how thoroughly.
        rerank: nearest candidates of each query that the fusion encoder puts in a new order; 0 for
            none.
        cache_mb: of vision tokens kept in memory for that.
        cache_dir: folder to keep them all in instead, from one evaluation of a model to the next.
    """

    batch_size: int = 128
    baselines: bool = True
    detections: str = ""
    detect: bool = False
    detection: DetectionConfig = DetectionConfig()
    rerank: int = 0
    cache_mb: int = 1024
    cache_dir: str = ""

    def __post_init__(self):
        if self.detect and self.detections:
            raise InputError(
                "evaluation.detect finds boxes itself and evaluation.detections names a file of "
                "others': set one of them."
            )
        if self.rerank < 0 or self.cache_mb < 1:
            raise InputError("evaluation.rerank must not be negative, nor evaluation.cache_mb 0.")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """What items are compared by, and which captions of the validation items it reads.

    Attributes:
        kind: "image", "text", "joined" or "fusion", see `X2VLM.item_features`; trained by ArcFace.
        captions: "none"; "generated", by a model that looked at the picture; or "oracle", by the
            annotations, which nobody has of a shopper's photo.
        file: JSON lines as in `data.captions.file`, of which those with the split "validation"
            count. Without one the oracle is the template of `data.captions.fields`.
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
        """For the record: what reaches a validation item's caption.

        Args:
            fields: of the template.
        """
        said = {
            "none": "none",
            "oracle": f"annotations: {self.file or ', '.join(fields)}",
            "generated": f"file {self.file}",
        }
        return said[self.captions]
