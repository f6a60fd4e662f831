"""Settings of tasks that cannot be are errors that name the key."""

import dataclasses

import pytest

from capret_jax.config import (
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    EmbeddingConfig,
    EvaluationConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LoopConfig,
    LossConfig,
    TaskConfig,
    ViewConfig,
    check_same_training,
)
from capret_jax.errors import InputError
from tests.small_model import SMALL_MODEL

NLVR = dataclasses.replace(SMALL_MODEL, nlvr=True)
NONE = LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=0, nlvr=1)
TASK = TaskConfig(name="nlvr2", train=("train.json",), test="test.json", images="images")
CONFIG = ExperimentConfig(model=NLVR, loss=NONE, task=TASK)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "colouring"}, "task.name='colouring' is none of retrieval"),
        ({"test": ""}, "task.name='nlvr2' needs task.test"),
        ({"images": ""}, "task.name='nlvr2' needs task.images"),
        ({"name": "vqa"}, "task.name='vqa' needs task.answers"),
        ({"name": "grounding"}, "task.name='grounding' needs task.refs"),
        ({"refs": "refs.p"}, "task.refs='refs.p' is of task.name='grounding'"),
        ({"top_k": 5}, "task.top_k=5 is of task.name='retrieval'"),
        ({"name": ""}, "task.train=.*and task.name='' does not read it"),
        ({"name": "retrieval", "top_k": 0}, "task.top_k=0 must be at least 1"),
        ({"name": "captioning", "max_tokens": 4}, "max_tokens=4 is less than task.min_tokens=5"),
    ],
)
def test_wrong_tasks_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TASK, **changes)


def test_detection_has_no_location_batch_beside_its_pictures():
    task = dataclasses.replace(TASK, name="detection")
    loss = dataclasses.replace(NONE, nlvr=0, locations=1)
    config = ExperimentConfig(model=SMALL_MODEL, loss=loss, task=task)
    scaled = DataConfig(location_batch=LocationBatchConfig(scale=(1.0, 1.2)))
    assert dataclasses.replace(config, data=scaled).located_images == 0
    more = DataConfig(location_batch=LocationBatchConfig(images=8))
    with pytest.raises(InputError, match="location_batch.images=8 is not read .*batch_size"):
        dataclasses.replace(config, data=more)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": dataclasses.replace(TASK, train=())}, "needs config.task.train to train"),
        ({"loss": dataclasses.replace(NONE, itc=1)}, "loss.itc=1 cannot be computed of .*'nlvr2'"),
        ({"loss": dataclasses.replace(NONE, itc=1, nlvr=0)}, "config.loss.itc=1 cannot"),
        ({"model": SMALL_MODEL}, "config.loss.nlvr .*config.model.nlvr"),
        ({"task": TaskConfig()}, "config.loss.nlvr .*config.task.name='nlvr2'"),
        ({"data": DataConfig(view=ViewConfig("image"))}, "config.data.view is for photographs"),
        ({"data": DataConfig(name="deepfashion2")}, "config.data.name is for photographs"),
        ({"data": DataConfig(captions=CaptionConfig(dropout=0.5))}, "config.data.captions is for"),
        (
            {"data": DataConfig(captions=CaptionConfig(prompt="a"))},
            "prompt='a' is what",
        ),
        ({"data": DataConfig(augment=AugmentConfig(wide=0.5))}, "augment.wide shows windows"),
        (
            {"data": DataConfig(augment=AugmentConfig(region_crop=True))},
            "augment.region_crop shows",
        ),
        ({"data": DataConfig(augment=AugmentConfig(trim=0.2))}, "augment.trim is for photographs"),
        ({"embedding": EmbeddingConfig("joined")}, "config.embedding.kind is for photographs"),
        ({"evaluation": EvaluationConfig(rerank=5)}, "config.evaluation.rerank is for"),
        ({"loop": LoopConfig(evaluate_every=1, keep_best="mAP")}, "'mAP' is none of accuracy"),
    ],
)
def test_combinations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_boxes_are_not_cut_away():
    loss = dataclasses.replace(NONE, nlvr=0, box_l1=1)
    task = dataclasses.replace(TASK, name="grounding", refs="refs.p", instances="instances.json")
    grounding = dataclasses.replace(CONFIG, loss=loss, task=task)
    with pytest.raises(InputError, match="crop_area, rotate and perspective may cut away the box"):
        augment = AugmentConfig(crop_area=0.5)
        dataclasses.replace(grounding, data=DataConfig(augment=augment))


def test_without_training_no_training_files_are_needed():
    task = dataclasses.replace(TASK, train=())
    assert dataclasses.replace(CONFIG, mode="evaluate", task=task).task == task


def test_the_best_model_of_garments_is_not_chosen_by_a_tasks_metric():
    with pytest.raises(InputError, match="loop.keep_best='CIDEr' is none of mAP"):
        ExperimentConfig(loop=LoopConfig(evaluate_every=1, keep_best="CIDEr"))
    assert dataclasses.replace(CONFIG, loop=LoopConfig(evaluate_every=1, keep_best="accuracy"))


def test_a_run_may_be_evaluated_on_another_file_but_is_of_one_task():
    saved = dataclasses.asdict(CONFIG)

    def check(**changes):
        task = dataclasses.replace(TASK, **changes)
        check_same_training(saved, dataclasses.asdict(dataclasses.replace(CONFIG, task=task)), "x")

    check(test="other.json", images="elsewhere", train=("moved.json",))
    with pytest.raises(InputError, match="config.task.name was 'nlvr2' and is 'vqa'"):
        check_same_training(saved, saved | {"task": saved["task"] | {"name": "vqa"}}, "x")
    saved.pop("task")  # a checkpoint of before there were tasks
    with pytest.raises(InputError, match="config.task.name was '' and is 'nlvr2'"):
        check()
