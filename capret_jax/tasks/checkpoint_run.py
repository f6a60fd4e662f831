"""The evaluation of a checkpoint on a task, without training or a workdir."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from capret_jax.checkpoints.loading import ModelFolder, Setup, open_model_tokenizer
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.checkpoints.report import model_parts
from capret_jax.config import (
    CaptionConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    ReadConfig,
    TaskConfig,
)
from capret_jax.config.loss import TERMS
from capret_jax.config.task import TASK_LOSSES
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import batch_parts, make_mesh, param_shardings
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.tasks.readers import Examples, read_test
from capret_jax.tasks.run import TASK_PARTS


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Settings of an evaluation without a config.

    Attributes:
        image_size: pixels; 0 for the size of the checkpoint.
        resize: `ReadConfig.resize`.
        prompt: words that captions begin with; None for those of the checkpoint.
        tokenizer: tokenizer in place of the checkpoint's own; empty for that.
        precision: `ComputeConfig.dtype`.
        evaluation: batch size, and memory for re-ranking.
    """

    image_size: int = 0
    resize: str = "pillow"
    prompt: str | None = None
    tokenizer: str = ""
    precision: str = "float32"
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointRun:
    """A checkpoint with the test file of a task; the inputs of `make_evaluator`.

    Attributes:
        config, mesh, share, encode, test: see `evaluators.inputs.EvaluationInputs`.
        params: parameters of the model, sharded over the mesh.
    """

    config: ExperimentConfig
    mesh: Mesh
    share: BatchShare
    encode: CaptionEncoder
    test: Examples
    params: dict

    @classmethod
    def open(cls, path: str, task: TaskConfig, settings: CheckpointSettings) -> "CheckpointRun":
        """Opens a converted checkpoint, or the newest or best one of a training workdir.

        Args:
            path: the folder.
            task: the task and its files.
            settings: precision, sizes and tokenizer.

        Raises:
            InputError: the folder holds no model, or one without a part that the task needs; or a
                file cannot be read.
        """
        folder = ModelFolder(path)
        _check_parts(folder, task.name, path)
        if task.name == "captioning" and settings.prompt is None:
            settings = dataclasses.replace(settings, prompt=folder.card.prompt)
        setup = folder.setup(settings.tokenizer)
        model = dataclasses.replace(
            folder.card.config, image_size=settings.image_size or folder.card.config.image_size
        )
        config = _config(task, settings, model, setup)
        tokenizer = open_model_tokenizer(setup, model)
        encode = CaptionEncoder(tokenizer, setup.max_tokens, setup.cleaning)
        mesh, test = make_mesh(MeshConfig()), read_test(task)
        if config.evaluation.batch_size % batch_parts(mesh):
            raise InputError(
                f"--batch_size={config.evaluation.batch_size} does not divide over "
                f"{batch_parts(mesh)} devices: make it a multiple."
            )
        params, _ = with_image_size(folder.load_params(), folder.card.config, model.image_size)
        _, abstract = abstract_model(config.model, config.compute)
        # A part that the config leaves out, such as the projection of a fusion embedding.
        params = {name: params[name] for name in abstract}
        params = jax.device_put(params, param_shardings(mesh, abstract))
        return cls(config, mesh, BatchShare.of_mesh(mesh), encode, test, params)


def _config(
    task: TaskConfig, settings: CheckpointSettings, model: ModelConfig, setup: Setup
) -> ExperimentConfig:
    # The config of the task's training has these terms; nothing is trained here.
    weights: dict[str, Any] = {term: float(term in TASK_LOSSES[task.name]) for term in TERMS}
    captioning = task.name == "captioning"
    return ExperimentConfig(
        mode="evaluate",
        task=task,
        model=model,
        compute=ComputeConfig(settings.precision),
        data=DataConfig(
            max_tokens=setup.max_tokens,
            cleaning=setup.cleaning.kind,
            max_words=setup.cleaning.max_words,
            captions=CaptionConfig(prompt=settings.prompt or ""),
            read=ReadConfig(resize=settings.resize),
        ),
        loss=LossConfig(**weights, mlm_causal=captioning),
        evaluation=settings.evaluation,
    )


def _check_parts(folder: ModelFolder, task: str, path: str) -> None:
    """Checks that a model has trained values of all parts that a task needs.

    Raises:
        InputError: a part is absent or random; the message names it.
    """
    card = folder.card
    absent = set(model_parts(card.fresh))
    absent |= {"decoder"} if not card.config.decoder_layers else set()
    absent |= {"locations"} if not card.config.location_layers else set()
    absent |= {"nlvr_head"} if not card.config.nlvr else set()
    shared = () if task == "detection" else ("fusion",)
    for part in (*shared, *TASK_PARTS[task]):
        if part in absent:
            raise InputError(
                f"{path} (a {card.kind} checkpoint) has no {part}, which --task={task} needs: "
                "choose a checkpoint that was fine-tuned on this task."
            )
    if task == "captioning" and not folder.writes_captions:
        raise InputError(
            f"the mlm_head of {path} (a {card.kind} checkpoint) was not trained to write captions "
            "from left to right: choose a captioning checkpoint."
        )
