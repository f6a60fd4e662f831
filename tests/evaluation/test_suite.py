"""The evaluation of a trained run: its files, its metrics, and its single pass over the data."""

import collections
import json

import jax
import numpy as np
import pytest

from capret_jax.checkpoints.loading import load_model
from capret_jax.config import EvaluationConfig
from capret_jax.data.records import Records
from capret_jax.data.split import evaluation_view
from capret_jax.data.teacher import open_teacher
from capret_jax.errors import InputError
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.evaluation.training_embeddings import TrainingEmbeddingsEvaluator
from capret_jax.models.x2vlm import normalize_pixels
from capret_jax.train.run import Run

HISTOGRAM_MAP = 0.5484


@pytest.fixture(scope="module")
def metrics(trained_dir):
    return json.loads((trained_dir / "evaluation" / "metrics.json").read_text())


def test_metrics_are_those_of_the_contract(metrics):
    names = {"mAP", "top_1", "top_5", "top_10", "top_15", "top_20", "queries", "gallery"}
    assert names <= metrics.keys()
    conditions = {"scale", "occlusion", "zoom_in", "viewpoint", "category"}
    assert metrics["by"].keys() == conditions
    for levels in metrics["by"].values():
        assert sum(level["queries"] for level in levels.values()) == metrics["queries"]
    assert {"kind", "build_seconds", "query_seconds"} <= metrics["index"].keys()
    # With few items the index searches exhaustively.
    assert metrics["index"]["recall@20"] == 1.0
    assert metrics["baselines"].keys() == {"untrained model", "colour histogram"}


def test_the_colour_histogram_has_a_known_map(metrics):
    """The dataset, the protocol and the metric are the same bits on every machine."""
    histogram = metrics["baselines"]["colour histogram"]
    assert histogram["queries"] == metrics["queries"] == 12
    assert histogram["mAP"] == pytest.approx(HISTOGRAM_MAP, abs=1e-3)


def test_the_official_scorer_agrees(metrics):
    official = metrics["official"]
    for name in ("top_1", "top_5", "top_10", "top_15", "top_20", "queries"):
        assert official[name] == pytest.approx(metrics[name]), name
    assert official["missed"] == official["without_results"] == 0
    assert metrics["more_than_5_answers"]["queries"] < metrics["queries"]


def test_official_results_name_twenty_shop_items_per_query(trained_dir, splits):
    items = splits["validation"].items
    entries = json.loads((trained_dir / "evaluation" / "deepfashion2_retrieval.json").read_text())
    assert len(entries) == ((items["style"] > 0) & ~items.is_shop).sum()
    shops = set(items["image_id"][items.is_shop].tolist())
    for entry in entries:
        assert set(entry["gallery_image_id"]) <= shops
        expected = min(20, items.is_shop.sum())
        assert len(entry["gallery_image_id"]) == len(entry["gallery_bbox"]) == expected


def test_detection_and_reranking_are_measured_and_reported(trained_dir, metrics, splits):
    detection, reranked = metrics["detection"], metrics["reranked"]
    kept = json.loads((trained_dir / "detection.json").read_text())["detectors"]
    assert set(detection) == set(kept) == {"phrases", "locations"}
    for kind, measured in detection.items():
        assert measured["threshold"] == kept[kind]["threshold"]
        assert measured["photographs"] == len(splits["validation"].records)
        assert {"AP", "AP50", "precision", "recall", "seconds_per_photograph"} <= set(measured)
    # Retrieval is evaluated with the boxes of the kind that the model can: those it writes.
    assert metrics["detected"]["detector"] == "locations"
    for name in ("mAP", "top_20"):
        assert detection["locations"][name] == pytest.approx(metrics["detected"][name])
    assert reranked["k"] == 5 and reranked["queries"] == metrics["queries"]
    assert reranked["items_encoded"] == len(splits["validation"].items)
    # Only the first five are reordered.
    assert reranked["top_20"] == metrics["top_20"] and reranked["top_5"] == metrics["top_5"]
    page = (trained_dir / "evaluation" / "report.html").read_text()
    assert "Re-ranking" in page and "Garments found in the photographs" in page


def test_boxes_are_detected_or_read_but_not_both():
    with pytest.raises(InputError, match="set one of them"):
        EvaluationConfig(detect=True, detections="found.json")


def test_the_report_is_one_file_with_pictures(trained_dir):
    page = (trained_dir / "evaluation" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') > 12
    assert "http://" not in page and "https://" not in page


@pytest.fixture(scope="module")
def run(tiny_config, trained_dir):
    return Run(tiny_config, trained_dir)


def test_an_evaluation_reads_each_photograph_once(run, monkeypatch):
    """Embedding, histograms, detection, detected boxes and re-ranking share one pass."""
    read = collections.Counter()
    original = Records.image

    def image(records, index):
        read[records.split, index] += 1
        return original(records, index)

    monkeypatch.setattr(Records, "image", image)
    context = EvaluationContext(run)
    state = run.state_to_evaluate()
    encoded = context.encoded(state)
    assert encoded.tokens is not None and set(encoded.detections) == {"locations", "phrases"}
    assert read == {("validation", i): 1 for i in range(len(run.dataset.validation.records))}
    assert context.encoded(state) is encoded
    assert context.ranking(state) is context.ranking(state)


def test_embeddings_of_the_training_items_can_teach(run, tmp_path):
    context, items = EvaluationContext(run), run.dataset.train.items
    assert TrainingEmbeddingsEvaluator(context).run(run.state_to_evaluate()) == {}
    np.save(tmp_path / "teacher.npy", context.files["training_embeddings.npy"])
    table = open_teacher(str(tmp_path / "teacher.npy"), len(items))
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    model, row = load_model(run.workdir), 7
    view = evaluation_view(
        run.dataset.train.photograph(row),
        items.box[[row]],
        run.config.model.image_size,
        run.config.data,
    )
    features = model.image_features(model.encode_image(normalize_pixels(view.image[None])))
    np.testing.assert_allclose(features[0], table[row], atol=1e-4)


def test_vision_tokens_are_those_of_the_embedding(run):
    """The state at position 0, projected and normalised, gives the image features."""
    context, state = EvaluationContext(run), run.state_to_evaluate()
    encoded = context.encoded(state)
    rows = np.array([3, 0, 3])
    states = encoded.tokens(rows).states[:, 0].astype(np.float32)
    projection = jax.device_get(state.model)["vision_proj"]
    features = states @ projection["kernel"] + projection["bias"]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(features, encoded.embeddings["this model"][rows], atol=2e-3)


def test_the_suite_leaves_all_files_or_none(run, trained_dir, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no report")

    suite = EvaluationSuite(run, "second")
    monkeypatch.setattr("capret_jax.evaluation.suite.write_report", fail)
    with pytest.raises(RuntimeError, match="no report"):
        suite.run(run.state_to_evaluate())
    assert not (trained_dir / "second").exists()
