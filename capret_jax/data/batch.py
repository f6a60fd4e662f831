"""The arrays that travel from the input pipeline through the model to the losses."""

import dataclasses
from typing import Any

import jax

# NumPy in the input pipeline, jax.Array from `mesh.to_global` on.
Array = Any

NO_IDENTITY = -1
IGNORED_LABEL = -100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B item views with their captions. B is global: the arrays are sharded over the mesh.

    I pictures show M = B / I items each: item b is in picture b // M. M is 1 but for regions.

    Attributes:
        image: (I, H, W, 3) uint8 RGB.
        token_ids, token_mask: (B, T) int32; mask 1 for real tokens.
        identity: (B,) int32 class of the item's identity, `NO_IDENTITY` where it has none.
        caption_id: (B,) int32, equal for equal captions.
        box: (B, 4) float32 cx, cy, w, h of the item as fractions of the image.
        valid: (B,) bool, False where a picture has fewer items than M: no loss counts these.
        masked_ids: (B, T) int32, the tokens with some of them masked; None without MLM.
        masked_positions: (B, M) int32 positions to predict; None without MLM.
        masked_labels: (B, M) int32 tokens there, `IGNORED_LABEL` where unused; None without MLM.
        question_ids, question_mask: (B, T) int32 of a question about the item; None without VQA.
        answer_ids, answer_mask: (B, A) int32 of its answer; None without VQA.
    """

    image: Array
    token_ids: Array
    token_mask: Array
    identity: Array
    caption_id: Array
    box: Array
    valid: Array
    masked_ids: Array = None
    masked_positions: Array = None
    masked_labels: Array = None
    question_ids: Array = None
    question_mask: Array = None
    answer_ids: Array = None
    answer_mask: Array = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the model says about a `Batch`; a term that no loss weighs is None.

    Attributes:
        image_features, text_features: (B, E) float32, L2-normalised.
        temperature: () float32, by which contrastive logits are divided.
        class_weights: (R, K, E or 2E) float32, K directions of any length for each of the C
            training identities; the R - C rows behind them are padding.
        match_logits: (B, 3, 2) float32 for the pair itself, its text with a hard-negative image,
            and its image with a hard-negative text; class 1 means that they match.
        match_valid: (B, 3) bool, False where no negative could be drawn.
        boxes: (B, 4) float32 cx, cy, w, h as fractions of the image.
        masked_lm_logits: (B, M, vocab) float32.
        answer_logits: (B, A-1, vocab) float32, of each next token of the answer.
        embedding: (B, E or 2E) float32, L2-normalised, by which items are compared; None
            where these are the image features.
    """

    image_features: Array
    text_features: Array = None
    temperature: Array = None
    class_weights: Array = None
    match_logits: Array = None
    match_valid: Array = None
    boxes: Array = None
    masked_lm_logits: Array = None
    answer_logits: Array = None
    embedding: Array = None
