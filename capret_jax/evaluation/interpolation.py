"""Retrieval by models between the start and the end of training (WiSE-FT, arXiv 2109.01903)."""

from typing import Any

import jax

from capret_jax.checkpoints.initialization import initial_params
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.ranking import rank
from capret_jax.retrieval.metrics import summarize
from capret_jax.train.state import TrainState


class InterpolationEvaluator:
    """Metrics of models on the line between `config.init_from` and the trained model."""

    def __init__(self, context: EvaluationContext):
        """
        Args:
            context: inputs that the evaluators share.

        Raises:
            InputError: `config.init_from` holds no model, for instance since it was moved.
        """
        self._context = context
        ModelFolder(context.run.config.init_from)  # before training, not after it

    def run(self, state: TrainState) -> dict[str, Any]:
        """Embeds the validation items by the models of all shares in one pass over photographs.

        Parameters without a start are those of the trained model everywhere on the line. Each
        share takes the memory of one model on the devices.

        Returns:
            "interpolation", a list with a row for each of `evaluation.interpolate`: "share", of
            the trained model, "mAP" and "top_1" ... "top_20".

        Raises:
            InputError: the start cannot be read.
        """
        context, config = self._context, self._context.run.config
        shares = config.evaluation.interpolate
        start = initial_params(config.init_from, state.model, config.model, context.run.mesh)
        models = [interpolate(start.params, state.model, share) for share in shares]
        rankings = [
            rank(context.protocol, table, context.run.mesh) for table in context.embed(models)
        ]
        rows = [summarize(ranking.precision, ranking.first) for ranking in rankings]
        return {
            "interpolation": [
                {"share": share, **row} for share, row in zip(shares, rows, strict=True)
            ]
        }


@jax.jit
def interpolate(start: dict, end: dict, share: float) -> dict:
    """Returns the model at a share of the way from start to end, (1 - share) start + share end."""
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, end)
