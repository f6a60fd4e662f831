"""Finding garments in a photograph by naming them.

X2-VLM answers a phrase with one box and no score. Here every category's phrase is asked of several
windows of the photograph, and each answer is looked at again from close by, where its box is
predicted anew. Its score is the probability that phrase and picture match, over all looks (their
geometric mean); of answers to one phrase that overlap the more certain stays. So there are scores,
several instances, and phrases that find nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capret_jax.config import ComputeConfig, DetectionConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.captions import category_phrase
from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.transforms import frame, margin_window
from capret_jax.detection.boxes import from_window, suppress
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind, normalize_pixels

# Below this a probability is as good as none.
_TINY = 1e-6
PHRASES = tuple(category_phrase(i + 1) for i in range(len(CATEGORIES)))


class Detection(NamedTuple):
    """A garment found.

    Attributes:
        category_id: 1..13.
        box: (4,) float64 x1, y1, x2, y2 in pixels of the photograph.
        score: probability that the category's phrase and the box's content match.
    """

    category_id: int
    box: np.ndarray
    score: float


class PhraseDetector:
    """All categories' phrases, asked of photographs.

    Attributes:
        config: how thoroughly.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: dict,
        encode: CaptionEncoder,
        config: DetectionConfig = DetectionConfig(),
        compute: ComputeConfig = PLAIN,
    ):
        """
        Args:
            model: sizes.
            params: the model's, trained to match phrases with pictures and to find their boxes.
            encode: captions -> tokens.
            config: how thoroughly to look.
            compute: how the model is computed.
        """
        graphdef, _ = abstract_model(model, compute)
        self._size, self._params, self.config = model.image_size, params, config
        tokens = [encode(phrase) for phrase in PHRASES]
        ids, mask = (jnp.asarray(np.stack(column)) for column in zip(*tokens, strict=True))
        self._ask = jax.jit(_asker(graphdef, mask, compute.dtype))
        text = jax.jit(lambda params: bind(graphdef, params, compute.dtype).encode_text(ids, mask))
        self._text = text(params)

    def __call__(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """What is in each photograph, the most certain first; nothing is left out by score.

        Raises:
            InputError: a photograph does not decode.
        """
        size = self.config.batch_size
        chunks = (photographs[i : i + size] for i in range(0, len(photographs), size))
        return [found for chunk in chunks for found in self._find(chunk)]

    def _find(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        answers = self._first_look(photographs)
        looks = [answers]
        for _ in range(self.config.refinements):
            answers = self._closer_look(photographs, answers)
            looks.append(answers)
        return [self._conclude(each) for each in zip(*looks, strict=True)]

    def _conclude(self, looks: Sequence["_Answers"]) -> list[Detection]:
        """All looks at one photograph's answers -> what was found."""
        phrase, box = looks[-1].phrase, looks[-1].box
        certainty = np.log(np.maximum([look.score for look in looks], _TINY))
        score = np.exp(certainty.mean(axis=0))
        kept = []
        for number in np.unique(phrase):
            rows = np.flatnonzero(phrase == number)
            kept += [rows[i] for i in suppress(box[rows], score[rows], self.config.overlap)]
        kept.sort(key=lambda i: -score[i])
        return [Detection(int(phrase[i]) + 1, box[i], float(score[i])) for i in kept]

    def _first_look(self, photographs: Sequence[Photograph]) -> list["_Answers"]:
        """The best answers of every phrase in every window."""
        count = self.config.batch_size
        windows = [_windows(photograph, self.config.windows) for photograph in photographs]
        each = len(windows[0])
        views = [
            p.crop(w, self._size) for p, ws in zip(photographs, windows, strict=True) for w in ws
        ]
        every = np.broadcast_to(np.arange(len(PHRASES)), (count * each, len(PHRASES)))
        boxes, scores = self._answer(views, every)
        answers = []
        for number, placed in enumerate(windows):
            rows = slice(number * each, (number + 1) * each)
            found = from_window(boxes[rows], np.stack(placed)[:, None]).reshape(-1, 4)
            score, phrase = scores[rows].reshape(-1), every[rows].reshape(-1)
            best = np.argsort(-score, kind="stable")[: self.config.candidates]
            answers.append(_Answers(phrase[best], found[best], score[best]))
        return answers

    def _closer_look(
        self, photographs: Sequence[Photograph], answers: list["_Answers"]
    ) -> list["_Answers"]:
        """The same answers, each from a window around its box."""
        windows = [
            margin_window(photograph, box, self.config.margin)
            for photograph, answer in zip(photographs, answers, strict=True)
            for box in answer.box
        ]
        counts = [len(answer.phrase) for answer in answers]
        owners = np.repeat(np.arange(len(photographs)), counts).tolist()
        views = [photographs[i].crop(w, self._size) for i, w in zip(owners, windows, strict=True)]
        phrases = np.concatenate([answer.phrase for answer in answers])
        rows = self.config.batch_size * self.config.candidates
        asked = np.resize(phrases, rows)[:, None]
        boxes, scores = self._answer(views, asked)
        found = from_window(boxes[: len(views), 0], np.stack(windows))
        cuts = np.cumsum(counts)[:-1]
        return [
            _Answers(*parts)
            for parts in zip(
                np.split(phrases, cuts),
                np.split(found, cuts),
                np.split(scores[: len(views), 0], cuts),
                strict=True,
            )
        ]

    def _answer(self, views: list[np.ndarray], phrases: np.ndarray):
        """Views, filled up to the (n, K) phrases asked of them -> (n, K, 4) and (n, K)."""
        images = np.stack(views)
        # The last one fills up, so that few shapes are compiled.
        images = np.concatenate([images, np.repeat(images[-1:], len(phrases) - len(images), 0)])
        return jax.device_get(self._ask(self._params, self._text, images, phrases))


def garments(found: Sequence[Detection], threshold: float, overlap: float) -> list[Detection]:
    """Detections from a threshold on, one for each garment, whatever the phrases.

    Args:
        found: the most certain first.
        threshold: of the score.
        overlap: IoU from which two are of the same garment.
    """
    certain = [detection for detection in found if detection.score >= threshold]
    boxes = np.array([detection.box for detection in certain]).reshape(-1, 4)
    scores = np.array([detection.score for detection in certain])
    return [certain[i] for i in suppress(boxes, scores, overlap)]


class _Answers(NamedTuple):
    """(n,) phrase numbers, (n, 4) boxes in pixels of the photograph, (n,) match probabilities."""

    phrase: np.ndarray
    box: np.ndarray
    score: np.ndarray


def _asker(graphdef: nnx.GraphDef, token_mask: jax.Array, dtype: str) -> Callable:
    def ask(params, text, images, phrases):
        model: X2VLM = bind(graphdef, params, dtype)
        states = model.encode_image(normalize_pixels(images))
        flat = phrases.reshape(-1)
        fused = model.fuse(text[flat], token_mask[flat], states)
        match = jax.nn.softmax(model.match_logits(fused))[:, 1]
        return model.predict_boxes(fused).reshape(*phrases.shape, 4), match.reshape(phrases.shape)

    return ask


def _windows(photograph: Photograph, shares: Sequence[float]) -> list[np.ndarray]:
    """(4,) int windows of each share, in the corners where it is less than 1."""
    whole = frame(photograph)
    sides = whole[2:]
    windows = []
    for share in shares:
        corners = np.array([(0, 0)] if share == 1 else [(0, 0), (1, 0), (0, 1), (1, 1)])
        low = corners * (1 - share) * sides
        windows += [np.concatenate([first, first + share * sides]) for first in low]
    return [np.round(window).astype(int) for window in windows]
