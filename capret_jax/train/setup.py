"""The static inputs of a training step: configuration, mesh, model structure and optimizer."""

import dataclasses
from collections.abc import Collection

import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from capret_jax.checkpoints.initialization import fresh_parameters, initialised_parameters
from capret_jax.config import ComputeConfig, ExperimentConfig
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.parameter_groups import trained_mask


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """Everything that a training step is compiled for.

    Attributes:
        config: configuration of the run.
        mesh: devices that state and batch are sharded over.
        class_sizes: (C,) int, number of training examples per identity.
        graphdef: the model's structure.
        optimizer: the update rule.
        anchored: paths in the model of the parameters that `optimizer.drift_penalty` keeps near
            their start: those of `init_from`, without frozen ones.
        fresh: paths in the model of the parameters that `optimizer.fresh_multiplier` is for; empty
            where it is 1.
    """

    config: ExperimentConfig
    mesh: Mesh
    class_sizes: np.ndarray
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    anchored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        config: ExperimentConfig,
        mesh: Mesh,
        class_sizes: np.ndarray,
        fresh: Collection[str] | None = None,
    ) -> "StepSetup":
        """Builds the model's structure and the optimizer.

        Args:
            config: configuration of the run.
            mesh: mesh from `make_mesh`, of the devices here or of a topology to plan for.
            class_sizes: (C,) int, number of training examples per identity.
            fresh: the run's `fresh` as it was saved; None to find it in `init_from`.

        Raises:
            InputError: the warm-up does not end before the last step, or a drift penalty has no
                parameter to pull.
        """
        compute = config.compute.on(mesh.devices.flat[0].platform)
        anchored = _anchored(config) if config.optimizer.drift_penalty else ()
        if fresh is None:
            fresh = _fresh(config)
        paths = {"arcface", *(f"model/{path}" for path in fresh)}
        graphdef, _ = abstract_model(config.model, compute)
        optimizer = make_optimizer(config, paths)
        return cls(config, mesh, class_sizes, graphdef, optimizer, anchored, tuple(fresh))

    @property
    def compute(self) -> ComputeConfig:
        """Settings of the computation, resolved for the mesh's platform."""
        return self.config.compute.on(self.mesh.devices.flat[0].platform)


def _fresh(config: ExperimentConfig) -> tuple[str, ...]:
    if config.optimizer.fresh_multiplier == 1:
        return ()
    return tuple(fresh_parameters(config.init_from, config.model))


def _anchored(config: ExperimentConfig) -> tuple[str, ...]:
    paths = initialised_parameters(config.init_from, config.model)
    trained = trained_mask({f"model/{path}": path for path in paths}, config.optimizer.frozen)
    anchored = tuple(path for path in paths if trained[f"model/{path}"])
    if not anchored:
        raise InputError(
            f"config.optimizer.drift_penalty={config.optimizer.drift_penalty} pulls nothing: "
            f"config.init_from={config.init_from} has no parameter of the model, or all that it "
            "has are frozen; set it to 0."
        )
    return anchored
