"""A detector that writes boxes and categories, in one pass over a photograph (Pix2Seq)."""

from collections.abc import Sequence

import jax
import numpy as np

from capret_jax.config import DetectionConfig, ModelConfig
from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.transforms import frame
from capret_jax.detection.boxes import box_iou, from_window
from capret_jax.detection.detector import Detection, DetectorModel
from capret_jax.distributed.local_mesh import pad_rows
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated
from capret_jax.errors import InputError
from capret_jax.models.beit import pool_boxes
from capret_jax.models.location_generation import write_locations
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels

# Numbers of photographs of a call: one of a photograph alone, and more for many at once.
_SIZES = (1, 4, 16)
# Probability from which a box is a detection of a category.
_LEAST = 0.001


class LocationDetector:
    """Detects garments with the decoder of locations; a `detector.Detector`.

    Several sequences are written of a photograph. Boxes that overlap are of one garment, and the
    score of a category is its probability, summed over these boxes and averaged over the sequences:
    a vote. Each category is a detection, since the most probable one alone, as in Pix2Seq, costs
    average precision where categories look alike (docs/detection.md). Where items are regions of
    their photographs, detections have embeddings, which are pooled from the same vision states.

    Attributes:
        config: sampling and suppression.
    """

    def __init__(self, model: DetectorModel, config: DetectionConfig = DetectionConfig()):
        """
        Args:
            model: the model, with a trained decoder of locations.
            config: sampling and suppression.

        Raises:
            InputError: the model has no such decoder, or one of other classes.
        """
        check_locations(model.config)
        self.config, self._size = config, model.config.image_size
        self._params, self._mesh = model.params, model.mesh
        embeds = model.view.regions and model.config.embedding == "image"
        graphdef, abstract = abstract_model(model.config, model.compute)

        def locate(params, images, keys):
            with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
                bound = bind(graphdef, params, model.compute.dtype)
                states = bound.encode_image(normalize_pixels(images))
                written = write_locations(bound, states, keys.reshape(-1), config.top_p)
                boxes, probabilities = (
                    x.reshape(len(images), -1, x.shape[-1])
                    for x in (written.boxes, written.probabilities)
                )
                if not embeds:
                    return boxes, probabilities, None
                features = bound.image_features(pool_boxes(states, boxes.reshape(-1, 4)))
                return boxes, probabilities, features.reshape(*boxes.shape[:2], -1)

        batch = batch_sharding(self._mesh)
        self._locate = jax.jit(
            locate,
            in_shardings=(param_shardings(self._mesh, abstract), batch, batch),
            out_shardings=replicated(self._mesh),
        )

    def __call__(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        """Returns the detections of each photograph, highest score first, without a threshold.

        Raises:
            InputError: a photograph cannot be decoded.
        """
        most, detections = self.call_sizes[-1], []
        for start in range(0, len(photographs), most):
            detections += self._detect(photographs[start : start + most])
        return detections

    @property
    def call_sizes(self) -> tuple[int, ...]:
        """See `detector.Detector`; each is a multiple of the devices."""
        devices = self._mesh.size
        return tuple(sorted({-(-size // devices) * devices for size in _SIZES}))

    def _detect(self, photographs: Sequence[Photograph]) -> list[list[Detection]]:
        views = [photograph.crop(frame(photograph), self._size) for photograph in photographs]
        rows = next(size for size in self.call_sizes if size >= len(views))
        images = pad_rows(np.stack(views), rows)
        # The same for all, so that a photograph's detections do not depend on its batch.
        samples = jax.random.split(jax.random.key(0), self.config.samples)
        keys = jax.numpy.broadcast_to(samples, (rows, len(samples)))
        placed = jax.device_put((images, keys), batch_sharding(self._mesh))
        boxes, probabilities, features = jax.device_get(self._locate(self._params, *placed))
        return [
            self._convert(
                photograph,
                boxes[row],
                probabilities[row],
                None if features is None else features[row],
            )
            for row, photograph in enumerate(photographs)
        ]

    def _convert(
        self,
        photograph: Photograph,
        boxes: np.ndarray,
        probabilities: np.ndarray,
        features: np.ndarray | None,
    ) -> list[Detection]:
        """Returns the detections of one photograph, of the KN objects of its K sequences."""
        in_pixels = from_window(boxes, frame(photograph))
        rows, votes = _vote(in_pixels, probabilities / self.config.samples, self.config.overlap)
        detections = [
            Detection(
                int(category) + 1,
                in_pixels[rows[i]],
                float(votes[i, category]),
                None if features is None else features[rows[i]],
            )
            for i, category in np.argwhere(votes >= _LEAST)
        ]
        return sorted(detections, key=lambda detection: -detection.score)


def _vote(boxes: np.ndarray, votes: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Joins boxes of the same garment, greedily from the box that is most probably one.

    Args:
        boxes: (n, 4) x1, y1, x2, y2.
        votes: (n, C) votes of each box for each category.
        overlap: IoU from which two boxes are of one garment.

    Returns:
        (m,) int64 rows of the boxes that stay, and (m, C) sums of the votes, at most 1.
    """
    left, same = np.ones(len(boxes), bool), box_iou(boxes, boxes) >= overlap
    rows, sums = [], []
    for row in np.argsort(-votes.sum(axis=1), kind="stable"):
        if left[row]:
            members = same[row] & left
            members[row] = True
            left &= ~members
            rows.append(row)
            sums.append(np.minimum(votes[members].sum(axis=0), 1))
    return np.array(rows), np.stack(sums)


def check_locations(model: ModelConfig, kind: str = "locations") -> None:
    """Checks that a model can write where garments are.

    Args:
        model: the model.
        kind: kind of detector that needs it, for the message.

    Raises:
        InputError: it has no decoder of locations, or one of other classes.
    """
    if not model.location_layers:
        raise InputError(
            f"detection by {kind} needs a model that writes locations, and this one has no such "
            "part: train it with --config.loss.locations=1, or detect by phrases alone."
        )
    if model.location_classes != len(CATEGORIES):
        raise InputError(
            f"the model writes locations of {model.location_classes} classes, and DeepFashion2 has "
            f"{len(CATEGORIES)} categories: train it on photographs of garments first."
        )
