"""A model that embeds garments in photos, and words, into what an index compares."""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from capret_jax.checkpoints.loading import (
    LoadedModel,
    Setup,
    digest,
    load_card,
    load_model,
    load_setup,
)
from capret_jax.config import DetectionConfig, MeshConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.images import Photograph
from capret_jax.data.tokenizer import CaptionEncoder, load_tokenizer
from capret_jax.data.transforms import View, crop_view, frame, whole_view
from capret_jax.detection.phrases import Detection, PhraseDetector, garments
from capret_jax.detection.threshold import read_threshold
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.retrieval.embedding import Embedder, PictureBatch

# Numbers of photos that are compiled for; others are filled up to the next.
BATCHES = (1, 4, 16)


class Encoder:
    """Uploads and words -> embeddings, on one device.

    Attributes:
        model: all methods of X2-VLM.
        setup: how it sees and reads.
        digest: of its parameters.
        threshold: match probability from which a detection counts.
    """

    def __init__(
        self, model: LoadedModel, setup: Setup, threshold: float, detection: DetectionConfig
    ):
        """Use `from_dir`."""
        self.model, self.setup, self.threshold = model, setup, threshold
        self._overlap = detection.overlap
        self.digest = digest(jax.device_get(model.params))
        self.tokenize = CaptionEncoder(load_tokenizer(setup.tokenizer), setup.max_tokens)
        self.detector = PhraseDetector(model.config, model.params, self.tokenize, detection)
        graphdef, abstract = abstract_model(model.config)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self._embedder = Embedder(graphdef, abstract, setup.view.regions, PLAIN.dtype, mesh)

    @classmethod
    def from_dir(
        cls,
        folder: str | os.PathLike,
        tokenizer: str = "",
        image_size: int | None = None,
        detection: DetectionConfig = DetectionConfig(batch_size=1),
    ) -> "Encoder":
        """
        Args:
            folder: a training workdir, or what convert_torch_ckpt.py wrote.
            tokenizer: another than the model's own.
            image_size: pixels; the model's own when None.
            detection: how garments are looked for.

        Raises:
            InputError: the folder holds no model, or one whose embeddings read captions.
        """
        embedding = load_card(folder).config.embedding
        if embedding != "image":
            raise InputError(
                f"{folder} was trained with embedding.kind={embedding!r}, which reads a caption "
                "of every picture: only embedding.kind='image' can be served."
            )
        threshold = read_threshold(pathlib.Path(folder), detection.threshold)
        model = load_model(folder, image_size)
        return cls(model, load_setup(folder, tokenizer), threshold, detection)

    def view(self, photograph: Photograph, box: Sequence[float] | np.ndarray | None) -> View:
        """What the model sees of the garment in a box, or of the whole photograph.

        Args:
            photograph: with the garment.
            box: (4,) x1, y1, x2, y2 in its pixels; None for all of it.

        Raises:
            InputError: the box is empty, or outside.
        """
        size = self.model.config.image_size
        if box is None:
            return whole_view(photograph, frame(photograph)[None], size)
        box = _checked(photograph, np.asarray(box, np.float64))
        if self.setup.view.whole:
            return whole_view(photograph, box[None], size)
        return crop_view(photograph, box, size, self.setup.margin)

    def embed(self, views: Sequence[View]) -> np.ndarray:
        """Views of one item each -> (n, E) float32, L2-normalised."""
        found = []
        for start in range(0, len(views), BATCHES[-1]):
            chunk = views[start : start + BATCHES[-1]]
            size = next(size for size in BATCHES if size >= len(chunk))
            filled = [*chunk, *[chunk[-1]] * (size - len(chunk))]
            pictures = PictureBatch.without_captions(
                np.stack([view.image for view in filled]), np.stack([view.boxes for view in filled])
            )
            found.append(self._embedder.embed(self.model.params, pictures)[: len(chunk), 0])
        return np.concatenate(found)

    def embed_text(self, text: str) -> np.ndarray:
        """(E,) float32, L2-normalised, comparable with pictures.

        Raises:
            InputError: there are no words in it.
        """
        tokens = self.tokenize(text)
        if tokens.mask.sum() <= 2:  # [CLS] and [SEP]
            raise InputError("the text has no words.")
        states = self.model.encode_text(tokens.ids[None], tokens.mask[None])
        return np.asarray(self.model.text_features(states))[0]

    def detect(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """The garments in each photograph, the most certain first."""
        return [
            garments(found, self.threshold, self._overlap) for found in self.detector(photographs)
        ]

    def warm_up(self) -> None:
        """Compiles everything that requests will need."""
        size = self.model.config.image_size
        blank = Photograph.from_pixels(np.full((size, size, 3), 255, np.uint8))
        for batch in BATCHES:
            self.embed([self.view(blank, None)] * batch)
        self.embed_text("a dress")
        self.detect([blank])


def _checked(photograph: Photograph, box: np.ndarray) -> np.ndarray:
    """The box cut at the photograph's edges, and at least a pixel wide."""
    limits = frame(photograph)
    if box.shape == (4,) and np.isfinite(box).all() and (box[:2] < box[2:]).all():
        low = np.clip(box[:2], 0, limits[2:] - 1)
        if (box[:2] < limits[2:]).all() and (box[2:] > 0).all():
            return np.concatenate([low, np.clip(box[2:], low + 1, limits[2:])])
    raise InputError(
        f"box {box.tolist()} is not x1, y1, x2, y2 inside a photo of {photograph.width} x "
        f"{photograph.height} pixels."
    )
