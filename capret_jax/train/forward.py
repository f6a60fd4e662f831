"""The model's training-mode forward pass, computing only what the weighted losses need."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.config import ExperimentConfig, LossConfig
from capret_jax.config.loss import TERMS
from capret_jax.data.batch import Batch, Outputs
from capret_jax.losses import StepContext
from capret_jax.losses.contrastive import ContrastiveFeatures
from capret_jax.losses.hard_negatives import Negatives, mine_hard_negatives
from capret_jax.losses.pairs import PairLabels
from capret_jax.models.beit import box_regions
from capret_jax.models.bert import causal_mask
from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.train.inserted_masks import inserted_masks, insertion_mask, shared_positions


class ImageStates(NamedTuple):
    """Vision states that the fusion encoder attends to, one row per item.

    Attributes:
        states: (B, 1+N, D) float32 or bfloat16.
        mask: (B, 1+N) 0/1, 1 for the patches of an item's region; None when all are attended to.
    """

    states: jax.Array
    mask: jax.Array | None


class TextStates(NamedTuple):
    """States of the captions that the fusion encoder starts from; None where no term needs them.

    Attributes:
        states: (B, T, D) float32 or bfloat16.
        mask: (B, T) 0/1, 1 for real tokens.
    """

    states: Any
    mask: Any


def forward(
    model: X2VLM,
    class_weights: jax.Array,
    batch: Batch,
    config: ExperimentConfig,
    context: StepContext,
) -> Outputs:
    """Computes training-mode outputs for a batch.

    Args:
        model: the model with its parameters bound.
        class_weights: (R, K, E) float32 weights of the ArcFace head, passed on to the outputs.
        batch: the global batch, or the part of it that `context` names.
        config: loss weights, and the view: where items are regions of their pictures, position 0 of
            the vision states is pooled over the item's box.
        context: mesh, key and part of the step.

    Returns:
        The outputs that the terms with a weight need; None for all others.
    """
    loss, regions = config.loss, config.data.view.regions
    # One key for the negatives of the whole batch; dropout differs between the parts.
    mining_key, noise_key = jax.random.split(context.key)
    part_key = jax.random.fold_in(noise_key, context.part)
    vision_key, text_key, fusion_key, mlm_key, vqa_key = jax.random.split(part_key, 5)
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
        mining = dataclasses.replace(context, key=mining_key)
        negatives = _mine(mining, outputs, batch, (images, texts), loss.matching_group)
        matched = _fuse_with_negatives(model, images, texts, negatives, fusion_key)
        valid = jnp.stack([batch.valid, *(negative.valid for negative in negatives)], axis=1)
        outputs |= {"match_logits": _match_logits(model, matched), "match_valid": valid}
        fused = matched[:, 0]
    elif (loss.box and not regions) or (loss.embeddings and model.embedding == "fusion"):
        fused = model.fuse(*texts, *images, key=fusion_key)
    if loss.box:
        # A pooled and masked region would reveal the box: it is predicted from the whole picture.
        whole = model.fuse(*texts, pictures, key=fusion_key) if regions else fused
        outputs["boxes"] = model.predict_boxes(whole)
    if loss.mlm:
        outputs["masked_lm_logits"] = _masked_lm_logits(model, batch, images, loss, mlm_key)
    if loss.vqa:
        outputs["answer_logits"] = _answer_logits(model, batch, images, vqa_key)
    if loss.nlvr:
        outputs["pair_logits"] = _pair_logits(model, texts, images, fusion_key)
    if loss.locations:
        # Not one of the five above, which are what they were without this loss.
        location_key = jax.random.fold_in(part_key, 5)
        outputs["location_logits"] = _location_logits(model, batch.objects, pictures, location_key)
    if loss.embeddings and model.embedding != "image":
        outputs["embedding"] = model.item_features(*images, *texts, fused)
    return Outputs(**outputs)


# Loss term -> parts of the model that its gradient reaches.
_REACHED = {
    "itc": ("vision", "vision_proj", "text", "text_proj", "temperature"),
    "itm": ("vision", "text", "fusion", "itm_head"),
    "mlm": ("vision", "text", "fusion", "mlm_head"),
    "vqa": ("vision", "text", "fusion", "decoder"),
    "box_l1": ("vision", "text", "fusion", "bbox_head"),
    "box_giou": ("vision", "text", "fusion", "bbox_head"),
    "nlvr": ("vision", "text", "fusion", "nlvr_head"),
    "locations": ("vision", "locations"),
}
# Kind of embedding -> parts that the gradients of ArcFace, SupCon and distillation reach.
_EMBEDDED = {
    "image": ("vision", "vision_proj"),
    "text": ("text", "text_proj"),
    "joined": ("vision", "vision_proj", "text", "text_proj"),
    "fusion": ("vision", "text", "fusion", "fusion_proj"),
}


def trained_parts(config: LossConfig, embedding: str = "image") -> set[str]:
    """Returns the names of the parts of the model that the weighted losses train.

    Args:
        config: weights of the losses.
        embedding: kind of embedding by which items are compared, one of `EMBEDDINGS`.
    """
    reached = _REACHED | dict.fromkeys(("arcface", "supcon", "distill"), _EMBEDDED[embedding])
    return {part for term in TERMS if getattr(config, term) for part in reached[term]}


def _mine(
    context: StepContext, outputs: dict, batch: Batch, states: tuple, group: int
) -> tuple[Negatives, Negatives]:
    """Draws hard negatives of images and texts, by the similarity of their features."""
    features = ContrastiveFeatures(
        outputs["image_features"], outputs["text_features"], outputs["temperature"]
    )
    return mine_hard_negatives(context, features, PairLabels.of(batch), states, group)


def _fuse_with_negatives(
    model: X2VLM, images: ImageStates, texts: TextStates, negatives: tuple, key: jax.Array
) -> jax.Array:
    """Fuses each pair, its text with a negative image, and its image with a negative text.

    Returns:
        (B, 3, T, D) fused states, in this order.
    """
    negative_images, negative_texts = (negative.states for negative in negatives)
    # Stacking behind the batch axis and folding into it keeps each example on its device. Both
    # texts of an image share its keys and values.
    both_texts = jax.tree.map(lambda *x: _fold(jnp.stack(x, axis=1)), texts, negative_texts)
    image_key, negative_key = jax.random.split(key)
    with_image = model.fuse(both_texts.states, both_texts.mask, *images, key=image_key).reshape(
        -1, 2, *texts.states.shape[1:]
    )
    with_negative = model.fuse(
        *texts, negative_images.states, negative_images.mask, key=negative_key
    )
    return jnp.stack([with_image[:, 0], with_negative, with_image[:, 1]], axis=1)


def _match_logits(model, fused):
    return model.match_logits(_fold(fused)).reshape(*fused.shape[:2], 2)


def _fold(x):
    """Reshapes (B, n, ...) to (nB, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _answer_logits(model, batch, images, key):
    text_key, fusion_key, decoder_key = jax.random.split(key, 3)
    questions = model.encode_text(batch.question_ids, batch.question_mask, text_key)
    fused = model.fuse(questions, batch.question_mask, *images, key=fusion_key)
    ids, mask = batch.answer_ids[:, :-1], batch.answer_mask[:, :-1]
    return model.answer_logits(ids, mask, fused, batch.question_mask, decoder_key)


def _pair_logits(model, texts, images, key):
    # Each text twice, one after the other, for the two pictures that follow each other.
    twice = jax.tree.map(lambda x: _fold(jnp.stack([x, x], axis=1)), texts)
    fused = model.fuse(*twice, *images, key=key)
    return model.pair_logits(fused.reshape(-1, 2, *fused.shape[1:]))


def _location_logits(model, objects, pictures, key):
    vision_key, decoder_key = jax.random.split(key)
    if objects.image is not None:
        pictures = model.encode_image(normalize_pixels(objects.image), vision_key)
    return model.location_logits(objects.sequences.inputs, pictures, decoder_key)


def _masked_lm_logits(model, batch, images, loss, key):
    text_key, fusion_key = jax.random.split(key)
    mask, positions = batch.token_mask, None
    if loss.mlm_insert:
        length = batch.masked_ids.shape[1]
        inserted = inserted_masks(batch.masked_positions, batch.masked_labels, length)
        mask = insertion_mask(inserted)
        positions = shared_positions(inserted, length - loss.inserted_masks)
    elif loss.mlm_causal:
        # The prompt makes this text longer than the caption; no token sees the padding behind it.
        mask = causal_mask(jnp.ones_like(batch.masked_ids))
    texts = model.encode_text(batch.masked_ids, mask, text_key, positions)
    fused = model.fuse(texts, mask, *images, key=fusion_key)
    # Only the masked positions, since logits over the vocabulary are large.
    masked = jnp.take_along_axis(fused, batch.masked_positions[:, :, None], axis=1)
    return model.masked_lm_logits(masked)
