"""Recall of image-text retrieval in both directions."""

import numpy as np

# Depths of the published tables.
DEPTHS = (1, 5, 10)
# Score of the items that are not re-ranked, as in X2-VLM's evaluation.
UNRANKED = -100.0


def worst_ranks(
    scores: np.ndarray, relevant: np.ndarray, size: int, rest: np.ndarray | float
) -> np.ndarray:
    """Computes the rank of each query's best relevant item, in the worst order of equal scores.

    A wrong item with the same score stands before the relevant one, and NaN is the worst score of a
    relevant item and the best of a wrong one: a model that gives all pairs one score finds nothing.

    Args:
        scores: (Q, k) float scores of the k candidates of each query.
        relevant: (Q, k) bool, True for candidates that belong to the query.
        size: G, number of items in the gallery, candidates included.
        rest: score of the G - k other items, or an upper bound of their scores; a number, or (Q,).

    Returns:
        (Q,) int64 ranks from 0; G for a query without a relevant candidate.
    """
    best = np.where(relevant & ~np.isnan(scores), scores, -np.inf).max(axis=1, initial=-np.inf)
    wrong = ~relevant & ~(scores < best[:, None])
    ranks = wrong.sum(axis=1) + np.where(best <= rest, size - scores.shape[1], 0)
    return np.where(relevant.any(axis=1), ranks, size)


def retrieval_metrics(image_ranks: np.ndarray, text_ranks: np.ndarray) -> dict[str, float]:
    """Computes the six recalls of the published tables, and their mean.

    Args:
        image_ranks: ranks, from 0, of the best own caption of each image.
        text_ranks: ranks, from 0, of the image of each caption.

    Returns:
        "tr_1", "tr_5", "tr_10" (captions by image), "ir_1", "ir_5", "ir_10" (images by caption) and
        "r_mean", as fractions.
    """
    metrics = {
        f"{direction}_{depth}": float((ranks < depth).mean())
        for direction, ranks in (("tr", image_ranks), ("ir", text_ranks))
        for depth in DEPTHS
    }
    return {**metrics, "r_mean": sum(metrics.values()) / len(metrics)}
