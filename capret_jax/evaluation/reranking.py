"""Re-ranking evaluator: the nearest candidates of each query, reordered by image-text matching.

The text is the phrase of the category that matches the query's picture best, so no ground truth is
used. The weight of the match probability is chosen on the other half of the queries, split by
identity.
"""

import time
from typing import Any

import jax
import numpy as np

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.data.captions import category_phrase
from capret_jax.detection.phrases import PHRASES
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.local_mesh import local_model
from capret_jax.distributed.mesh import replicated
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.ranking import RerankedMetrics
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.metrics import summarize
from capret_jax.retrieval.reranking import Matcher, best_phrases, cross_fit
from capret_jax.train.state import TrainState


class RerankingEvaluator:
    """Metrics after re-ranking the nearest `evaluation.rerank` candidates of every query."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Matches every query's text with its candidates; queries are divided among processes.

        Returns:
            "reranked": "mAP", "top_1" ... "top_20"; "k", number of candidates; "weights" of the
            match probability; "category_accuracy" of the texts; "seconds_per_query"; and
            "items_encoded".
        """
        context, run = self._context, self._context.run
        protocol, ranking = context.protocol, context.ranking(state)
        tokens = context.encoded(state).tokens
        assert tokens is not None, "chosen only where evaluation.rerank is set"
        config = run.config.model
        mesh, params = local_model(run.mesh, state.model)
        params, compute = jax.device_put(params, replicated(mesh)), run.setup.compute
        model = LoadedModel(params, config, [], config.image_size, compute)
        matcher = Matcher(model, run.encode, mesh)
        queries = np.array_split(np.arange(len(protocol.queries)), run.part.count)[run.part.index]
        start = time.perf_counter()
        categories = best_phrases(matcher, PHRASES, protocol.queries[queries], tokens)
        nearest = ranking.neighbours[queries, : run.config.evaluation.rerank]
        phrases = [category_phrase(int(category) + 1) for category in categories]
        match = matcher.candidates(phrases, protocol.gallery[nearest], tokens)
        seconds = (time.perf_counter() - start) / max(len(queries), 1)
        categories, match = gather_rows(categories), gather_rows(match)
        reranked = RerankedMetrics(protocol, ranking, match.shape[1])
        neighbours = Neighbours(ranking.neighbours, ranking.scores)
        half = protocol.query_identity % 2 == 0
        fitted = cross_fit(neighbours, match, lambda ordered: reranked(ordered).precision, half)
        better = reranked(fitted.neighbours)
        items = run.dataset.validation.items
        true_categories = items["category_id"][protocol.queries] - 1
        metrics = {
            **summarize(better.precision, better.first),
            "k": int(match.shape[1]),
            "weights": list(fitted.weights),
            "category_accuracy": float((categories == true_categories).mean()),
            "seconds_per_query": float(gather_rows(np.array([seconds])).max()),
            "items_encoded": len(items),
        }
        return {"reranked": metrics}
