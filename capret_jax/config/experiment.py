"""The configuration of a run: all groups of settings in one tree."""

import dataclasses

from capret_jax.config.data import DataConfig
from capret_jax.config.evaluation import EmbeddingConfig, EvaluationConfig
from capret_jax.config.loss import LossConfig
from capret_jax.config.mesh import MeshConfig
from capret_jax.config.model import SIZES, ComputeConfig, ModelConfig
from capret_jax.config.training import LoopConfig, OptimizerConfig
from capret_jax.errors import InputError

MODES = ("train_and_evaluate", "train", "evaluate")


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
        embedding, model, compute, data, loss, optimizer, loop, mesh, evaluation: see their classes.
            `model.embedding` follows `embedding.kind`.
    """

    mode: str = "train_and_evaluate"
    seed: int = 0
    batch_size: int = 64
    accumulation: int = 1
    init_from: str = ""
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
        if self.loss.vqa and not self.model.decoder_layers:
            raise InputError(
                "config.loss.vqa trains the answer decoder, which the model lacks: set "
                "config.model.decoder_layers."
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
        if self.optimizer.drift_penalty and not self.init_from:
            raise InputError(
                f"config.optimizer.drift_penalty={self.optimizer.drift_penalty} keeps a model near "
                "its start: set config.init_from."
            )
        if self.evaluation.interpolate and not self.init_from:
            raise InputError(
                "config.evaluation.interpolate evaluates models between the start and the trained "
                "one: set config.init_from."
            )
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
