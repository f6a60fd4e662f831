"""Training batches of the input pipeline, and the model's outputs for them."""

import dataclasses
from typing import Any

import jax

# np.ndarray in the input pipeline, jax.Array from `to_global` on.
Array = Any

# Class of an item without an identity.
NO_IDENTITY = -1
# Label of a position without a target; losses ignore it.
IGNORED_LABEL = -100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LocatedObjects:
    """All objects of I whole pictures, of which N or fewer are in each.

    Attributes:
        box: (I, N, 4) float32 cx, cy, w, h as fractions of the picture; 0 for padding.
        category: (I, N) int32 class from 1; 0 for padding.
        image: (I, H, W, 3) uint8 RGB; None where they are the pictures of the batch itself.
        sequences: `losses.locations.LocationSequences` of I pictures, drawn in each step; None
            before.
    """

    box: Array
    category: Array
    image: Array = None
    sequences: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B items in I pictures, with their captions.

    Every picture has M = B / I items: item b is in picture b // M. M is 1 unless items are regions
    of their pictures. B and I are global: the arrays are sharded over the mesh. P is the number of
    masked positions, A that of answer tokens.

    Attributes:
        image: (I, H, W, 3) uint8 RGB pictures.
        token_ids, token_mask: (B, T) int32 tokens of the captions; mask 1 for real tokens.
        identity: (B,) int32 class of the item, `NO_IDENTITY` where it has none.
        caption_id: (B,) int32 id of the caption, equal for equal captions.
        box: (B, 4) float32 cx, cy, w, h of the item as fractions of the picture.
        valid: (B,) bool, False for padding where a picture has fewer than M items; no loss counts
            it.
        located: (B,) bool, True where the box has to be found, since the picture shows more than
            the item; the box losses count no others. None if all do.
        teacher: (B, F) float32 embeddings of the items by a teacher, of any norm; None without one.
        masked_ids: (B, T) int32 tokens, prompt included, some of them masked; (B, T + P) where
            [MASK] is inserted; None without MLM.
        masked_positions: (B, P) int32 positions to predict; None without MLM.
        masked_labels: (B, P) int32 original tokens there, `IGNORED_LABEL` for unused positions;
            None without MLM.
        question_ids, question_mask: (B, T) int32 tokens of a question about the item; None without
            VQA.
        answer_ids, answer_mask: (BK, A) int32 tokens of its K answers; items follow each other with
            all of their answers. None without VQA.
        answer_weight: (BK,) float32 weights of the answers, 0 for padding; None where all have 1.
        pair_label: (B,) int32, 1 where the text is true of both pictures of the item, 2b and
            2b + 1, and 0 where it is not; None without NLVR2. I is 2B then, whatever M is.
        objects: `LocatedObjects` of whole pictures, for the loss of writing where they are; None
            without it.
        regions: another batch of the same step, whose items are regions of its pictures; None
            without `data.region_batch`.
    """

    image: Array
    token_ids: Array
    token_mask: Array
    identity: Array
    caption_id: Array
    box: Array
    valid: Array
    located: Array = None
    teacher: Array = None
    masked_ids: Array = None
    masked_positions: Array = None
    masked_labels: Array = None
    question_ids: Array = None
    question_mask: Array = None
    answer_ids: Array = None
    answer_mask: Array = None
    answer_weight: Array = None
    pair_label: Array = None
    objects: Any = None
    regions: Any = None

    @property
    def images(self) -> int:
        """Number of pictures, those of `objects` and `regions` included."""
        more = 0 if self.regions is None else self.regions.images
        if self.objects is not None and self.objects.image is not None:
            more += len(self.objects.image)
        return len(self.image) + more

    @property
    def counted_boxes(self) -> Array:
        """(B,) bool, True for items whose boxes the box losses count."""
        return self.valid if self.located is None else self.valid & self.located


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Outputs of the model for a `Batch`; None where no loss with a weight needs them.

    Attributes:
        image_features, text_features: (B, E) float32 features, L2-normalised.
        temperature: () float32 divisor of the contrastive logits.
        class_weights: (R, K, E or 2E) float32 weights of the ArcFace head: K sub-centres of any
            norm for each of C classes; the last R - C rows are padding.
        match_logits: (B, 3, 2) float32 for the pair itself, its text with a hard-negative image,
            and its image with a hard-negative text; class 1 is a match.
        match_valid: (B, 3) bool, False where no negative could be drawn.
        boxes: (B, 4) float32 predicted cx, cy, w, h as fractions of the picture.
        masked_lm_logits: (B, P, vocab) float32 at the masked positions.
        answer_logits: (BK, A-1, vocab) float32 for each next token of the answers.
        location_logits: (I, 5N, V) float32 for each token of the objects.
        pair_logits: (B, 2) float32, class 1 where the text is true of both pictures.
        embedding: (B, E or 2E) float32 embeddings that compare items, L2-normalised; None where
            these are the image features.
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
    pair_logits: Array = None
    location_logits: Array = None
    embedding: Array = None

    @property
    def item_embedding(self) -> Array:
        """(B, E or 2E) float32 embeddings that compare items, L2-normalised."""
        return self.image_features if self.embedding is None else self.embedding
