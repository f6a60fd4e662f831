"""The training objective: which terms, with which weights. Nothing else knows a weight."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from capret_jax.batch import IGNORED_LABEL, Batch, Outputs
from capret_jax.errors import InputError
from capret_jax.losses import Loss, Metrics
from capret_jax.losses.arcface import arcface_loss
from capret_jax.losses.box import box_losses
from capret_jax.losses.contrastive import contrastive_loss
from capret_jax.losses.margin import GRADIENTS
from capret_jax.losses.masked_lm import masked_lm_loss
from capret_jax.losses.matching import matching_loss

# Row order of `Outputs.match_logits`: the pair, then its two hard negatives.
MATCH_LABELS = (1, 0, 0)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; a term of weight 0 is not computed at all.

    Attributes:
        itc, itm, mlm, vqa, box_l1, box_giou, arcface: the weights; vqa learns to answer questions.
        mlm_causal: tokens see only those before them, and the end is learnt: a writer of captions.
        itc_kind: "softmax", or "sigmoid" (SigLIP), which needs no normalisation over the batch.
        arcface_margin: radians.
        arcface_scale: range of the ArcFace logits.
        arcface_gradient: of the margin, "textbook" or "straight_through", see `losses.margin`.
        arcface_subcentres: K directions per class, of which the nearest counts.
        arcface_size_margin: radians that the rarest class has on top, see `class_margins`.
        arcface_sampled: share of the classes that each step compares with (PartialFC).
        matching_group: hard negatives are drawn among this many neighbours in the batch.
    """

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 0.0
    vqa: float = 0.0
    box_l1: float = 1.0
    box_giou: float = 1.0
    arcface: float = 1.0
    mlm_causal: bool = False
    itc_kind: str = "softmax"
    arcface_margin: float = 0.15
    arcface_scale: float = 30.0
    arcface_gradient: str = "textbook"
    arcface_subcentres: int = 1
    arcface_size_margin: float = 0.0
    arcface_sampled: float = 1.0
    matching_group: int = 8

    def __post_init__(self):
        for name in TERMS:
            if getattr(self, name) < 0:
                raise InputError(f"loss.{name}={getattr(self, name)} is negative.")
        if self.itc_kind not in ("softmax", "sigmoid"):
            raise InputError(f"loss.itc_kind={self.itc_kind!r} is neither 'softmax' nor 'sigmoid'.")
        if not any(getattr(self, name) for name in TERMS):
            raise InputError(f"every loss weight is 0; set one of loss.{{{','.join(TERMS)}}}.")
        self._check_arcface()

    def _check_arcface(self):
        if self.arcface_gradient not in GRADIENTS:
            raise InputError(
                f"loss.arcface_gradient={self.arcface_gradient!r} is none of "
                f"{', '.join(GRADIENTS)}."
            )
        if self.arcface_subcentres < 1:
            raise InputError(f"loss.arcface_subcentres={self.arcface_subcentres} is less than 1.")
        if self.arcface_scale <= 0:
            raise InputError(f"loss.arcface_scale={self.arcface_scale} is not positive.")
        if not 0 < self.arcface_sampled <= 1:
            raise InputError(
                f"loss.arcface_sampled={self.arcface_sampled} is not a share in (0, 1]."
            )
        margins = self.arcface_margin, self.arcface_size_margin
        if min(margins) < 0 or sum(margins) > math.pi:
            raise InputError(
                f"loss.arcface_margin={margins[0]} and loss.arcface_size_margin={margins[1]} must "
                "not be negative, nor more than pi together."
            )

    @property
    def box(self) -> bool:
        """Whether boxes are predicted at all."""
        return bool(self.box_l1 or self.box_giou)

    @property
    def text(self) -> bool:
        """Whether any term reads the captions as they are."""
        return bool(self.itc or self.itm or self.box)


TERMS = ("itc", "itm", "mlm", "vqa", "box_l1", "box_giou", "arcface")


def total_loss(
    outputs: Outputs,
    batch: Batch,
    config: LossConfig,
    mesh: Mesh,
    key: jax.Array,
    class_sizes: np.ndarray,
) -> tuple[jax.Array, Metrics]:
    """The weighted sum of the terms, and metrics "loss", "loss/<term>" and "<term>/<metric>".

    Args:
        outputs: of the model for `batch`.
        batch: the global batch.
        config: the weights.
        mesh: the batch's mesh.
        key: the step's key.
        class_sizes: (C,) int, training examples per class.

    Returns:
        () float32 and the metrics as (sum, count) pairs.
    """
    terms = _terms(outputs, batch, config, mesh, key, class_sizes)
    total = sum(getattr(config, name) * loss.value for name, loss in terms.items())
    one = jnp.float32(1.0)
    metrics: Metrics = {"loss": (total, one)}
    for name, loss in terms.items():
        metrics[f"loss/{name}"] = (loss.value, one)
        metrics |= {f"{name}/{key}": pair for key, pair in loss.metrics.items()}
    return total, metrics


def _terms(outputs, batch, config, mesh, key, class_sizes) -> dict[str, Loss]:
    terms = {}
    if config.itc:
        terms["itc"] = contrastive_loss(
            mesh,
            outputs.image_features,
            outputs.text_features,
            outputs.temperature,
            batch.identity,
            batch.caption_id,
            batch.valid,
            config.itc_kind,
        )
    if config.itm:
        labels = jnp.broadcast_to(jnp.array(MATCH_LABELS), outputs.match_valid.shape)
        terms["itm"] = matching_loss(outputs.match_logits, labels, outputs.match_valid)
    if config.mlm:
        terms["mlm"] = masked_lm_loss(outputs.masked_lm_logits, batch.masked_labels)
    if config.vqa:
        spoken = (batch.answer_mask > 0) & batch.valid[:, None]
        labels = jnp.where(spoken, batch.answer_ids, IGNORED_LABEL)[:, 1:]
        terms["vqa"] = masked_lm_loss(outputs.answer_logits, labels)
    if config.box:
        terms["box_l1"], terms["box_giou"] = box_losses(outputs.boxes, batch.box, batch.valid)
    if config.arcface:
        terms["arcface"] = arcface_loss(
            outputs.image_features if outputs.embedding is None else outputs.embedding,
            outputs.class_weights,
            batch.identity,
            class_sizes,
            mesh,
            key,
            margin=config.arcface_margin,
            scale=config.arcface_scale,
            gradient=config.arcface_gradient,
            size_margin=config.arcface_size_margin,
            sampled=config.arcface_sampled,
        )
    return terms
