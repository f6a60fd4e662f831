"""Re-ranking evaluator: the nearest candidates of each query, ordered anew by image-text matching.

The text is the category whose phrase matches the query's picture best: nothing of the ground truth.
The weight of the match beside the cosine is chosen on the other half of the queries, by identity.
"""

import time
from typing import Any

import numpy as np

from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.data.captions import category_phrase
from capret_jax.detection.phrases import PHRASES
from capret_jax.distributed.gather import gather_rows
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.detected_embeddings import local_params
from capret_jax.evaluation.ranking import RerankedMetrics
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.metrics import summarize
from capret_jax.retrieval.reranking import Matcher, best_phrases, cross_fit
from capret_jax.train.state import TrainState


class RerankingEvaluator:
    """mAP and top-k after re-ranking the first `evaluation.rerank` candidates of every query."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Matches every query's text with its candidates; processes share the queries.

        Returns:
            "reranked": mAP and top-k, "k", "weights", "category_accuracy" of the texts,
            "seconds_per_query", and "items_encoded".
        """
        context, run = self._context, self._context.run
        protocol, ranking = context.protocol, context.ranking(state)
        tokens = context.readings(state).tokens
        assert tokens is not None, "the config has an evaluator that no tokens are kept for"
        config = run.config.model
        model = LoadedModel(local_params(state.model), config, [], config.image_size)
        matcher = Matcher(model, run.encode)
        own = np.array_split(np.arange(len(protocol.queries)), run.part.count)[run.part.index]
        start = time.perf_counter()
        words = best_phrases(matcher, PHRASES, protocol.queries[own], tokens)
        nearest = ranking.neighbours[own, : run.config.evaluation.rerank]
        phrases = [category_phrase(int(word) + 1) for word in words]
        match = matcher.candidates(phrases, protocol.gallery[nearest], tokens)
        seconds = (time.perf_counter() - start) / max(len(own), 1)
        words, match = gather_rows(words), gather_rows(match)
        reranked = RerankedMetrics(protocol, ranking, match.shape[1])
        neighbours = Neighbours(ranking.neighbours, ranking.scores)
        half = protocol.query_identity % 2 == 0
        fitted = cross_fit(neighbours, match, lambda each: reranked(each).precision, half)
        better = reranked(fitted.neighbours)
        items = run.dataset.validation.items
        truth = items["category_id"][protocol.queries] - 1
        metrics = {
            **summarize(better.precision, better.first),
            "k": int(match.shape[1]),
            "weights": list(fitted.weights),
            "category_accuracy": float((words == truth).mean()),
            "seconds_per_query": float(gather_rows(np.array([seconds])).max()),
            "items_encoded": len(items),
        }
        return {"reranked": metrics}
