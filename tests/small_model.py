"""Shapes of models for tests, apart from `tests.conftest`, which sets a number of devices."""

import dataclasses

from capret_jax.config import SIZES

# Compiles in seconds, with every part of the model in it.
SMALL_MODEL = dataclasses.replace(
    SIZES["tiny"],
    image_size=32,
    vision_depth=1,
    text_layers=1,
    fusion_layers=1,
    vocab_size=256,
    dropout=0.0,
    drop_path=0.0,
)
ANSWERING_MODEL = dataclasses.replace(SMALL_MODEL, decoder_layers=1)
WRITING_MODEL = dataclasses.replace(SMALL_MODEL, location_layers=1, location_items=3)
