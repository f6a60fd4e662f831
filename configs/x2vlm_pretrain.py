"""X2-VLM base, pre-trained with the values of the published recipe: whole pictures and regions.

    python -m capret_jax.main --config=configs/x2vlm_pretrain.py --workdir=runs/x2vlm_pretrain \\
        --config.data.source_dir=/data/DeepFashion2

`configs/x2vlm_pretrain.py:1b` has the values of the recipe for a billion pairs. Comments say where
a value is from: the settings or the code of X2-VLM's release (arXiv 2211.12402, commit 21ed5a5).
docs/x2vlm_recipe.md has what they mean here, and what differs. Starts from BEiT-v2 and BERT
(docs/checkpoints.md).
"""

import dataclasses
from typing import NamedTuple

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    RegionBatchConfig,
    ViewConfig,
    to_config_dict,
)
from capret_jax.errors import InputError


class _Recipe(NamedTuple):
    """Values that differ between the released settings, base size.

    Attributes:
        processes: W, GPUs of the published run.
        images: pictures of a process in the region batch.
        weight: `iter_perc` of the region batch.
        tokens: tokens of a caption.
        steps: steps of the learning-rate schedule, epochs x pairs / batch.
    """

    processes: int
    images: int
    weight: float
    tokens: int
    steps: int


_RECIPES = {
    # 101 epochs of 5,114,489 pairs.
    "4m": _Recipe(processes=8, images=50, weight=1.0, tokens=40, steps=504_495),
    # 3 epochs of 1,323,042,683 pairs.
    "1b": _Recipe(processes=24, images=26, weight=0.5, tokens=30, steps=1_292_034),
}


def get_config(kind: str = "4m"):
    """Returns the config; every key can be overridden: --config.loss.itc=1.

    Args:
        kind: "4m" or "1b", by the number of image-text pairs of the published run.

    Raises:
        InputError: `kind` is neither "4m" nor "1b".
    """
    if kind not in _RECIPES:
        raise InputError(f"configs/x2vlm_pretrain.py:{kind} does not exist; there are 4m and 1b.")
    recipe = _RECIPES[kind]
    return to_config_dict(
        ExperimentConfig(
            # Whole photographs do not tell their items apart: the model is to be fine-tuned.
            mode="train",
            batch_size=128 * recipe.processes,  # released settings: 128 a process
            init_from="checkpoints/start",
            # 224 pixels, and stochastic depth of 0.1 in the vision encoder: released code. Dropout
            # of hidden states and of attention weights: BERT's settings, which it uses.
            model=dataclasses.replace(
                SIZES["base"], drop_path=0.1, dropout=0.1, attention_dropout=0.1
            ),
            # Instead of mixed precision in float16.
            compute=ComputeConfig(dtype="bfloat16", remat="vision", scan=True),
            data=DataConfig(
                name="deepfashion2",
                tokenizer="bert-base-uncased",
                max_tokens=recipe.tokens,  # released settings
                max_words=40,  # released code
                views_per_identity=0,  # image-text pairs have no identities
                view=ViewConfig("image"),
                region_batch=RegionBatchConfig(
                    # Released settings: at most 50 or 26 pictures a process, of each at most 5
                    # regions. DeepFashion2's photographs have 1.6 items: 2 would cost less.
                    images=recipe.images * recipe.processes,
                    regions_per_image=5,
                    weight=recipe.weight,
                ),
                augment=AugmentConfig(
                    # Released code; all other changes are off.
                    crop_area=0.2,
                    region_crop=True,
                    flip=0.5,
                    randaugment=2,
                    randaugment_level=7,
                    trim=0.0,
                    brightness=0.0,
                    colour=0.0,
                    erase=0.0,
                ),
                read=ReadConfig(threads=16, prefetch=16),
            ),
            loss=LossConfig(
                # The gradient of the released all-gather is 1/W of that of the same loss.
                itc=1 / recipe.processes,
                # Weights of 1: released code.
                itm=1.0,
                mlm=1.0,
                # Released settings: half of the tokens, 12 at most, in runs of tokens.
                mlm_probability=0.5,
                mlm_max=12,
                mlm_spans="x2vlm",
                box_l1=1.0,
                box_giou=1.0,
                arcface=0.0,
                matching_group=0,  # released code: negatives from all pairs of a process
            ),
            optimizer=OptimizerConfig(
                # Released settings.
                learning_rate=1e-4,
                fresh_multiplier=2.0,
                warmup_steps=2500,
                decay="linear",
                final_rate=0.0,
                weight_decay=0.01,
                clip_norm=1.0,
                # Released code.
                b1=0.9,
                b2=0.98,
                eps=1e-8,
            ),
            loop=LoopConfig(steps=recipe.steps, checkpoint_every=5000),
        )
    )
