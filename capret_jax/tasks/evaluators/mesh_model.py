"""Functions of the model, compiled for a mesh and called batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from capret_jax.config import ExperimentConfig
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import batch_sharding, param_shardings, replicated
from capret_jax.models.x2vlm import abstract_model, bind
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, compute_settings

# Trees of arrays with the rows of a batch first.
Batch = Any


class MeshFunction:
    """A function of the model and a batch; batches are split over all devices of a mesh.

    Attributes:
        jitted: the jitted function of parameters, a global batch and a tuple of shared arguments.
    """

    def __init__(self, config: ExperimentConfig, mesh: Mesh, function: Callable[..., Any]):
        """
        Args:
            config: shapes of the model, and precision.
            mesh: mesh of the devices to use.
            function: (model, batch, *shared) -> tree of arrays with as many rows as the batch.
        """
        compute, self._mesh = compute_settings(config, mesh), mesh
        graphdef, abstract = abstract_model(config.model, compute)

        def call(params, batch, shared):
            with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
                return function(bind(graphdef, params, compute.dtype), batch, *shared)

        whole = replicated(self._mesh)
        inputs = param_shardings(self._mesh, abstract), batch_sharding(self._mesh), whole
        self.jitted = jax.jit(call, in_shardings=inputs, out_shardings=whole)

    def __call__(
        self, params: dict, batches: Iterable[Batch], shared: tuple[Any, ...] = ()
    ) -> Iterator[Any]:
        """Yields the results of each global batch, NumPy arrays, the same on every process.

        Every process has to call it, with equally many batches. The next batch is prepared while
        the devices compute.

        Args:
            params: parameters of the model, sharded over the mesh.
            batches: this process's part of each batch.
            shared: arguments that all calls have in common.
        """
        pending = None
        for batch in batches:
            placed = to_global(self._mesh, batch)
            # One program at a time: CPU devices can block each other in two that communicate.
            result = jax.device_get(pending)
            pending = self.jitted(params, placed, shared)
            if result is not None:
                yield result
        if pending is not None:
            yield jax.device_get(pending)

    def by_row(
        self, params: dict, batches: Iterable[Batch], rows: int, shared: tuple[Any, ...] = ()
    ) -> Any:
        """Returns the concatenated results of all batches without the padding after `rows`."""
        parts = list(self(params, batches, shared))
        return jax.tree.map(lambda *x: np.concatenate(x)[:rows], *parts)


def batch_rows(run: EvaluationInputs, rows: int, size: int) -> np.ndarray:
    """Returns the rows that this process provides in each batch.

    Args:
        run: the process's share of a batch.
        rows: n >= 1, number of rows; global batch b has the rows from b * `size` on, and the last
            row as padding.
        size: number of rows in a batch.

    Returns:
        (batches, rows of this process) int64.
    """
    own = run.share.rows(size)[run.share.index]
    return (np.arange(0, rows, size)[:, None] + own).clip(max=rows - 1)


def array_batches(run: EvaluationInputs, arrays: Batch, size: int) -> Iterator[Batch]:
    """Yields this process's part of each batch of a tree of (n, ...) arrays."""
    for rows in batch_rows(run, len(jax.tree.leaves(arrays)[0]), size):
        yield jax.tree.map(lambda x, rows=rows: x[rows], arrays)
