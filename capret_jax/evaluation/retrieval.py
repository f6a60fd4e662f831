"""Retrieval evaluators: consumer-to-shop metrics of the model and of its baselines."""

from typing import Any

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.distributed.first_process import first_process_only
from capret_jax.evaluation.context import MODEL, EvaluationContext
from capret_jax.evaluation.mesh_ranking import Ranking
from capret_jax.evaluation.official_scorer import FLOOR_KEY, QUERY_IOU_FLOOR, Entry, score
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol, result_entries
from capret_jax.evaluation.ranking import rank
from capret_jax.retrieval.engines import ExactEngine, ScannEngine
from capret_jax.retrieval.metrics import recall, summarize
from capret_jax.retrieval.tuning import timed
from capret_jax.train.state import TrainState

# Number of neighbours whose recall by the index is measured.
RECALL_AT = 20


class CurveEvaluator:
    """Mean average precision and top-k accuracy during training, for the training curve."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, float]:
        """Returns "retrieval/mAP", "retrieval/top_1" ... of the state's embeddings."""
        (embeddings,) = self._context.embed([state.model])
        ranking = rank(self._context.protocol, embeddings, self._context.run.mesh)
        metrics = summarize(ranking.precision, ranking.first)
        return {f"retrieval/{name}": value for name, value in metrics.items()}


class RetrievalEvaluator:
    """Metrics over all queries, by condition and by the official scorer, and of the ScaNN index."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Measures the model's embeddings of the validation items; process 0 for all.

        Returns:
            "mAP", "top_1" ... "top_20", "queries", "gallery"; "by" condition and level;
            "more_than_5_answers", metrics of the published subset; "view", "embedding" and
            "captions" of the config; "official", metrics by the official scorer; and "index". The
            official result file and `queries.json` are added to the context's files on process 0.
        """
        ranking = self._context.ranking(state)
        embeddings = self._context.encoded(state).embeddings[MODEL]
        return first_process_only(lambda: self._measure(ranking, embeddings))

    def _measure(self, ranking: Ranking, embeddings: np.ndarray) -> dict[str, Any]:
        context = self._context
        items, protocol = context.run.dataset.validation.items, context.protocol
        entries = result_entries(
            items,
            protocol.queries,
            protocol.gallery,
            ranking.neighbours,
            np.ones(len(protocol.queries)),  # the boxes are the ground truth
        )
        context.files["deepfashion2_retrieval.json"] = entries
        context.files["queries.json"] = _by_query(items, protocol, ranking)
        config = context.run.config
        return {
            **tables(items, protocol, ranking.precision, ranking.first),
            "gallery": len(protocol.gallery),
            "view": config.data.view.kind,
            "embedding": config.embedding.kind,
            # Without captions of the queries, their boxes are the only ground truth that is used.
            "captions": {
                "of_queries": config.embedding.describe(config.data.captions.fields),
                "in_training": config.data.captions.describe(),
            },
            # The official scorer reads the boxes of the results only.
            "official": official_metrics(protocol, entries),
            "index": _measure_index(protocol, embeddings),
        }


class BaselineEvaluator:
    """Metrics of an untrained model's embeddings and of colour histograms."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Returns "baselines", metrics by name; empty unless `evaluation.baselines` is set."""
        embeddings = self._context.encoded(state).embeddings
        rankings = {
            name: rank(self._context.protocol, table, self._context.run.mesh)
            for name, table in embeddings.items()
            if name != MODEL
        }
        return {"baselines": {n: summarize(r.precision, r.first) for n, r in rankings.items()}}


def official_metrics(protocol: Protocol, results: list[Entry]) -> dict:
    """Returns the official scorer's metrics, as it is and with a minimum IoU of queries' boxes.

    Args:
        protocol: protocol with the official ground truth.
        results: entries in the official result format.
    """
    truth = protocol.ground_truth
    return {
        "ground_truth": truth.source,
        **score(results, truth.queries, truth.gallery).as_dict(),
        FLOOR_KEY: score(results, truth.queries, truth.gallery, QUERY_IOU_FLOOR).as_dict(),
    }


def tables(
    items: ItemTable, protocol: Protocol, precision: np.ndarray, first: np.ndarray
) -> dict[str, Any]:
    """Returns metrics of all queries and of the published subset, total and by condition.

    Args:
        items: item table of the split.
        protocol: queries and gallery of the split.
        precision: (Q,) float64 average precision of each query.
        first: (Q,) int64 rank of each query's first relevant item, from 0.
    """
    columns = {name: items[name][protocol.queries] for name in LEVELS}
    columns["category"] = items["category_id"][protocol.queries]
    subset = protocol.published_subset()
    return {
        **summarize(precision, first),
        "by": _by_condition(columns, precision, first, np.ones_like(subset)),
        "more_than_5_answers": {
            **summarize(precision[subset], first[subset]),
            "by": _by_condition(columns, precision, first, subset),
        },
    }


def _by_condition(
    columns: dict[str, np.ndarray], precision: np.ndarray, first: np.ndarray, subset: np.ndarray
) -> dict:
    """Returns condition -> level -> metrics of the queries of that level.

    Args:
        columns: condition -> (Q,) level of each query, from 1.
        precision: (Q,) float64 average precision of each query.
        first: (Q,) int64 rank of each query's first relevant item, from 0.
        subset: (Q,) bool, queries to include.
    """
    names = {**LEVELS, "category": CATEGORIES}
    return {
        condition: {
            names[condition][value - 1]: summarize(precision[rows], first[rows])
            for value in np.unique(column[subset])
            for rows in [subset & (column == value)]
        }
        for condition, column in columns.items()
    }


def _by_query(items: ItemTable, protocol: Protocol, ranking: Ranking) -> dict[str, list]:
    """Returns the columns of `queries.json`, for comparisons of runs query by query."""
    columns = {
        "image_id": items["image_id"],
        "item": items["number"],
        "category": items["category_id"],
        **{name: items[name] for name in LEVELS},
    }
    neighbours = ranking.neighbours[:, :RESULTS_PER_QUERY]
    return {
        **{name: column[protocol.queries].tolist() for name, column in columns.items()},
        "identity": protocol.query_identity.tolist(),
        "average_precision": np.nan_to_num(ranking.precision).tolist(),
        "first": ranking.first.tolist(),
        "found": protocol.gallery[neighbours].tolist(),
        "right": (
            protocol.gallery_identity[neighbours] == protocol.query_identity[:, None]
        ).tolist(),
    }


def _measure_index(protocol: Protocol, embeddings: np.ndarray) -> dict:
    """Compares ScaNN with exact search: seconds, and the recall of the exact neighbours."""
    queries, gallery = embeddings[protocol.queries], embeddings[protocol.gallery]
    k = min(RECALL_AT, len(gallery))
    index, build_seconds = timed(ScannEngine.build, gallery, k)
    approximate, query_seconds = timed(index.search, queries, k)
    exact, exact_seconds = timed(ExactEngine(gallery).search, queries, k)
    return {
        "kind": index.description,
        "build_seconds": build_seconds,
        "query_seconds": query_seconds,
        "exact_query_seconds": exact_seconds,
        f"recall@{RECALL_AT}": recall(approximate.rows, exact.rows),
    }
