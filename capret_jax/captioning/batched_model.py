"""X2-VLM with its tokenizer, called on batches of one size."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.checkpoints.loading import Setup, open_model_tokenizer
from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.models.x2vlm import abstract_model, bind


@dataclasses.dataclass(frozen=True)
class BatchedModel:
    """X2-VLM with its tokenizer; all batches have one size, so that few programs are compiled.

    Attributes:
        config: shapes of the model.
        params: the model's parameters, a nested dict.
        encode: the encoder of its texts.
        batch_size: images, and questions, per call.
        compute: dtype and implementation of the computation.
    """

    config: ModelConfig
    params: dict
    encode: CaptionEncoder
    batch_size: int = 64
    compute: ComputeConfig = PLAIN

    def compile(self, function: Callable) -> Callable:
        """Compiles a function of the model and arrays.

        Args:
            function: (model, *arrays) -> pytree of arrays.

        Returns:
            (*arrays) -> pytree of arrays, on the device.
        """
        graphdef, dtype = self._graphdef, self.compute.dtype
        compiled = jax.jit(lambda params, *arrays: function(bind(graphdef, params, dtype), *arrays))
        return functools.partial(compiled, self.params)

    def call_in_batches(
        self, function: Callable, inputs: tuple[Any, ...], shared: tuple[Any, ...] = ()
    ) -> Any:
        """Calls a compiled function on full batches; the last one is padded with its last row.

        Args:
            function: (*inputs, *shared) of `batch_size` rows -> pytree of as many rows.
            inputs: pytrees of (n, ...) arrays, n >= 1.
            shared: arguments that all calls have in common.

        Returns:
            Pytree of (n, ...) NumPy arrays.
        """
        parts, count = [], len(jax.tree.leaves(inputs)[0])
        for start in range(0, count, self.batch_size):
            rows = np.arange(start, start + self.batch_size).clip(max=count - 1)
            outputs = function(*jax.tree.map(lambda x, rows=rows: x[rows], inputs), *shared)
            valid = count - start
            parts.append(jax.tree.map(lambda x, n=valid: x[:n], jax.device_get(outputs)))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    @functools.cached_property
    def _graphdef(self):
        return abstract_model(self.config, self.compute)[0]


def batch_model(
    model: LoadedModel, setup: Setup, batch_size: int, compute: ComputeConfig = PLAIN
) -> BatchedModel:
    """Adds the tokenizer and the batch size to a loaded model.

    Args:
        model: the model.
        setup: its preprocessing, which names the tokenizer.
        batch_size: images, and questions, per call.
        compute: dtype and implementation of the computation.

    Raises:
        InputError: there is no such tokenizer, or the model was trained with other tokens.
    """
    tokenizer = open_model_tokenizer(setup, model.config)
    encode = CaptionEncoder(tokenizer, setup.max_tokens, setup.cleaning)
    return BatchedModel(model.config, model.params, encode, batch_size, compute)
