"""Retrieval evaluators: consumer-to-shop metrics of the model and of its baselines."""

from typing import Any

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.evaluation.context import MODEL, EvaluationContext
from capret_jax.evaluation.official_scorer import FLOOR_KEY, QUERY_IOU_FLOOR, Entry, score
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol, result_entries
from capret_jax.evaluation.ranking import Ranking, rank
from capret_jax.retrieval.engines import ExactEngine, ScannEngine
from capret_jax.retrieval.metrics import recall, summarize
from capret_jax.retrieval.tuning import timed
from capret_jax.train.state import TrainState

RECALL_AT = 20


class CurveEvaluator:
    """mAP and top-k accuracy in the middle of training, as points of the training curve."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, float]:
        """Embeds and ranks; returns "retrieval/mAP" and "retrieval/top_k"."""
        ranking = rank(self._context.protocol, self._context.embed(state))
        metrics = summarize(ranking.precision, ranking.first)
        return {f"retrieval/{name}": value for name, value in metrics.items()}


class RetrievalEvaluator:
    """Metrics over all queries, by condition, by the official scorer; and of the ScaNN index."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Measures the model's embeddings of the validation items.

        Returns:
            "mAP", "top_1" ... "top_20", "queries", "gallery"; "by" condition and level; "official",
            the same by the official scorer; "more_than_5_answers", the published subset; and
            "index". The official result file and `queries.json` are left in the context.
        """
        context, ranking = self._context, self._context.ranking(state)
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
            # Where they are none, nothing of the ground truth reaches a query but its box.
            "captions": {
                "of_queries": config.embedding.describe(config.data.captions.fields),
                "in_training": config.data.captions.describe(),
            },
            # The same results through the official scorer, which sees boxes and nothing else.
            "official": official_metrics(protocol, entries),
            "index": _measure_index(protocol, context.readings(state).embeddings[MODEL]),
        }


class BaselineEvaluator:
    """An untrained model and colour histograms, ranked as the model is."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Returns "baselines", metrics by name; empty unless `evaluation.baselines` is set."""
        embeddings = self._context.readings(state).embeddings
        rankings = {
            name: rank(self._context.protocol, table)
            for name, table in embeddings.items()
            if name != MODEL
        }
        return {"baselines": {n: summarize(r.precision, r.first) for n, r in rankings.items()}}


def official_metrics(protocol: Protocol, results: list[Entry]) -> dict:
    """The official scorer's metrics, by its own rules and with a minimum IoU of queries' boxes."""
    truth = protocol.ground_truth
    return {
        "ground_truth": truth.source,
        **score(results, truth.queries, truth.gallery).as_dict(),
        FLOOR_KEY: score(results, truth.queries, truth.gallery, QUERY_IOU_FLOOR).as_dict(),
    }


def tables(
    items: ItemTable, protocol: Protocol, precision: np.ndarray, first: np.ndarray
) -> dict[str, Any]:
    """Metrics over all queries and over the published subset, each by condition, too.

    Args:
        items: of the split.
        protocol: of the split.
        precision: (Q,) average precision of each query.
        first: (Q,) rank of each query's first relevant item, from 0.
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
    columns: dict[str, np.ndarray], precision: np.ndarray, first: np.ndarray, among: np.ndarray
) -> dict:
    """Condition -> level -> metrics of the queries of that level, among some of them."""
    names = {**LEVELS, "category": CATEGORIES}
    return {
        condition: {
            names[condition][value - 1]: summarize(precision[rows], first[rows])
            for value in np.unique(column[among])
            for rows in [among & (column == value)]
        }
        for condition, column in columns.items()
    }


def _by_query(items: ItemTable, protocol: Protocol, ranking: Ranking) -> dict[str, list]:
    """Every query's result, in columns, for comparisons of runs query by query."""
    columns = {
        "image_id": items["image_id"],
        "item": items["number"],
        "category": items["category_id"],
        **{name: items[name] for name in LEVELS},
    }
    # Positions in the gallery, best first.
    found = ranking.neighbours[:, :RESULTS_PER_QUERY]
    return {
        **{name: column[protocol.queries].tolist() for name, column in columns.items()},
        "identity": protocol.query_identity.tolist(),
        "average_precision": np.nan_to_num(ranking.precision).tolist(),
        "first": ranking.first.tolist(),
        "found": protocol.gallery[found].tolist(),
        "right": (protocol.gallery_identity[found] == protocol.query_identity[:, None]).tolist(),
    }


def _measure_index(protocol: Protocol, embeddings: np.ndarray) -> dict:
    """ScaNN beside the exact search: seconds, and the share of true neighbours that it finds."""
    queries, gallery = embeddings[protocol.queries], embeddings[protocol.gallery]
    k = min(RECALL_AT, len(gallery))
    index, build_seconds = timed(ScannEngine.build, gallery, k)
    found, query_seconds = timed(index.search, queries, k)
    exact, exact_seconds = timed(ExactEngine(gallery).search, queries, k)
    return {
        "kind": index.description,
        "build_seconds": build_seconds,
        "query_seconds": query_seconds,
        "exact_query_seconds": exact_seconds,
        f"recall@{RECALL_AT}": recall(found.rows, exact.rows),
    }
