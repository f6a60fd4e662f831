"""Demo, minutes on two CPU cores: a tiny X2-VLM, trained from scratch on synthetic pictures.

`configs/demo.py:long` takes twenty minutes: more pixels, layers, garments and steps, and more
wide views, from which the model learns to detect garments.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    to_config_dict,
)
from capret_jax.errors import InputError


def get_config(kind: str = "short"):
    """Returns the config; every key can be overridden: --config.loop.steps=200.

    Args:
        kind: "short" or "long".

    Raises:
        InputError: `kind` is neither "short" nor "long".
    """
    if kind not in ("short", "long"):
        raise InputError(f"configs/demo.py:{kind} does not exist; there are short and long.")
    config = _short()
    if kind == "long":
        config.model.image_size, config.model.vision_depth = 96, 4
        config.data.variant, config.data.read.cached_images = "large", 30_000
        config.data.augment.wide, config.loop.steps = 0.6, 8_000
    return config


def _short():
    return to_config_dict(
        ExperimentConfig(
            batch_size=64,
            model=dataclasses.replace(
                SIZES["tiny"],
                embed_dim=128,
                vocab_size=256,
                # Categories differ in shape, which takes a wider model than colours and patterns.
                vision_width=96,
                location_layers=2,
                location_items=3,  # a drawn photograph has one or two
                # Template captions need few layers, and text layers cost the most time here.
                text_layers=1,
                fusion_layers=1,
                drop_path=0.0,
                dropout=0.0,
            ),
            data=DataConfig(
                # The other fields do not describe the garment, and cost a third of the time.
                captions=CaptionConfig(fields=("category",)),
                max_tokens=12,
                # Each identity is in twice as many batches as with 4 views. ArcFace needs that: its
                # class directions change only in batches with their identity.
                views_per_identity=2,
                augment=AugmentConfig(
                    # The corners of a box show the ground: cut away, they take mAP from 0.63 to
                    # 0.83 (docs/recipe.md).
                    margin=-0.1,
                    shrink=0.2,
                    brightness=0.15,
                    erase=0.0,
                    # Boxes are learnt from these views alone: on crops, a constant box will do.
                    wide=0.45,
                ),
                # Scales near 1 alone, since there is no time to learn others (docs/detection.md).
                location_batch=LocationBatchConfig(images=48, scale=(1.0, 1.3)),
                read=ReadConfig(threads=1, cached_images=10_000),
            ),
            loss=LossConfig(
                itc=1.0,
                itm=1.0,
                box_l1=1.0,
                box_giou=0.5,
                arcface=0.4,
                locations=3.0,
                # Few photographs: neighbouring bins are learnt together.
                location_smoothing=5.0,
            ),
            optimizer=OptimizerConfig(
                # Learns in two thirds of AdamW's steps, at twice its rate (docs/recipe.md).
                name="muon",
                learning_rate=4e-3,
                warmup_steps=50,
                decay="cosine",
                weight_decay=0.05,
                clip_norm=1.0,
                # Each output sums 768 correlated pixel values: at the full rate a patch's
                # brightness would dominate its embedding.
                rate_multipliers=(("model/vision/patch_embed", 0.2),),
            ),
            loop=LoopConfig(steps=3200, log_every=50, checkpoint_every=800),
            evaluation=EvaluationConfig(detect=True, detectors=("phrases",), rerank=20),
        )
    )
