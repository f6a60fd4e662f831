"""The whole system in minutes on two CPU cores: a tiny X2-VLM, trained from scratch on drawings."""

import dataclasses

from capret_jax.config import ExperimentConfig, to_config_dict
from capret_jax.data.dataset import DataConfig
from capret_jax.losses.total import LossConfig
from capret_jax.models.config import SIZES
from capret_jax.train.loop import LoopConfig
from capret_jax.train.optimizer import OptimizerConfig


def get_config():
    """Every key can be overridden: --config.loop.steps=200."""
    return to_config_dict(
        ExperimentConfig(
            batch_size=64,
            model=dataclasses.replace(SIZES["tiny"], vocab_size=256, drop_path=0.0, dropout=0.0),
            data=DataConfig(max_tokens=32),
            loss=LossConfig(itc=0.5, itm=0.2, box_l1=0.5, box_giou=0.2, arcface=1.0),
            optimizer=OptimizerConfig(
                learning_rate=2e-3,
                warmup_steps=50,
                decay="cosine",
                weight_decay=0.05,
                clip_norm=1.0,
            ),
            loop=LoopConfig(steps=1000, log_every=50, checkpoint_every=250),
        )
    )
