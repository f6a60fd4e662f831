"""Image-text retrieval evaluator: cosine candidates in both directions, re-ranked by matching."""

import time
from typing import Any, NamedTuple

import numpy as np

from capret_jax.distributed.gather import gather_rows
from capret_jax.errors import InputError
from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings, rank_on_mesh
from capret_jax.tasks.evaluators.encoded import RetrievalEncoder
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.matching import PairMatcher
from capret_jax.tasks.scorers.recall import DEPTHS, UNRANKED, retrieval_metrics, worst_ranks


class Candidates(NamedTuple):
    """The nearest items of each query by cosine.

    Attributes:
        rows: (Q, k) int64 rows of the gallery, nearest first.
        scores: (Q, k) float32 cosines.
        relevant: (Q, k) bool, True for items that belong to the query.
        size: G, number of items in the gallery.
    """

    rows: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray
    size: int

    def ranks(self) -> np.ndarray:
        """Returns the (Q,) ranks of the best own items by cosine."""
        # No other item is nearer than the last candidate.
        return worst_ranks(self.scores, self.relevant, self.size, self.scores[:, -1])

    def reranked(self, logits: np.ndarray) -> np.ndarray:
        """Returns the (Q,) ranks of the best own items by (Q, k) match logits."""
        return worst_ranks(logits, self.relevant, self.size, UNRANKED)


class RetrievalMeasurement:
    """Recall of captions by picture and of pictures by caption, before and after re-ranking."""

    def __init__(self, run: EvaluationInputs):
        """
        Args:
            run: pictures with their captions.

        Raises:
            InputError: `task.top_k` is less than the depth of the metrics, or the disk has no room
                for the vision tokens.
        """
        if run.config.task.top_k < max(DEPTHS):
            raise InputError(
                f"task.top_k={run.config.task.top_k} candidates cannot give a recall at "
                f"{max(DEPTHS)}: set at least {max(DEPTHS)}."
            )
        self._run, self._encoder, self._matcher = run, RetrievalEncoder(run), PairMatcher(run)

    def __call__(self, params: dict) -> TaskResults:
        """Measures a model; every process has to call it.

        Returns:
            "tr_1" ... "ir_10" and "r_mean" after re-ranking; "cosine_tr_1" ..., the same before it;
            "images", "texts" and "top_k"; "pairs", the distinct pairs that were re-ranked; and
            "seconds_encoding", "seconds_search" and "seconds_reranking".
        """
        rows, start = self._run.test.rows, time.perf_counter()
        owner = np.repeat(np.arange(len(rows)), [len(row.captions) for row in rows])
        texts = self._encoder.texts(params, [text for row in rows for text in row.captions])
        images = self._encoder.images(params)
        encoded = time.perf_counter()
        image_labels = LabelledEmbeddings(images.features, np.arange(len(rows)))
        text_labels = LabelledEmbeddings(texts.features, owner)
        by_image = find_candidates(self._run, image_labels, text_labels)
        by_text = find_candidates(self._run, text_labels, image_labels)
        searched = time.perf_counter()
        candidates = by_image.rows, by_text.rows
        match = self._matcher(params, candidates, images.states, texts.states)
        end = time.perf_counter()
        before = retrieval_metrics(by_image.ranks(), by_text.ranks())
        metrics: dict[str, Any] = {
            **retrieval_metrics(by_image.reranked(match.texts), by_text.reranked(match.images)),
            **{f"cosine_{name}": value for name, value in before.items()},
            "images": len(rows),
            "texts": len(owner),
            "top_k": self._run.config.task.top_k,
            "pairs": match.pairs,
            **_seconds(
                encoding=encoded - start, search=searched - encoded, reranking=end - searched
            ),
        }
        return TaskResults(metrics)


def find_candidates(
    run: EvaluationInputs, queries: LabelledEmbeddings, gallery: LabelledEmbeddings
) -> Candidates:
    """Finds the `task.top_k` nearest items of each query; every process has to call it."""
    ranking = rank_on_mesh(run.mesh, queries, gallery, run.config.task.top_k)
    relevant = gallery.identities[ranking.neighbours] == queries.identities[:, None]
    return Candidates(ranking.neighbours, ranking.scores, relevant, len(gallery.vectors))


def _seconds(**phases: float) -> dict[str, float]:
    """Returns the seconds of each phase on the slowest process."""
    slowest = gather_rows(np.array([[*phases.values()]])).max(axis=0)
    return {f"seconds_{name}": float(value) for name, value in zip(phases, slowest, strict=True)}
