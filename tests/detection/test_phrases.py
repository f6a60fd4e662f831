"""The detector around a model that answers as it is told; and with a real one."""

import jax
import numpy as np
import pytest

from capret_jax.config import DetectionConfig
from capret_jax.data.images import Photograph
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.detection.phrases import PHRASES, PhraseDetector, garments
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import init_params
from tests.conftest import SMALL_MODEL

WIDTH, HEIGHT = 120, 80


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    build_vocabulary(PHRASES, path, 200)
    return CaptionEncoder(load_tokenizer(str(path)), 12)


@pytest.fixture(scope="module")
def params():
    return init_params(SMALL_MODEL, jax.random.key(0))


def photographs(count):
    rng = np.random.default_rng(0)
    return [
        Photograph.from_pixels(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        for _ in range(count)
    ]


def test_answers_are_boxes_inside_the_photograph_most_certain_first(params, encode):
    config = DetectionConfig(windows=(1.0, 0.7), batch_size=2, candidates=4)
    found = PhraseDetector(SMALL_MODEL, params, encode, config)(photographs(3))
    assert len(found) == 3
    for detections in found:
        assert 1 <= len(detections) <= 4
        scores = [detection.score for detection in detections]
        assert scores == sorted(scores, reverse=True) and 0 <= min(scores) <= max(scores) <= 1
        for category, box, _ in detections:
            assert 1 <= category <= 13
            assert (box[:2] >= 0).all() and (box[2:] <= [WIDTH, HEIGHT]).all()
            assert (box[2:] - box[:2] >= 1 - 1e-9).all()


def test_the_batch_changes_nothing(params, encode):
    pictures = photographs(3)
    one, three = (
        PhraseDetector(SMALL_MODEL, params, encode, DetectionConfig(batch_size=size))(pictures)
        for size in (1, 3)
    )
    for mine, others in zip(one, three, strict=True):
        assert [d.category_id for d in mine] == [d.category_id for d in others]
        np.testing.assert_allclose(
            np.stack([d.box for d in mine]), np.stack([d.box for d in others]), atol=0.1
        )


def test_a_garment_is_found_where_the_model_says(params, encode):
    """The model's answers are replaced: trousers match where a window holds red, nothing else."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[40:80, 60:90, 0] = 255
    detector = PhraseDetector(SMALL_MODEL, params, encode, DetectionConfig(refinements=1))

    def ask(params, text, images, phrases):
        boxes = np.tile([0.5, 0.5, 1.0, 1.0], (*phrases.shape, 1))
        scores = np.zeros(phrases.shape)
        for i, image in enumerate(np.asarray(images)):
            rows, columns = np.nonzero(image[..., 0] > 128)
            if len(rows):
                low, high = np.array([columns.min(), rows.min()]), [columns.max(), rows.max()]
                low, high = low / len(image), (np.array(high) + 1) / len(image)
                boxes[i] = [*(low + high) / 2, *(high - low)]
                scores[i] = np.where(phrases[i] == 7, 0.8, 0.1)  # trousers are category 8
        return boxes, scores

    detector._ask = ask  # both looks agree, so the score is theirs
    (found,) = detector([Photograph.from_pixels(pixels)])
    assert sorted(detection.category_id for detection in found) == list(range(1, 14))
    assert found[0].category_id == 8 and found[0].score == pytest.approx(0.8)
    np.testing.assert_allclose(found[0].box, [60, 40, 90, 80], atol=4)
    # The other phrases' answers are the same garment, and it has one name.
    assert garments(found, 0.0, 0.6) == found[:1]
    assert garments(found, 0.9, 0.6) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"windows": ()}, "windows"),
        ({"windows": (1.5,)}, "windows"),
        ({"candidates": 0}, "candidates=0"),
        ({"threshold": 2.0}, "threshold=2.0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DetectionConfig(**options)
