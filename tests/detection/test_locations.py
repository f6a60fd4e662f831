"""The detector that writes locations, with a real model, and the choice of detectors."""

import dataclasses

import jax
import numpy as np
import pytest

from capret_jax.config import DetectionConfig, MeshConfig, ViewConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.images import Photograph
from capret_jax.data.transforms import frame, whole_view
from capret_jax.detection.detector import Detection, DetectorModel
from capret_jax.detection.detectors import (
    RescoringDetector,
    make_detector,
    resolve_kind,
)
from capret_jax.detection.locations import LocationDetector, _vote
from capret_jax.detection.phrases import PhraseDetector
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.location_generation import write_locations
from capret_jax.models.location_tokens import LocationTokens
from capret_jax.models.x2vlm import abstract_model, bind, init_params, normalize_pixels
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from tests.small_model import SMALL_MODEL

MODEL = dataclasses.replace(SMALL_MODEL, location_layers=1, location_items=4)
REGION = ViewConfig("region")
# No boxes are joined, so that each can be compared.
CONFIG = DetectionConfig(overlap=1.0, samples=1)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def photographs():
    rng = np.random.default_rng(0)
    sizes = [(80, 120), (64, 64), (100, 50), (48, 48), (70, 90)]
    return [Photograph.from_pixels(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def model(params, encode):
    return DetectorModel(MODEL, params, encode, make_mesh(MeshConfig(), jax.devices()[:1]), REGION)


@pytest.fixture(scope="module")
def detector(model):
    return LocationDetector(model, CONFIG)


@pytest.fixture(scope="module")
def found(detector, photographs):
    return detector(photographs)


def test_detections_are_what_the_model_writes(params, photographs, found):
    model = bind(abstract_model(MODEL)[0], params)
    for photograph, detections in zip(photographs, found, strict=True):
        view = whole_view(photograph, frame(photograph)[None], MODEL.image_size)
        states = model.encode_image(normalize_pixels(view.image[None]))
        written = write_locations(
            model, states, jax.random.split(jax.random.key(0), 1), CONFIG.top_p
        )
        # Every box is a detection of each category that is not improbable.
        scores = np.asarray(written.probabilities[0])
        items, classes = np.nonzero(scores >= 0.001)
        order = np.argsort(-scores[items, classes], kind="stable")
        items, classes = items[order], classes[order]
        assert len(detections) > MODEL.location_items
        assert [x.category_id for x in detections] == [*(classes + 1)]
        assert [x.score for x in detections] == pytest.approx([*scores[items, classes]], rel=1e-3)
        sides = np.tile([photograph.width, photograph.height], 2)
        cx, cy, w, h = np.asarray(written.boxes[0])[items].T
        edges = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1) * sides
        boxes = np.array([x.box for x in detections])
        # A box is at least a pixel wide and high.
        large = (w * sides[0] > 1) & (h * sides[1] > 1)
        np.testing.assert_allclose(boxes[large], edges[large], atol=1e-3)
        assert (boxes >= 0).all() and (boxes <= sides).all()


def test_detections_do_not_depend_on_the_batch(detector, photographs, found):
    for photograph, together in zip(photographs, found, strict=True):
        (alone,) = detector([photograph])
        assert [x.category_id for x in alone] == [x.category_id for x in together]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.box, other.box, atol=1e-9)
            assert one.score == pytest.approx(other.score, rel=1e-4)


def test_eight_devices_detect_like_one(model, photographs, found):
    mesh = make_mesh(MeshConfig(), jax.devices())
    for here, there in zip(
        LocationDetector(model._replace(mesh=mesh), CONFIG)(photographs), found, strict=True
    ):
        assert [x.category_id for x in here] == [x.category_id for x in there]
        np.testing.assert_allclose([x.box for x in here], [x.box for x in there], atol=1e-9)
        np.testing.assert_allclose(
            [x.embedding for x in here], [x.embedding for x in there], atol=1e-5
        )


def test_embeddings_are_those_of_the_regions(params, photographs, found):
    embedder = Embedder(MODEL, REGION, PLAIN, make_mesh(MeshConfig(), jax.devices()[:1]))
    for photograph, detections in zip(photographs, found, strict=True):
        boxes = np.array([x.box for x in detections])
        large = (boxes[:, 2:] - boxes[:, :2] > 1 + 1e-6).all(axis=1)
        view = whole_view(photograph, boxes, MODEL.image_size)
        pictures = PictureBatch.without_captions(view.image[None], view.boxes[None])
        expected = embedder.embed(params, pictures)[0]
        ours = np.array([x.embedding for x in detections])
        np.testing.assert_allclose(ours[large], expected[large], atol=1e-5)
        assert large.any()


def test_crops_are_embedded_by_others(model, photographs):
    (detections,) = LocationDetector(model._replace(view=ViewConfig()), CONFIG)(photographs[:1])
    assert all(x.embedding is None for x in detections)


def test_all_overlapping_boxes_are_one_garment(model, photographs):
    (detections,) = LocationDetector(model, DetectionConfig(overlap=0.0))(photographs[:1])
    assert len({tuple(x.box) for x in detections}) == 1


def test_a_photograph_without_garments_has_an_empty_list(model, photographs):
    """Each object is "fake"."""
    bias = np.zeros(LocationTokens(13).size, np.float32)
    bias[LocationTokens(13).fake] = 100
    head = model.params["locations"]["head"] | {"bias": jax.numpy.asarray(bias)}
    locations = model.params["locations"] | {"head": head}
    certain = model._replace(params=model.params | {"locations": locations})
    assert LocationDetector(certain, CONFIG)(photographs) == [[]] * len(photographs)


def test_overlapping_boxes_of_all_samples_vote():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 9, 10.0]])
    votes = np.array([[0.3, 0.1], [0.2, 0.25], [0.0, 0.45], [0.1, 0.0]])
    rows, sums = _vote(boxes, votes, 0.6)
    # 0.45 votes for the second box, and as many for the third.
    np.testing.assert_array_equal(rows, [1, 2])
    np.testing.assert_allclose(sums, [[0.6, 0.35], [0.0, 0.45]])
    rows, sums = _vote(boxes, 4 * votes, 0.95)
    assert len(rows) == 4 and sums.max() == 1


def test_samples_of_a_photograph_differ(model, photographs):
    one, several = (
        LocationDetector(model, dataclasses.replace(CONFIG, samples=samples, top_p=1.0))(
            photographs[:1]
        )[0]
        for samples in (1, 3)
    )
    boxes, of_all = ({tuple(x.box) for x in found} for found in (one, several))
    assert len(boxes) == MODEL.location_items and len(of_all) == 3 * len(boxes)
    # Each box has a third of the vote.
    assert max(x.score for x in several) < max(x.score for x in one)


def test_models_that_cannot_write_locations_are_refused():
    assert resolve_kind("auto", SMALL_MODEL) == "phrases"
    assert resolve_kind("auto", MODEL) == "locations"
    assert resolve_kind("phrases", MODEL, ["itm_head"]) == "phrases"
    # Neither random locations nor those of other classes are chosen.
    assert resolve_kind("auto", MODEL, ["locations"]) == "phrases"
    assert resolve_kind("auto", dataclasses.replace(MODEL, location_classes=80)) == "phrases"
    for kind in ("locations", "both"):
        with pytest.raises(InputError, match=r"a model that writes locations.*loss.locations"):
            resolve_kind(kind, SMALL_MODEL)
    with pytest.raises(InputError, match=r"detection.kind='both' needs itm_head, locations, which"):
        resolve_kind("both", MODEL, ["bbox_head", "itm_head", "locations"])
    other = dataclasses.replace(MODEL, location_classes=80)
    with pytest.raises(InputError, match="locations of 80 classes, and DeepFashion2 has 13"):
        resolve_kind("locations", other)
    with pytest.raises(InputError, match=r"detection.kind='boxes' is none of auto, phrases"):
        DetectionConfig("boxes")


def test_both_scores_what_is_written_by_its_phrases(model, photographs, found):
    config = dataclasses.replace(CONFIG, candidates=3)
    detector = make_detector("both", model, config)
    assert detector.call_sizes == (1, 4, 16)  # of locations, and of phrases
    matches = PhraseDetector(model, config).match(photographs, [x[:3] for x in found])
    for rescored, written, match in zip(detector(photographs), found, matches, strict=True):
        expected = np.sqrt([x.score for x in written[:3]] * match)
        order = np.argsort(-expected, kind="stable")
        np.testing.assert_allclose([x.score for x in rescored], expected[order], rtol=1e-4)
        for ours, theirs in zip(rescored, [written[i] for i in order], strict=True):
            assert ours.category_id == theirs.category_id
            np.testing.assert_array_equal(ours.box, theirs.box)


def test_photographs_without_detections_have_none_to_score(model):
    class Nothing:
        config = DetectionConfig()

        def __call__(self, photographs: list[Photograph]) -> list[list[Detection]]:
            return [[] for _ in photographs]

    phrases = PhraseDetector(model, DetectionConfig())
    blank = Photograph.from_pixels(np.zeros((8, 8, 3), np.uint8))
    assert RescoringDetector(Nothing(), phrases)([blank] * 2) == [[], []]
