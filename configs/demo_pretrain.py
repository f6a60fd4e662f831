"""Pre-training of a tiny X2-VLM, the demo's counterpart of a published checkpoint.

The model learns from synthetic pictures of garments that are not in the demo's dataset, with
captions that describe their details and questions about them, without their identities.
"""

import pathlib
import runpy

from capret_jax.data.schema import DETAILS, LEVELS


def get_config():
    """Returns the config; every key can be overridden: --config.loop.steps=200."""
    config = _demo()
    config.model.vocab_size, config.model.decoder_layers = 320, 1
    config.model.location_layers = 0  # as in a published model
    data = config.data
    data.variant, data.read.cached_images = "pretrain", 20_000
    data.captions.fields, data.captions.short = ("category", *DETAILS), 0.2
    # As in a published model, the vocabulary holds words of captions that it is not trained on.
    data.vocabulary, data.max_tokens = tuple(LEVELS), 28
    data.views_per_identity, data.augment.wide = 0, 0.1
    config.loss.update(
        {"itc": 1.0, "itm": 1.0, "mlm": 1.0, "mlm_causal": True, "vqa": 2.0, "arcface": 0.0}
    )
    config.loss.update(locations=0.0, location_smoothing=0.0)
    config.optimizer.update(name="adamw", learning_rate=2e-3)  # as for a published model
    config.loop.steps, config.loop.checkpoint_every = 5000, 1000
    config.evaluation.update(detect=False, rerank=0)
    return config


def _demo():
    """Returns the demo's config, which has the same model."""
    path = pathlib.Path(__file__).with_name("demo.py")
    return runpy.run_path(str(path))["get_config"]()
