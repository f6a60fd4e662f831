"""The DeepFashion2 configs, reduced in size, on a raw folder and a converted checkpoint."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.conversion import Converted, Report
from capret_jax.checkpoints.converted import save_converted
from capret_jax.config import (
    ComputeConfig,
    DetectionConfig,
    ExperimentConfig,
    LossConfig,
    ViewConfig,
    from_config_dict,
)
from capret_jax.config.loss import TERMS
from capret_jax.data.geometry import random_window_around
from capret_jax.data.transforms import Augmentation
from capret_jax.detection.locations import LocationDetector
from capret_jax.errors import InputError
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.detected_embeddings import _LocalEmbedding
from capret_jax.evaluation.retrieval import CurveEvaluator
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.losses.box import corners, iou_and_giou
from capret_jax.models.x2vlm import init_params
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.data.raw_deepfashion2 import write_raw
from tests.small_model import SMALL_MODEL, WRITING_MODEL

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def load(name: str, *kind: str) -> ExperimentConfig:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config(*kind))


@pytest.fixture(scope="module")
def shrink(splits, tmp_path_factory):
    """Replaces sizes, paths and numbers of steps; all other settings are the config's."""
    root = tmp_path_factory.mktemp("df2")
    write_raw(root / "raw", splits)
    params = init_params(SMALL_MODEL, jax.random.key(0))
    save_converted(root / "start", Converted(params, SMALL_MODEL, Report("pretrain", "tiny", 32)))

    def apply(config: ExperimentConfig) -> ExperimentConfig:
        replace = dataclasses.replace
        return replace(
            config,
            batch_size=16,
            init_from=str(root / "start"),
            model=SMALL_MODEL,
            data=replace(
                config.data,
                source_dir=str(root / "raw"),
                prepared_dir=str(root / "prepared"),
                tokenizer="",
                read=replace(config.data.read, threads=2),
                prepare=replace(config.data.prepare, processes=1),
                region_batch=replace(
                    config.data.region_batch,
                    images=min(config.data.region_batch.images, 8),
                    regions_per_image=2,
                ),
            ),
            loss=replace(config.loss, matching_group=2),
            optimizer=replace(config.optimizer, warmup_steps=1),
            loop=replace(config.loop, steps=2),
            evaluation=replace(config.evaluation, batch_size=32),
        )

    return apply


def evaluate(run: Run) -> None:
    EvaluationSuite(run).run(run.state_to_evaluate())


# Config -> mode, and the terms of its training loss.
RECIPES = {
    "demo": (
        "train_and_evaluate",
        {"itc", "itm", "box_l1", "box_giou", "arcface", "locations"},
    ),
    "demo_pretrain": (
        "train_and_evaluate",
        {"itc", "itm", "mlm", "vqa", "box_l1", "box_giou"},
    ),
    "df2_pretrain": ("train_and_evaluate", {"itc", "itm", "mlm", "box_l1", "box_giou"}),
    "df2_finetune": ("train_and_evaluate", {"itc", "itm", "box_l1", "box_giou", "arcface"}),
    "df2_zeroshot": ("evaluate", None),
    "x2vlm_pretrain": ("train", {"itc", "itm", "mlm", "box_l1", "box_giou"}),
    "photos": ("train_and_evaluate", {"arcface"}),
    "coco_retrieval": ("train_and_evaluate", {"itc", "itm"}),
    "vqav2": ("train_and_evaluate", {"vqa"}),
    "refcoco_plus": ("train_and_evaluate", {"box_l1", "box_giou"}),
    "coco_captioning": ("train_and_evaluate", {"mlm"}),
    "coco_detection": ("train_and_evaluate", {"locations"}),
    "nlvr2": ("train_and_evaluate", {"nlvr"}),
}


def test_every_experiment_is_tried():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {"ablation"} | RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_every_config_says_what_it_trains(name):
    config, (mode, terms) = load(name), RECIPES[name]
    assert config.mode == mode
    if terms is not None:
        assert {term for term in TERMS if getattr(config.loss, term)} == terms


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_some_configs_can_be_long(name):
    short, long = load(name), load(name, "long")
    assert long.model.vision_depth > short.model.vision_depth
    assert long.loop.steps > 2 * short.loop.steps
    with pytest.raises(InputError, match="there are short and long"):
        load(name, "endless")


BOXED = [
    name
    for name, (_, terms) in RECIPES.items()
    if terms and "box_l1" in terms and not load(name).task.name
]
BOXED.remove("x2vlm_pretrain")  # of regions


@pytest.mark.parametrize("name", BOXED)
def test_a_constant_box_does_badly_in_the_views_that_train_boxes(name, splits):
    data, split, rng = load(name).data, splits["train"], np.random.default_rng(0)
    assert data.augment.wide and data.view.kind == "crop"
    augment = Augmentation(data.augment, 32)
    rows = rng.integers(len(split.items), size=400)

    def constant_iou(view):
        """The mean IoU of the median box."""
        views = [view(split.photograph(row), split.items.box[row], rng) for row in rows]
        boxes = jnp.concatenate([view.boxes for view in views])
        return iou_and_giou(corners(jnp.median(boxes, axis=0)), corners(boxes))[0].mean()

    # Drawn garments fill more than half of their pictures, which bounds it from below.
    assert constant_iou(augment.wide_view) < 0.65 < 0.75 < constant_iou(augment.crop_view)


def test_a_constant_box_does_badly_in_windows_of_regions(splits):
    data, split, rng = load("x2vlm_pretrain").data, splits["train"], np.random.default_rng(0)
    assert data.augment.region_crop and data.region_batch.images
    augment, boxes = Augmentation(data.augment, 32), []
    for row in rng.integers(len(split.items), size=400):
        photograph, box = split.photograph(row), split.items.box[row]
        window = random_window_around(box, photograph.width, photograph.height, rng)
        boxes.append(augment.window_view(photograph, box[None], rng, window=window).boxes)
    boxes = jnp.concatenate(boxes)
    assert iou_and_giou(corners(jnp.median(boxes, axis=0)), corners(boxes))[0].mean() < 0.65


@pytest.mark.parametrize("kind, processes, steps", [("4m", 8, 504_495), ("1b", 24, 1_292_034)])
def test_the_published_recipe_is_that_of_its_number_of_processes(kind, processes, steps):
    config = load("x2vlm_pretrain", kind)
    assert config.batch_size == 128 * processes
    assert config.loss.itc * processes == 1
    pairs, epochs = {"4m": (5_114_489, 101), "1b": (1_323_042_683, 3)}[kind]
    assert config.loop.steps == steps == epochs * -(-pairs // config.batch_size)
    with pytest.raises(InputError, match="there are 4m and 1b"):
        load("x2vlm_pretrain", "5m")


# Config -> values of X2-VLM's release, or of X-VLM's where it has none.
PUBLISHED = {
    "coco_retrieval": {
        "model.image_size": 384,
        "batch_size": 20 * 8,
        "optimizer.learning_rate": 3e-5,
        "optimizer.fresh_multiplier": 2,
        "task.top_k": 256,
        "data.max_words": 30,
    },
    "vqav2": {
        "model.image_size": 768,
        "model.decoder_layers": 6,
        "batch_size": 128,
        "optimizer.learning_rate": 4e-5,
        "optimizer.rate_multipliers": (("model/vision/", 0.5), ("model/decoder/", 2.0)),
        "task.answers_ranked": 128,
        "loss.vqa_reduction": "weighted_sum",
    },
    "refcoco_plus": {
        "model.image_size": 384,
        "model.dropout": 0,
        "model.text_drop_path": 0.1,
        "optimizer.learning_rate": 1e-5,
        "data.max_words": 30,
    },
    "coco_captioning": {
        "model.image_size": 384,
        "optimizer.learning_rate": 5e-6,
        "optimizer.rate_multipliers": (("model/vision/", 2.0),),
        "data.captions.prompt": "a picture of",
        "task.beams": 3,
        "task.min_tokens": 5,
        "task.max_tokens": 50,
        "data.cleaning": "none",
        "loss.mlm_probability": 0.6,
        "loss.mlm_max": 18,
        "loss.mlm_insert": True,
        "loss.mlm_smoothing": 0.1,
    },
    "nlvr2": {"model.image_size": 384, "data.max_words": 30},
    "x2vlm_pretrain": {
        "model.image_size": 224,
        "optimizer.learning_rate": 1e-4,
        "optimizer.fresh_multiplier": 2,
        "data.max_words": 40,
        "data.region_batch.weight": 1.0,
        "loss.mlm_probability": 0.5,
        "loss.mlm_max": 12,
        "loss.mlm_spans": "x2vlm",
    },
}
COMMON = {
    "model.attention_dropout": 0.1,
    "optimizer.weight_decay": 0.01,
    "optimizer.decay": "linear",
    "data.augment.randaugment": 2,
    "data.augment.randaugment_level": 7,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_its_values(name):
    config = load(name)
    for key, value in (COMMON | PUBLISHED[name]).items():
        assert functools.reduce(getattr, key.split("."), config) == value, key


def test_flickr30k_has_fewer_candidates():
    assert load("coco_retrieval", "flickr30k").task.top_k == 128


@pytest.mark.slow
@pytest.mark.parametrize("name", ["df2_finetune", "df2_pretrain", "x2vlm_pretrain"])
def test_training_configs_train(name, shrink, tmp_path):
    config = shrink(load(name))
    if name == "x2vlm_pretrain":  # two batches a step: compiles for half a minute otherwise
        config = dataclasses.replace(config, compute=ComputeConfig())
    run = Run(config, tmp_path)
    Trainer(run, CurveEvaluator(EvaluationContext(run))).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    assert ("loss/mlm" in lines[0]) == (name != "df2_finetune")
    assert ("loss/arcface" in lines[0]) == (name == "df2_finetune")
    assert ("regions/loss/box_l1" in lines[0]) == (name == "x2vlm_pretrain")
    assert ("loss/box_l1" in lines[0]) == (name != "x2vlm_pretrain")


@pytest.mark.slow
def test_regions_train_and_are_evaluated(shrink, tmp_path, monkeypatch):
    config = shrink(load("df2_finetune"))
    view = ViewConfig("region", regions_per_image=2)
    config = dataclasses.replace(
        config,
        compute=ComputeConfig(),
        data=dataclasses.replace(config.data, view=view),
        # These compile fast; tests/train/test_forward.py has the other terms with regions.
        loss=LossConfig(itc=1.0, itm=0.0, box_l1=0.0, box_giou=0.0, arcface=1.0, locations=1.0),
        model=WRITING_MODEL,
    )
    detection = DetectionConfig(samples=1)
    evaluation = dataclasses.replace(config.evaluation, rerank=3, detect=True, detection=detection)
    config = dataclasses.replace(config, evaluation=evaluation)
    run = Run(config, tmp_path)
    Trainer(run, CurveEvaluator(EvaluationContext(run))).train()
    evaluate(run)
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["view"] == "region" and metrics["queries"] > 0
    assert metrics["reranked"]["k"] == 3 and metrics["reranked"]["items_encoded"] > 0
    # Written boxes have embeddings already, which are those that the same boxes get otherwise.
    monkeypatch.setattr(_LocalEmbedding, "extend", None)
    convert = LocationDetector._convert
    monkeypatch.setattr(
        LocationDetector, "_convert", lambda self, *inputs: convert(self, *inputs[:3], None)
    )
    evaluate(run)
    again = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["detected"]
    assert metrics["detected"]["detections"] > 100
    for name in ("detections", "mAP", "top_1", "top_20"):
        assert again[name] == pytest.approx(metrics["detected"][name], abs=5e-3)


def test_official_files_and_detected_boxes_are_evaluated(shrink, tmp_path):
    config = shrink(load("df2_zeroshot"))
    raw = pathlib.Path(config.data.source_dir)
    # Perfect detections of all but the first consumer's photograph, and official files that name
    # everything but the last query item.
    queries, gallery, found = [], [], []
    for path in sorted((raw / "validation" / "annos").glob("*.json")):
        annotation, image = json.loads(path.read_text()), int(path.stem)
        for item in (value for key, value in annotation.items() if key.startswith("item")):
            x1, y1, x2, y2 = item["bounding_box"]
            category, pair = item["category_id"], annotation["pair_id"]
            found.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": 1.0,
                }
            )
            entry = {"bbox": [x1, y1, x2, y2], "cls": category, "style": item["style"]}
            entry["pair_id"] = pair
            if annotation["source"] == "user":
                queries.append({"query_image_id": image, **entry})
            else:
                gallery.append({"gallery_image_id": image, **entry})
    official = raw / "json_for_validation"
    official.mkdir()
    last = max(i for i, query in enumerate(queries) if query["style"] > 0)
    (official / "val_query.json").write_text(json.dumps(queries[:last]))
    (official / "val_gallery.json").write_text(json.dumps(gallery))
    first = next(q["query_image_id"] for q in queries if q["style"] > 0)
    found = [d for d in found if d["image_id"] != first]
    (tmp_path / "found.json").write_text(json.dumps(found))

    evaluation = dataclasses.replace(config.evaluation, detections=str(tmp_path / "found.json"))
    evaluate(Run(dataclasses.replace(config, evaluation=evaluation), tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    query_count = sum(query["style"] > 0 for query in queries)
    assert metrics["queries"] == metrics["official"]["queries"] == query_count - 1
    assert metrics["official"]["ground_truth"] == "val_query.json and val_gallery.json"
    detected = metrics["detected"]
    without = sum(q["query_image_id"] == first and q["style"] > 0 for q in queries)
    assert detected["official"]["without_results"] == without > 0
    assert detected["official"]["missed"] == 0
    # Equal boxes give equal results, except for the queries without a detection.
    assert detected["top_20"] <= metrics["top_20"]
    assert detected["mAP"] <= metrics["mAP"] + 1e-6
    assert detected["queries"] == metrics["queries"]


def test_the_zero_shot_config_evaluates_its_initial_model(shrink, tmp_path, capsys):
    evaluate(Run(shrink(load("df2_zeroshot")), tmp_path))
    assert "starting from" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["official"]["queries"] == metrics["queries"] > 0
    assert not any((tmp_path / "checkpoints").iterdir())
