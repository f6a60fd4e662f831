"""The dataset, and how its photographs and captions become batches."""

import dataclasses

from capret_jax.errors import InputError

DATASETS = ("synthetic", "deepfashion2")
# The synthetic dataset's; `synthetic.builder` says how much each of them draws.
VARIANTS = ("demo", "large", "pretrain", "mini")
VIEWS = ("crop", "image", "region")
# What DeepFashion2 annotates, and what is known of synthetic garments besides; `data.schema` has
# the values.
FIELDS = ("category", "scale", "occlusion", "zoom_in", "viewpoint")
ALL_FIELDS = (*FIELDS, "colour", "pattern", "print", "neckline")


def check_fields(key: str, fields: tuple[str, ...]) -> None:
    """Checks names of caption fields.

    Args:
        key: of the configuration, for the message.
        fields: to be of `ALL_FIELDS`.

    Raises:
        InputError: one of them does not exist.
    """
    for field in fields:
        if field not in ALL_FIELDS:
            raise InputError(f"{key} has {field!r}, which is none of {', '.join(ALL_FIELDS)}.")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Preparation of raw data.

    Attributes:
        processes: that read and check images; 0 for one per core.
        allow_broken: go on when more than 1 % of the images or items are left out.
        runner: of Apache Beam, such as "DirectRunner", "DataflowRunner" or "FlinkRunner", in place
            of local processes; its workers must see both folders under the same paths.
        beam_options: of its pipeline, "name=value" each.
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
    """The part of a photograph that the model sees of an item, in training and at evaluation.

    Attributes:
        kind: "crop", the item's box with a margin; "image", the whole photograph, so that all its
            items look the same; or "region", the whole photograph with position 0 pooled over the
            item's box, so that one pass of the vision encoder serves all its items.
        regions_per_image: M, with "region": items of a photograph that train together at most; the
            others than the one drawn come along without a vision pass of their own.
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
        """Whether items are regions of a photograph."""
        return self.kind == "region"

    @property
    def whole(self) -> bool:
        """Whether the whole photograph is seen."""
        return self.kind != "crop"


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Captions of training items.

    Attributes:
        fields: of `ALL_FIELDS`, those that the template reveals; with none of them it says "an
            image of an item" of all.
        file: JSON lines {"image_id": 1, "item": 1, "caption": "..."} in place of the template,
            `item` being the n of the annotation's item<n>; an item with several lines has several
            captions, one of which is drawn each time. Lines with a "split" other than "train" are
            passed over.
        dropout: probability that an example's caption is empty.
        short: probability that the template reveals the category alone, as the phrases do by which
            garments are detected in photographs.
    """

    fields: tuple[str, ...] = FIELDS
    file: str = ""
    dropout: float = 0.0
    short: float = 0.0

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
        """The source of the captions, in words for the record."""
        if self.file:
            return f"file {self.file}"
        return f"template of {', '.join(self.fields)}" if self.fields else "nothing of the item"


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training views; all fractions. Zeros everywhere make views plain.

    Attributes:
        margin: context around the box at evaluation, as a fraction of the box's sides; training
            draws each side's between -shrink and 2 * margin.
        shrink: how far into the box a training crop may cut.
        trim: how much of the photograph's width or height a training view of the whole of it may
            lose at each side; never any of its items' boxes.
        flip: probability of a mirror image, except where the caption tells left from right.
        brightness: each image's gain is drawn from 1 +- this.
        colour: each channel's gain is drawn from 1 +- this.
        erase: probability that a rectangle is painted grey (arXiv 1708.04896).
        wide: probability that a training crop is a window of any size between a box and the whole
            photograph. Such a view teaches words and boxes, which detection by phrases needs, but
            no identity, since there may be others in it; so it shows an item without identity
            instead of the one drawn, where there are any.
    """

    margin: float = 0.1
    shrink: float = 0.05
    trim: float = 0.1
    flip: float = 0.5
    brightness: float = 0.2
    colour: float = 0.05
    erase: float = 0.25
    wide: float = 0.0


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    """Reading ahead of the training step.

    Attributes:
        threads: that decode and crop.
        prefetch: batches to keep ready.
        cached_images: decoded photographs to keep in memory, for datasets that fit.
    """

    threads: int = 2
    prefetch: int = 4
    cached_images: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The dataset, its captions, and the way to batches.

    Attributes:
        name: "synthetic", the embedded dataset, or "deepfashion2".
        variant: of the synthetic dataset: "demo", "large" (more of it), "pretrain" (other
            garments) or "mini".
        source_dir: a raw DeepFashion2 folder, prepared at first use; not needed afterwards.
        prepare: how raw data is prepared.
        prepared_dir: folder of prepared datasets.
        tokenizer: a vocab.txt, a folder, or a hub name such as "bert-base-uncased"; empty builds a
            vocabulary from the training captions, kept in the workdir.
        max_tokens: T, tokens of a caption with [CLS] and [SEP].
        views_per_identity: K, views of each identity in a batch; 0 draws the same items one by one
            and tells no loss which are of one garment.
        vocabulary: caption fields whose words are added to a vocabulary that is built: a model that
            others start from then knows them, whatever its own captions say.
        view: what the model sees of an item.
        captions: what they say.
        augment: random changes of training views.
        read: threads and batches to keep ready.
    """

    name: str = "synthetic"
    variant: str = "demo"
    source_dir: str = ""
    prepare: PrepareConfig = PrepareConfig()
    prepared_dir: str = "runs/data"
    tokenizer: str = ""
    max_tokens: int = 40
    views_per_identity: int = 4
    vocabulary: tuple[str, ...] = ()
    view: ViewConfig = ViewConfig()
    captions: CaptionConfig = CaptionConfig()
    augment: AugmentConfig = AugmentConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self):
        if self.name not in DATASETS:
            raise InputError(f"data.name={self.name!r} is none of {', '.join(DATASETS)}.")
        if self.variant not in VARIANTS:
            raise InputError(f"data.variant={self.variant!r} is none of {', '.join(VARIANTS)}.")
        check_fields("data.vocabulary", self.vocabulary)
        if self.augment.wide and self.view.kind != "crop":
            raise InputError(
                f"data.augment.wide={self.augment.wide} widens crops, and "
                f"data.view.kind={self.view.kind!r} shows whole photographs as it is."
            )
        if self.max_tokens < 3:
            raise InputError(f"data.max_tokens={self.max_tokens} leaves no room for a caption.")
