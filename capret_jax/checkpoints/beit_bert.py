"""Builds X2-VLM before its pre-training from a BEiT-v2 vision encoder and a BERT text encoder.

BEiT-v2 (arXiv 2208.06366) files hold `blocks.*` with a relative position table per block, or one
table for all blocks. Hugging Face BERT files hold `bert.*` and `cls.*`, or the encoder alone
without a prefix. The fusion layers are copies of the last text layers. Of a BERT with twice as many
layers as text layers are needed (bert-large-uncased, 24), every second one is taken.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from capret_jax.checkpoints.conversion import Converted, fill_missing
from capret_jax.checkpoints.names import (
    ReferenceTensor,
    fusion_names,
    mlm_head_names,
    text_names,
    vision_names,
)
from capret_jax.checkpoints.recognition import image_size_of_table, without_module_prefix
from capret_jax.checkpoints.report import Report
from capret_jax.checkpoints.tensors import (
    convert_tensors,
    dtype_notes,
    parameter_shapes,
    paths_by_name,
    raise_if_any,
)
from capret_jax.config import SIZES, ModelConfig
from capret_jax.errors import InputError

KIND = "beit_bert"

_BEIT_IGNORED = {
    r"head\.(weight|bias)": "classifier of the fine-tuning",
    r"(.*\.)?relative_position_index": "buffer, computed anew",
    r"norm\.(weight|bias)": "norm before the pre-training head; X2-VLM has its own after pooling",
    r"mask_token|lm_head\..*|cls_pt_layers\..*": "of the pre-training task",
}
_BERT_IGNORED = {
    r"(bert\.)?pooler\.dense\.(weight|bias)": "X2-VLM takes [CLS] itself",
    r"(bert\.)?embeddings\.(position_ids|token_type_ids)": "buffer, computed anew",
    r"cls\.seq_relationship\.(weight|bias)": "next-sentence head",
    r"cls\.predictions\.decoder\.(weight|bias)": "tied to the token table and the head's bias",
}
_SKIPPED = "layer that X2-VLM's text encoder, half as deep, leaves out"
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


class _SourceFile(NamedTuple):
    """One of the two files.

    Attributes:
        family: name for error messages.
        state: name -> array.
        names: path of each parameter -> its tensor in the file.
        ignored: pattern of the names that are not parameters -> reason.
    """

    family: str
    state: Mapping[str, np.ndarray]
    names: Mapping[str, ReferenceTensor]
    ignored: Mapping[str, str]


def from_beit_and_bert(
    beit: Mapping[str, np.ndarray],
    bert: Mapping[str, np.ndarray],
    config: ModelConfig | None = None,
) -> Converted:
    """Returns X2-VLM before its pre-training; cross-attention and heads are initialised fresh.

    Args:
        beit, bert: name -> array, from `read_state_dict`.
        config: the shapes, needed if they are not a row of `SIZES`; its image size is not used.

    Raises:
        InputError: a name is missing or unknown, or has another shape or dtype.
    """
    (beit, beit_notes), (bert, bert_notes) = map(without_module_prefix, (beit, bert))
    config = _at_image_size_of(beit, config or _detect_size(beit, bert))
    config = dataclasses.replace(config, decoder_layers=0, frames=0)
    if config.fusion_layers > config.text_layers:
        raise InputError(
            f"the {config.fusion_layers} fusion layers are copies of text layers, and this size "
            f"has only {config.text_layers} of them."
        )
    report = Report(KIND, _size_name(config), config.image_size, notes=beit_notes + bert_notes)
    vision = _SourceFile("BEiT-v2", beit, _vision_names(beit, config), _BEIT_IGNORED)
    source_layers = text_layer_sources(bert, config, report)
    names = _text_names(bert, config, source_layers)
    skipped = {rf"(bert\.)?encoder\.layer\.{i}\..*": _SKIPPED for i in _others(source_layers)}
    text = _SourceFile("BERT", bert, names, _BERT_IGNORED | skipped)
    arrays = _convert(vision, config, report) | _convert(text, config, report)
    return fill_missing(Converted(unflatten_dict(arrays, sep="/"), config, report))


def _convert(source: _SourceFile, config: ModelConfig, report: Report) -> dict[str, np.ndarray]:
    """Returns path -> parameter of one of the files; adds its names to `report`."""
    arrays, problems = convert_tensors(source.state, source.names, parameter_shapes(config))
    used = paths_by_name(source.names)
    for name in (name for name in source.state if name not in used):
        matches = (
            reason for pattern, reason in source.ignored.items() if re.fullmatch(pattern, name)
        )
        reason = next(matches, None)
        if reason is None:
            problems.append(f"unexpected {name} {source.state[name].shape}")
        else:
            report.ignored[name] = reason
    raise_if_any(problems, f"this is no {source.family} checkpoint of size {report.size}")
    report.used |= used
    report.notes += dtype_notes(source.state[name] for name in used)
    return arrays


def _detect_size(beit: Mapping[str, np.ndarray], bert: Mapping[str, np.ndarray]) -> ModelConfig:
    widths = (_width(beit, "cls_token"), _width(bert, "embeddings.word_embeddings.weight"))
    for config in SIZES.values():
        if widths == (config.vision_width, config.text_width):
            return config
    known = ", ".join(
        f"{size} {config.vision_width} and {config.text_width}" for size, config in SIZES.items()
    )
    raise InputError(
        f"widths {widths[0]} (vision) and {widths[1]} (text) are of no known size ({known})."
    )


def _size_name(config: ModelConfig) -> str:
    widths = config.vision_width, config.text_width
    matches = [s for s, c in SIZES.items() if widths == (c.vision_width, c.text_width)]
    return matches[0] if matches else "custom"


def _width(state: Mapping[str, np.ndarray], suffix: str) -> int:
    for name, array in state.items():
        if name.removeprefix("bert.") == suffix and array.ndim:
            return array.shape[-1]
    raise InputError(f"the checkpoint is not of the kind expected: missing {suffix}.")


def _at_image_size_of(beit: Mapping[str, np.ndarray], config: ModelConfig) -> ModelConfig:
    for name in (_SHARED_TABLE, "blocks.0.attn.relative_position_bias_table"):
        if name in beit:
            return image_size_of_table(config, beit[name].shape[0])
    raise InputError(f"the BEiT-v2 checkpoint has neither {_SHARED_TABLE} nor one per block.")


def _vision_names(
    beit: Mapping[str, np.ndarray], config: ModelConfig
) -> dict[str, ReferenceTensor]:
    names = vision_names(config, "")
    if _SHARED_TABLE in beit:
        names |= {
            path: ReferenceTensor(_SHARED_TABLE)
            for path in names
            if path.endswith("relative_position_bias")
        }
    if "fc_norm.weight" not in beit and "norm.weight" in beit:
        # A model that was trained only by masked image modelling has no norm after pooling.
        names = {
            path: tensor for path, tensor in names.items() if not path.startswith("vision/norm/")
        }
    return names


def text_layer_sources(
    bert: Mapping[str, np.ndarray], config: ModelConfig, report: Report
) -> list[int]:
    """Returns the file's layer of each text layer: every second one of a BERT twice as deep.

    Args:
        bert: name -> array, of which the names are read.
        config: shapes of the model.
        report: report that a line is added to, if layers are skipped.
    """
    pattern = r"(bert\.)?encoder\.layer\.(\d+)\..*"
    found = {int(match[2]) for name in bert if (match := re.fullmatch(pattern, name))}
    if len(found) != 2 * config.text_layers:
        return list(range(config.text_layers))
    layers = list(range(1, len(found), 2))
    report.notes.append(
        f"of BERT's {len(found)} layers, the text layers are {', '.join(map(str, layers))}"
    )
    return layers


def _others(layers: list[int]) -> set[int]:
    return set(range(max(layers, default=0))) - set(layers)


def _text_names(
    bert: Mapping[str, np.ndarray], config: ModelConfig, source_layers: list[int]
) -> dict[str, ReferenceTensor]:
    """Returns path -> tensor of the BERT file; `source_layers`: from `text_layer_sources`."""
    prefix = "bert." if any(name.startswith("bert.") for name in bert) else ""
    names = text_names(config, prefix, source_layers)
    first_copied = config.text_layers - config.fusion_layers
    names |= fusion_names(config, prefix, source_layers[first_copied:])
    if any(name.startswith("cls.predictions.") for name in bert):
        names |= mlm_head_names("cls.")
    if any(name.endswith("LayerNorm.gamma") for name in bert):
        # The first BERT files have the parameter names of TensorFlow.
        names = {
            path: tensor._replace(name=_tensorflow_name(tensor.name))
            for path, tensor in names.items()
        }
    return names


def _tensorflow_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
