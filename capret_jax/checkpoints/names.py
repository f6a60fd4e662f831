"""How X2-VLM's PyTorch files name and lay out each parameter of ours.

`reference_names` lists, for one model size and one kind of file, every parameter path of ours
with its name there and its layout; `ignored_names` lists what else such a file holds.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from capret_jax.config import ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.models.beit import relative_position_index

StateDict = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """The two ways between an array of theirs and ours; views where NumPy can."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# A linear layer: theirs (out, in), ours (in, out).
TRANSPOSED = Layout(np.transpose, np.transpose)
# The CLS token: theirs (1, 1, D), ours (D,).
FLAT = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))
# A 16x16 convolution of stride 16, theirs (D, 3, 16, 16), is a matrix on patches, ours (768, D).
PATCHES = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(PATCH_SIZE * PATCH_SIZE * 3, -1),
    lambda x: x.reshape(PATCH_SIZE, PATCH_SIZE, 3, -1).transpose(3, 2, 0, 1),
)


class Reference(NamedTuple):
    """A parameter as the reference has it: its name and its layout."""

    name: str
    layout: Layout = SAME


class Ignored(NamedTuple):
    """What a file holds beside parameters.

    Attributes:
        why: it is not a parameter of ours.
        value: computes it from the rest of the state dict; None where nothing else tells it.
        shape: what its shape must be, None in place of any length.
    """

    why: str
    value: Callable[[StateDict], np.ndarray] | None
    shape: tuple[int | None, ...]


class Kind(NamedTuple):
    """One kind of published file.

    Attributes:
        parts: what it has of our model beside the three encoders.
        extras: names of tensors that only it has and that an image model has no use for.
    """

    parts: tuple[str, ...]
    extras: tuple[str, ...] = ()


_BUFFER = "buffer, computed anew"
_CONTRASTIVE = ("temperature", "vision_proj", "text_proj", "itm_head")

KINDS = {
    "pretrain": Kind((*_CONTRASTIVE, "bbox_head", "mlm_head")),
    "pretrain_stage2": Kind(
        (*_CONTRASTIVE, "bbox_head", "mlm_head"), ("absolute_frame_pos_embed",)
    ),
    "retrieval": Kind(_CONTRASTIVE),
    "grounding": Kind(("bbox_head",)),
    "vqa": Kind(("decoder",)),
    "caption_mlm": Kind(("mlm_head",), ("crit_mask_lm_smoothed.one_hot",)),
}
# With all our parts but the VQA decoder: what a trained model goes home as, and how the parts that
# a file lacks are called.
COMPLETE = "pretrain"


def reference_names(config: ModelConfig, kind: str = COMPLETE) -> dict[str, Reference]:
    """Path of ours ("vision/blocks/0/gamma_1") -> its name and layout in a file of this kind."""
    bert = _bert_prefix(kind)
    parts = {
        "temperature": {"temperature": Reference("temp")},
        "vision_proj": _linear("vision_proj", "vision_proj"),
        "text_proj": _linear("text_proj", "text_proj"),
        "itm_head": _mlp_head("itm_head"),
        "bbox_head": _mlp_head("bbox_head"),
        "mlm_head": mlm_head_names("text_encoder.cls."),
        "decoder": _decoder(config),
    }
    names = vision_names(config, "vision_encoder.")
    names |= text_names(config, bert)
    names |= fusion_names(config, bert, first_layer=config.text_layers)
    names |= _cross_attentions(config, bert)
    for part in KINDS[kind].parts:
        names |= parts[part]
    return names


def ignored_names(config: ModelConfig, kind: str) -> dict[str, Ignored]:
    """Name -> why, for what a file of this kind holds beside parameters: buffers and ties."""
    positions = 1 + config.grid**2
    buffer = Ignored(_BUFFER, lambda _: _position_index(config.grid), (positions, positions))
    names = {
        f"vision_encoder.blocks.{i}.attn.relative_position_index": buffer
        for i in range(config.vision_depth)
    }
    names |= _bert_buffers(config, _bert_prefix(kind))
    if "mlm_head" in KINDS[kind].parts:
        names |= _ties(config, "text_encoder.")
    if "decoder" in KINDS[kind].parts:
        names |= _bert_buffers(config, "text_decoder.bert.")
        names |= _ties(config, "text_decoder.")
    extras = _extras(config)
    return names | {name: extras[name] for name in KINDS[kind].extras}


def _extras(config: ModelConfig) -> dict[str, Ignored]:
    return {
        "absolute_frame_pos_embed": Ignored(
            "positions of video frames", None, (1, None, 1, config.vision_width)
        ),
        "crit_mask_lm_smoothed.one_hot": Ignored(
            "buffer of the label-smoothing loss", None, (1, None)
        ),
    }


@functools.lru_cache(maxsize=1)
def _position_index(grid: int) -> np.ndarray:
    # torch's indices are 64 bits wide; at 768 pixels that is 42 MB, the same in every block.
    return relative_position_index(grid).astype(np.int64)


def _bert_prefix(kind: str) -> str:
    return "text_encoder.bert." if "mlm_head" in KINDS[kind].parts else "text_encoder."


def _bert_buffers(config: ModelConfig, bert: str) -> dict[str, Ignored]:
    positions = np.arange(config.max_positions)[None]
    buffer = Ignored(_BUFFER, lambda _: positions, positions.shape)
    return {f"{bert}embeddings.position_ids": buffer}


def _ties(config: ModelConfig, model: str) -> dict[str, Ignored]:
    table, bias = f"{model}bert.embeddings.word_embeddings.weight", f"{model}cls.predictions.bias"
    return {
        f"{model}cls.predictions.decoder.weight": Ignored(
            f"tied to {table}", lambda state: state[table], (config.vocab_size, config.text_width)
        ),
        f"{model}cls.predictions.decoder.bias": Ignored(
            f"tied to {bias}", lambda state: state[bias], (config.vocab_size,)
        ),
    }


def vision_names(config: ModelConfig, prefix: str) -> dict[str, Reference]:
    """The BEiT-v2 encoder."""
    names = {
        "vision/cls_token": Reference(f"{prefix}cls_token", FLAT),
        "vision/patch_embed/kernel": Reference(f"{prefix}patch_embed.proj.weight", PATCHES),
        "vision/patch_embed/bias": Reference(f"{prefix}patch_embed.proj.bias"),
    }
    for i in range(config.vision_depth):
        names |= _vision_block(f"vision/blocks/{i}", f"{prefix}blocks.{i}")
    return names | _norm("vision/norm", f"{prefix}fc_norm")


def _vision_block(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        f"{ours}/gamma_1": Reference(f"{theirs}.gamma_1"),
        f"{ours}/gamma_2": Reference(f"{theirs}.gamma_2"),
        f"{ours}/attention/qkv/kernel": Reference(f"{theirs}.attn.qkv.weight", TRANSPOSED),
        f"{ours}/attention/q_bias": Reference(f"{theirs}.attn.q_bias"),
        f"{ours}/attention/v_bias": Reference(f"{theirs}.attn.v_bias"),
        f"{ours}/attention/relative_position_bias": Reference(
            f"{theirs}.attn.relative_position_bias_table"
        ),
        **_linear(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        **_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        **_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        **_linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        **_linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    }


def text_names(config: ModelConfig, bert: str) -> dict[str, Reference]:
    """The text encoder: BERT's embeddings and first layers."""
    names = _bert_embeddings("text/embeddings", bert)
    for i in range(config.text_layers):
        names |= _bert_layer(f"text/layers/{i}", f"{bert}encoder.layer.{i}")
    return names


def fusion_names(config: ModelConfig, bert: str, first_layer: int) -> dict[str, Reference]:
    """The fusion layers without their cross-attention; the first is BERT's `first_layer`."""
    names: dict[str, Reference] = {}
    for i in range(config.fusion_layers):
        names |= _bert_layer(f"fusion/layers/{i}", f"{bert}encoder.layer.{first_layer + i}")
    return names


def _cross_attentions(config: ModelConfig, bert: str) -> dict[str, Reference]:
    names: dict[str, Reference] = {}
    for i in range(config.fusion_layers):
        theirs = f"{bert}encoder.layer.{config.text_layers + i}.crossattention"
        names |= _bert_attention(f"fusion/layers/{i}/cross_attention", theirs)
    return names


def _decoder(config: ModelConfig) -> dict[str, Reference]:
    bert = "text_decoder.bert."
    names = _bert_embeddings("decoder/embeddings", bert)
    for i in range(config.decoder_layers):
        ours, theirs = f"decoder/layers/{i}", f"{bert}encoder.layer.{i}"
        names |= _bert_layer(ours, theirs)
        names |= _bert_attention(f"{ours}/cross_attention", f"{theirs}.crossattention")
    return names | mlm_head_names("text_decoder.cls.", "decoder/head")


def mlm_head_names(prefix: str, ours: str = "mlm_head") -> dict[str, Reference]:
    """BERT's token predictor, without the matrix that it ties to the token table."""
    theirs = f"{prefix}predictions"
    return {
        **_linear(f"{ours}/dense", f"{theirs}.transform.dense"),
        **_norm(f"{ours}/norm", f"{theirs}.transform.LayerNorm"),
        f"{ours}/bias": Reference(f"{theirs}.bias"),
    }


def _bert_embeddings(ours: str, bert: str) -> dict[str, Reference]:
    names = {
        f"{ours}/{table}/embedding": Reference(f"{bert}embeddings.{table}_embeddings.weight")
        for table in ("word", "position", "token_type")
    }
    return names | _norm(f"{ours}/norm", f"{bert}embeddings.LayerNorm")


def _bert_layer(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        **_bert_attention(f"{ours}/attention", f"{theirs}.attention"),
        **_linear(f"{ours}/mlp/up", f"{theirs}.intermediate.dense"),
        **_linear(f"{ours}/mlp/down", f"{theirs}.output.dense"),
        **_norm(f"{ours}/norm", f"{theirs}.output.LayerNorm"),
    }


def _bert_attention(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        **_linear(f"{ours}/query", f"{theirs}.self.query"),
        **_linear(f"{ours}/key", f"{theirs}.self.key"),
        **_linear(f"{ours}/value", f"{theirs}.self.value"),
        **_linear(f"{ours}/out", f"{theirs}.output.dense"),
        **_norm(f"{ours}/norm", f"{theirs}.output.LayerNorm"),
    }


def _mlp_head(name: str) -> dict[str, Reference]:
    return {
        **_linear(f"{name}/up", f"{name}.0"),
        **_norm(f"{name}/norm", f"{name}.1"),
        **_linear(f"{name}/down", f"{name}.3"),
    }


def _linear(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        f"{ours}/kernel": Reference(f"{theirs}.weight", TRANSPOSED),
        f"{ours}/bias": Reference(f"{theirs}.bias"),
    }


def _norm(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        f"{ours}/scale": Reference(f"{theirs}.weight"),
        f"{ours}/bias": Reference(f"{theirs}.bias"),
    }
