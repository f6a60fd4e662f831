"""A shop's embeddings as one thing: searched, filtered, added to, deleted from, kept on disk."""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.retrieval.engines import EXACT_BELOW, Engine, ExactEngine, Neighbours, best
from capret_jax.retrieval.sharded import ShardedEngine
from capret_jax.retrieval.tuning import Tuned, tune

# What one item is: its "id", and whatever else there is to know, such as "category" and "shop".
Item = dict[str, Any]
# Value, or values, that an item must have, by name.
Filter = Mapping[str, Any]

KINDS = ("auto", "exact", "scann", "mesh")
# When so many are new or deleted, the engine is built again.
_STALE_SHARE = 0.2
_STALE_ROWS = 1000
# More candidates than a filter should need, in case it falls unevenly.
_SLACK = 1.5


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """How to search.

    Attributes:
        kind: "exact"; "scann"; "auto", the first under 20,000 items and the second from there on;
            or "mesh", exact over all devices of this process (`sharded.ShardedEngine`).
        mesh_recall: with "mesh", less than 1 for `lax.approx_max_k`, which is fast on TPUs.
        k: neighbours that searches usually ask for, at which recall is measured.
        target_recall: of exact search's neighbours, for which ScaNN is tuned.
        held_out: queries to tune and to report with, where none are given.
        seed: of their choice.
    """

    kind: str = "auto"
    k: int = 20
    target_recall: float = 0.99
    mesh_recall: float = 1.0
    held_out: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"index kind {self.kind!r} is none of {', '.join(KINDS)}.")
        for name in ("target_recall", "mesh_recall"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} is not in (0, 1].")
        if self.k < 1 or self.held_out < 2:
            raise InputError("an index needs a k of at least 1, and to hold out at least 2.")


class Index:
    """Embeddings with their items; rows keep their numbers until the engine is built again.

    New rows wait behind the engine's, where they are searched exactly, and deleted ones are passed
    over, until a fifth of all is new or gone. A filter never costs results: where the engine does
    not come up with k of them, exact search among those that pass does.

    Attributes:
        items: one per row, deleted ones included.
        config: how it was built.
        model: digest of the model that embedded the items; "" when unknown.
        recall, recall_queries: of exact search's `config.k` neighbours, measured on so many queries
            when the engine was built.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        items: list[Item],
        config: IndexConfig,
        model: str,
        tuned: Tuned,
        built: int,
        alive: np.ndarray,
    ):
        """Use `build` or `storage.load_index`."""
        self.items, self.config, self.model = items, config, model
        self.engine, self.recall, self.recall_queries = tuned.engine, tuned.recall, tuned.queries
        self.vectors, self.built, self.alive = vectors, built, alive
        self._row_of = {item["id"]: row for row, item in enumerate(items) if alive[row]}
        self._rows_with: dict[str, dict[str, list[int]]] = {}

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        items: Sequence[Item],
        config: IndexConfig = IndexConfig(),
        model: str = "",
        queries: np.ndarray | None = None,
    ) -> "Index":
        """
        Args:
            vectors: (n, E), compared by inner product.
            items: one per vector, each with an "id" of its own.
            config: how to search.
            model: digest of the model that made the vectors.
            queries: (Q, E) like those to come, to tune and report with; some of the vectors
                themselves when None.

        Raises:
            InputError: vectors and items do not fit together, or are impossible.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        _check(vectors, items)
        tuned = _engine(vectors, config, queries)
        alive = np.ones(len(vectors), bool)
        return cls(vectors, list(items), config, model, tuned, len(vectors), alive)

    def __len__(self) -> int:
        return len(self._row_of)

    def row(self, item_id: str) -> int:
        """The row of an item.

        Raises:
            KeyError: there is no such item.
        """
        return self._row_of[item_id]

    def search(self, queries: np.ndarray, k: int, where: Filter | None = None) -> Neighbours:
        """The best rows among the items that pass a filter.

        Args:
            queries: (Q, E).
            k: how many; fewer come back only where fewer pass.
            where: {"category": "trousers"} or {"category": ["trousers", "shorts"], "shop": "a"}. Of
                an item's property that is a list, any value will do.

        Raises:
            InputError: queries of another width, no item has such a property, or k is less than 1.
        """
        if k < 1:
            raise InputError(f"k={k} results cannot be searched for.")
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries are {queries.shape} and the index holds vectors of "
                f"{self.vectors.shape[1]}: another model?"
            )
        allowed = self.alive & self._passing(where or {})
        k = min(k, int(allowed.sum()))
        old = self._search_built(queries, k, allowed[: self.built])
        new = _among(self.vectors, np.flatnonzero(allowed[self.built :]) + self.built, queries, k)
        rows, scores = (np.concatenate(parts, axis=1) for parts in zip(old, new, strict=True))
        # What is missing has a score of -inf, behind everything that is there.
        order = best(scores, k)
        return Neighbours(np.take_along_axis(rows, order.rows, axis=1), order.scores)

    def add(
        self, vectors: np.ndarray, items: Sequence[Item], queries: np.ndarray | None = None
    ) -> None:
        """Adds items; one with an id that is there replaces it.

        Args:
            vectors: (m, E).
            items: one per vector.
            queries: as `build` takes them, should the engine be built again.

        Raises:
            InputError: they do not fit; nothing was added.
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
                self.alive[self._row_of[item["id"]]] = False
            self._row_of[item["id"]] = len(self.items)
            self.items.append(dict(item))
        self.vectors = np.concatenate([self.vectors, vectors])
        self.alive = np.concatenate([self.alive, np.ones(len(vectors), bool)])
        self._rows_with.clear()
        self._rebuild_if_stale(queries)

    def delete(self, ids: Collection[str], queries: np.ndarray | None = None) -> None:
        """Removes items.

        Raises:
            InputError: one is not there, or none would be left; nothing was removed.
        """
        missing = [item_id for item_id in ids if item_id not in self._row_of]
        if missing:
            raise InputError(f"{len(missing)} items are not in the index, such as {missing[0]!r}.")
        if len(set(ids)) == len(self):
            raise InputError("an index cannot be left without items: remove its folder instead.")
        for item_id in set(ids):
            self.alive[self._row_of.pop(item_id)] = False
        self._rebuild_if_stale(queries)

    def values(self, name: str) -> list[str]:
        """The values that items have of a property, sorted; for choosing a filter."""
        rows = self._postings(name).items()
        return sorted(value for value, found in rows if self.alive[found].any())

    def _search_built(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> Neighbours:
        """k columns; those that are missing have row 0 and a score of -inf."""
        passing = int(allowed.sum())
        if passing < min(EXACT_BELOW, len(allowed)) or not len(queries):
            return _among(self.vectors, np.flatnonzero(allowed), queries, k)
        wanted = min(k, passing)
        asked = (
            wanted
            if passing == len(allowed)
            else round(_SLACK * wanted * len(allowed) / passing) + 1
        )
        found = self.engine.search(queries, min(asked, len(allowed)))
        good = allowed[found.rows] & np.isfinite(found.scores)
        rows, scores = found.rows, np.where(good, found.scores, -np.inf)
        order = best(scores, wanted)
        rows, scores = np.take_along_axis(rows, order.rows, axis=1), order.scores
        short = np.flatnonzero(np.isneginf(scores).any(axis=1))
        if len(short):
            exact = _among(self.vectors, np.flatnonzero(allowed), queries[short], wanted)
            rows[short], scores[short] = exact
        return Neighbours(rows, scores)

    def _passing(self, where: Filter) -> np.ndarray:
        passing = np.ones(len(self.items), bool)
        for name, value in where.items():
            rows_with, matching = self._postings(name), np.zeros(len(self.items), bool)
            for each in _several(value):
                matching[rows_with.get(str(each), [])] = True
            passing &= matching
        return passing

    def _postings(self, name: str) -> dict[str, list[int]]:
        """Rows by the value of a property."""
        if name not in self._rows_with:
            if not any(name in item for item in self.items):
                known = sorted({key for item in self.items for key in item})
                raise InputError(
                    f"no item has a {name!a} to filter by; there are {', '.join(known)}."
                )
            rows: dict[str, list[int]] = {}
            for row, item in enumerate(self.items):
                for value in _several(item.get(name, [])):
                    rows.setdefault(str(value), []).append(row)
            self._rows_with[name] = rows
        return self._rows_with[name]

    def _rebuild_if_stale(self, queries: np.ndarray | None) -> None:
        stale = len(self.items) - int(self.alive[: self.built].sum())
        if stale < max(_STALE_ROWS, _STALE_SHARE * self.built):
            return
        rows = np.flatnonzero(self.alive)
        items = [self.items[row] for row in rows]
        vectors = np.ascontiguousarray(self.vectors[rows])
        tuned = _engine(vectors, self.config, queries)
        alive = np.ones(len(rows), bool)
        self.__init__(vectors, items, self.config, self.model, tuned, len(rows), alive)  # type: ignore[misc]


def _engine(vectors: np.ndarray, config: IndexConfig, queries: np.ndarray | None) -> Tuned:
    few = len(vectors) < EXACT_BELOW
    if config.kind in ("exact", "mesh") or (config.kind == "auto" and few):
        return Tuned(exact_engine(vectors, config), 1.0, 0, 0.0)
    if queries is None:
        rng = np.random.default_rng(config.seed)
        count = min(config.held_out, len(vectors))
        queries = vectors[rng.choice(len(vectors), count, replace=False)]
    return tune(vectors, np.asarray(queries, np.float32), config.k, config.target_recall)


def exact_engine(vectors: np.ndarray, config: IndexConfig) -> Engine:
    """What compares with every vector, as the config says."""
    if config.kind != "mesh":
        return ExactEngine(vectors)
    target = None if config.mesh_recall == 1 else config.mesh_recall
    return ShardedEngine(vectors, make_mesh(MeshConfig(), jax.local_devices()), target)


def _several(value: Any) -> Collection:
    return value if isinstance(value, list | tuple | set) else [value]


def _among(vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int) -> Neighbours:
    """Exact search among some rows."""
    gallery = vectors if len(rows) == len(vectors) else vectors[rows]
    found = ExactEngine(gallery).search(queries, k)
    return Neighbours(rows[found.rows] if len(rows) else found.rows, found.scores)


def _check(vectors: np.ndarray, items: Sequence[Item]) -> None:
    if vectors.ndim != 2 or not len(vectors) or len(vectors) != len(items):
        raise InputError(
            f"{vectors.shape} vectors do not fit {len(items)} items: an index wants (n, E) for n."
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"the vector of item {items[row].get('id')!r} is not finite.")
    ids = [item.get("id") for item in items]
    if not all(isinstance(item_id, str) and item_id for item_id in ids):
        raise InputError('every item of an index needs an "id", a string.')
    check_ids([str(item_id) for item_id in ids])


def check_ids(ids: Sequence[str]) -> None:
    """Whether each is there once.

    Raises:
        InputError: one is there twice.
    """
    (most, count), *_ = collections.Counter(ids).most_common(1)
    if count > 1:
        raise InputError(f"the id {most!r} is there twice.")
