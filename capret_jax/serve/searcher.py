"""Searches for shop items by photo, text, or both.

searcher = Searcher.from_dir("runs/demo", "runs/demo/index")
for result in searcher.search("photo.jpg", k=20):
    print(result.score, result.item)
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from capret_jax.buckets.access import staged
from capret_jax.config import DetectionConfig
from capret_jax.data.images import Photograph
from capret_jax.detection.detector import Detection
from capret_jax.errors import InputError
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.items import Filter, Item
from capret_jax.retrieval.storage import load_index
from capret_jax.serve import uploads
from capret_jax.serve.boxes import check_pixels
from capret_jax.serve.encoder import Encoder

# Folder of the index inside its model's folder, where no other is given.
_DEFAULT_INDEX = "index"


def index_folder(model: str | os.PathLike, index: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of an index; of one in a bucket, that of a copy on this machine.

    Args:
        model: folder of the model.
        index: folder of the index; the folder `index` inside the model's when None.

    Raises:
        InputError: there is nothing in the bucket, or it cannot be read.
    """
    return pathlib.Path(staged(index or os.path.join(model, _DEFAULT_INDEX)))


class RankedItem(NamedTuple):
    """A shop item and its similarity with the query.

    Attributes:
        score: cosine similarity of item and query.
        item: its "id" and other properties.
    """

    score: float
    item: Item


class Searcher:
    """A model and an index of embeddings computed with it.

    Attributes:
        encoder: the model.
        index: the shop's items.
    """

    def __init__(self, encoder: Encoder, index: Index):
        self.encoder, self.index = encoder, index

    @classmethod
    def from_dir(
        cls,
        model: str | os.PathLike,
        index: str | os.PathLike | None = None,
        tokenizer: str = "",
        detection: DetectionConfig | None = None,
        *,
        resize: str | None = None,
        precision: str = "float32",
    ) -> "Searcher":
        """Loads a model and an index.

        Args:
            model: training workdir, or folder of a converted checkpoint.
            index: folder of an index; the folder `index` inside the model's when None.
            tokenizer: tokenizer to use in place of the model's own.
            detection: settings of garment detection; those of the model's run when None.
            resize: how views are resized, see `Encoder.from_dir`.
            precision: "float32" or "bfloat16" for queries, see `load_model`; the index may be of
                the other one.

        Raises:
            InputError: a folder holds something else, or the index belongs to another model or to
                other resizing.
        """
        encoder = Encoder.from_dir(
            model, tokenizer, detection=detection, resize=resize, precision=precision
        )
        return cls(encoder, load_index(index_folder(model, index), encoder.digest))

    def detect(self, photo: Any) -> list[Detection]:
        """Detects the garments in a photo, highest score first; boxes are in pixels.

        Args:
            photo: a path, the bytes of a file, a PIL image, or (H, W, 3) uint8.

        Raises:
            InputError: the photo cannot be read.
        """
        return self.encoder.detect([as_photograph(photo)])[0]

    def search(
        self,
        photo: Any = None,
        k: int = 20,
        *,
        text: str = "",
        box: Sequence[float] | np.ndarray | None = None,
        where: Filter | None = None,
    ) -> list[RankedItem]:
        """Returns the shop items most similar to a garment in a photo, to a text, or to both.

        Args:
            photo: see `detect`.
            k: number of items; fewer are returned only where fewer pass the filter.
            text: description of the item; photo and text have equal weight.
            box: x1, y1, x2, y2 of the garment in the photo's pixels; the detected garment with the
                highest score when None, or the whole photo where none is detected.
            where: filter on the items' properties, see `Index.search`.

        Raises:
            InputError: there is neither photo nor text, or one of them cannot be used.
        """
        parts = []
        if photo is not None:
            photograph = as_photograph(photo)
            garment = None
            if box is not None:
                box = check_pixels(box, "Searcher.search")
            elif garments := self.encoder.detect([photograph])[0]:
                garment, box = garments[0].embedding, garments[0].box
            if garment is None:
                garment = self.encoder.embed([self.encoder.view(photograph, box)])[0]
            parts.append(garment)
        if text.strip():
            parts.append(self.encoder.embed_text(text))
        return self.nearest(combine_embeddings(parts), k, where)

    def nearest(self, query: np.ndarray, k: int, where: Filter | None = None) -> list[RankedItem]:
        """Returns the k items nearest to an (E,) embedding."""
        rows, scores = self.index.search(query[None], k, where)
        return [
            RankedItem(float(score), self.index.items[row])
            for row, score in zip(rows[0], scores[0], strict=True)
        ]


def combine_embeddings(embeddings: list[np.ndarray]) -> np.ndarray:
    """Returns the L2-normalised sum of (E,) embeddings.

    Raises:
        InputError: the list is empty.
    """
    if not embeddings:
        raise InputError("nothing to search for: give a photo, a text, or both.")
    total = np.sum(embeddings, axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)


def as_photograph(photo: Any) -> Photograph:
    """Converts a path, the bytes of a file, a PIL image or (H, W, 3) uint8 to a `Photograph`.

    Raises:
        InputError: the photo is none of these, or cannot be read.
    """
    if isinstance(photo, Photograph):
        return photo
    if isinstance(photo, bytes):
        return uploads.read_photo(photo)
    if isinstance(photo, Image.Image):
        return uploads.photograph_from_pil(photo)
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise InputError(f"a photo must be (H, W, 3) uint8 and is {photo.shape} {photo.dtype}.")
        return Photograph.from_pixels(photo)
    try:
        return uploads.read_photo(pathlib.Path(photo).read_bytes())
    except (OSError, TypeError) as error:
        raise InputError(f"the photo {photo!r} cannot be read: {error}.") from error
