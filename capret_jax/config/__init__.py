"""All settings of a run as frozen dataclasses, one module per group."""

from capret_jax.config.captions import CaptionConfig, Cleaning
from capret_jax.config.compare import (
    NON_SEMANTIC_KEYS,
    check_same_shapes,
    check_same_training,
    first_difference,
)
from capret_jax.config.config_dict import build, from_config_dict, to_config_dict
from capret_jax.config.data import DataConfig, PrepareConfig, ReadConfig
from capret_jax.config.evaluation import DetectionConfig, EmbeddingConfig, EvaluationConfig
from capret_jax.config.experiment import ExperimentConfig
from capret_jax.config.loss import LossConfig
from capret_jax.config.mesh import MeshConfig
from capret_jax.config.model import SIZES, ComputeConfig, ModelConfig
from capret_jax.config.task import TaskConfig
from capret_jax.config.training import LoopConfig, OptimizerConfig
from capret_jax.config.views import (
    AugmentConfig,
    LocationBatchConfig,
    RegionBatchConfig,
    ViewConfig,
)

__all__ = [
    "NON_SEMANTIC_KEYS",
    "SIZES",
    "AugmentConfig",
    "CaptionConfig",
    "Cleaning",
    "ComputeConfig",
    "DataConfig",
    "DetectionConfig",
    "EmbeddingConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "LocationBatchConfig",
    "LoopConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "ReadConfig",
    "RegionBatchConfig",
    "TaskConfig",
    "ViewConfig",
    "build",
    "check_same_shapes",
    "check_same_training",
    "first_difference",
    "from_config_dict",
    "to_config_dict",
]
