"""The fusion encoder: BERT layers with cross-attention to the image."""

import jax
from flax import nnx

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.models.bert import BertLayer
from capret_jax.models.layers import dropout_arguments, run_layers, split_key


class FusionEncoder(nnx.Module):
    """Fuses text states with the vision states they attend to; position 0 represents the pair."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        self.compute = compute
        self.drop_path_rate = config.text_drop_path
        self.layers = nnx.List(
            [
                BertLayer(config, compute, context_width=config.vision_width)
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
        """Computes fused states; K consecutive texts belong to one image.

        Args:
            text: (B*K, T, D) text states.
            token_mask: 0/1 of the tokens, (B*K, T) or, where queries differ, (B*K, T, T).
            image: (B, 1+N, D') vision states.
            image_mask: (B, 1+N) 0/1 of visible positions; None for all.
            key: random key, which turns dropout on.

        Returns:
            (B*K, T, D).
        """
        context = (token_mask, image, image_mask)
        arguments = dropout_arguments(split_key(key, len(self.layers)), self.drop_path_rate)
        return run_layers(self.layers, text, context, arguments, self.compute)
