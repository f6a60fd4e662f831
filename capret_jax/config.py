"""The whole configuration: every floor's dataclass in one tree, and ConfigDicts to and fro.

`configs/*.py` return an `ml_collections.ConfigDict`, which knows overrides; below `main` there are
only these frozen dataclasses, checked once.
"""

import dataclasses
import difflib
import typing
from collections.abc import Sequence

import ml_collections

from capret_jax.data.dataset import DataConfig
from capret_jax.detection.phrases import DetectionConfig
from capret_jax.errors import InputError
from capret_jax.losses.total import LossConfig
from capret_jax.mesh import MeshConfig
from capret_jax.models.config import SIZES, ComputeConfig, ModelConfig
from capret_jax.train.loop import LoopConfig
from capret_jax.train.optimizer import OptimizerConfig

Kind = typing.TypeVar("Kind")
MODES = ("train_and_evaluate", "train", "evaluate")

# What changes neither what is trained nor how it is measured.
WORKINGS = (
    "mesh",
    "compute",
    "data.prepared_dir",
    "data.prepare",
    "data.source_dir",
    "data.read",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.evaluate_every",
)
# What may change between the runs of one workdir without changing what is trained.
_FREE_KEYS = (*WORKINGS, "mode", "evaluation", "embedding.captions", "embedding.file")
# What may differ between a model and the checkpoint that it starts from.
_FREE_SIZES = ("image_size", "layer_scale", "drop_path", "dropout", "embedding")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How embeddings are made, and of what.

    Attributes:
        batch_size: images per call, global.
        baselines: measure an untrained model and colour histograms beside the model.
        detections: boxes of a detector in the validation photographs, COCO's result format as JSON
            (`retrieval.detected`); empty evaluates the ground truth's boxes alone.
        detect: look for garments by phrases, calibrate from which score they count (which is kept
            beside the model, for serving), and evaluate with the boxes found.
        detection: how thoroughly.
        rerank: nearest candidates of each query that the fusion encoder puts in a new order; 0 for
            none.
        cache_mb: of vision tokens kept in memory for that.
        cache_dir: folder to keep them all in instead, from one evaluation of a model to the next.
    """

    batch_size: int = 128
    baselines: bool = True
    detections: str = ""
    detect: bool = False
    detection: DetectionConfig = DetectionConfig()
    rerank: int = 0
    cache_mb: int = 1024
    cache_dir: str = ""

    def __post_init__(self):
        if self.detect and self.detections:
            raise InputError(
                "evaluation.detect finds boxes itself and evaluation.detections names a file of "
                "others': set one of them."
            )
        if self.rerank < 0 or self.cache_mb < 1:
            raise InputError("evaluation.rerank must not be negative, nor evaluation.cache_mb 0.")


SAID = ("none", "oracle", "generated")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """What items are compared by, and which captions of the validation items it reads.

    Attributes:
        kind: "image", "text", "joined" or "fusion", see `X2VLM.item_features`; trained by ArcFace.
        captions: "none"; "generated", by a model that looked at the picture; or "oracle", by the
            annotations, which nobody has of a shopper's photo.
        file: JSON lines as in `data.captions.file`, of which those with the split "validation"
            count. Without one the oracle is the template of `data.captions.fields`.
    """

    kind: str = "image"
    captions: str = "none"
    file: str = ""

    def __post_init__(self):
        if self.captions not in SAID:
            raise InputError(f"embedding.captions={self.captions!r} is none of {', '.join(SAID)}.")
        if self.captions == "generated" and not self.file:
            raise InputError(
                "embedding.captions='generated' needs the captions: set embedding.file "
                "(tools/collect_captions.py)."
            )
        if self.captions == "none" and self.file:
            raise InputError(
                f"embedding.file={self.file!r} is not read: set embedding.captions to generated or "
                "oracle."
            )
        if self.kind == "image" and self.captions != "none":
            raise InputError(
                f"embedding.captions={self.captions!r}, but embedding.kind='image' reads no "
                "captions: choose text, joined or fusion."
            )
        if self.kind == "text" and self.captions == "none":
            raise InputError(
                "embedding.kind='text' without captions says the same of every item: set "
                "embedding.captions."
            )

    def describe(self, fields: tuple[str, ...]) -> str:
        """For the record: what reaches a validation item's caption.

        Args:
            fields: of the template.
        """
        said = {
            "none": "none",
            "oracle": f"annotations: {self.file or ', '.join(fields)}",
            "generated": f"file {self.file}",
        }
        return said[self.captions]


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One run.

    Attributes:
        mode: one of `MODES`.
        seed: of the parameters, the order of the data and all draws.
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
        # One key to set, and every part of the program that has a model knows.
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
        if self.loss.vqa and not self.model.decoder_layers:
            raise InputError(
                "config.loss.vqa trains the answer decoder, which the model lacks: set "
                "config.model.decoder_layers."
            )
        if self.loss.arcface and not self.data.views_per_identity:
            raise InputError(
                "config.loss.arcface learns identities, which config.data.views_per_identity=0 "
                "keeps from it: set one of them."
            )
        looked = self.evaluation.detect or self.evaluation.detections
        if self.embedding.kind != "image" and looked:
            raise InputError(
                f"config.embedding.kind={self.embedding.kind!r} reads a caption of every item, and "
                "detected boxes have none: leave evaluation.detect and evaluation.detections out."
            )


def to_config_dict(config: ExperimentConfig) -> ml_collections.ConfigDict:
    """Every key with its value, open to overrides."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: ml_collections.ConfigDict) -> ExperimentConfig:
    """The checked configuration.

    Raises:
        InputError: an unknown key, a wrong type, or an impossible value; the message names it.
    """
    return build(ExperimentConfig, values.to_dict(), "config")


def build(kind: type[Kind], values: dict, path: str) -> Kind:
    """A dataclass of nested plain dicts.

    Args:
        kind: the class.
        values: of its fields; others have their defaults.
        path: of the values, for messages.

    Raises:
        InputError: an unknown key, a wrong type, or an impossible value; the message names it.
    """
    types = typing.get_type_hints(kind)
    for name in values:
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(types)}."
            raise InputError(f"{path}.{name} does not exist{hint}")
    checked = {name: _check(types[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return kind(**checked)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _check(kind, value, path: str):
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{path}={value!r} must be a group of settings.")
        return build(kind, value, path)
    wanted = typing.get_origin(kind) or kind
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise InputError(f"{path}={value!r} must be of type {wanted.__name__}.")
    return value


def check_same_training(saved: dict, current: dict, workdir: str) -> None:
    """Refuses to continue a run under a config that would have trained something else.

    Args:
        saved: the config stored with the checkpoint, as nested plain dicts.
        current: the config of this call.
        workdir: for the message.

    Raises:
        InputError: a key that shapes training differs.
    """
    if difference := first_difference(saved, current, _FREE_KEYS):
        raise InputError(
            f"the checkpoint in {workdir} belongs to another config: {difference}; set it back, or "
            "choose another --workdir."
        )


def first_difference(saved: dict, current: dict, free: Sequence[str]) -> str:
    """What differs between two configs, in words; empty when nothing does.

    Args:
        saved, current: as nested plain dicts.
        free: keys, or groups of them, that may differ.
    """
    # A key that is younger than the saved config had its default value then.
    defaults = _flat(dataclasses.asdict(ExperimentConfig()))
    before, now = defaults | _flat(saved), _flat(current)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not _is_in(key, free):
            return f"config.{key} was {before.get(key)!r} and is {now.get(key)!r}"
    return ""


def check_same_shapes(wanted: ModelConfig, found: ModelConfig, source: str) -> None:
    """Refuses to start a model from one of another size; another image size is fine.

    A VQA decoder may also be left behind.

    Args:
        wanted: of this run.
        found: of the checkpoint.
        source: for the message.

    Raises:
        InputError: a size differs.
    """
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        now, then = getattr(wanted, name), getattr(found, name)
        if name in _FREE_SIZES or (name == "decoder_layers" and now == 0):
            continue
        if now != then:
            raise InputError(
                f"config.model.{name}={now} does not fit config.init_from={source}, which has "
                f"{then}; set --config.model.{name}={then}."
            )


def _is_in(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # JSON, through which a saved config went, has lists for tuples.
            flat[f"{prefix}{name}"] = _plain(value)
    return flat


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
