"""A detector that localises the phrases of all categories with X2-VLM.

X2-VLM predicts one box for a phrase, and no score. This detector scores the phrases of all
categories in several windows of a photograph, then refines each proposal: it predicts the box again
in a window around it. The score of a proposal is the geometric mean, over all passes, of the
probability that phrase and picture match. Of overlapping proposals for one phrase the one with the
highest score is kept. So phrases have scores, several instances or none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from capret_jax.config import DetectionConfig
from capret_jax.data.captions import category_phrase
from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.transforms import frame, margin_window
from capret_jax.detection.boxes import from_window, non_max_suppression
from capret_jax.detection.detector import Detection, DetectorModel
from capret_jax.distributed.local_mesh import pad_rows
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind, normalize_pixels

# Lower bound of probabilities under the logarithm.
_TINY = 1e-6
PHRASES = tuple(category_phrase(i + 1) for i in range(len(CATEGORIES)))


class PhraseDetector:
    """Detects garments of all categories by their phrases; a `detector.Detector`.

    The score of a detection is the probability that the category's phrase and the content of the
    box match.

    Attributes:
        config: windows, refinements and suppression.
    """

    def __init__(self, model: DetectorModel, config: DetectionConfig = DetectionConfig()):
        """Encodes the phrases.

        Args:
            model: the model, trained to match phrases with pictures and to predict their boxes.
            config: windows, refinements and suppression.

        Raises:
            InputError: the vocabulary has none of a phrase's words.
        """
        graphdef, abstract = abstract_model(model.config, model.compute)
        self.config, self._size = config, model.config.image_size
        self._params, self._mesh, dtype = model.params, model.mesh, model.compute.dtype
        for phrase in PHRASES:
            model.encode.check_words(phrase)
        tokens = [model.encode(phrase) for phrase in PHRASES]
        ids, mask = (jnp.asarray(np.stack(column)) for column in zip(*tokens, strict=True))
        batch, whole = batch_sharding(self._mesh), replicated(self._mesh)
        self._score = jax.jit(
            _score_fn(graphdef, mask, dtype, self._mesh),
            in_shardings=(param_shardings(self._mesh, abstract), whole, batch, batch),
            out_shardings=whole,
        )
        text = jax.jit(lambda params: bind(graphdef, params, dtype).encode_text(ids, mask))
        self._text = text(self._params)

    @property
    def call_sizes(self) -> tuple[int, ...]:
        """See `detector.Detector`; a photograph is many views, so that there is one size."""
        return (self.config.batch_size,)

    def __call__(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """Returns the detections of each photograph, highest score first, without a threshold.

        Raises:
            InputError: a photograph cannot be decoded.
        """
        size = self.config.batch_size
        chunks = (photographs[i : i + size] for i in range(0, len(photographs), size))
        return [detections for chunk in chunks for detections in self._detect(chunk)]

    def match(
        self, photographs: Sequence[Photograph], detections: Sequence[Sequence[Detection]]
    ) -> list[np.ndarray]:
        """Scores detections by the phrases of their categories.

        Args:
            photographs: the photographs.
            detections: the detections of each.

        Returns:
            (k,) float32 probabilities that phrase and window around the box match, by photograph.

        Raises:
            InputError: a photograph cannot be decoded.
        """
        pairs = [(i, x) for i, in_image in enumerate(detections) for x in in_image]
        size, scores = self.config.batch_size, [np.zeros(0, np.float32)]
        for start in range(0, len(pairs), size):
            chunk = pairs[start : start + size]
            views = [
                photographs[i].crop(
                    margin_window(photographs[i], x.box, self.config.margin), self._size
                )
                for i, x in chunk
            ]
            phrases = np.resize([x.category_id - 1 for _, x in chunk], size)[:, None]
            scores.append(self._score_views(views, phrases)[1][: len(chunk), 0])
        return np.split(np.concatenate(scores), np.cumsum([len(x) for x in detections])[:-1])

    def _detect(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        proposals = self._propose(photographs)
        passes = [proposals]
        for _ in range(self.config.refinements):
            proposals = self._refine(photographs, proposals)
            passes.append(proposals)
        return [self._combine(of_image) for of_image in zip(*passes, strict=True)]

    def _combine(self, passes: Sequence["_Proposals"]) -> list[Detection]:
        """Combines all passes over the proposals of one photograph into its detections."""
        phrases, boxes = passes[-1].phrases, passes[-1].boxes
        log_scores = np.log(np.maximum([proposals.scores for proposals in passes], _TINY))
        scores = np.exp(log_scores.mean(axis=0))
        kept = []
        for phrase in np.unique(phrases):
            rows = np.flatnonzero(phrases == phrase)
            keep = non_max_suppression(boxes[rows], scores[rows], self.config.overlap)
            kept += [rows[i] for i in keep]
        kept.sort(key=lambda i: -scores[i])
        return [Detection(int(phrases[i]) + 1, boxes[i], float(scores[i])) for i in kept]

    def _propose(self, photographs: Sequence[Photograph]) -> list["_Proposals"]:
        """Scores every phrase in every window, and keeps the best proposals of each photograph."""
        count = self.config.batch_size
        windows = [_windows(photograph, self.config.windows) for photograph in photographs]
        per_image = len(windows[0])
        views = [
            p.crop(w, self._size) for p, ws in zip(photographs, windows, strict=True) for w in ws
        ]
        phrases = np.broadcast_to(np.arange(len(PHRASES)), (count * per_image, len(PHRASES)))
        boxes, scores = self._score_views(views, phrases)
        proposals = []
        for number, of_image in enumerate(windows):
            rows = slice(number * per_image, (number + 1) * per_image)
            in_pixels = from_window(boxes[rows], np.stack(of_image)[:, None]).reshape(-1, 4)
            flat_scores, flat_phrases = scores[rows].reshape(-1), phrases[rows].reshape(-1)
            best = np.argsort(-flat_scores, kind="stable")[: self.config.candidates]
            proposals.append(_Proposals(flat_phrases[best], in_pixels[best], flat_scores[best]))
        return proposals

    def _refine(
        self, photographs: Sequence[Photograph], proposals: list["_Proposals"]
    ) -> list["_Proposals"]:
        """Predicts the box and score of each proposal again, in a window around its box."""
        windows = [
            margin_window(photograph, box, self.config.margin)
            for photograph, of_image in zip(photographs, proposals, strict=True)
            for box in of_image.boxes
        ]
        counts = [len(of_image.phrases) for of_image in proposals]
        images = np.repeat(np.arange(len(photographs)), counts).tolist()
        views = [photographs[i].crop(w, self._size) for i, w in zip(images, windows, strict=True)]
        phrases = np.concatenate([of_image.phrases for of_image in proposals])
        rows = self.config.batch_size * self.config.candidates
        boxes, scores = self._score_views(views, np.resize(phrases, rows)[:, None])
        in_pixels = from_window(boxes[: len(views), 0], np.stack(windows))
        cuts = np.cumsum(counts)[:-1]
        return [
            _Proposals(*parts)
            for parts in zip(
                np.split(phrases, cuts),
                np.split(in_pixels, cuts),
                np.split(scores[: len(views), 0], cuts),
                strict=True,
            )
        ]

    def _score_views(
        self, views: list[np.ndarray], phrases: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, K, 4) boxes and (n, K) match probabilities of (n, K) phrases in n views."""
        # The last view is repeated up to a fixed number, so that few shapes are compiled.
        rows = -(-len(phrases) // self._mesh.size) * self._mesh.size
        images = pad_rows(np.stack(views), rows)
        placed = jax.device_put((images, pad_rows(phrases, rows)), batch_sharding(self._mesh))
        boxes, scores = jax.device_get(self._score(self._params, self._text, *placed))
        return boxes[: len(phrases)], scores[: len(phrases)]


class _Proposals(NamedTuple):
    """Proposals in one photograph.

    Attributes:
        phrases: (n,) int64 positions in `PHRASES`.
        boxes: (n, 4) float64 x1, y1, x2, y2 in pixels of the photograph.
        scores: (n,) match probabilities.
    """

    phrases: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def _score_fn(graphdef: nnx.GraphDef, token_mask: jax.Array, dtype: str, mesh: Mesh) -> Callable:
    """Function of params, text states, images and (n, K) phrases; see `_score_views`."""

    def score(params: dict, text: jax.Array, images: jax.Array, phrases: jax.Array):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            model: X2VLM = bind(graphdef, params, dtype)
            states = model.encode_image(normalize_pixels(images))
            flat = phrases.reshape(-1)
            fused = model.fuse(text[flat], token_mask[flat], states)
            match = jax.nn.softmax(model.match_logits(fused))[:, 1]
            boxes = model.predict_boxes(fused)
        return boxes.reshape(*phrases.shape, 4), match.reshape(phrases.shape)

    return score


def _windows(photograph: Photograph, fractions: Sequence[float]) -> list[np.ndarray]:
    """Returns (4,) int windows: four corners for a fraction below 1, else the whole photograph."""
    whole = frame(photograph)
    sides = whole[2:]
    windows = []
    for fraction in fractions:
        corners = np.array([(0, 0)] if fraction == 1 else [(0, 0), (1, 0), (0, 1), (1, 1)])
        low = corners * (1 - fraction) * sides
        windows += [np.concatenate([first, first + fraction * sides]) for first in low]
    return [np.round(window).astype(int) for window in windows]
