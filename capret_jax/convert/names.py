"""How the reference names and lays out each parameter of ours.

The published `.th` files come from X2-VLM's PyTorch implementation. `reference_names` lists, for
one model size, every parameter path of ours with its name there and its layout.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from capret_jax.models.config import PATCH_SIZE, ModelConfig


class Reference(NamedTuple):
    """A parameter as the reference has it: its name, and what turns its array into ours."""

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out): a linear layer's matrix."""
    return x.T


def _flatten(x: np.ndarray) -> np.ndarray:
    """(1, 1, D) -> (D,): the CLS token."""
    return x.reshape(-1)


def _patch_matrix(x: np.ndarray) -> np.ndarray:
    """(D, 3, 16, 16) -> (16*16*3, D): a 16x16 convolution of stride 16 as a matrix."""
    return x.transpose(2, 3, 1, 0).reshape(PATCH_SIZE * PATCH_SIZE * 3, -1)


# Buffers and ties, which carry no information of their own. `decoder.*` repeat the token table
# and `predictions.bias`.
IGNORED = {
    r".*relative_position_index": "buffer",
    r".*position_ids": "buffer",
    r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)": "tied",
}


def reference_names(config: ModelConfig) -> dict[str, Reference]:
    """Path of ours ("vision/blocks/0/gamma_1") -> its name and layout in a `pretrain` file."""
    names = {"temperature": Reference("temp", _same)}
    names |= _vision(config)
    names |= _text(config)
    for ours in ("vision_proj", "text_proj"):
        names |= _linear(ours, ours)
    for ours in ("itm_head", "bbox_head"):
        names |= _linear(f"{ours}/up", f"{ours}.0")
        names |= _norm(f"{ours}/norm", f"{ours}.1")
        names |= _linear(f"{ours}/down", f"{ours}.3")
    return names


def _linear(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        f"{ours}/kernel": Reference(f"{theirs}.weight", _transpose),
        f"{ours}/bias": Reference(f"{theirs}.bias", _same),
    }


def _norm(ours: str, theirs: str) -> dict[str, Reference]:
    return {
        f"{ours}/scale": Reference(f"{theirs}.weight", _same),
        f"{ours}/bias": Reference(f"{theirs}.bias", _same),
    }


def _vision(config: ModelConfig) -> dict[str, Reference]:
    theirs = "vision_encoder"
    names = {
        "vision/cls_token": Reference(f"{theirs}.cls_token", _flatten),
        "vision/patch_embed/kernel": Reference(f"{theirs}.patch_embed.proj.weight", _patch_matrix),
        "vision/patch_embed/bias": Reference(f"{theirs}.patch_embed.proj.bias", _same),
    }
    for i in range(config.vision_depth):
        names |= _vision_block(f"vision/blocks/{i}", f"{theirs}.blocks.{i}")
    return names | _norm("vision/norm", f"{theirs}.fc_norm")


def _vision_block(ours: str, theirs: str) -> dict[str, Reference]:
    table = f"{theirs}.attn.relative_position_bias_table"
    return {
        f"{ours}/gamma_1": Reference(f"{theirs}.gamma_1", _same),
        f"{ours}/gamma_2": Reference(f"{theirs}.gamma_2", _same),
        f"{ours}/attention/qkv/kernel": Reference(f"{theirs}.attn.qkv.weight", _transpose),
        f"{ours}/attention/q_bias": Reference(f"{theirs}.attn.q_bias", _same),
        f"{ours}/attention/v_bias": Reference(f"{theirs}.attn.v_bias", _same),
        f"{ours}/attention/relative_position_bias": Reference(table, _same),
        **_linear(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        **_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        **_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        **_linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        **_linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    }


def _text(config: ModelConfig) -> dict[str, Reference]:
    bert, mlm = "text_encoder.bert", "text_encoder.cls.predictions"
    names = {
        f"text/embeddings/{ours}/embedding": Reference(
            f"{bert}.embeddings.{ours}_embeddings.weight", _same
        )
        for ours in ("word", "position", "token_type")
    }
    names |= _norm("text/embeddings/norm", f"{bert}.embeddings.LayerNorm")
    for i in range(config.text_layers):
        names |= _bert_layer(f"text/layers/{i}", f"{bert}.encoder.layer.{i}")
    for i in range(config.fusion_layers):
        theirs = f"{bert}.encoder.layer.{config.text_layers + i}"
        names |= _bert_layer(f"fusion/layers/{i}", theirs)
        names |= _bert_attention(f"fusion/layers/{i}/cross_attention", f"{theirs}.crossattention")
    names |= _linear("mlm_head/dense", f"{mlm}.transform.dense")
    names |= _norm("mlm_head/norm", f"{mlm}.transform.LayerNorm")
    return names | {"mlm_head/bias": Reference(f"{mlm}.bias", _same)}


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
