"""Recognises checkpoints of models that are related to X2-VLM, and cannot become one."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from capret_jax.errors import InputError

_XLM_R_VOCABULARY = 250_002
_WORD_TABLE = re.compile(r"text_encoder\..*word_embeddings\.weight")


class _Family(NamedTuple):
    """A family of checkpoints.

    Attributes:
        description: name of the family and what is different in it.
        names: pattern of the names that only this family has.
        remedy: kind of file to convert instead.
    """

    description: str
    names: str
    remedy: str


_CCLM = _Family(
    "CCLM, whose text encoder is XLM-R",
    r"(text_encoder|cross_encoder)\.roberta\..*",
    "convert a file of X2-VLM, whose texts are English",
)
_FAMILIES = (
    _CCLM,
    _Family(
        "X-VLM, whose vision encoder is a Swin transformer",
        r"vision_encoder\.layers\.\d+\.(blocks|downsample)\..*",
        "convert a file of X2-VLM, whose vision encoder is BEiT-v2",
    ),
    _Family(
        "X-VLM with CLIP-ViT as its vision encoder",
        r"vision_encoder\.(.*\.)?(class_embedding|pre_layrnorm\..*|self_attn\.q_proj\..*)",
        "convert a file of X2-VLM, whose vision encoder is BEiT-v2",
    ),
)
_REMEDY_OF_HEADS = "convert the pretrain file that it was fine-tuned from, and train its task anew"


def refuse_other_families(state: Mapping[str, np.ndarray]) -> None:
    """Refuses the files of CCLM, of X-VLM with another vision encoder, and of classifiers.

    Args:
        state: name -> array.

    Raises:
        InputError: the file belongs to another family, which the message names.
    """
    for family in _FAMILIES:
        name = next((name for name in state if re.fullmatch(family.names, name)), None)
        if name:
            raise _refusal(family.description, name, family.remedy)
    for name, array in state.items():
        if _WORD_TABLE.fullmatch(name) and array.shape[:1] == (_XLM_R_VOCABULARY,):
            reason = f"{name} has {_XLM_R_VOCABULARY:,} rows"
            raise _refusal(_CCLM.description, reason, _CCLM.remedy)
    head = next((name for name in state if name.startswith("cls_head.")), None)
    if head:
        raise _refusal(_classifier(state), head, _REMEDY_OF_HEADS)


def _refusal(description: str, reason: str, remedy: str) -> InputError:
    return InputError(f"this is a checkpoint of {description} ({reason}): {remedy}.")


def _classifier(state: Mapping[str, np.ndarray]) -> str:
    """Describes the task of `cls_head`: that of NLVR2 reads one [CLS] for each of two images."""
    tables = (array for name, array in state.items() if _WORD_TABLE.fullmatch(name))
    width, inputs = next(tables, np.empty(0)), state.get("cls_head.0.weight", np.empty(()))
    if inputs.shape[-1:] == width.shape[-1:]:
        return "a classifier, such as one that answers questions about videos"
    return "NLVR2, whose head compares two images"
