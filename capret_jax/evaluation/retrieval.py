"""Evaluation: embed, search, measure, and leave the results in a folder."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from capret_jax.data.pipeline import Split
from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.evaluation.detected_boxes import Detections, answer
from capret_jax.evaluation.official_scorer import FLOOR_KEY, QUERY_IOU_FLOOR, Entry, score
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol, result_entries
from capret_jax.evaluation.report import write_report
from capret_jax.retrieval.engines import ExactEngine, ScannEngine
from capret_jax.retrieval.metrics import average_precision, first_hit, recall, summarize
from capret_jax.retrieval.tuning import timed

RECALL_AT = 20
# Queries ranked at once, and neighbours of each that are kept.
_CHUNK = 512
_KEPT = max(RESULTS_PER_QUERY, RECALL_AT)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What one system answers.

    Attributes:
        neighbours: (Q, K) int64 positions in the gallery, best first.
        scores: (Q, K) float32, their inner products with the query.
        precision: (Q,) float64 average precision.
        first: (Q,) int64 rank of the first right answer, from 0.
    """

    neighbours: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    first: np.ndarray


def rank(protocol: Protocol, embeddings: np.ndarray) -> Ranking:
    """Exact search of every query among the whole gallery.

    Args:
        protocol: which rows ask and answer.
        embeddings: (n, E) float32, one per row of the item table; inner products compare them.
    """
    queries, gallery = embeddings[protocol.queries], embeddings[protocol.gallery]
    # In chunks: all of DeepFashion2's 12 k x 37 k ranks at once would take 4 GB.
    chunks = [
        _rank_chunk(
            queries[rows], gallery, protocol.query_identity[rows], protocol.gallery_identity
        )
        for rows in (slice(i, i + _CHUNK) for i in range(0, len(queries), _CHUNK))
    ]
    return Ranking(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _rank_chunk(queries, gallery, query_identity, gallery_identity):
    order, scores = ExactEngine(gallery).search(queries, len(gallery))
    identities = gallery_identity[order]
    return (
        order[:, :_KEPT],
        scores[:, :_KEPT],
        average_precision(identities, query_identity),
        first_hit(identities, query_identity),
    )


@dataclasses.dataclass(frozen=True)
class Conditions:
    """For the record: what the numbers stand for.

    Attributes:
        view: what the model saw of an item.
        captions: where those of the training came from.
        embedding: what items were compared by.
        said: where the validation items' captions came from, if it read them.
    """

    view: str
    captions: str
    embedding: str = "image"
    said: str = "none"


def evaluate(
    split: Split,
    protocol: Protocol,
    embeddings: dict[str, np.ndarray],
    directory: pathlib.Path,
    title: str,
    conditions: Conditions,
    detected: tuple[Detections, np.ndarray] | None = None,
    more: dict | None = None,
) -> dict:
    """Measures several embeddings of the same items; the first is the model's own.

    Leaves `metrics.json`, `queries.json`, `deepfashion2_retrieval.json`, `report.html` and, with
    detections, `deepfashion2_retrieval_detected.json` in `directory`, all of them or none.

    Args:
        split: the validation split.
        protocol: its queries and gallery.
        embeddings: name -> (n, E) float32, one per row of `split.items`.
        directory: replaced if it exists.
        title: of the report.
        conditions: for the record.
        detected: a detector's boxes and the model's embeddings of them.
        more: metrics from elsewhere, by name: "detection" and "reranked".

    Returns:
        The content of `metrics.json`: of the model "mAP", "top_1" ... "top_20", "queries",
        "gallery"; "by" condition and level; "official", the same by the official scorer;
        "more_than_5_answers", the published subset; "detected" with detections; "index"; and the
        "baselines".
    """
    rankings = {name: rank(protocol, table) for name, table in embeddings.items()}
    (model, ranking), *baselines = rankings.items()
    entries = result_entries(
        split.items,
        protocol.queries,
        protocol.gallery,
        ranking.neighbours,
        np.ones(len(protocol.queries)),  # the boxes are the ground truth
    )
    results: dict[str, Any] = {
        "deepfashion2_retrieval.json": entries,
        "queries.json": _by_query(split, protocol, ranking),
    }
    metrics = {
        **_tables(split, protocol, ranking.precision, ranking.first),
        "gallery": len(protocol.gallery),
        "view": conditions.view,
        "embedding": conditions.embedding,
        # Where they are none, nothing of the ground truth reaches a query but its box.
        "captions": {"of_queries": conditions.said, "in_training": conditions.captions},
        # The same answers through the official scorer, which looks at boxes and nothing else.
        "official": _official(protocol, entries),
        "index": _measure_index(protocol, embeddings[model]),
        "baselines": {name: summarize(r.precision, r.first) for name, r in baselines},
    }
    if detected:
        detections, table = detected
        answers = answer(detections, table, protocol)
        results["deepfashion2_retrieval_detected.json"] = answers.results
        metrics["detected"] = {
            **_tables(split, protocol, answers.precision, answers.first),
            "detections": len(detections.items),
            "skipped_detections": detections.skipped,
            "official": _official(protocol, answers.results),
        }
    metrics |= more or {}
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for name, content in results.items():
        (partial / name).write_text(json.dumps(content))
    write_report(partial / "report.html", title, metrics, split, protocol, ranking)
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)
    return metrics


def _by_query(split: Split, protocol: Protocol, ranking: Ranking) -> dict[str, list]:
    """Every query's result, in columns, for comparisons of runs query by query."""
    items = split.items
    columns = {
        "image_id": items["image_id"],
        "item": items["number"],
        "category": items["category_id"],
        **{name: items[name] for name in LEVELS},
    }
    # Positions in the gallery of the items found, best first.
    found = ranking.neighbours[:, :RESULTS_PER_QUERY]
    return {
        **{name: column[protocol.queries].tolist() for name, column in columns.items()},
        "identity": protocol.query_identity.tolist(),
        "average_precision": np.nan_to_num(ranking.precision).tolist(),
        "first": ranking.first.tolist(),
        "found": protocol.gallery[found].tolist(),
        "right": (protocol.gallery_identity[found] == protocol.query_identity[:, None]).tolist(),
    }


def _official(protocol: Protocol, results: list[Entry]) -> dict:
    """The official scorer's numbers, as its rules are and with a floor for queries' boxes."""
    truth = protocol.truth
    return {
        "ground_truth": truth.source,
        **score(results, truth.queries, truth.gallery).as_dict(),
        FLOOR_KEY: score(results, truth.queries, truth.gallery, QUERY_IOU_FLOOR).as_dict(),
    }


def _tables(split: Split, protocol: Protocol, precision: np.ndarray, first: np.ndarray) -> dict:
    """Metrics over all queries and over the published subset, each by condition, too."""
    subset = protocol.published_subset()
    return {
        **summarize(precision, first),
        "by": _by_condition(split, protocol, precision, first, np.ones_like(subset)),
        "more_than_5_answers": {
            **summarize(precision[subset], first[subset]),
            "by": _by_condition(split, protocol, precision, first, subset),
        },
    }


def _by_condition(
    split: Split, protocol: Protocol, precision: np.ndarray, first: np.ndarray, among: np.ndarray
) -> dict:
    """Condition -> level -> metrics of the queries of that level."""
    names = {**LEVELS, "category": CATEGORIES}
    columns = {name: split.items[name][protocol.queries] for name in LEVELS}
    columns["category"] = split.items["category_id"][protocol.queries]
    return {
        condition: {
            names[condition][value - 1]: summarize(precision[rows], first[rows])
            for value in np.unique(column[among])
            for rows in [among & (column == value)]
        }
        for condition, column in columns.items()
    }


def _measure_index(protocol: Protocol, embeddings: np.ndarray) -> dict:
    """ScaNN beside the exact search: seconds, and how many true neighbours it finds."""
    queries, gallery = embeddings[protocol.queries], embeddings[protocol.gallery]
    k = min(RECALL_AT, len(gallery))
    index, build_seconds = timed(ScannEngine.build, gallery, k)
    found, query_seconds = timed(index.search, queries, k)
    exact, exact_seconds = timed(ExactEngine(gallery).search, queries, k)
    return {
        "kind": index.kind,
        "build_seconds": build_seconds,
        "query_seconds": query_seconds,
        "exact_query_seconds": exact_seconds,
        f"recall@{RECALL_AT}": recall(found.rows, exact.rows),
    }
