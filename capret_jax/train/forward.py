"""A batch through the model: only what the weighted losses need is computed."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from capret_jax.batch import Batch, Outputs
from capret_jax.losses.matching import mine_hard_negatives
from capret_jax.losses.total import TERMS, LossConfig
from capret_jax.models.x2vlm import X2VLM, normalize_pixels


def forward(
    model: X2VLM,
    class_weights: jax.Array,
    batch: Batch,
    config: LossConfig,
    mesh: Mesh,
    key: jax.Array,
) -> Outputs:
    """Training-mode outputs for a batch.

    Args:
        model: with parameters bound.
        class_weights: (C, E) of the ArcFace head.
        batch: the global batch.
        config: which terms are weighted.
        mesh: the batch's mesh, for mining hard negatives on each device.
        key: the step's key, for dropout, stochastic depth and the draws of negatives.
    """
    vision_key, text_key, fusion_key, mining_key, mlm_key = jax.random.split(key, 5)
    images = model.encode_image(normalize_pixels(batch.image), vision_key)
    outputs = {"image_features": model.image_features(images), "class_weights": class_weights}
    if config.text:
        texts = model.encode_text(batch.token_ids, batch.token_mask, text_key)
        outputs |= {
            "text_features": model.text_features(texts),
            "temperature": model.temperature[...],
        }
    if config.itm:
        fused, valid = _fuse_with_negatives(
            model,
            batch,
            outputs,
            images,
            texts,
            config.matching_group,
            mesh,
            fusion_key,
            mining_key,
        )
        outputs |= {"match_logits": _match_logits(model, fused), "match_valid": valid}
        positive = fused[:, 0]
    elif config.box:
        positive = model.fuse(texts, batch.token_mask, images, key=fusion_key)
    if config.box:
        outputs["boxes"] = model.predict_boxes(positive)
    if config.mlm:
        outputs["masked_lm_logits"] = _masked_lm_logits(model, batch, images, mlm_key)
    return Outputs(**outputs)


# The parts of the model that each term's gradient reaches.
_REACHED = {
    "itc": ("vision", "vision_proj", "text", "text_proj", "temperature"),
    "itm": ("vision", "text", "fusion", "itm_head"),
    "mlm": ("vision", "text", "fusion", "mlm_head"),
    "box_l1": ("vision", "text", "fusion", "bbox_head"),
    "box_giou": ("vision", "text", "fusion", "bbox_head"),
    "arcface": ("vision", "vision_proj"),
}


def trained_parts(config: LossConfig) -> set[str]:
    """Names of the parts of the model that the weighted losses train."""
    return {part for term in TERMS if getattr(config, term) for part in _REACHED[term]}


def _fuse_with_negatives(
    model, batch, outputs, images, texts, group_size, mesh, fusion_key, mining_key
):
    """Each pair, its text with a negative image, its image with a negative text: (B, 3, T, D)."""
    negative_image, image_valid, negative_text, negative_mask, text_valid = mine_hard_negatives(
        mesh,
        group_size,
        mining_key,
        outputs["image_features"],
        outputs["text_features"],
        outputs["temperature"],
        batch.identity,
        batch.caption_id,
        images,
        texts,
        batch.token_mask,
    )
    # Stacked behind the batch axis and then folded into it: each device keeps its own examples.
    text, mask, image = (
        jnp.stack(parts, axis=1)
        for parts in (
            (texts, texts, negative_text),
            (batch.token_mask, batch.token_mask, negative_mask),
            (images, negative_image, images),
        )
    )
    fused = model.fuse(_fold(text), _fold(mask), _fold(image), key=fusion_key)
    valid = jnp.stack([jnp.ones_like(image_valid), image_valid, text_valid], axis=1)
    return fused.reshape(*text.shape[:2], *fused.shape[1:]), valid


def _match_logits(model, fused):
    return model.match_logits(_fold(fused)).reshape(*fused.shape[:2], 2)


def _fold(x):
    """(B, 3, ...) -> (3B, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _masked_lm_logits(model, batch, images, key):
    text_key, fusion_key = jax.random.split(key)
    texts = model.encode_text(batch.masked_ids, batch.token_mask, text_key)
    fused = model.fuse(texts, batch.token_mask, images, key=fusion_key)
    # The vocabulary is wide: predict at the masked positions alone.
    masked = jnp.take_along_axis(fused, batch.masked_positions[:, :, None], axis=1)
    return model.masked_lm_logits(masked)
