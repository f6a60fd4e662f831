"""Sizes of X2-VLM (arXiv 2211.12402), one row each."""

import dataclasses

from capret_jax.errors import InputError

PATCH_SIZE = 16
EMBEDDINGS = ("image", "text", "joined", "fusion")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one X2-VLM; see `SIZES` for the named rows.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 16.
        vision_width, vision_depth, vision_heads: the BEiT-v2 encoder.
        text_width, text_heads, text_hidden: the BERT layers; `text_hidden` is the FFN's width.
        text_layers, fusion_layers: BERT layers without and with cross-attention to the image.
        vocab_size, max_positions: rows of the token and position tables.
        embed_dim: E, the width of the retrieval embedding.
        decoder_layers: of the VQA answer decoder; 0 for a model without one.
        layer_scale: initial value of gamma_1 and gamma_2 in the vision blocks.
        drop_path: stochastic depth of the last vision block; it grows linearly from 0.
        dropout: rate on the hidden states of the text and fusion layers.
        embedding: what items are compared by, see `X2VLM.item_features`; of a run,
            `config.embedding.kind`.
    """

    image_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    text_width: int
    text_heads: int
    text_hidden: int
    text_layers: int
    fusion_layers: int
    vocab_size: int
    embed_dim: int
    decoder_layers: int = 0
    max_positions: int = 512
    layer_scale: float = 0.1
    drop_path: float = 0.1
    dropout: float = 0.1
    embedding: str = "image"

    def __post_init__(self):
        if self.embedding not in EMBEDDINGS:
            raise InputError(
                f"embedding.kind={self.embedding!r} is none of {', '.join(EMBEDDINGS)}."
            )
        if self.image_size < PATCH_SIZE or self.image_size % PATCH_SIZE:
            raise InputError(
                f"model.image_size={self.image_size} is not a positive multiple of {PATCH_SIZE}."
            )
        for width, heads in (("vision_width", "vision_heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise InputError(
                    f"model.{width}={getattr(self, width)} is not divisible by "
                    f"model.{heads}={getattr(self, heads)}."
                )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // PATCH_SIZE

    @property
    def item_width(self) -> int:
        """Numbers in an item's embedding: E, or 2E where two are joined."""
        return self.embed_dim * (2 if self.embedding == "joined" else 1)


DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full", "vision")
ATTENTION = ("auto", "xla", "tpu")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; the result is the same but for rounding.

    Attributes:
        dtype: of activations and of the parameters' copies that matrix products read. The
            parameters themselves, softmax, norms' statistics and losses are float32.
        remat: what the backward pass finds of a layer's forward pass: "none" recomputes nothing,
            "dots" everything but matrix products and attention, "full" the whole layer, "vision"
            the whole layer in the vision encoder, whose sequences are long, and "dots" elsewhere.
        scan: layers as one scanned body, which is compiled once, instead of one after the other.
        attention: "xla", "tpu" (a fused kernel, for encoders with position bias), or "auto": the
            one for the machine.
    """

    dtype: str = "float32"
    remat: str = "none"
    scan: bool = False
    attention: str = "auto"

    def __post_init__(self):
        for name, known in (("dtype", DTYPES), ("remat", REMAT), ("attention", ATTENTION)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"compute.{name}={value!r} is none of {', '.join(known)}.")

    def on(self, platform: str) -> "ComputeConfig":
        """With "auto" decided for a platform, as `jax.Device.platform` names it."""
        if self.attention != "auto":
            return self
        return dataclasses.replace(self, attention="tpu" if platform == "tpu" else "xla")


# Anywhere, in float32.
PLAIN = ComputeConfig(attention="xla")

_BERT_VOCAB = 30522

SIZES = {
    # Small enough for a laptop's CPU; its shape is also that of the golden files in tests/data.
    "tiny": ModelConfig(
        image_size=64, vision_width=64, vision_depth=3, vision_heads=4,
        text_width=48, text_heads=4, text_hidden=96, text_layers=2, fusion_layers=2,
        vocab_size=120, embed_dim=32, max_positions=64, layer_scale=1.0,
    ),
    "base": ModelConfig(
        image_size=224, vision_width=768, vision_depth=12, vision_heads=12,
        text_width=768, text_heads=12, text_hidden=3072, text_layers=12, fusion_layers=6,
        vocab_size=_BERT_VOCAB, embed_dim=256,
    ),
    "large": ModelConfig(
        image_size=224, vision_width=1024, vision_depth=24, vision_heads=16,
        text_width=1024, text_heads=16, text_hidden=4096, text_layers=12, fusion_layers=6,
        vocab_size=_BERT_VOCAB, embed_dim=256, layer_scale=1e-5,
    ),
}  # fmt: skip
