"""Shapes of X2-VLM (arXiv 2211.12402), and settings of its computation."""

import dataclasses

from capret_jax.config.attention import ATTENTION, KERNEL_PLATFORMS, misfit
from capret_jax.errors import InputError

PATCH_SIZE = 16
EMBEDDINGS = ("image", "text", "joined", "fusion")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes of an X2-VLM; `SIZES` has the published ones.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 16.
        vision_width, vision_depth, vision_heads: the BEiT-v2 encoder.
        text_width, text_heads, text_hidden: the BERT layers; `text_hidden` is the width of the MLP.
        text_layers, fusion_layers: number of BERT layers without and with cross-attention.
        vocab_size, max_positions: rows of the token and position tables.
        embed_dim: E, the width of the retrieval embedding.
        decoder_layers: number of layers of the VQA answer decoder; 0 for no decoder.
        location_layers: number of layers of the decoder that writes where objects are; 0 for no
            such decoder, or for `fusion_layers` where `loss.locations` trains it.
        location_items: objects that it writes of a picture.
        location_classes: their classes; 13 are DeepFashion2's categories.
        nlvr: True for a head that compares a sentence with two pictures.
        frames: number of frame positions of a video model, see `X2VLM.encode_video`; 0 for none.
        layer_scale: initial value of gamma_1 and gamma_2 in the vision blocks.
        drop_path: rate of stochastic depth in the last vision block; it grows linearly from 0.
        dropout: rate on the hidden states of the text, fusion and decoder layers.
        attention_dropout: rate on the attention weights of these layers, which then have no fused
            kernel in training; 0.1 in X2-VLM.
        text_drop_path: rate of stochastic depth in the last text layer, and in the last fusion
            layer; in each of the two stacks it grows linearly from 0. X2-VLM trains grounding with
            0.1 in place of `dropout`, which is then 0.
        embedding: kind of the retrieval embedding, see `X2VLM.item_features`; in the config of a
            run, `config.embedding.kind`.
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
    location_layers: int = 0
    location_items: int = 20
    location_classes: int = 13
    nlvr: bool = False
    max_positions: int = 512
    layer_scale: float = 0.1
    drop_path: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.0
    text_drop_path: float = 0.0
    embedding: str = "image"
    frames: int = 0

    def __post_init__(self):
        if self.embedding not in EMBEDDINGS:
            raise InputError(
                f"embedding.kind={self.embedding!r} is none of {', '.join(EMBEDDINGS)}."
            )
        for name in ("dropout", "attention_dropout", "drop_path", "text_drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)} is not in [0, 1).")
        for name in ("decoder_layers", "location_layers", "frames"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name}={getattr(self, name)} is negative.")
        sizes = ("vision_width", "vision_heads", "text_width", "text_heads", "embed_dim")
        for name in (*sizes, "location_items", "location_classes"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)} is not positive.")
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
        """Number g of patches along one side of the image; N = g * g."""
        return self.image_size // PATCH_SIZE

    @property
    def item_width(self) -> int:
        """Width of the retrieval embedding of an item: E, or 2E for "joined"."""
        return self.embed_dim * (2 if self.embedding == "joined" else 1)


DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "attention", "full", "vision")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Settings of the computation; they change results only by rounding.

    Attributes:
        dtype: dtype of activations, and of the copies of parameters in matrix products. The
            parameters, softmax, statistics of norms and losses are float32.
        remat: rematerialisation in the backward pass: "none" recomputes nothing, "dots" everything
            but matrix products and attention, "attention" everything but attention, "full" whole
            layers, "vision" is "attention" in the vision encoder, whose sequences are long, and
            "dots" in other layers.
        scan: True to compile layers once, as the body of a scan, False to unroll them.
        attention: "xla", a kernel that keeps the attention weights on the chip, or "auto" for the
            platform's kernel wherever it fits. "tpu" is for encoders with position bias; "cudnn"
            is for all attention on NVIDIA GPUs, in bfloat16.
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
        """Returns the settings with "auto" resolved for a platform, a `jax.Device.platform`.

        Raises:
            InputError: the kernel that `attention` names is for another platform.
        """
        if self.attention == "auto":
            return dataclasses.replace(self, attention=self._fastest_attention(platform))
        if KERNEL_PLATFORMS.get(self.attention, platform) != platform:
            raise InputError(
                f"compute.attention={self.attention!r} is a kernel for "
                f"{KERNEL_PLATFORMS[self.attention]} devices, and these are {platform} devices: "
                "set compute.attention='auto'."
            )
        return self

    def _fastest_attention(self, platform: str) -> str:
        if platform == "gpu" and self.dtype != "bfloat16":
            return "xla"
        return {place: kernel for kernel, place in KERNEL_PLATFORMS.items()}.get(platform, "xla")

    def check_kernel(self, model: ModelConfig, tensor: int = 1) -> None:
        """Checks that the kernel that `attention` names, if any, fits a model in training.

        Args:
            model: shapes of the model.
            tensor: devices that heads are split over.

        Raises:
            InputError: it does not fit.
        """
        if self.attention not in KERNEL_PLATFORMS:
            return
        reasons = []
        # Texts have masks in place of a position bias, and only cuDNN's kernel takes them.
        for encoder in ("vision", "text")[: 1 if self.attention == "tpu" else 2]:
            heads, width = getattr(model, f"{encoder}_heads"), getattr(model, f"{encoder}_width")
            split = 0 if heads % tensor else heads // tensor
            reason = misfit(self.attention, split, width // heads, self.dtype)
            if reason:
                reasons.append(f"{reason} (model.{encoder}_width={width}, {encoder}_heads={heads})")
        if self.attention == "cudnn" and model.attention_dropout:
            rate = model.attention_dropout
            reasons.append(f"it drops no weights (model.attention_dropout={rate})")
        if reasons:
            raise InputError(
                f"compute.attention={self.attention!r} does not fit: {reasons[0]}. "
                "compute.attention='auto' takes the kernel where it fits."
            )


# Runs on any platform, in float32.
PLAIN = ComputeConfig(attention="xla")

_BERT_VOCAB = 30522

SIZES = {
    # Small enough for the CPU of a laptop; the golden files in tests/data have these shapes.
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
