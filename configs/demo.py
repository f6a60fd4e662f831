"""The whole system in minutes on two CPU cores: a tiny X2-VLM, trained from scratch on drawings.

`configs/demo.py:long` takes a quarter of an hour: more pixels, depth, garments and steps, and
more of the views that teach to find garments.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    to_config_dict,
)
from capret_jax.errors import InputError


def get_config(kind: str = "short"):
    """Every key can be overridden: --config.loop.steps=200.

    Raises:
        InputError: `kind` is neither "short" nor "long".
    """
    if kind not in ("short", "long"):
        raise InputError(f"configs/demo.py:{kind} does not exist; there are short and long.")
    config = _short()
    if kind == "long":
        config.model.image_size, config.model.vision_depth = 96, 4
        config.data.variant, config.data.read.cached_images = "large", 30_000
        config.data.augment.wide, config.loop.steps = 0.6, 12_000
    return config


def _short():
    return to_config_dict(
        ExperimentConfig(
            batch_size=64,
            model=dataclasses.replace(
                SIZES["tiny"],
                embed_dim=128,
                vocab_size=256,
                # Categories are told apart by shape, which takes more than colours and patterns do.
                vision_width=96,
                # Captions from a template need little depth, and their layers cost the most here.
                text_layers=1,
                fusion_layers=1,
                drop_path=0.0,
                dropout=0.0,
            ),
            data=DataConfig(
                # The other fields say nothing of the garment, and cost a third of the time.
                captions=CaptionConfig(fields=("category",)),
                max_tokens=12,
                # Every identity comes back twice as often as with 4 views, which ArcFace needs to
                # get going: its class directions move only when their identity is seen.
                views_per_identity=2,
                augment=AugmentConfig(brightness=0.15, erase=0.0, wide=0.45),
                read=ReadConfig(threads=1, cached_images=10_000),
            ),
            loss=LossConfig(itc=1.0, itm=1.0, box_l1=2.0, box_giou=1.0, arcface=0.4),
            optimizer=OptimizerConfig(
                learning_rate=2e-3,
                warmup_steps=50,
                decay="cosine",
                weight_decay=0.05,
                clip_norm=1.0,
                # 768 correlated pixels feed each output: at the full rate the brightness of a
                # patch swings by more than anything else it could say.
                rate_multipliers=(("model/vision/patch_embed", 0.2),),
            ),
            loop=LoopConfig(steps=3200, log_every=50, checkpoint_every=800),
            evaluation=EvaluationConfig(detect=True, rerank=20),
        )
    )
