"""The phrase detector, with a real model and with known boxes and scores in its place."""

import jax
import numpy as np
import pytest

from capret_jax.config import DetectionConfig, MeshConfig
from capret_jax.data.images import Photograph
from capret_jax.detection.detector import DetectorModel, suppress_across_categories
from capret_jax.detection.phrases import PhraseDetector
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import init_params
from tests.small_model import SMALL_MODEL

WIDTH, HEIGHT = 120, 80
TROUSERS = 8


@pytest.fixture(scope="module")
def model(encode):
    params = init_params(SMALL_MODEL, jax.random.key(0))
    return DetectorModel(SMALL_MODEL, params, encode, make_mesh(MeshConfig(), jax.devices()[:1]))


def photographs(count):
    rng = np.random.default_rng(0)
    return [
        Photograph.from_pixels(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        for _ in range(count)
    ]


def test_detections_are_boxes_inside_the_photograph_sorted_by_score(model):
    config = DetectionConfig(windows=(1.0, 0.7), batch_size=2, candidates=4)
    detections = PhraseDetector(model, config)(photographs(3))
    assert len(detections) == 3
    for in_image in detections:
        assert 1 <= len(in_image) <= 4
        scores = [detection.score for detection in in_image]
        assert scores == sorted(scores, reverse=True) and 0 <= min(scores) <= max(scores) <= 1
        for category, box, *_ in in_image:
            assert 1 <= category <= 13
            assert (box[:2] >= 0).all() and (box[2:] <= [WIDTH, HEIGHT]).all()
            assert (box[2:] - box[:2] >= 1 - 1e-9).all()


def test_the_batch_size_does_not_change_the_detections(model):
    pictures = photographs(3)
    one, three = (
        PhraseDetector(model, DetectionConfig(batch_size=size))(pictures) for size in (1, 3)
    )
    for a, b in zip(one, three, strict=True):
        assert [d.category_id for d in a] == [d.category_id for d in b]
        np.testing.assert_allclose(
            np.stack([d.box for d in a]), np.stack([d.box for d in b]), atol=0.1
        )


def red_box_scores(score):
    """A stand-in for the model: predicts the red box of every view, and scores trousers highest."""

    def score_views(params, text, images, phrases):
        boxes = np.tile([0.5, 0.5, 1.0, 1.0], (*phrases.shape, 1))
        scores = np.zeros(phrases.shape)
        for i, image in enumerate(np.asarray(images)):
            rows, columns = np.nonzero(image[..., 0] > 128)
            if len(rows):
                low, high = np.array([columns.min(), rows.min()]), [columns.max(), rows.max()]
                low, high = low / len(image), (np.array(high) + 1) / len(image)
                boxes[i] = [*(low + high) / 2, *(high - low)]
                scores[i] = np.where(phrases[i] == TROUSERS - 1, score, 0.1)
        return boxes, scores

    return score_views


@pytest.fixture
def red_box():
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[40:80, 60:90, 0] = 255
    return Photograph.from_pixels(pixels)


def test_the_box_and_category_of_the_highest_score_are_detected(model, red_box):
    detector = PhraseDetector(model, DetectionConfig(refinements=1))
    detector._score = red_box_scores(0.8)
    (detections,) = detector([red_box])
    assert sorted(detection.category_id for detection in detections) == list(range(1, 14))
    assert detections[0].category_id == TROUSERS
    assert detections[0].score == pytest.approx(0.8)
    np.testing.assert_allclose(detections[0].box, [60, 40, 90, 80], atol=4)
    # The other phrases have the same box, so one category remains.
    assert suppress_across_categories(detections, 0.0, 0.6) == detections[:1]


def test_the_score_is_the_geometric_mean_over_all_passes(model, red_box):
    config = DetectionConfig(refinements=2, batch_size=1)
    detector = PhraseDetector(model, config)
    passes = iter([0.9, 0.3, 0.8])
    detector._score = lambda *arguments: red_box_scores(next(passes))(*arguments)
    (detections,) = detector([red_box])
    assert detections[0].category_id == TROUSERS
    assert detections[0].score == pytest.approx((0.9 * 0.3 * 0.8) ** (1 / 3))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"windows": ()}, "windows"),
        ({"windows": (1.5,)}, "windows"),
        ({"candidates": 0}, "candidates=0"),
        ({"threshold": 2.0}, "threshold=2.0"),
    ],
)
def test_invalid_settings_raise(options, message):
    with pytest.raises(InputError, match=message):
        DetectionConfig(**options)
