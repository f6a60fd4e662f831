"""The terms of the training objective: their weights and settings."""

import dataclasses
import math

from capret_jax.errors import InputError

TERMS = (
    *("itc", "itm", "mlm", "vqa", "box_l1", "box_giou"),
    *("arcface", "supcon", "distill", "nlvr", "locations"),
)
ITC_KINDS = ("softmax", "sigmoid")
VQA_REDUCTIONS = ("token_mean", "weighted_sum")
ARCFACE_GRADIENTS = ("textbook", "straight_through")
MLM_SPANS = ("words", "x2vlm")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the terms; a term of weight 0 is not computed.

    Attributes:
        itc: weight of the image-text contrastive loss; 1/W has the strength of X2-VLM's release on
            W processes (docs/x2vlm_recipe.md).
        itm: weight of the image-text matching loss.
        mlm: weight of masked language modelling.
        vqa: weight of visual question answering: the cross entropy of the answers' tokens.
        box_l1, box_giou: weights of the box losses.
        arcface: weight of the identity loss.
        supcon: weight of the supervised contrastive loss between images of the batch.
        distill: weight of the distillation of `data.teacher`'s similarities between images.
        nlvr: weight of the loss on sentences that are true of two pictures or not.
        locations: weight of the loss of writing where objects are, on `data.location_batch`.
        location_smoothing: deviation, in bins of 1,000, of the Gaussian over which the target of a
            coordinate is spread; 0 for none, as in Pix2Seq.
        mlm_causal: use causal attention and predict the end of the caption, too, which trains an
            autoregressive captioner.
        mlm_probability: share of a caption's tokens that are predicted; 0.5 in X2-VLM's
            pre-training, 0.6 in its captioning.
        mlm_max: P, most tokens of a caption that are predicted; 12 and 18 in X2-VLM.
        mlm_spans: "words": runs of up to 3 words, of which those that fit the share are taken; or
            "x2vlm": runs of up to 3 tokens, completed to whole words, [SEP] among them, the share
            counting [CLS] and [SEP]; surplus tokens are dropped at random.
        mlm_insert: put [MASK] before each predicted token, at the same position and seen by no
            other token, in the token's place (Findings of ACL 2021, 393): training then shows the
            model what it sees when it writes. Needs mlm_causal.
        mlm_smoothing: share of the target probability that is spread over all other tokens but
            [CLS]; 0.1 in X2-VLM's captioning.
        vqa_reduction: "token_mean" over the tokens of all answers; or "weighted_sum" over the
            answers of an item, each the sum of its tokens' cross entropies by its weight, averaged
            over the items, as in X2-VLM.
        itc_kind: "softmax", or "sigmoid" (SigLIP), which needs no normalisation over the batch.
        supcon_temperature: divisor of the cosines of the supervised contrastive loss.
        supcon_memory: M, number of examples of earlier batches that this loss compares with, too
            (XBM), a multiple of the items of a batch; 0 for none.
        distill_temperature: divisor of the cosines of teacher and student.
        arcface_margin: angular margin in radians.
        arcface_scale: scale of the ArcFace logits.
        arcface_gradient: gradient of the margin, "textbook" or "straight_through", see
            `losses.margin`.
        arcface_subcentres: K sub-centres per class; the nearest one gives the logit.
        arcface_size_margin: additional margin of the rarest class in radians, see
            `class_margins`.
        arcface_sampled: share of the classes in each step's softmax (PartialFC).
        matching_group: number of neighbouring examples of the batch among which hard negatives are
            drawn; 0 for all of a device, as in X2-VLM. Draws within groups of a fixed size do not
            depend on the number of devices.
    """

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 0.0
    vqa: float = 0.0
    box_l1: float = 1.0
    box_giou: float = 1.0
    arcface: float = 1.0
    supcon: float = 0.0
    distill: float = 0.0
    nlvr: float = 0.0
    locations: float = 0.0
    location_smoothing: float = 0.0
    mlm_causal: bool = False
    mlm_probability: float = 0.5
    mlm_max: int = 12
    mlm_spans: str = "words"
    mlm_insert: bool = False
    mlm_smoothing: float = 0.0
    vqa_reduction: str = "token_mean"
    itc_kind: str = "softmax"
    supcon_temperature: float = 0.2
    supcon_memory: int = 0
    distill_temperature: float = 0.1
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
        if self.itc_kind not in ITC_KINDS:
            raise InputError(f"loss.itc_kind={self.itc_kind!r} is neither 'softmax' nor 'sigmoid'.")
        if self.vqa_reduction not in VQA_REDUCTIONS:
            raise InputError(
                f"loss.vqa_reduction={self.vqa_reduction!r} is none of {', '.join(VQA_REDUCTIONS)}."
            )
        if not any(getattr(self, name) for name in TERMS):
            raise InputError(f"every loss weight is 0; set one of loss.{{{','.join(TERMS)}}}.")
        self._check_arcface()
        self._check_mlm()
        if self.supcon_memory < 0 or (self.supcon_memory and not self.supcon):
            raise InputError(
                f"loss.supcon_memory={self.supcon_memory} is of the loss between images: set "
                "loss.supcon, or the memory to 0."
            )
        for name in ("supcon_temperature", "distill_temperature"):
            if getattr(self, name) <= 0:
                raise InputError(f"loss.{name}={getattr(self, name)} is not positive.")
        if not 0 <= self.location_smoothing <= 100:
            raise InputError(
                f"loss.location_smoothing={self.location_smoothing} is not in [0, 100] bins."
            )
        if self.matching_group < 0:
            raise InputError(f"loss.matching_group={self.matching_group} is negative.")

    def _check_mlm(self):
        if not 0 < self.mlm_probability <= 1:
            raise InputError(f"loss.mlm_probability={self.mlm_probability} is not in (0, 1].")
        if self.mlm_max < 1:
            raise InputError(f"loss.mlm_max={self.mlm_max} is less than 1.")
        if self.mlm_spans not in MLM_SPANS:
            raise InputError(f"loss.mlm_spans={self.mlm_spans!r} is neither 'words' nor 'x2vlm'.")
        if self.mlm_insert and not self.mlm_causal:
            raise InputError("loss.mlm_insert trains a captioner: set loss.mlm_causal, too.")
        if not 0 <= self.mlm_smoothing < 1:
            raise InputError(f"loss.mlm_smoothing={self.mlm_smoothing} is not in [0, 1).")

    @property
    def inserted_masks(self) -> int:
        """Number of positions that [MASK] tokens take beside those of the caption."""
        return self.mlm_max if self.mlm_insert else 0

    def _check_arcface(self):
        if self.arcface_gradient not in ARCFACE_GRADIENTS:
            raise InputError(
                f"loss.arcface_gradient={self.arcface_gradient!r} is none of "
                f"{', '.join(ARCFACE_GRADIENTS)}."
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
        """Returns True if a term predicts boxes."""
        return bool(self.box_l1 or self.box_giou)

    @property
    def identities(self) -> bool:
        """Returns True if a term learns identities from the embeddings that compare items."""
        return bool(self.arcface or self.supcon)

    @property
    def embeddings(self) -> bool:
        """Returns True if a term trains the embeddings that compare items directly."""
        return self.identities or bool(self.distill)

    @property
    def text(self) -> bool:
        """Returns True if a term reads the unmasked captions."""
        return bool(self.itc or self.itm or self.box or self.nlvr)
