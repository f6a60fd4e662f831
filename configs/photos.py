"""A shop's own photographs, ten minutes on two CPU cores: a small encoder, trained from scratch.

    python -m capret_jax.main --config=configs/photos.py --workdir=runs/photos \\
        --config.data.source_dir=FOLDER

FOLDER has DeepFashion2's layout. `configs/photos.py:long` takes up to forty minutes. docs/recipe.md
has what was tried, and what each choice gave.
"""

import dataclasses

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
    to_config_dict,
)
from capret_jax.errors import InputError


def get_config(kind: str = "short"):
    """Returns the config; every key can be overridden: --config.loop.steps=1000.

    Args:
        kind: "short" or "long".

    Raises:
        InputError: `kind` is neither "short" nor "long".
    """
    if kind not in ("short", "long"):
        raise InputError(f"configs/photos.py:{kind} does not exist; there are short and long.")
    config = _short()
    if kind == "long":
        config.model.vision_width, config.model.vision_depth = 96, 3
        config.loop.steps = 5400
    return config


def _short():
    return to_config_dict(
        ExperimentConfig(
            batch_size=128,
            model=dataclasses.replace(
                SIZES["tiny"],
                # Views count more than layers and width: 2 layers beat 3, 4 and 6 in the same time,
                # and width 64 with 2,800 steps beats 96 with 1,400 (mAP 0.68 and 0.57).
                image_size=128,
                vision_width=64,
                vision_depth=2,
                embed_dim=128,
                # Not used: a few hundred garments teach no language from scratch.
                text_layers=1,
                fusion_layers=1,
                vocab_size=256,
                drop_path=0.0,
                dropout=0.0,
            ),
            data=DataConfig(
                name="deepfashion2",
                captions=CaptionConfig(fields=()),
                max_tokens=12,
                views_per_identity=2,
                augment=AugmentConfig(
                    # The corners of a garment's box show the ground it lies on. Cutting them away
                    # doubles the mAP (0.34 with a margin of 0.1, 0.51 with 0, 0.60 with -0.1).
                    margin=-0.1,
                    shrink=0.2,
                    crop_area=0.5,
                    rotate=20.0,
                    perspective=0.2,
                    brightness=0.3,
                    colour=0.12,
                    contrast=0.3,
                    saturation=0.4,
                    hue=0.03,
                    grey=0.05,
                    blur=0.2,
                    erase=0.5,
                    erase_area=0.3,
                ),
                # Decoded photographs of DeepFashion2's size take 2 MB each.
                read=ReadConfig(threads=1, cached_images=2500),
            ),
            loss=LossConfig(itc=0.0, itm=0.0, box_l1=0.0, box_giou=0.0, arcface=1.0),
            optimizer=OptimizerConfig(
                name="muon",
                learning_rate=4e-3,
                warmup_steps=50,
                decay="cosine",
                # Ten times the demo's: with few identities the encoder learns them by heart.
                weight_decay=0.5,
                clip_norm=1.0,
                # Each output sums 768 correlated pixel values, as in configs/demo.py.
                rate_multipliers=(("model/vision/patch_embed", 0.1),),
            ),
            loop=LoopConfig(steps=2600, log_every=50, checkpoint_every=650),
        )
    )
