"""Where X2-VLM itself started: a BEiT-v2 vision encoder and a BERT text encoder.

BEiT-v2 (arXiv 2208.06366) files hold `blocks.*` with a relative position table per block, or one
table that all share; Hugging Face BERT files hold `bert.*` and `cls.*`, or the encoder alone
without a prefix. The fusion layers begin as copies of the last text layers.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from capret_jax.checkpoints.conversion import (
    Converted,
    Report,
    dtype_notes,
    fill_missing,
    image_size_of_table,
    parameter_shapes,
    refuse,
    take,
    users,
)
from capret_jax.checkpoints.names import (
    Reference,
    fusion_names,
    mlm_head_names,
    text_names,
    vision_names,
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
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


def from_beit_and_bert(
    beit: Mapping[str, np.ndarray],
    bert: Mapping[str, np.ndarray],
    config: ModelConfig | None = None,
) -> Converted:
    """X2-VLM before its pre-training; cross-attention and heads are fresh.

    Args:
        beit, bert: name -> array, as `read_state_dict` returns them.
        config: the shapes, where they are no row of `SIZES`; its image size is not looked at.

    Raises:
        InputError: a name is missing or unknown, or a shape or dtype is another.
    """
    config = _at_image_size_of(beit, config or _detect_size(beit, bert))
    report = Report(KIND, _size_name(config), config.image_size)
    arrays = _read(beit, _vision_names(beit, config), _BEIT_IGNORED, "BEiT-v2", config, report)
    arrays |= _read(bert, _text_names(bert, config), _BERT_IGNORED, "BERT", config, report)
    return fill_missing(Converted(unflatten_dict(arrays, sep="/"), config, report))


def _read(
    state: Mapping[str, np.ndarray],
    names: Mapping[str, Reference],
    ignored: Mapping[str, str],
    family: str,
    config: ModelConfig,
    report: Report,
) -> dict[str, np.ndarray]:
    """Our parameters from one of the files; what became of its names is added to `report`."""
    arrays, problems = take(state, names, parameter_shapes(config))
    used = users(names)
    for name in (name for name in state if name not in used):
        why = next((why for p, why in ignored.items() if re.fullmatch(p, name)), None)
        if why is None:
            problems.append(f"unexpected {name} {state[name].shape}")
        else:
            report.ignored[name] = why
    refuse(problems, f"this is no {family} checkpoint of size {report.size}")
    report.used |= used
    report.notes += dtype_notes(state[name] for name in used)
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


def _vision_names(beit: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Reference]:
    names = vision_names(config, "")
    if _SHARED_TABLE in beit:
        names |= {
            path: Reference(_SHARED_TABLE)
            for path in names
            if path.endswith("relative_position_bias")
        }
    if "fc_norm.weight" not in beit and "norm.weight" in beit:
        # Straight from masked image modelling, which does not pool.
        names = {path: n for path, n in names.items() if not path.startswith("vision/norm/")}
    return names


def _text_names(bert: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Reference]:
    prefix = "bert." if any(name.startswith("bert.") for name in bert) else ""
    names = text_names(config, prefix)
    names |= fusion_names(config, prefix, config.text_layers - config.fusion_layers)
    if any(name.startswith("cls.predictions.") for name in bert):
        names |= mlm_head_names("cls.")
    if any(name.endswith("LayerNorm.gamma") for name in bert):
        # As TensorFlow named them, kept by the first BERT files.
        names = {
            path: reference._replace(name=_tf(reference.name)) for path, reference in names.items()
        }
    return names


def _tf(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
