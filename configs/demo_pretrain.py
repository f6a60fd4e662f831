"""A tiny X2-VLM that knows language and objects: what a published checkpoint is to photographs.

It learns from drawings of garments that the demo never shows, with captions that tell their
details, and to answer questions about them. Nobody tells it which drawings are of one garment.
"""

import pathlib
import runpy

from capret_jax.data.schema import DETAILS, LEVELS


def get_config():
    """Every key can be overridden: --config.loop.steps=200."""
    config = _demo()
    config.model.vocab_size, config.model.decoder_layers = 320, 1
    data = config.data
    data.variant, data.read.cached_images = "pretrain", 20_000
    data.captions.fields, data.captions.short = ("category", *DETAILS), 0.2
    # As a published model does, it knows the words that others will use of other things.
    data.vocabulary, data.max_tokens = tuple(LEVELS), 28
    data.views_per_identity, data.augment.wide = 0, 0.1
    config.loss.update(
        {"itc": 1.0, "itm": 1.0, "mlm": 1.0, "mlm_causal": True, "vqa": 2.0, "arcface": 0.0}
    )
    config.loop.steps, config.loop.checkpoint_every = 5000, 1000
    config.evaluation.detect, config.evaluation.rerank = False, 0
    return config


def _demo():
    """The same tiny model and optimizer."""
    path = pathlib.Path(__file__).with_name("demo.py")
    return runpy.run_path(str(path))["get_config"]()
