"""Retrieval metrics of ranked ids: they know nothing of embeddings, indexes or photographs."""

import numpy as np

TOP_K = (1, 5, 10, 15, 20)


def average_precision(
    ranked: np.ndarray, queries: np.ndarray, relevant_items: np.ndarray | None = None
) -> np.ndarray:
    """Average precision of each query over its whole ranking.

    AP is the mean, over the relevant gallery items, of the precision at the rank where each is
    found (Manning et al., "Introduction to Information Retrieval", sec. 8.4).

    Args:
        ranked: (Q, G) int, identities of all gallery items, best first.
        queries: (Q,) int, identities of the queries.
        relevant_items: (Q,) int, how many there are, when a ranking may lack some; those count as
            never found. All are in the ranking when None.

    Returns:
        (Q,) float64; NaN for a query without any relevant gallery item.
    """
    relevant = ranked == queries[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, ranked.shape[1] + 1)
    count = relevant.sum(axis=1) if relevant_items is None else relevant_items
    total = (precision * relevant).sum(axis=1)
    return np.divide(total, count, out=np.full(len(ranked), np.nan), where=count > 0)


def first_hit(ranked: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, G) ranked identities and (Q,) queries -> (Q,) rank of the first match from 0, or G."""
    relevant = ranked == queries[:, None]
    return np.where(relevant.any(axis=1), relevant.argmax(axis=1), ranked.shape[1])


def summarize(precision: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """mAP and top-k accuracy of a set of queries.

    Args:
        precision: (Q,) from `average_precision`; NaNs count as 0, as queries nobody can answer do
            in DeepFashion2's protocol.
        first: (Q,) from `first_hit`.

    Returns:
        "mAP", "top_1" ... "top_20" as fractions, and "queries", their number.
    """
    count = len(first)
    metrics = {"mAP": float(np.nan_to_num(precision).mean()) if count else 0.0}
    for k in TOP_K:
        metrics[f"top_{k}"] = float((first < k).mean()) if count else 0.0
    return metrics | {"queries": count}


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbours that an index found, both (Q, k) row numbers."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return float(np.sum(hits) / exact.size)
