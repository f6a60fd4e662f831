"""A batch through the model: only what the weighted losses need is computed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.config import ExperimentConfig, LossConfig
from capret_jax.config.loss import TERMS
from capret_jax.data.batch import Batch, Outputs
from capret_jax.losses import StepContext
from capret_jax.losses.contrastive import ContrastiveFeatures
from capret_jax.losses.hard_negatives import mine_hard_negatives
from capret_jax.losses.pairs import PairLabels
from capret_jax.models.beit import box_regions
from capret_jax.models.bert import causal_mask
from capret_jax.models.x2vlm import X2VLM, normalize_pixels


class ImageStates(NamedTuple):
    """Vision states that the fusion encoder attends to, one row per item.

    Attributes:
        states: (B, 1+N, D).
        mask: (B, 1+N) 0/1 of a region's patches; None for all.
    """

    states: jax.Array
    mask: jax.Array | None


class TextStates(NamedTuple):
    """(B, T, D) states of the captions and their (B, T) 0/1 mask; None where no term needs them."""

    states: Any
    mask: Any


def forward(
    model: X2VLM,
    class_weights: jax.Array,
    batch: Batch,
    config: ExperimentConfig,
    context: StepContext,
) -> Outputs:
    """Training-mode outputs for a batch.

    Args:
        model: with parameters bound.
        class_weights: (R, K, E) of the ArcFace head.
        batch: the global batch, or the context's part of it.
        config: the weighted terms, and whether items are regions of their pictures: then position 0
            is pooled over the item's box.
        context: mesh, key and part of the step.
    """
    loss, regions = config.loss, config.data.view.regions
    # Negatives are those of the whole batch; what is dropped differs between the parts.
    mining_key, noise_key = jax.random.split(context.key)
    vision_key, text_key, fusion_key, mlm_key, vqa_key = jax.random.split(
        jax.random.fold_in(noise_key, context.part), 5
    )
    pictures = model.encode_image(normalize_pixels(batch.image), vision_key)
    images = ImageStates(pictures, None)
    if regions:
        images = ImageStates(*box_regions(pictures, batch.box))
    outputs = {
        "image_features": model.image_features(images.states),
        "class_weights": class_weights,
    }
    texts = TextStates(None, None)
    fused: Any = None
    if loss.text or model.embedding != "image":
        states = model.encode_text(batch.token_ids, batch.token_mask, text_key)
        texts = TextStates(states, batch.token_mask)
        outputs |= {
            "text_features": model.text_features(states),
            "temperature": model.temperature[...],
        }
    if loss.itm:
        features = ContrastiveFeatures(
            outputs["image_features"], outputs["text_features"], outputs["temperature"]
        )
        negatives = mine_hard_negatives(
            dataclasses.replace(context, key=mining_key),
            features,
            PairLabels.of(batch),
            (images, texts),
            loss.matching_group,
        )
        matched = _fuse_with_negatives(model, images, texts, negatives, fusion_key)
        valid = jnp.stack([batch.valid, *(negative.valid for negative in negatives)], axis=1)
        outputs |= {"match_logits": _match_logits(model, matched), "match_valid": valid}
        fused = matched[:, 0]
    elif (loss.box and not regions) or (loss.arcface and model.embedding == "fusion"):
        fused = model.fuse(*texts, *images, key=fusion_key)
    if loss.box:
        # A pooled and masked region would give the box away: there with the whole picture.
        seen = model.fuse(*texts, pictures, key=fusion_key) if regions else fused
        outputs["boxes"] = model.predict_boxes(seen)
    if loss.mlm:
        outputs["masked_lm_logits"] = _masked_lm_logits(
            model, batch, images, loss.mlm_causal, mlm_key
        )
    if loss.vqa:
        outputs["answer_logits"] = _answer_logits(model, batch, images, vqa_key)
    if loss.arcface and model.embedding != "image":
        outputs["embedding"] = model.item_features(*images, *texts, fused)
    return Outputs(**outputs)


# Parts of the model that each term's gradient reaches.
_REACHED = {
    "itc": ("vision", "vision_proj", "text", "text_proj", "temperature"),
    "itm": ("vision", "text", "fusion", "itm_head"),
    "mlm": ("vision", "text", "fusion", "mlm_head"),
    "vqa": ("vision", "text", "fusion", "decoder"),
    "box_l1": ("vision", "text", "fusion", "bbox_head"),
    "box_giou": ("vision", "text", "fusion", "bbox_head"),
}
# Parts that ArcFace's gradient reaches, by kind of embedding.
_EMBEDDED = {
    "image": ("vision", "vision_proj"),
    "text": ("text", "text_proj"),
    "joined": ("vision", "vision_proj", "text", "text_proj"),
    "fusion": ("vision", "text", "fusion", "fusion_proj"),
}


def trained_parts(config: LossConfig, embedding: str = "image") -> set[str]:
    """Names of the parts of the model that the weighted losses train.

    Args:
        config: the weights.
        embedding: kind of embedding by which items are compared.
    """
    reached = _REACHED | {"arcface": _EMBEDDED[embedding]}
    return {part for term in TERMS if getattr(config, term) for part in reached[term]}


def _fuse_with_negatives(
    model: X2VLM, images: ImageStates, texts: TextStates, negatives: tuple, key: jax.Array
) -> jax.Array:
    """Fuses each pair, its text with a negative image, and its image with a negative text.

    Returns:
        (B, 3, T, D).
    """
    negative_images, negative_texts = (negative.states for negative in negatives)
    # Stacked behind the batch axis and then folded into it: each device keeps its own examples.
    # Both texts of an image share its keys and values.
    both = jax.tree.map(lambda *x: _fold(jnp.stack(x, axis=1)), texts, negative_texts)
    own_key, other_key = jax.random.split(key)
    own = model.fuse(both.states, both.mask, *images, key=own_key).reshape(
        -1, 2, *texts.states.shape[1:]
    )
    other = model.fuse(*texts, negative_images.states, negative_images.mask, key=other_key)
    return jnp.stack([own[:, 0], other, own[:, 1]], axis=1)


def _match_logits(model, fused):
    return model.match_logits(_fold(fused)).reshape(*fused.shape[:2], 2)


def _fold(x):
    """(B, 3, ...) -> (3B, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _answer_logits(model, batch, images, key):
    text_key, fusion_key = jax.random.split(key)
    questions = model.encode_text(batch.question_ids, batch.question_mask, text_key)
    fused = model.fuse(questions, batch.question_mask, *images, key=fusion_key)
    ids, mask = batch.answer_ids[:, :-1], batch.answer_mask[:, :-1]
    return model.answer_logits(ids, mask, fused, batch.question_mask)


def _masked_lm_logits(model, batch, images, causal, key):
    text_key, fusion_key = jax.random.split(key)
    mask = causal_mask(batch.token_mask) if causal else batch.token_mask
    texts = model.encode_text(batch.masked_ids, mask, text_key)
    fused = model.fuse(texts, mask, *images, key=fusion_key)
    # The vocabulary is wide: predict at the masked positions alone.
    masked = jnp.take_along_axis(fused, batch.masked_positions[:, :, None], axis=1)
    return model.masked_lm_logits(masked)
