"""Kinds of files that X2-VLM publishes."""

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of published file.

    Attributes:
        parts: parts of the model in the file besides the three encoders.
        extras: names of tensors that only this kind has and that the model does not use.
        optional: parts that are in some files of this kind.
        constants: names that some files of this kind lack, whose training did not change them.
    """

    parts: tuple[str, ...]
    extras: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("frame_positions",)
    constants: tuple[str, ...] = ()


_CONTRASTIVE = ("temperature", "vision_proj", "text_proj", "itm_head")

KINDS = {
    "pretrain": Kind((*_CONTRASTIVE, "bbox_head", "mlm_head"), optional=()),
    "pretrain_stage2": Kind(
        (*_CONTRASTIVE, "bbox_head", "mlm_head", "frame_positions"), optional=()
    ),
    "retrieval": Kind(_CONTRASTIVE, constants=("temp",)),
    "grounding": Kind(("bbox_head",)),
    "vqa": Kind(("decoder",)),
    "caption_mlm": Kind(("mlm_head",), ("crit_mask_lm_smoothed.one_hot",)),
}
# The kind with all parts but the VQA decoder: the default of exports of trained models, and the
# source of the names of missing parts in reports.
COMPLETE = "pretrain"
