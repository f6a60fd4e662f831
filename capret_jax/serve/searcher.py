"""Photo in, shop items out.

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

from capret_jax.config import DetectionConfig
from capret_jax.data.images import Photograph
from capret_jax.data.transforms import View
from capret_jax.detection.phrases import Detection
from capret_jax.errors import InputError
from capret_jax.retrieval.index import Filter, Index, Item
from capret_jax.retrieval.storage import load_index
from capret_jax.serve import uploads
from capret_jax.serve.encoder import Encoder

# Where an index is kept when it lies in its model's folder.
INDEX = "index"


class Result(NamedTuple):
    """One shop item.

    Attributes:
        score: cosine with the query.
        item: its "id" and what else the index knows.
    """

    score: float
    item: Item


class Searcher:
    """A model and an index made with it.

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
        detection: DetectionConfig = DetectionConfig(batch_size=1),
    ) -> "Searcher":
        """
        Args:
            model: a training workdir, or what convert_torch_ckpt.py wrote.
            index: what tools/build_index.py wrote; `index` in the model's folder when None.
            tokenizer: another than the model's own.
            detection: how garments are looked for.

        Raises:
            InputError: a folder holds something else, or the index was made with another model.
        """
        encoder = Encoder.from_dir(model, tokenizer, detection=detection)
        folder = pathlib.Path(index if index is not None else pathlib.Path(model) / INDEX)
        return cls(encoder, load_index(folder, encoder.digest))

    def detect(self, photo: Any) -> list[Detection]:
        """The garments in a photo, the most certain first; boxes in its pixels.

        Args:
            photo: a path, the bytes of a file, a PIL image, or (H, W, 3) uint8.

        Raises:
            InputError: it is no picture.
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
    ) -> list[Result]:
        """The shop items nearest to a garment, to words, or to both.

        Args:
            photo: as `detect` takes it.
            k: how many; fewer only where fewer pass the filter.
            text: what to look for; with a photo, both count alike.
            box: x1, y1, x2, y2 of the garment in the photo's pixels; None for the most certain one
                that is found, and for the whole photo where nothing is.
            where: what items must be, see `Index.search`.

        Raises:
            InputError: there is neither photo nor text, or one of them cannot be used.
        """
        view = None
        if photo is not None:
            photograph = as_photograph(photo)
            if box is None:
                garments = self.encoder.detect([photograph])[0]
                box = garments[0].box if garments else None
            view = self.encoder.view(photograph, box)
        return self.nearest(self.query(view, text), k, where)

    def query(self, view: View | None, text: str) -> np.ndarray:
        """(E,) float32, L2-normalised: the embedding of a view, of words, or of both together.

        Raises:
            InputError: there is neither.
        """
        parts = [] if view is None else [self.encoder.embed([view])[0]]
        return join(parts + ([self.encoder.embed_text(text)] if text.strip() else []))

    def nearest(self, query: np.ndarray, k: int, where: Filter | None = None) -> list[Result]:
        """The k items nearest to one embedding."""
        rows, scores = self.index.search(query[None], k, where)
        return [
            Result(float(score), self.index.items[row])
            for row, score in zip(rows[0], scores[0], strict=True)
        ]


def join(embeddings: list[np.ndarray]) -> np.ndarray:
    """The direction between some, each L2-normalised.

    Raises:
        InputError: there are none.
    """
    if not embeddings:
        raise InputError("nothing to search for: give a photo, a text, or both.")
    total = np.sum(embeddings, axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)


def as_photograph(photo: Any) -> Photograph:
    """A path, the bytes of a file, a PIL image, (H, W, 3) uint8, or a `Photograph`, as the last.

    Raises:
        InputError: it is none of them.
    """
    if isinstance(photo, Photograph):
        return photo
    if isinstance(photo, bytes):
        return uploads.read_photo(photo)
    if isinstance(photo, Image.Image):
        return uploads.as_photograph(photo)
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise InputError(f"a photo must be (H, W, 3) uint8 and is {photo.shape} {photo.dtype}.")
        return Photograph.from_pixels(photo)
    try:
        return uploads.read_photo(pathlib.Path(photo).read_bytes())
    except (OSError, TypeError) as error:
        raise InputError(f"the photo {photo!r} cannot be read: {error}.") from error
