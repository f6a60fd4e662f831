"""The configuration of a run: all groups of settings in one tree."""

import dataclasses

from capret_jax.config.captions import CaptionConfig
from capret_jax.config.data import DataConfig
from capret_jax.config.evaluation import EmbeddingConfig, EvaluationConfig
from capret_jax.config.loss import TERMS, LossConfig
from capret_jax.config.mesh import MeshConfig
from capret_jax.config.model import SIZES, ComputeConfig, ModelConfig
from capret_jax.config.task import TASK_LOSSES, TASK_METRICS, TaskConfig
from capret_jax.config.training import CURVE_METRICS, LoopConfig, OptimizerConfig
from capret_jax.config.views import (
    AugmentConfig,
    LocationBatchConfig,
    RegionBatchConfig,
    ViewConfig,
)
from capret_jax.errors import InputError

MODES = ("train_and_evaluate", "train", "evaluate")
# Keys that a task reads; others have to keep their defaults.
_TASK_KEYS = {
    "data": ("tokenizer", "max_tokens", "cleaning", "max_words", "captions", "augment", "read"),
    "evaluation": ("batch_size", "cache_mb", "cache_dir"),
    "embedding": (),
}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Configuration of one run.

    Attributes:
        mode: one of `MODES`.
        seed: seed of the parameters, the order of the data and all other random numbers.
        batch_size: B, global.
        accumulation: parts of a batch that are computed one after the other, with the whole batch's
            loss and gradients, at the price of a second forward pass.
        init_from: folder of a converted checkpoint, or of a finished run, whose model a new run
            starts from; empty starts from scratch. A run's own checkpoint comes before it.
        task: a task of X2-VLM in place of photographs and shop items.
        embedding, model, compute, data, loss, optimizer, loop, mesh, evaluation: see their classes.
            `model.embedding` follows `embedding.kind`, and `model.location_layers` is not 0 with
            `loss.locations`.
    """

    mode: str = "train_and_evaluate"
    seed: int = 0
    batch_size: int = 64
    accumulation: int = 1
    init_from: str = ""
    task: TaskConfig = TaskConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    model: ModelConfig = SIZES["base"]
    compute: ComputeConfig = ComputeConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        # `embedding.kind` is the only key to set; the model's field follows it.
        model = dataclasses.replace(self.model, embedding=self.embedding.kind)
        if self.loss.locations and not model.location_layers:
            model = dataclasses.replace(model, location_layers=model.fusion_layers)
        object.__setattr__(self, "model", model)
        if self.mode not in MODES:
            raise InputError(f"config.mode={self.mode!r} is none of {', '.join(MODES)}.")
        if min(self.batch_size, self.evaluation.batch_size, self.accumulation) < 1:
            raise InputError(
                "config.batch_size, config.evaluation.batch_size and config.accumulation must be "
                "positive."
            )
        if self.data.max_tokens > self.model.max_positions:
            raise InputError(
                f"config.data.max_tokens={self.data.max_tokens} is more than "
                f"config.model.max_positions={self.model.max_positions}."
            )
        self.compute.check_kernel(self.model, self.mesh.tensor)
        self._check_task()
        self._check_losses()
        self._check_region_batch()
        self._check_start()
        self._check_embedding()

    def _check_losses(self) -> None:
        """Checks that the model and the data have what the weighted losses need."""
        if self.loss.vqa and not self.model.decoder_layers:
            raise InputError(
                "config.loss.vqa trains the answer decoder, which the model lacks: set "
                "config.model.decoder_layers."
            )
        if bool(self.loss.nlvr) and not self.model.nlvr:
            raise InputError(
                "config.loss.nlvr trains a head that the model lacks: set config.model.nlvr."
            )
        if self.data.captions.prompt and not (self.loss.mlm and self.loss.mlm_causal):
            raise InputError(
                f"config.data.captions.prompt={self.data.captions.prompt!r} is what a captioner "
                "starts from: set config.loss.mlm and config.loss.mlm_causal, or leave it empty."
            )
        if self.loss.identities and not self.data.shows_classes:
            term = "arcface" if self.loss.arcface else "supcon"
            raise InputError(
                f"config.loss.{term} learns identities, which config.data.views_per_identity=0 "
                "keeps from it: set one of them, or config.data.views_per_item=2 to tell items "
                "apart."
            )
        items = self.batch_size * self.data.view.regions_per_image
        if self.loss.supcon_memory % items:
            raise InputError(
                f"config.loss.supcon_memory={self.loss.supcon_memory} is no multiple of the "
                f"{items} items of a batch."
            )
        mined = self.data.batch_identities == "mined"
        if bool(self.data.teacher) != bool(self.loss.distill or mined):
            raise InputError(
                f"config.data.teacher={self.data.teacher!r} is for config.loss.distill and "
                "config.data.batch_identities='mined': set both, or neither."
            )

    def _check_start(self) -> None:
        """Checks that there is a start for all settings that need one."""
        if self.optimizer.drift_penalty and not self.init_from:
            raise InputError(
                f"config.optimizer.drift_penalty={self.optimizer.drift_penalty} keeps a model near "
                "its start: set config.init_from."
            )
        if self.optimizer.fresh_multiplier != 1 and not self.init_from:
            raise InputError(
                f"config.optimizer.fresh_multiplier={self.optimizer.fresh_multiplier} is for what "
                "config.init_from lacks, and without it all parameters are fresh: set init_from, "
                "or change config.optimizer.learning_rate."
            )
        if self.evaluation.interpolate and not self.init_from:
            raise InputError(
                "config.evaluation.interpolate evaluates models between the start and the trained "
                "one: set config.init_from."
            )

    def _check_embedding(self) -> None:
        """Checks that what is embedded has captions, where the embedding reads them."""
        if self.evaluation.training_embeddings and self.embedding.kind != "image":
            raise InputError(
                f"config.evaluation.training_embeddings with config.embedding.kind="
                f"{self.embedding.kind!r} would need captions of the training items: only 'image' "
                "can be written."
            )
        detected = self.evaluation.detect or self.evaluation.detections
        if self.embedding.kind != "image" and detected:
            raise InputError(
                f"config.embedding.kind={self.embedding.kind!r} reads a caption of every item, and "
                "detected boxes have none: leave evaluation.detect and evaluation.detections out."
            )

    def _check_task(self):
        """Checks losses, metric and input pipeline against the task."""
        name, task = self.task.name, f"config.task.name={self.task.name!r}"
        metrics = TASK_METRICS.get(name, CURVE_METRICS)
        if self.loop.keep_best not in ("", *metrics):
            raise InputError(
                f"config.loop.keep_best={self.loop.keep_best!r} is none of {', '.join(metrics)}."
            )
        if not name:
            if self.loss.nlvr:
                raise InputError(
                    "config.loss.nlvr compares a sentence with two pictures: set config.task.name="
                    "'nlvr2'."
                )
            return
        if self.mode != "evaluate" and not self.task.train:
            raise InputError(f"{task} needs config.task.train to train: name its files.")
        losses = TASK_LOSSES[name]
        for term in TERMS:
            if getattr(self.loss, term) and term not in losses:
                raise InputError(
                    f"config.loss.{term}={getattr(self.loss, term)} cannot be computed of {task}, "
                    f"which is trained by {' and '.join(losses)}: set it to 0."
                )
        for group, read in _TASK_KEYS.items():
            values = getattr(self, group)
            for field in dataclasses.fields(values):
                if field.name == "location_batch" and name == "detection":
                    self._check_pictures_of_task()
                    continue
                if field.name not in read and getattr(values, field.name) != field.default:
                    raise InputError(
                        f"config.{group}.{field.name} is for photographs and shop items, and "
                        f"{task} does not read it: leave it out."
                    )
        if dataclasses.replace(self.data.captions, prompt="") != CaptionConfig():
            raise InputError(
                f"config.data.captions is for photographs and shop items, and {task} reads its "
                "prompt alone: leave the other keys out."
            )
        augment = self.data.augment
        if augment.wide or (augment.region_crop and name != "grounding"):
            key = "wide" if augment.wide else "region_crop"
            raise InputError(
                f"config.data.augment.{key} shows windows around items, and {task} has none: leave "
                "it out."
            )
        for key in ("margin", "shrink", "trim"):
            # 0 is what a task does in any case.
            if getattr(augment, key) not in (0, getattr(AugmentConfig, key)):
                raise InputError(
                    f"config.data.augment.{key} is for photographs and shop items, and {task} does "
                    "not read it: leave it out."
                )
        if augment.geometric and name == "grounding":
            raise InputError(
                f"config.data.augment.crop_area, rotate and perspective may cut away the box of "
                f"{task}: set them to 1, 0 and 0, or region_crop."
            )

    def _check_pictures_of_task(self) -> None:
        """Checks that a task's own pictures stand for a location batch."""
        images = self.data.location_batch.images
        if images != LocationBatchConfig.images:
            raise InputError(
                f"config.data.location_batch.images={images} is not read with config.task.name="
                "'detection', whose batches are all pictures: set config.batch_size."
            )

    def _check_region_batch(self) -> None:
        loss = self.loss
        if self.data.region_batch.images:
            count = self.data.region_batch.images
            if not (loss.itc or loss.itm or loss.mlm or loss.box):
                raise InputError(
                    f"config.data.region_batch.images={count} trains none of the weighted losses: "
                    "set one of config.loss.{itc,itm,mlm,box_l1,box_giou}, or no region batch."
                )
            if not (loss.itc or loss.itm or loss.mlm or loss.vqa or loss.embeddings):
                raise InputError(
                    "config.loss weights boxes alone, which config.data.region_batch.images="
                    f"{count} takes from the batch of items: set config.data.view.kind='region' "
                    "instead."
                )
        elif loss.box and self.data.view.kind == "image" and self.data.augment.geometric:
            raise InputError(
                "config.data.view.kind='image' with config.data.augment.crop_area, rotate or "
                "perspective may cut away the item whose box is trained: set them to 1, 0 and 0, "
                "loss.box_l1 and loss.box_giou to 0, or data.region_batch.images."
            )

    @property
    def images_per_step(self) -> int:
        """Pictures of a training step: of items, and of the region and location batches."""
        return self.batch_size + self.data.region_batch.images + self.located_images

    @property
    def located_images(self) -> int:
        """Photographs in a step's location batch; a task's own pictures stand for them."""
        located = self.loss.locations and not self.task.name
        return self.data.location_batch.images if located else 0

    def item_batch(self) -> "ExperimentConfig":
        """Returns the config of the batch of items alone: the region batch has the box losses."""
        if not self.data.region_batch.images:
            return self
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, region_batch=RegionBatchConfig()),
            loss=dataclasses.replace(self.loss, box_l1=0.0, box_giou=0.0),
        )

    def region_batch(self) -> "ExperimentConfig":
        """Returns the config of the region batch alone, as if it was the only one."""
        regions = self.data.region_batch
        return dataclasses.replace(
            self,
            batch_size=regions.images,
            data=dataclasses.replace(
                self.data,
                view=ViewConfig("region", regions.regions_per_image),
                region_batch=RegionBatchConfig(),
                batch_identities="random",
                teacher="",
            ),
            loss=dataclasses.replace(
                self.loss,
                vqa=0.0,
                arcface=0.0,
                supcon=0.0,
                distill=0.0,
                locations=0.0,
                supcon_memory=0,
            ),
        )
