"""Settings of the dataset and of the input pipeline."""

import dataclasses

from capret_jax.config.captions import CLEANINGS, CaptionConfig, Cleaning, check_fields
from capret_jax.config.views import (
    AugmentConfig,
    LocationBatchConfig,
    RegionBatchConfig,
    ViewConfig,
)
from capret_jax.errors import InputError

DATASETS = ("synthetic", "deepfashion2")
# Variants of the synthetic dataset; `synthetic.builder` has their sizes.
VARIANTS = ("demo", "large", "pretrain", "mini")
# Ways to resize views, see `data.resizing`.
RESIZES = ("fast", "pillow")
BATCH_IDENTITIES = ("random", "category", "mined")


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
        location_batch: the photographs of each step for `loss.locations`.
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
    location_batch: LocationBatchConfig = LocationBatchConfig()
    captions: CaptionConfig = CaptionConfig()
    augment: AugmentConfig = AugmentConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self):
        if self.name not in DATASETS:
            coco = "; COCO's detection is a task: configs/coco_detection.py"
            raise InputError(
                f"data.name={self.name!r} is none of {', '.join(DATASETS)}"
                f"{coco if self.name == 'coco' else ''}."
            )
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
