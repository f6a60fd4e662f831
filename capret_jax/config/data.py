"""Settings of the dataset and of the input pipeline."""

import dataclasses
from typing import NamedTuple

from capret_jax.errors import InputError

DATASETS = ("synthetic", "deepfashion2")
# Variants of the synthetic dataset; `synthetic.builder` has their sizes.
VARIANTS = ("demo", "large", "pretrain", "mini")
VIEWS = ("crop", "image", "region")
# Ways to resize views, see `data.resizing`.
RESIZES = ("fast", "pillow")
BATCH_IDENTITIES = ("random", "category", "mined")
CLEANINGS = ("x2vlm", "earlier", "none")
# Caption fields that DeepFashion2 annotates, and those with the synthetic dataset's details in
# addition; `data.schema` has their values.
FIELDS = ("category", "scale", "occlusion", "zoom_in", "viewpoint")
ALL_FIELDS = (*FIELDS, "colour", "pattern", "print", "neckline")


class Cleaning(NamedTuple):
    """Preparation of texts before they are tokenised; see `data.captions.clean_caption`.

    Attributes:
        kind: `DataConfig.cleaning`.
        max_words: `DataConfig.max_words`.
    """

    kind: str = "x2vlm"
    max_words: int = 30


# Of runs whose configs lack both keys.
EARLIER_CLEANING = Cleaning("earlier", 40)


def check_fields(key: str, fields: tuple[str, ...]) -> None:
    """Checks names of caption fields.

    Args:
        key: key of the configuration, for the message.
        fields: names to check against `ALL_FIELDS`.

    Raises:
        InputError: a field does not exist.
    """
    for field in fields:
        if field not in ALL_FIELDS:
            raise InputError(f"{key} has {field!r}, which is none of {', '.join(ALL_FIELDS)}.")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Preparation of raw data.

    Attributes:
        processes: number of processes that read and check images; 0 for one per core.
        allow_broken: accept a dataset of which more than 1 % of the images or items are left out.
        runner: Apache Beam runner such as "DirectRunner", "DataflowRunner" or "FlinkRunner", in
            place of local processes; its workers must see both folders under the same paths.
        beam_options: options of the Beam pipeline, "name=value" each.
    """

    processes: int = 0
    allow_broken: bool = False
    runner: str = ""
    beam_options: tuple[str, ...] = ()

    def __post_init__(self):
        if self.processes < 0:
            raise InputError(f"data.prepare.processes={self.processes} is negative.")
        if self.beam_options and not self.runner:
            raise InputError("data.prepare.beam_options need data.prepare.runner.")


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """The part of an item's photograph that is the model's input, in training and at evaluation.

    Attributes:
        kind: "crop", the item's box with a margin; "image", the whole photograph, so that all its
            items look the same; or "region", the whole photograph with position 0 pooled over the
            item's box, so that one pass of the vision encoder serves all its items.
        regions_per_image: M, with "region": maximal number of items of a photograph that train
            together; they share one pass of the vision encoder.
    """

    kind: str = "crop"
    regions_per_image: int = 1

    def __post_init__(self):
        if self.kind not in VIEWS:
            raise InputError(f"data.view.kind={self.kind!r} is none of {', '.join(VIEWS)}.")
        most = self.regions_per_image
        if most < 1 or (most > 1 and not self.regions):
            raise InputError(
                f"data.view.regions_per_image={most} needs data.view.kind='region'; other views "
                "show one item each."
            )

    @property
    def regions(self) -> bool:
        """Returns True if items are regions of a photograph."""
        return self.kind == "region"

    @property
    def whole(self) -> bool:
        """Returns True if the view is the whole photograph."""
        return self.kind != "crop"


@dataclasses.dataclass(frozen=True)
class RegionBatchConfig:
    """A batch of regions beside the batch of items, summed in one step, as X2-VLM pre-trains.

    It has a view of its own, whole photographs or parts of them whose items are regions, and trains
    the weighted ones of ITC, ITM, MLM and boxes, which the batch of items then does not train.

    Attributes:
        images: number of photographs of all processes in a step's region batch; 0 for none.
        regions_per_image: M, maximal number of items of a photograph.
        weight: factor of the region batch's losses; X2-VLM's `iter_perc`.
    """

    images: int = 0
    regions_per_image: int = 5
    weight: float = 1.0

    def __post_init__(self):
        if self.images < 0:
            raise InputError(f"data.region_batch.images={self.images} is negative.")
        if self.regions_per_image < 1:
            raise InputError(
                f"data.region_batch.regions_per_image={self.regions_per_image} is less than 1."
            )
        if self.weight <= 0:
            raise InputError(
                f"data.region_batch.weight={self.weight} is not positive: set "
                "data.region_batch.images to 0 for no region batch."
            )


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Captions of training items.

    Attributes:
        fields: fields of `ALL_FIELDS` that the template reveals; without any, every caption is
            "an image of an item".
        file: JSON lines {"image_id": 1, "item": 1, "caption": "..."} in place of the template,
            `item` being the n of the annotation's item<n>; an item with several lines has several
            captions, one of which is drawn each time. Lines with a "split" other than "train" are
            ignored.
        dropout: probability that an example's caption is empty.
        short: probability that the template reveals only the category, like the phrases that detect
            garments in photographs.
        prompt: words before each caption that `loss.mlm_causal` trains the model to write; "a
            picture of" in X2-VLM. They are never masked, and the captioner starts from them.
    """

    fields: tuple[str, ...] = FIELDS
    file: str = ""
    dropout: float = 0.0
    short: float = 0.0
    prompt: str = ""

    def __post_init__(self):
        check_fields("data.captions.fields", self.fields)
        for name in ("dropout", "short"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"data.captions.{name}={getattr(self, name)} is not in [0, 1).")
        if self.short and (self.file or "category" not in self.fields):
            raise InputError(
                f"data.captions.short={self.short} needs a template that reveals the category."
            )

    def describe(self) -> str:
        """Describes the source of the captions, for the metrics."""
        if self.file:
            return f"file {self.file}"
        return f"template of {', '.join(self.fields)}" if self.fields else "nothing of the item"


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training views; values are fractions, and 0 turns a change off.

    Attributes:
        margin: context around the box at evaluation, as a fraction of the box's sides; a negative
            one cuts the box's edges away, which are often background. Training draws a margin for
            each side between -shrink and 2 * margin, or 0 where the margin is negative.
        shrink: largest share of a box's side that a training crop may cut off at each edge.
        trim: maximal share of the photograph's width or height that a training view of the whole
            photograph loses at each side; the items' boxes are kept.
        flip: probability of a horizontal flip, except where the caption mentions left or right.
        brightness: each image's gain is drawn from 1 +- this.
        colour: each channel's gain is drawn from 1 +- this.
        contrast, saturation: factors of both are drawn from 1 +- these.
        hue: turn of the hue, +- this fraction of the colour circle.
        grey: probability that a view loses its colours.
        blur: probability that a view is blurred.
        erase: probability that a rectangle is painted grey (arXiv 1708.04896).
        erase_area: largest share of the view that the rectangle covers; the smallest is 0.02.
        crop_area: smallest share of a crop's area that a view shows of it; its aspect changes by up
            to 4/3 (RandomResizedCrop, arXiv 1409.4842). 1 shows all of it. With the view "image",
            this and the next two are of the whole photograph, in place of `trim`; with regions,
            whose boxes must stay, they do nothing.
        rotate: largest rotation of a crop, degrees.
        perspective: largest shift of each corner of a crop, as a fraction of half its sides.
        region_crop: with regions: show a window of the photograph, drawn at random around the drawn
            item; other items are kept where more than half of them is inside. False shows the
            photograph but for `trim`, and keeps all items.
        randaugment: number of random operations on a view (arXiv 1909.13719); 2 in X2-VLM. Those
            that move pixels change crops and whole photographs, and boxes follow; regions and wide
            views keep their pixels in place.
        randaugment_level: their magnitude, 0 to 10; at 0 operations still make views dark and
            smooth, by X2-VLM's formulas.
        wide: probability that a training crop is a window of any size between a box and the whole
            photograph. Such a view trains captions and boxes, which detection by phrases needs, but
            no identity, since other garments may be in it. If the dataset has items without
            identity, one of them replaces the drawn item. With wide views, boxes are learnt from
            these alone: the box of a crop nearly fills it, so that a constant one has an IoU of
            0.8. Views of whole photographs are as wide as can be, and do not change.
    """

    margin: float = 0.1
    shrink: float = 0.05
    trim: float = 0.1
    flip: float = 0.5
    brightness: float = 0.2
    colour: float = 0.05
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.25
    erase_area: float = 0.2
    crop_area: float = 1.0
    rotate: float = 0.0
    perspective: float = 0.0
    region_crop: bool = False
    randaugment: int = 0
    randaugment_level: int = 7
    wide: float = 0.0

    def __post_init__(self):
        shares = ("flip", "brightness", "colour", "contrast", "saturation", "grey", "blur")
        for name in (*shares, "erase", "perspective", "wide"):
            self._check(name, 0, 1)
        for name, low, high in (
            # Sides must keep a length, whatever is drawn.
            ("margin", -0.45, 10),
            ("shrink", 0, 0.45),
            ("trim", 0, 0.45),
            ("hue", 0, 0.5),
            ("erase_area", 0.02, 1),
            ("crop_area", 0.01, 1),
            ("rotate", 0, 180),
            ("randaugment", 0, 10),
            ("randaugment_level", 0, 10),
        ):
            self._check(name, low, high)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise InputError(f"data.augment.{name}={value} is not in [{low}, {high}].")

    @property
    def geometric(self) -> bool:
        """Returns True if crops are cropped further, rotated, or seen in perspective."""
        return self.crop_area < 1 or self.tilts

    @property
    def tilts(self) -> bool:
        """Returns True if crops are rotated or seen in perspective."""
        return bool(self.rotate or self.perspective)

    @property
    def photometric(self) -> bool:
        """Returns True if colours change by more than gains."""
        return bool(self.contrast or self.saturation or self.hue or self.grey)


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    """Reading of pictures, ahead of the training step.

    Attributes:
        threads: number of threads that decode and crop, in each process that reads; 0 for none, so
            that without workers batches are read in the loop.
        prefetch: number of batches to keep ready. Each thread makes a batch of its own, so that at
            least as many are kept as there are threads.
        workers: number of processes that read training batches, at most one per core; 0 for the
            training process itself, whose interpreter runs one thread at a time.
        cached_images: number of decoded photographs to keep in memory, for datasets that fit; each
            worker keeps its own.
        resize: "pillow" for views by Pillow's bicubic filter, bit for bit, which published
            checkpoints were trained with; or "fast" for views by OpenCV that are close to it.
            Views that are rotated or in perspective are by OpenCV in either case.
    """

    threads: int = 2
    prefetch: int = 4
    workers: int = 0
    cached_images: int = 0
    resize: str = "fast"

    def __post_init__(self):
        for name in ("threads", "prefetch", "workers", "cached_images"):
            if getattr(self, name) < 0:
                raise InputError(f"data.read.{name}={getattr(self, name)} is negative.")
        if self.resize not in RESIZES:
            raise InputError(f"data.read.resize={self.resize!r} is none of {', '.join(RESIZES)}.")

    @property
    def batches_ahead(self) -> int:
        """Number of batches to keep ready; a smaller one than `threads` would idle some of them."""
        return max(self.prefetch, self.threads)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The dataset, its captions, and the input pipeline.

    Attributes:
        name: "synthetic", the embedded dataset, or "deepfashion2".
        variant: variant of the synthetic dataset: "demo", "large" (the demo with more garments),
            "pretrain" (other garments) or "mini".
        source_dir: a raw DeepFashion2 folder, prepared at first use; not needed afterwards.
        prepare: settings of the preparation of raw data.
        prepared_dir: folder of prepared datasets.
        tokenizer: a vocab.txt, a folder, or a hub name such as "bert-base-uncased"; empty builds a
            vocabulary from the training captions, kept in the workdir.
        max_tokens: T, tokens of a caption with [CLS] and [SEP].
        cleaning: preparation of captions and questions: "x2vlm", as in X2-VLM, where each mark
            becomes a space; "none" for raw texts; or "earlier", as in versions without this key,
            which deleted the marks, in answers too.
        max_words: words of a caption before it is tokenised; 30 in X2-VLM's fine-tuning, of which
            its tables are, and 40 in its pre-training. "none" ignores it.
        views_per_identity: K, views of each identity in a batch; 0 draws the same items one by one
            and hides identities from all losses.
        views_per_item: views of each item in a batch where identities are hidden; with several,
            ArcFace and SupCon tell items apart, which needs no annotation.
        batch_identities: identities of a batch: "random"; "category" for as many of one category as
            possible, which are harder to tell apart; or "mined" for neighbours of each other in the
            teacher's embeddings.
        teacher: a teacher's embeddings of the training items, for `loss.distill` and mining: see
            `data.teacher.open_teacher`.
        vocabulary: caption fields whose words are added to a vocabulary that is built, so that
            other runs can start from this model with captions of these fields.
        view: the part of a photograph that the model sees of an item.
        region_batch: a second batch of each step, whose items are regions.
        captions: captions of training items.
        augment: random changes of training views.
        read: threads and prefetching.
    """

    name: str = "synthetic"
    variant: str = "demo"
    source_dir: str = ""
    prepare: PrepareConfig = PrepareConfig()
    prepared_dir: str = "runs/data"
    tokenizer: str = ""
    max_tokens: int = 40
    cleaning: str = Cleaning().kind
    max_words: int = Cleaning().max_words
    views_per_identity: int = 4
    views_per_item: int = 1
    batch_identities: str = "random"
    teacher: str = ""
    vocabulary: tuple[str, ...] = ()
    view: ViewConfig = ViewConfig()
    region_batch: RegionBatchConfig = RegionBatchConfig()
    captions: CaptionConfig = CaptionConfig()
    augment: AugmentConfig = AugmentConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self):
        if self.name not in DATASETS:
            raise InputError(f"data.name={self.name!r} is none of {', '.join(DATASETS)}.")
        if self.variant not in VARIANTS:
            raise InputError(f"data.variant={self.variant!r} is none of {', '.join(VARIANTS)}.")
        if self.batch_identities not in BATCH_IDENTITIES:
            raise InputError(
                f"data.batch_identities={self.batch_identities!r} is none of "
                f"{', '.join(BATCH_IDENTITIES)}."
            )
        if self.batch_identities != "random" and not self.views_per_identity:
            raise InputError(
                f"data.batch_identities={self.batch_identities!r} chooses identities, which "
                "data.views_per_identity=0 hides: set one of them."
            )
        if self.batch_identities == "mined" and not self.teacher:
            raise InputError(
                "data.batch_identities='mined' looks for neighbours in a teacher's embeddings: set "
                "data.teacher."
            )
        if self.views_per_item < 1 or (self.views_per_item > 1 and self.views_per_identity):
            raise InputError(
                f"data.views_per_item={self.views_per_item} must be 1 where "
                f"data.views_per_identity={self.views_per_identity} draws identities; set the "
                "latter to 0 for several views of each item."
            )
        check_fields("data.vocabulary", self.vocabulary)
        if self.max_tokens < 3:
            raise InputError(f"data.max_tokens={self.max_tokens} leaves no room for a caption.")
        if self.cleaning not in CLEANINGS:
            raise InputError(f"data.cleaning={self.cleaning!r} is none of {', '.join(CLEANINGS)}.")
        if self.max_words < 1:
            raise InputError(f"data.max_words={self.max_words} leaves no word of a caption.")

    @property
    def text_cleaning(self) -> Cleaning:
        """The preparation of texts."""
        return Cleaning(self.cleaning, self.max_words)

    @property
    def wide_share(self) -> float:
        """Share of training crops that are wide; 0 if all views are whole photographs."""
        return 0.0 if self.view.whole else self.augment.wide

    @property
    def shows_classes(self) -> bool:
        """Returns True if batches tell the losses identities, or items, apart."""
        return bool(self.views_per_identity) or self.views_per_item > 1
