"""Inputs of an evaluation, and its results."""

from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from capret_jax.config import ComputeConfig, ExperimentConfig
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.tasks.readers import Examples


class EvaluationInputs(Protocol):
    """Inputs of an evaluation: a training run, or a checkpoint that is evaluated alone.

    Attributes:
        config: configuration with `task.name`.
        mesh: mesh of all devices of all processes.
        share: this process's part of every batch.
        encode: encoder of texts as tokens.
        test: the examples to evaluate on.
    """

    @property
    def config(self) -> ExperimentConfig: ...
    @property
    def mesh(self) -> Mesh: ...
    @property
    def share(self) -> BatchShare: ...
    @property
    def encode(self) -> CaptionEncoder: ...
    @property
    def test(self) -> Examples: ...


class TaskResults(NamedTuple):
    """Results of an evaluation, the same on every process.

    Attributes:
        metrics: values of JSON by name.
        files: name -> content, values of JSON, of the files to write beside the metrics.
    """

    metrics: dict[str, Any]
    files: dict[str, Any] = {}


def compute_settings(config: ExperimentConfig, mesh: Mesh) -> ComputeConfig:
    """Returns the settings of the computation, resolved for the mesh's platform."""
    return config.compute.on(mesh.devices.flat[0].platform)
