"""Ablation of captions and objects, on synthetic pictures: an hour and a half on two CPU cores.

    python tools/run_ablation.py --config=configs/ablation.py --workdir=runs/ablation

Every cell starts from one model trained with language and boxes (`pretraining`, or
`experiment.init_from`). Its configuration is `experiment` with the changes of its arms. Others:
`configs/ablation.py:photos` for a shop's photographs in DeepFashion2's layout, from the model that
was trained on drawings, and `configs/ablation.py:df2` with a converted checkpoint.
"""

import pathlib
import runpy

import ml_collections
from ml_collections import config_dict

from capret_jax.errors import InputError


# Arms do not share dicts, so that each can be overridden alone.
def _language(*fields: str) -> dict:
    """Returns settings of training with captions, from a template or a collection."""
    return {"loss": {"itc": 0.5, "itm": 0.5}, "data": {"captions": {"fields": fields}}}


def _boxes(**data) -> dict:
    return {"loss": {"box_l1": 1.0, "box_giou": 0.5}, "data": data}


def _dropped() -> dict:
    return {"data": {"captions": {"dropout": 0.3}}}


_CAPTIONS = {
    # An empty template, since the box loss needs a phrase.
    "none": {"loss": {"itc": 0.0, "itm": 0.0}, "data": {"captions": {"fields": ()}}},
    "category": _language("category"),
    "template": _language("category", "viewpoint", "occlusion", "scale", "zoom_in"),
    "captioner": _language("category"),
    "ic3": _language("category"),
    "conversation": _language("category"),
    "true": _language("category"),
}
# Settings of an arm's caption collection (`captioning.config.CollectConfig`), and the folder of the
# model that answers or captions: the cells' initial model if empty. On photographs a conversation
# needs a converted VQA checkpoint, "captioner" and "ic3" one with a trained language model head.
_COLLECTED = {
    "captioner": {"method": "captioner", "vqa_model": ""},
    "ic3": {"method": "ic3", "questioner": "http://localhost:8000/v1", "vqa_model": ""},
    "conversation": {"questioner": "script", "vqa_model": ""},
    "true": {"method": "annotations", "vqa_model": ""},
}
_OBJECTS = {
    "none": {"loss": {"box_l1": 0.0, "box_giou": 0.0}},
    "box": _boxes(),
    # Items as regions of whole photographs, which the box loss then needs as well.
    "regions": _boxes(view={"kind": "region"}, augment={"wide": 0.0}),
}
_STAGES = {
    # The same items without identities: only captions and boxes are trained on, and without them
    # the initial model is evaluated as it is.
    "zero_shot": {"loss": {"arcface": 0.0}, "data": {"views_per_identity": 0}},
    # The same items and no identities either, and a loss that only tells pictures apart: captions
    # and objects are compared at an equal number of steps.
    "self_supervised": {
        "loss": {"arcface": 0.0, "supcon": 1.0},
        "data": {"views_per_identity": 0, "views_per_item": 2},
    },
    "fine_tuned": {"loss": {"arcface": 1.0}},
}
# Kinds of embedding; sources of the validation items' captions, one evaluation each; and changes in
# training: dropout of captions, since embeddings are also evaluated without.
_EMBEDDINGS = {
    "image": {"captions": ("none",), "changes": {}},
    "text": {"captions": ("generated", "oracle"), "changes": {}},
    "joined": {"captions": ("none", "generated", "oracle"), "changes": _dropped()},
    "fusion": {"captions": ("none", "generated", "oracle"), "changes": _dropped()},
}


def get_config(data: str = "demo"):
    """Returns the ablation's configuration.

    Every key can be overridden: --config.run.seeds="(0,)". The changes of arms override
    `experiment`: --config.stages.fine_tuned.loss.arcface=0.5.

    Args:
        data: "demo", "photos" or "df2".

    Raises:
        InputError: `data` is none of them.
    """
    experiments = {"demo": _demo, "photos": _photos, "df2": _df2}
    if data not in experiments:
        raise InputError(
            f"configs/ablation.py:{data} does not exist; there are {', '.join(experiments)}."
        )
    config = ml_collections.ConfigDict(
        {
            # The initial model of every cell, unless `experiment.init_from` names a checkpoint.
            "pretraining": _config_of("demo_pretrain"),
            "experiment": experiments[data](),
            "captions": _CAPTIONS,
            "collected": _COLLECTED,
            "objects": _OBJECTS,
            "stages": _STAGES,
            "embeddings": _EMBEDDINGS,
            # Captions, objects and stage of the embeddings that read captions, and the arm whose
            # captions are the oracle's.
            "read_by": ("conversation", "box", "fine_tuned"),
            "oracle": "true",
            # The selected arms.
            "run": {
                # A model of drawings says little of photographs that is true.
                "captions": ("none", "category", "template")
                if data == "photos"
                else ("none", "category", "template", "captioner", "conversation"),
                "objects": ("none", "box"),
                "stages": ("zero_shot", "self_supervised", "fine_tuned"),
                "embeddings": ("image",)
                if data == "photos"
                else ("image", "text", "joined", "fusion"),
                "seeds": (0, 1, 2),
            },
            "keep_models": data != "df2",
        }
    )
    # Old names of keys: `ablation.grid` refuses an override of them with the new name.
    for collection in config.collected.values():
        collection.looker = config_dict.placeholder(str)
    for embedding in config.embeddings.values():
        embedding.said = config_dict.placeholder(tuple)
    return config


def _demo() -> ml_collections.ConfigDict:
    config = _config_of("demo")
    pretraining = _config_of("demo_pretrain")
    config.model = pretraining.model
    config.model.decoder_layers = 0
    config.data.max_tokens = pretraining.data.max_tokens
    # All arms train on the same views. Boxes are learnt from the wide ones, which have no identity.
    config.data.augment.wide = 0.25
    # Objects are boxes of phrases here.
    config.loss.update(matching_group=0, locations=0.0, location_smoothing=0.0)
    config.loop.steps, config.loop.checkpoint_every = 500, 500
    # As the model that all arms start from (docs/experiment.md).
    config.optimizer.update(name="adamw", learning_rate=1e-3)
    config.evaluation.update(detect=False, rerank=0, baselines=False)
    return config


def _photos() -> ml_collections.ConfigDict:
    config = _demo()
    photos = _config_of("photos")
    config.data.name, config.data.read = photos.data.name, photos.data.read
    config.data.augment = photos.data.augment
    # Rotation and perspective would move the boxes' edges.
    config.data.augment.update({"wide": 0.25, "rotate": 0.0, "perspective": 0.0, "crop_area": 1.0})
    config.optimizer.weight_decay = photos.optimizer.weight_decay
    return config


def _df2() -> ml_collections.ConfigDict:
    config = _config_of("df2_finetune")
    config.data.max_tokens = 40  # sentences of a language model are longer than template captions
    # All arms are compared after the same number of steps.
    config.loop.update({"evaluate_every": 0, "keep_best": ""})
    config.evaluation.interpolate = ()
    return config


def _config_of(name: str) -> ml_collections.ConfigDict:
    """The config of another file in this folder."""
    path = pathlib.Path(__file__).parent / f"{name}.py"
    return runpy.run_path(str(path))["get_config"]()
