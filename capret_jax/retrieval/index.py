"""An index of embeddings and their items: search, filters, additions, deletions."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.errors import InputError
from capret_jax.retrieval.engines import EXACT_BELOW, ExactEngine, Neighbours, top_k
from capret_jax.retrieval.index_engine import IndexConfig, build_engine
from capret_jax.retrieval.items import Filter, InvertedIndex, Item, check_items
from capret_jax.retrieval.tuning import TunedEngine

# The engine is rebuilt when both this share of its rows and this number of rows have changed.
_REBUILD_SHARE = 0.2
_REBUILD_ROWS = 1000
# The engine is asked for more candidates than a filter needs on average, since the items that pass
# may be spread unevenly.
_OVERSAMPLING = 1.5


class IndexRows(NamedTuple):
    """Rows of an index, deleted ones included.

    Attributes:
        vectors: (n, E) float32 embeddings.
        items: n items.
        active: (n,) bool, False for deleted rows.
    """

    vectors: np.ndarray
    items: list[Item]
    active: np.ndarray


class Index:
    """Embeddings with their items; row numbers stay valid until the engine is rebuilt.

    The engine covers the rows that were there when it was built. Rows added since are searched
    exactly, and deleted rows are left out of its results. When a fifth of the rows has changed the
    engine is rebuilt. A filter never costs results: where the engine returns fewer than k items
    that pass, the items that pass are searched exactly.

    Attributes:
        vectors: (n, E) float32 embeddings, deleted rows included.
        items: n items, deleted rows included.
        active: (n,) bool, False for deleted rows.
        config: settings.
        model: digest of the model that computed the embeddings; "" when unknown.
        engine: search engine over the first `engine_rows` rows.
        engine_rows: number of rows that the engine covers.
        recall: share of exact search's `config.k` neighbours that the engine found when it was
            built.
        recall_queries: number of queries that `recall` was measured on.
    """

    def __init__(
        self,
        rows: IndexRows,
        tuned: TunedEngine,
        engine_rows: int,
        *,
        config: IndexConfig,
        model: str,
    ):
        """Use `build` or `storage.load_index` instead."""
        self.config, self.model = config, model
        self._set_state(rows, tuned, engine_rows)

    def _set_state(self, rows: IndexRows, tuned: TunedEngine, engine_rows: int) -> None:
        self.vectors, self.items, self.active = rows
        self.engine, self.recall, self.recall_queries = tuned.engine, tuned.recall, tuned.queries
        self.engine_rows = engine_rows
        self._row_of = {item["id"]: row for row, item in enumerate(self.items) if self.active[row]}
        self._inverted = InvertedIndex(self.items)

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        items: Sequence[Item],
        config: IndexConfig = IndexConfig(),
        model: str = "",
        queries: np.ndarray | None = None,
    ) -> "Index":
        """Builds the engine that the config selects.

        Args:
            vectors: (n, E) embeddings, compared by inner product.
            items: n items, each with a unique "id".
            config: settings.
            model: digest of the model that computed the embeddings.
            queries: (Q, E) representative queries, for tuning and for measuring recall; a sample of
                the vectors when None.

        Raises:
            InputError: vectors and items do not fit together, a vector is not finite, or an id is
                missing or occurs twice.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        _check(vectors, items)
        tuned = build_engine(vectors, config, queries)
        rows = IndexRows(vectors, list(items), np.ones(len(vectors), bool))
        return cls(rows, tuned, len(vectors), config=config, model=model)

    def __len__(self) -> int:
        return len(self._row_of)

    def row(self, item_id: str) -> int:
        """Returns the row of an item.

        Raises:
            KeyError: there is no such item.
        """
        return self._row_of[item_id]

    def search(self, queries: np.ndarray, k: int, where: Filter | None = None) -> Neighbours:
        """Returns the k nearest rows among the items that pass a filter.

        Args:
            queries: (Q, E) embeddings.
            k: neighbours per query; fewer are returned only where fewer items pass.
            where: {"category": "trousers"} or {"category": ["trousers", "shorts"], "shop": "a"}. An
                item whose property is a list passes where any of its values does.

        Raises:
            InputError: the queries have another width, no item has the property, or k < 1.
        """
        if k < 1:
            raise InputError(f"k={k} results cannot be searched for: k must be at least 1.")
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries are {queries.shape} and the index holds vectors of "
                f"{self.vectors.shape[1]}: another model?"
            )
        allowed = self.active & self._inverted.matching_rows(where or {})
        k = min(k, int(allowed.sum()))
        added_rows = np.flatnonzero(allowed[self.engine_rows :]) + self.engine_rows
        parts = (
            self._search_engine(queries, k, allowed[: self.engine_rows]),
            _search_rows(self.vectors, added_rows, queries, k),
        )
        rows = np.concatenate([part.rows for part in parts], axis=1)
        # Padding has a score of -inf and sorts behind every row.
        return _rank(rows, np.concatenate([part.scores for part in parts], axis=1), k)

    def add(
        self, vectors: np.ndarray, items: Sequence[Item], queries: np.ndarray | None = None
    ) -> None:
        """Adds items; an item whose id is in the index already replaces the old one.

        Args:
            vectors: (m, E) embeddings.
            items: m items.
            queries: see `build`; used if the engine is rebuilt.

        Raises:
            InputError: as `build`, or the vectors have another width; the index is unchanged.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        _check(vectors, items)
        if vectors.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"vectors are {vectors.shape[1]} wide and those in the index "
                f"{self.vectors.shape[1]}: another model?"
            )
        for item in items:
            if item["id"] in self._row_of:
                self.active[self._row_of[item["id"]]] = False
            self._row_of[item["id"]] = len(self.items)
            self.items.append(dict(item))
        self.vectors = np.concatenate([self.vectors, vectors])
        self.active = np.concatenate([self.active, np.ones(len(vectors), bool)])
        self._inverted.clear()
        self._rebuild_if_due(queries)

    def delete(self, ids: Collection[str], queries: np.ndarray | None = None) -> None:
        """Removes items.

        Args:
            ids: ids of items in the index.
            queries: see `build`; used if the engine is rebuilt.

        Raises:
            InputError: an id is not in the index, or no item would remain; the index is unchanged.
        """
        missing = [item_id for item_id in ids if item_id not in self._row_of]
        if missing:
            raise InputError(f"{len(missing)} items are not in the index, such as {missing[0]!r}.")
        if len(set(ids)) == len(self):
            raise InputError("an index cannot be left without items: remove its folder instead.")
        for item_id in set(ids):
            self.active[self._row_of.pop(item_id)] = False
        self._rebuild_if_due(queries)

    def values(self, name: str) -> list[str]:
        """Returns the sorted values that items have of a property, as text.

        Raises:
            InputError: no item has the property.
        """
        postings = self._inverted.postings(name)
        return sorted(value for value, rows in postings.items() if self.active[rows].any())

    def _search_engine(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> Neighbours:
        """Searches the engine's rows.

        Args:
            queries: (Q, E) float32.
            k: neighbours per query.
            allowed: (engine_rows,) bool, rows that may be returned.

        Returns:
            The min(k, number of allowed rows) nearest rows.
        """
        count = int(allowed.sum())
        if count < min(EXACT_BELOW, len(allowed)) or not len(queries):
            return _search_rows(self.vectors, np.flatnonzero(allowed), queries, k)
        k = candidates = min(k, count)
        if count < len(allowed):
            candidates = round(_OVERSAMPLING * k * len(allowed) / count) + 1
        neighbours = self.engine.search(queries, min(candidates, len(allowed)))
        valid = allowed[neighbours.rows] & np.isfinite(neighbours.scores)
        rows, scores = _rank(neighbours.rows, np.where(valid, neighbours.scores, -np.inf), k)
        incomplete = np.flatnonzero(np.isneginf(scores).any(axis=1))
        if len(incomplete):
            exact = _search_rows(self.vectors, np.flatnonzero(allowed), queries[incomplete], k)
            rows[incomplete], scores[incomplete] = exact
        return Neighbours(rows, scores)

    def _rebuild_if_due(self, queries: np.ndarray | None) -> None:
        changed = len(self.items) - int(self.active[: self.engine_rows].sum())
        if changed < max(_REBUILD_ROWS, _REBUILD_SHARE * self.engine_rows):
            return
        kept = np.flatnonzero(self.active)
        vectors = np.ascontiguousarray(self.vectors[kept])
        items = [self.items[row] for row in kept]
        tuned = build_engine(vectors, self.config, queries)
        self._set_state(IndexRows(vectors, items, np.ones(len(kept), bool)), tuned, len(kept))


def _rank(rows: np.ndarray, scores: np.ndarray, k: int) -> Neighbours:
    """Sorts (Q, n) rows by their (Q, n) scores and keeps the k best."""
    best = top_k(scores, k)
    return Neighbours(np.take_along_axis(rows, best.rows, axis=1), best.scores)


def _search_rows(vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int) -> Neighbours:
    """Searches some rows of (n, E) vectors exactly."""
    gallery = vectors if len(rows) == len(vectors) else vectors[rows]
    neighbours = ExactEngine(gallery).search(queries, k)
    return Neighbours(rows[neighbours.rows] if len(rows) else neighbours.rows, neighbours.scores)


def _check(vectors: np.ndarray, items: Sequence[Item]) -> None:
    if vectors.ndim != 2 or not len(vectors) or len(vectors) != len(items):
        raise InputError(
            f"{vectors.shape} vectors do not fit {len(items)} items: an index needs (n, E) vectors "
            "for n items."
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"the vector of item {items[row].get('id')!r} is not finite.")
    check_items(items)
