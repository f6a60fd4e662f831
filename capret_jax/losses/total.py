"""The training objective: the weighted sum of the loss terms. No other module applies weights."""

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.config import LossConfig
from capret_jax.data.batch import IGNORED_LABEL, Batch, Outputs
from capret_jax.losses import Loss, Metrics, StepContext
from capret_jax.losses.answers import weighted_answer_loss
from capret_jax.losses.arcface import ClassHead, arcface_loss
from capret_jax.losses.box import box_losses
from capret_jax.losses.contrastive import ContrastiveFeatures, contrastive_loss
from capret_jax.losses.distillation import distillation_loss
from capret_jax.losses.locations import location_loss
from capret_jax.losses.masked_lm import masked_lm_loss
from capret_jax.losses.matching import matching_loss
from capret_jax.losses.pairs import PairLabels
from capret_jax.losses.supervised_contrastive import supervised_contrastive_loss

# Labels of `Outputs.match_logits`: the pair itself, then its two hard negatives.
MATCH_LABELS = (1, 0, 0)


def total_loss(
    outputs: Outputs,
    batch: Batch,
    config: LossConfig,
    context: StepContext,
    class_sizes: np.ndarray,
) -> tuple[jax.Array, Metrics]:
    """Sums the weighted terms.

    Args:
        outputs: outputs of the model for `batch`.
        batch: the global batch.
        config: weights and settings of the terms.
        context: mesh and key of the step.
        class_sizes: (C,) int, number of training examples per class.

    Returns:
        () float32 loss, and the metrics "loss", "loss/<term>" and "<term>/<metric>" as (sum, count)
        pairs.
    """
    terms = _terms(outputs, batch, config, context, class_sizes)
    total = sum(getattr(config, name) * loss.value for name, loss in terms.items())
    one = jnp.float32(1.0)
    metrics: Metrics = {"loss": (total, one)}
    for name, loss in terms.items():
        metrics[f"loss/{name}"] = (loss.value, one)
        metrics |= {f"{name}/{key}": pair for key, pair in loss.metrics.items()}
    return total, metrics


def _terms(
    outputs: Outputs,
    batch: Batch,
    config: LossConfig,
    context: StepContext,
    class_sizes: np.ndarray,
) -> dict[str, Loss]:
    """Computes the terms whose weight is not 0, by name."""
    terms = {}
    if config.itc:
        features = ContrastiveFeatures(
            outputs.image_features, outputs.text_features, outputs.temperature
        )
        labels = PairLabels.of(batch)
        terms["itc"] = contrastive_loss(features, labels, context.mesh, kind=config.itc_kind)
    if config.itm:
        matches = jnp.broadcast_to(jnp.array(MATCH_LABELS), outputs.match_valid.shape)
        terms["itm"] = matching_loss(outputs.match_logits, matches, outputs.match_valid)
    if config.mlm:
        # Every text begins with [CLS].
        smoothing = (config.mlm_smoothing, batch.masked_ids[0, 0]) if config.mlm_smoothing else ()
        terms["mlm"] = masked_lm_loss(outputs.masked_lm_logits, batch.masked_labels, *smoothing)
    if config.vqa:
        terms["vqa"] = _answer_loss(outputs, batch, config)
    if config.box:
        boxes = box_losses(outputs.boxes, batch.box, batch.counted_boxes)
        terms["box_l1"], terms["box_giou"] = boxes
    if config.nlvr:
        terms["nlvr"] = matching_loss(outputs.pair_logits, batch.pair_label, batch.valid)
    if config.locations:
        sequences = batch.objects.sequences
        terms["locations"] = location_loss(
            outputs.location_logits,
            sequences.targets,
            sequences.weights,
            config.location_smoothing,
        )
    embedding = outputs.item_embedding
    if config.supcon:
        terms["supcon"] = supervised_contrastive_loss(
            embedding,
            batch.identity,
            batch.valid,
            context.mesh,
            temperature=config.supcon_temperature,
            memory=context.memory,
        )
    if config.distill:
        # A wide view shows more than the item that the teacher saw.
        counted = batch.valid if batch.located is None else batch.valid & ~batch.located
        terms["distill"] = distillation_loss(
            embedding, batch.teacher, counted, context.mesh, config.distill_temperature
        )
    if config.arcface:
        head = ClassHead(outputs.class_weights, class_sizes)
        terms["arcface"] = arcface_loss(embedding, head, batch.identity, context, config)
    return terms


def _answer_loss(outputs: Outputs, batch: Batch, config: LossConfig) -> Loss:
    labels = _next_answer_tokens(batch)
    if config.vqa_reduction == "weighted_sum":
        weights = batch.answer_weight
        weights = jnp.ones(len(labels)) if weights is None else weights
        return weighted_answer_loss(outputs.answer_logits, labels, weights, batch.valid)
    return masked_lm_loss(outputs.answer_logits, labels)


def _next_answer_tokens(batch: Batch) -> jax.Array:
    """Returns (BK, A-1) int32 labels of the answer decoder, `IGNORED_LABEL` for padding."""
    answers = len(batch.answer_mask) // len(batch.valid)
    valid = jnp.broadcast_to(batch.valid[:, None], (len(batch.valid), answers)).reshape(-1, 1)
    real = (batch.answer_mask > 0) & valid
    if batch.answer_weight is not None:
        real &= batch.answer_weight[:, None] > 0
    return jnp.where(real, batch.answer_ids, IGNORED_LABEL)[:, 1:]
