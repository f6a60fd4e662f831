"""Names and layouts of the parameters in X2-VLM's PyTorch files.

For one model size and one kind of file, `reference_names` lists the path of every JAX parameter
with its name and layout in the file; `ignored_names` lists the other tensors of such a file.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.checkpoints.kinds import COMPLETE, KINDS
from capret_jax.config import ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.models.beit import relative_position_index

StateDict = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """Conversions between the layouts of a parameter; they return views where NumPy can."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# The matrix of a linear layer: (out, in) in PyTorch, (in, out) in JAX.
TRANSPOSED = Layout(np.transpose, np.transpose)
# The CLS token: (1, 1, D) in PyTorch, (D,) in JAX.
FLAT = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))
# Positions of video frames: (1, F, 1, D) in PyTorch, (F, D) in JAX.
FRAMES = Layout(lambda x: x[0, :, 0], lambda x: x[None, :, None])
# A 16x16 convolution of stride 16, (D, 3, 16, 16) in PyTorch; a matrix (768, D) in JAX.
PATCHES = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(PATCH_SIZE * PATCH_SIZE * 3, -1),
    lambda x: x.reshape(PATCH_SIZE, PATCH_SIZE, 3, -1).transpose(3, 2, 0, 1),
)


class ReferenceTensor(NamedTuple):
    """Name and layout of a parameter in a file of the reference implementation."""

    name: str
    layout: Layout = SAME


class IgnoredTensor(NamedTuple):
    """A tensor of a file that is not a parameter.

    Attributes:
        reason: reason to ignore it, for the report.
        value: function that computes it from the rest of the state dict; None if it cannot be
            computed.
        shape: expected shape, with None for any length.
        tied_to: name of the tensor of which it is a copy; empty if it is none.
    """

    reason: str
    value: Callable[[StateDict], np.ndarray] | None
    shape: tuple[int | None, ...]
    tied_to: str = ""


_BUFFER = "buffer, computed anew"
FRAME_POSITIONS = "absolute_frame_pos_embed"


def reference_names(config: ModelConfig, kind: str = COMPLETE) -> dict[str, ReferenceTensor]:
    """Returns parameter path ("vision/blocks/0/gamma_1") -> tensor in a file of this kind."""
    prefix = _bert_prefix(kind)
    parts = {
        "temperature": {"temperature": ReferenceTensor("temp")},
        "vision_proj": _linear("vision_proj", "vision_proj"),
        "text_proj": _linear("text_proj", "text_proj"),
        "itm_head": _mlp_head("itm_head"),
        "bbox_head": _mlp_head("bbox_head"),
        "mlm_head": mlm_head_names("text_encoder.cls."),
        "decoder": _decoder(config),
        "frame_positions": _frame_positions(config),
    }
    names = vision_names(config, "vision_encoder.")
    names |= text_names(config, prefix)
    names |= fusion_names(config, prefix)
    names |= _cross_attentions(config, prefix)
    for part in (*KINDS[kind].parts, *KINDS[kind].optional):
        names |= parts[part]
    return names


def _frame_positions(config: ModelConfig) -> dict[str, ReferenceTensor]:
    tensor = ReferenceTensor(FRAME_POSITIONS, FRAMES)
    return {"frame_positions": tensor} if config.frames else {}


def ignored_names(config: ModelConfig, kind: str) -> dict[str, IgnoredTensor]:
    """Returns name -> tensor of the buffers, tied tensors and extras in a file of this kind."""
    positions = 1 + config.grid**2
    buffer = IgnoredTensor(_BUFFER, lambda _: _position_index(config.grid), (positions, positions))
    names = {
        f"vision_encoder.blocks.{i}.attn.relative_position_index": buffer
        for i in range(config.vision_depth)
    }
    names |= _bert_buffers(config, _bert_prefix(kind))
    if "mlm_head" in KINDS[kind].parts:
        names |= _tied_tensors(config, "text_encoder.")
    if "decoder" in KINDS[kind].parts:
        names |= _bert_buffers(config, "text_decoder.bert.")
        names |= _tied_tensors(config, "text_decoder.")
    return names | {name: _EXTRAS[name] for name in KINDS[kind].extras}


_EXTRAS = {
    "crit_mask_lm_smoothed.one_hot": IgnoredTensor(
        "buffer of the label-smoothing loss", None, (1, None)
    ),
}


@functools.lru_cache(maxsize=1)
def _position_index(grid: int) -> np.ndarray:
    # PyTorch's indices are int64: 42 MB at 768 pixels, so that all blocks share one array.
    return relative_position_index(grid).astype(np.int64)


def _bert_prefix(kind: str) -> str:
    return "text_encoder.bert." if "mlm_head" in KINDS[kind].parts else "text_encoder."


def _bert_buffers(config: ModelConfig, prefix: str) -> dict[str, IgnoredTensor]:
    positions = np.arange(config.max_positions)[None]
    buffer = IgnoredTensor(_BUFFER, lambda _: positions, positions.shape)
    return {f"{prefix}embeddings.position_ids": buffer}


def _tied_tensors(config: ModelConfig, prefix: str) -> dict[str, IgnoredTensor]:
    table = f"{prefix}bert.embeddings.word_embeddings.weight"
    bias = f"{prefix}cls.predictions.bias"
    return {
        f"{prefix}cls.predictions.decoder.weight": IgnoredTensor(
            f"tied to {table}",
            lambda state: state[table],
            (config.vocab_size, config.text_width),
            table,
        ),
        f"{prefix}cls.predictions.decoder.bias": IgnoredTensor(
            f"tied to {bias}", lambda state: state[bias], (config.vocab_size,), bias
        ),
    }


def vision_names(config: ModelConfig, prefix: str) -> dict[str, ReferenceTensor]:
    """Returns path -> tensor of the BEiT-v2 encoder."""
    names = {
        "vision/cls_token": ReferenceTensor(f"{prefix}cls_token", FLAT),
        "vision/patch_embed/kernel": ReferenceTensor(f"{prefix}patch_embed.proj.weight", PATCHES),
        "vision/patch_embed/bias": ReferenceTensor(f"{prefix}patch_embed.proj.bias"),
    }
    for i in range(config.vision_depth):
        names |= _vision_block(f"vision/blocks/{i}", f"{prefix}blocks.{i}")
    return names | _norm("vision/norm", f"{prefix}fc_norm")


def _vision_block(path: str, name: str) -> dict[str, ReferenceTensor]:
    return {
        f"{path}/gamma_1": ReferenceTensor(f"{name}.gamma_1"),
        f"{path}/gamma_2": ReferenceTensor(f"{name}.gamma_2"),
        f"{path}/attention/qkv/kernel": ReferenceTensor(f"{name}.attn.qkv.weight", TRANSPOSED),
        f"{path}/attention/q_bias": ReferenceTensor(f"{name}.attn.q_bias"),
        f"{path}/attention/v_bias": ReferenceTensor(f"{name}.attn.v_bias"),
        f"{path}/attention/relative_position_bias": ReferenceTensor(
            f"{name}.attn.relative_position_bias_table"
        ),
        **_linear(f"{path}/attention/out", f"{name}.attn.proj"),
        **_norm(f"{path}/norm1", f"{name}.norm1"),
        **_norm(f"{path}/norm2", f"{name}.norm2"),
        **_linear(f"{path}/mlp/up", f"{name}.mlp.fc1"),
        **_linear(f"{path}/mlp/down", f"{name}.mlp.fc2"),
    }


def text_names(
    config: ModelConfig, prefix: str, layers: Sequence[int] | None = None
) -> dict[str, ReferenceTensor]:
    """Returns path -> tensor of the text encoder: BERT's embeddings and layers.

    Args:
        config: shapes of the model.
        prefix: start of the names.
        layers: number in the file of each text layer; None for the first ones in order.
    """
    names = _bert_embeddings("text/embeddings", prefix)
    for i, layer in enumerate(range(config.text_layers) if layers is None else layers):
        names |= _bert_layer(f"text/layers/{i}", f"{prefix}encoder.layer.{layer}")
    return names


def fusion_names(
    config: ModelConfig, prefix: str, layers: Sequence[int] | None = None
) -> dict[str, ReferenceTensor]:
    """Returns path -> tensor of the fusion layers, without cross-attention.

    Args:
        config: shapes of the model.
        prefix: start of the names.
        layers: number in the file of each fusion layer; None for those behind the text layers.
    """
    first = config.text_layers
    names: dict[str, ReferenceTensor] = {}
    behind = range(first, first + config.fusion_layers)
    for i, layer in enumerate(behind if layers is None else layers):
        names |= _bert_layer(f"fusion/layers/{i}", f"{prefix}encoder.layer.{layer}")
    return names


def _cross_attentions(config: ModelConfig, prefix: str) -> dict[str, ReferenceTensor]:
    names: dict[str, ReferenceTensor] = {}
    for i in range(config.fusion_layers):
        name = f"{prefix}encoder.layer.{config.text_layers + i}.crossattention"
        names |= _bert_attention(f"fusion/layers/{i}/cross_attention", name)
    return names


def _decoder(config: ModelConfig) -> dict[str, ReferenceTensor]:
    prefix = "text_decoder.bert."
    names = _bert_embeddings("decoder/embeddings", prefix)
    for i in range(config.decoder_layers):
        path, name = f"decoder/layers/{i}", f"{prefix}encoder.layer.{i}"
        names |= _bert_layer(path, name)
        names |= _bert_attention(f"{path}/cross_attention", f"{name}.crossattention")
    return names | mlm_head_names("text_decoder.cls.", "decoder/head")


def mlm_head_names(prefix: str, path: str = "mlm_head") -> dict[str, ReferenceTensor]:
    """Returns path -> tensor of BERT's masked language model head, tied output matrix excluded."""
    name = f"{prefix}predictions"
    return {
        **_linear(f"{path}/dense", f"{name}.transform.dense"),
        **_norm(f"{path}/norm", f"{name}.transform.LayerNorm"),
        f"{path}/bias": ReferenceTensor(f"{name}.bias"),
    }


def _bert_embeddings(path: str, prefix: str) -> dict[str, ReferenceTensor]:
    names = {
        f"{path}/{table}/embedding": ReferenceTensor(
            f"{prefix}embeddings.{table}_embeddings.weight"
        )
        for table in ("word", "position", "token_type")
    }
    return names | _norm(f"{path}/norm", f"{prefix}embeddings.LayerNorm")


def _bert_layer(path: str, name: str) -> dict[str, ReferenceTensor]:
    return {
        **_bert_attention(f"{path}/attention", f"{name}.attention"),
        **_linear(f"{path}/mlp/up", f"{name}.intermediate.dense"),
        **_linear(f"{path}/mlp/down", f"{name}.output.dense"),
        **_norm(f"{path}/norm", f"{name}.output.LayerNorm"),
    }


def _bert_attention(path: str, name: str) -> dict[str, ReferenceTensor]:
    return {
        **_linear(f"{path}/query", f"{name}.self.query"),
        **_linear(f"{path}/key", f"{name}.self.key"),
        **_linear(f"{path}/value", f"{name}.self.value"),
        **_linear(f"{path}/out", f"{name}.output.dense"),
        **_norm(f"{path}/norm", f"{name}.output.LayerNorm"),
    }


def _mlp_head(name: str) -> dict[str, ReferenceTensor]:
    return {
        **_linear(f"{name}/up", f"{name}.0"),
        **_norm(f"{name}/norm", f"{name}.1"),
        **_linear(f"{name}/down", f"{name}.3"),
    }


def _linear(path: str, name: str) -> dict[str, ReferenceTensor]:
    return {
        f"{path}/kernel": ReferenceTensor(f"{name}.weight", TRANSPOSED),
        f"{path}/bias": ReferenceTensor(f"{name}.bias"),
    }


def _norm(path: str, name: str) -> dict[str, ReferenceTensor]:
    return {
        f"{path}/scale": ReferenceTensor(f"{name}.weight"),
        f"{path}/bias": ReferenceTensor(f"{name}.bias"),
    }
