"""The experiment: does language help image retrieval? On drawings, in 70 minutes.

    python tools/run_ablation.py --config=configs/ablation.py --workdir=runs/ablation

Every cell starts from one model that knows language and objects (`pretraining`, or
`experiment.init_from`), and is `experiment` with the changes of its arms. On DeepFashion2:
`configs/ablation.py:df2`, with a converted checkpoint.
"""

import pathlib
import runpy

import ml_collections

from capret_jax.errors import InputError


# Arms that say the same say it in dicts of their own: one can be overridden without the others.
def _language(*fields: str) -> dict:
    """Trains with captions: a template of some fields, or collected ones in its place."""
    return {"loss": {"itc": 0.5, "itm": 0.5}, "data": {"captions": {"fields": fields}}}


def _boxes(**data) -> dict:
    return {"loss": {"box_l1": 2.0, "box_giou": 1.0}, "data": data}


def _dropped() -> dict:
    return {"data": {"captions": {"dropout": 0.3}}}


_CAPTIONS = {
    # A phrase that says nothing, for the box loss, which needs one.
    "none": {"loss": {"itc": 0.0, "itm": 0.0}, "data": {"captions": {"fields": ()}}},
    "category": _language("category"),
    "template": _language("category", "viewpoint", "occlusion", "scale", "zoom_in"),
    "captioner": _language("category"),
    "ic3": _language("category"),
    "conversation": _language("category"),
    "true": _language("category"),
}
# How the captions of an arm come about (`collecting.CollectConfig`), and the folder of who looks:
# the model that cells start from if empty. On photographs a conversation needs a converted VQA
# checkpoint, the others one with a language model's head.
_COLLECTED = {
    "captioner": {"method": "captioner", "looker": ""},
    "ic3": {"method": "ic3", "questioner": "http://localhost:8000/v1", "looker": ""},
    "conversation": {"questioner": "script", "looker": ""},
    "true": {"method": "annotations", "looker": ""},
}
_OBJECTS = {
    "none": {"loss": {"box_l1": 0.0, "box_giou": 0.0}},
    "box": _boxes(),
    # Items as regions of whole photographs, which the box loss then needs as well.
    "regions": _boxes(view={"kind": "region"}, augment={"wide": 0.0}),
}
_STAGES = {
    # Of the same items no identity is told: captions and boxes are all there is to learn from, and
    # without them the first model stays as it is.
    "zero_shot": {"loss": {"arcface": 0.0}, "data": {"views_per_identity": 0}},
    "fine_tuned": {"loss": {"arcface": 1.0}},
}
# Kinds of embedding, the captions that validation items have at inference, and what changes in
# training: one that reads captions must do without, too.
_EMBEDDINGS = {
    "image": {"said": ("none",), "changes": {}},
    "text": {"said": ("generated", "oracle"), "changes": {}},
    "joined": {"said": ("none", "generated", "oracle"), "changes": _dropped()},
    "fusion": {"said": ("none", "generated", "oracle"), "changes": _dropped()},
}


def get_config(data: str = "demo"):
    """Every key can be overridden: --config.run.seeds="(0,)"; what arms set comes after
    `experiment`: --config.stages.fine_tuned.loss.arcface=0.5.

    Raises:
        InputError: `data` is neither "demo" nor "df2".
    """
    if data not in ("demo", "df2"):
        raise InputError(f"configs/ablation.py:{data} does not exist; there are demo and df2.")
    return ml_collections.ConfigDict(
        {
            # What every cell starts from, unless `experiment.init_from` names a checkpoint.
            "pretraining": _config_of("demo_pretrain"),
            "experiment": _demo() if data == "demo" else _df2(),
            "captions": _CAPTIONS,
            "collected": _COLLECTED,
            "objects": _OBJECTS,
            "stages": _STAGES,
            "embeddings": _EMBEDDINGS,
            # The captions, objects and stage with which embeddings that read captions are trained,
            # and the arm whose captions are the oracle's.
            "read_by": ("conversation", "box", "fine_tuned"),
            "oracle": "true",
            # What is run.
            "run": {
                "captions": ("none", "category", "template", "captioner", "conversation"),
                "objects": ("none", "box"),
                "stages": ("zero_shot", "fine_tuned"),
                "embeddings": ("image", "text", "joined", "fusion"),
                "seeds": (0, 1, 2, 3),
            },
            "keep_models": data == "demo",
        }
    )


def _demo() -> ml_collections.ConfigDict:
    config = _config_of("demo")
    pretraining = _config_of("demo_pretrain")
    config.model = pretraining.model
    config.model.decoder_layers = 0
    config.data.max_tokens = pretraining.data.max_tokens
    # Every arm sees the same pictures, and all of them can teach it.
    config.data.augment.wide = 0.0
    config.loop.steps, config.loop.checkpoint_every = 500, 500
    config.optimizer.learning_rate = 1e-3
    config.evaluation.detect, config.evaluation.rerank = False, 0
    config.evaluation.baselines = False
    return config


def _df2() -> ml_collections.ConfigDict:
    config = _config_of("df2_finetune")
    config.data.max_tokens = 40  # a language model's sentences are longer than the template's
    return config


def _config_of(name: str) -> ml_collections.ConfigDict:
    """Of the file beside this one."""
    path = pathlib.Path(__file__).parent / f"{name}.py"
    return runpy.run_path(str(path))["get_config"]()
