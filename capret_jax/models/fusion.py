"""The fusion encoder: BERT layers that look at the image."""

import jax
from flax import nnx

from capret_jax.models.config import ModelConfig
from capret_jax.models.layers import split_key
from capret_jax.models.text import BertLayer


class FusionEncoder(nnx.Module):
    """Text states attend to vision states; position 0 then speaks for the pair."""

    def __init__(self, config: ModelConfig):
        self.layers = nnx.List(
            [
                BertLayer(config, context_width=config.vision_width)
                for _ in range(config.fusion_layers)
            ]
        )

    def __call__(
        self,
        text: jax.Array,
        token_mask: jax.Array,
        image: jax.Array,
        image_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """text (B, T, D), image (B, 1+N, D'), masks 0/1 -> (B, T, D); `key` turns dropout on."""
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            text = layer(text, token_mask, image, image_mask, layer_key)
        return text
