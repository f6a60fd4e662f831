"""Embeddings of the training items, which teach another model."""

from typing import Any

from capret_jax.data.teacher import FILE
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.train.state import TrainState


class TrainingEmbeddingsEvaluator:
    """Embeds the training split as validation items are embedded, without augmentation."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Adds `training_embeddings.npy` to the context's files.

        The file holds (n, E) float32 by row of the training split's item table.
        """
        context = self._context
        (embeddings,) = context.embed([state.model], context.run.dataset.train)
        context.files[FILE] = embeddings
        return {}
