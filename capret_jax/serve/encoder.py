"""Embeds garments in photos, and texts, for search in an index; detects garments."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.checkpoints.loading import ModelFolder, Setup, digest, open_model_tokenizer
from capret_jax.checkpoints.report import model_parts
from capret_jax.config import DetectionConfig, MeshConfig
from capret_jax.data.images import Photograph
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.transforms import View, crop_view, frame, whole_view
from capret_jax.detection.detector import (
    Detection,
    Detector,
    DetectorModel,
    suppress_across_categories,
)
from capret_jax.detection.detectors import make_detector, resolve_kind, score_settings
from capret_jax.detection.threshold import read_threshold
from capret_jax.distributed.mesh import make_mesh, param_shardings
from capret_jax.errors import InputError
from capret_jax.retrieval.embedding import Embedder, PictureBatch

# Batch sizes that are compiled, or their next multiples of the devices; smaller batches are padded.
BATCH_SIZES = (1, 4, 16)


class Encoder:
    """Embeds photos and texts, and detects garments, with one model on all devices of a process.

    Attributes:
        model: the model, with all methods of X2-VLM.
        setup: its input settings: view, margin, resizing, tokenizer, text length.
        digest: digest of its parameters, and of the resizing if it is not "fast".
        threshold: lowest score of a detection.
    """

    def __init__(
        self, model: LoadedModel, setup: Setup, threshold: float, detection: DetectionConfig
    ):
        """Use `from_dir` instead."""
        self.model, self.setup, self.threshold = model, setup, threshold
        self._overlap = detection.overlap
        self.digest = digest(jax.device_get(model.params))
        if setup.resize != "fast":
            self.digest += f"+{setup.resize}"
        tokenizer = open_model_tokenizer(setup, model.config)
        self.tokenize = CaptionEncoder(tokenizer, setup.max_tokens, setup.cleaning)
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        self._params = jax.device_put(model.params, param_shardings(mesh, model.params))
        self._devices = mesh.size
        detectable = DetectorModel(
            model.config, self._params, self.tokenize, mesh, setup.view, model.compute
        )
        self.detector: Detector = make_detector(detection.kind, detectable, detection)
        self._embedder = Embedder(model.config, setup.view, model.compute, mesh)

    @classmethod
    def from_dir(
        cls,
        folder: str | os.PathLike,
        tokenizer: str = "",
        image_size: int | None = None,
        detection: DetectionConfig | None = None,
        *,
        resize: str | None = None,
        precision: str = "float32",
    ) -> "Encoder":
        """Loads a model.

        Args:
            folder: training workdir, or folder of a converted checkpoint.
            tokenizer: tokenizer to use in place of the model's own.
            image_size: side of the input in pixels; the model's own when None.
            detection: settings of garment detection; those of the model's run when None.
            resize: how views are resized, one of `config.data.RESIZES`; as in the model's training
                when None, "fast" for a converted checkpoint.
            precision: "float32" or "bfloat16", see `load_model`.

        Raises:
            InputError: the folder holds no model, one whose embeddings need captions, or one that
                cannot detect as `detection.kind` says.
        """
        model_folder = ModelFolder(folder)
        embedding = model_folder.card.config.embedding
        if embedding != "image":
            raise InputError(
                f"{folder} was trained with embedding.kind={embedding!r}, which reads a caption "
                "of every picture: only embedding.kind='image' can be served."
            )
        card = model_folder.card
        if detection is None:
            detection = dataclasses.replace(model_folder.detection, batch_size=1)
        kind = resolve_kind(detection.kind, card.config, model_parts(card.fresh))
        threshold = read_threshold(
            model_folder.path,
            model_folder.step,
            kind,
            score_settings(kind, detection),
            detection.threshold,
        )
        model = model_folder.load_model(image_size, precision)
        setup = model_folder.setup(tokenizer)
        if resize is not None:
            setup = setup._replace(resize=resize)
        return cls(model, setup, threshold, dataclasses.replace(detection, kind=kind))

    def view(self, photograph: Photograph, box: Sequence[float] | np.ndarray | None) -> View:
        """Returns the model's input for the garment in a box, or for the whole photograph.

        Args:
            photograph: photograph of the garment.
            box: (4,) x1, y1, x2, y2 in pixels; the whole photograph when None.

        Raises:
            InputError: the box is empty or outside of the photograph.
        """
        size, photograph = self.model.config.image_size, self._as_trained(photograph)
        if box is None:
            return whole_view(photograph, frame(photograph)[None], size)
        box = _clip_box(photograph, np.asarray(box, np.float64))
        if self.setup.view.whole:
            return whole_view(photograph, box[None], size)
        return crop_view(photograph, box, size, self.setup.margin)

    def embed(self, views: Sequence[View]) -> np.ndarray:
        """Embeds n views, each of one item.

        Returns:
            (n, E) float32, L2-normalised.
        """
        embeddings = []
        for start in range(0, len(views), BATCH_SIZES[-1]):
            chunk = views[start : start + BATCH_SIZES[-1]]
            size = next(size for size in BATCH_SIZES if size >= len(chunk))
            size = -(-size // self._devices) * self._devices
            padded = [*chunk, *[chunk[-1]] * (size - len(chunk))]
            pictures = PictureBatch.without_captions(
                np.stack([view.image for view in padded]), np.stack([view.boxes for view in padded])
            )
            embeddings.append(self._embedder.embed(self._params, pictures)[: len(chunk), 0])
        return np.concatenate(embeddings)

    def embed_text(self, text: str) -> np.ndarray:
        """Embeds a text in the space of the pictures.

        Returns:
            (E,) float32, L2-normalised.

        Raises:
            InputError: the text has no words, or none that the model knows.
        """
        self.tokenize.check_words(text)
        tokens = self.tokenize(text)
        states = self.model.encode_text(tokens.ids[None], tokens.mask[None])
        return np.asarray(self.model.text_features(states))[0]

    def detect(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """Detects the garments in each photograph, highest score first."""
        return [
            suppress_across_categories(detections, self.threshold, self._overlap)
            for detections in self.detector([*map(self._as_trained, photographs)])
        ]

    def _as_trained(self, photograph: Photograph) -> Photograph:
        return photograph.resized_by(self.setup.resize)

    def warm_up(self) -> None:
        """Compiles all programs that requests need."""
        size = self.model.config.image_size
        blank = Photograph.from_pixels(np.full((size, size, 3), 255, np.uint8))
        for batch in BATCH_SIZES:
            self.embed([self.view(blank, None)] * batch)
        self.embed_text("a dress")
        for size in self.detector.call_sizes:
            self.detect([blank] * size)


def _clip_box(photograph: Photograph, box: np.ndarray) -> np.ndarray:
    """Clips a box to the photograph; the result is at least a pixel wide and high."""
    limits = frame(photograph)
    if box.shape == (4,) and np.isfinite(box).all() and (box[:2] < box[2:]).all():
        low = np.clip(box[:2], 0, limits[2:] - 1)
        if (box[:2] < limits[2:]).all() and (box[2:] > 0).all():
            return np.concatenate([low, np.clip(box[2:], low + 1, limits[2:])])
    raise InputError(
        f"box {box.tolist()} is not x1, y1, x2, y2 inside a photo of {photograph.width} x "
        f"{photograph.height} pixels."
    )
