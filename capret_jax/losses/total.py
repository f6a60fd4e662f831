"""The training objective: which terms, with which weights. Nothing else knows a weight."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from capret_jax.config import LossConfig
from capret_jax.data.batch import IGNORED_LABEL, Batch, Outputs
from capret_jax.losses import Loss, Metrics
from capret_jax.losses.arcface import arcface_loss
from capret_jax.losses.box import box_losses
from capret_jax.losses.contrastive import contrastive_loss
from capret_jax.losses.masked_lm import masked_lm_loss
from capret_jax.losses.matching import matching_loss

# Row order of `Outputs.match_logits`: the pair, then its two hard negatives.
MATCH_LABELS = (1, 0, 0)


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
