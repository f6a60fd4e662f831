"""Retrieval metrics of ranked identities, independent of the model and the index."""

import numpy as np

TOP_K = (1, 5, 10, 15, 20)


def average_precision(
    ranked: np.ndarray, queries: np.ndarray, relevant_items: np.ndarray | None = None
) -> np.ndarray:
    """Returns the average precision of each query over its whole ranking.

    AP is the mean, over the relevant gallery items, of the precision at each one's rank
    (Manning et al., "Introduction to Information Retrieval", sec. 8.4).

    Args:
        ranked: (Q, G) int identities of the gallery items, best first.
        queries: (Q,) int identities of the queries.
        relevant_items: (Q,) int number of relevant items, for rankings that may lack some; a
            missing item has precision 0. All are in the ranking when None.

    Returns:
        (Q,) float64; NaN for a query without any relevant item.
    """
    relevant = ranked == queries[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, ranked.shape[1] + 1)
    count = relevant.sum(axis=1) if relevant_items is None else relevant_items
    total = (precision * relevant).sum(axis=1)
    return np.divide(total, count, out=np.full(len(ranked), np.nan), where=count > 0)


def average_precision_of_ranks(
    ranks: np.ndarray, gallery_size: int, relevant_items: np.ndarray
) -> np.ndarray:
    """Returns the average precision of each query from the ranks of its relevant items.

    Args:
        ranks: (Q, R) int ranks from 0, in any order; `gallery_size` for padding.
        gallery_size: number of gallery items.
        relevant_items: (Q,) int number of relevant items, see `average_precision`.

    Returns:
        (Q,) float64; NaN for a query without any relevant item.
    """
    ranks = np.sort(ranks, axis=1)
    precision = np.arange(1, ranks.shape[1] + 1) / (ranks + 1)
    total = np.where(ranks < gallery_size, precision, 0).sum(axis=1)
    undefined = np.full(len(ranks), np.nan)
    return np.divide(total, relevant_items, out=undefined, where=relevant_items > 0)


def first_hit(ranked: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the (Q,) rank, from 0, of each query's first relevant item; G where it has none.

    Args:
        ranked: (Q, G) int identities of the gallery items, best first.
        queries: (Q,) int identities of the queries.
    """
    relevant = ranked == queries[:, None]
    return np.where(relevant.any(axis=1), relevant.argmax(axis=1), ranked.shape[1])


def summarize(precision: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Returns mAP and top-k accuracy of a set of queries.

    Args:
        precision: (Q,) from `average_precision`; NaN counts as 0, since DeepFashion2's protocol
            counts queries without a relevant item as wrong.
        first: (Q,) from `first_hit`.

    Returns:
        "mAP", "top_1" ... "top_20" as fractions, and "queries", the number of queries.
    """
    count = len(first)
    metrics = {"mAP": float(np.nan_to_num(precision).mean()) if count else 0.0}
    for k in TOP_K:
        metrics[f"top_{k}"] = float((first < k).mean()) if count else 0.0
    return metrics | {"queries": count}


def recall(retrieved: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of the exact neighbours that were retrieved; both are (Q, k) int rows."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(retrieved, exact, strict=True)]
    return float(np.sum(hits) / exact.size)
