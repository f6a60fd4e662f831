"""A tiny X2-VLM that knows language and objects: what a published checkpoint is to photographs.

It learns from drawings of garments that the demo never shows, with captions that tell their
details, and to answer questions about them. No identity is trained.
"""

import dataclasses

from capret_jax.config import ExperimentConfig, to_config_dict
from capret_jax.data.captions import CaptionConfig
from capret_jax.data.dataset import DataConfig
from capret_jax.data.pipeline import ReadConfig
from capret_jax.data.schema import DETAILS
from capret_jax.data.transforms import AugmentConfig
from capret_jax.losses.total import LossConfig
from capret_jax.models.config import SIZES
from capret_jax.train.loop import LoopConfig
from capret_jax.train.optimizer import OptimizerConfig


def get_config():
    """Every key can be overridden: --config.loop.steps=200."""
    return to_config_dict(
        ExperimentConfig(
            batch_size=64,
            model=dataclasses.replace(
                SIZES["tiny"],
                embed_dim=128,
                vocab_size=320,
                vision_width=96,
                text_layers=1,
                fusion_layers=1,
                decoder_layers=1,
                drop_path=0.0,
                dropout=0.0,
            ),
            data=DataConfig(
                variant="pretrain",
                captions=CaptionConfig(fields=("category", *DETAILS), short=0.2),
                max_tokens=28,
                views_per_identity=2,
                augment=AugmentConfig(brightness=0.15, erase=0.0, wide=0.1),
                read=ReadConfig(threads=1, cached_images=20_000),
            ),
            loss=LossConfig(
                itc=1.0,
                itm=1.0,
                mlm=1.0,
                mlm_causal=True,
                vqa=2.0,
                box_l1=2.0,
                box_giou=1.0,
                arcface=0.0,
            ),
            optimizer=OptimizerConfig(
                learning_rate=2e-3,
                warmup_steps=50,
                decay="cosine",
                weight_decay=0.05,
                clip_norm=1.0,
                rate_multipliers=(("model/vision/patch_embed", 0.2),),
            ),
            loop=LoopConfig(steps=5000, log_every=50, checkpoint_every=1000),
        )
    )
