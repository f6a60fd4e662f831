"""Samplers: the order of training examples as a pure function of the seed and the step."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from capret_jax.config import ExperimentConfig
from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.data.teacher import open_teacher
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.errors import InputError


class Draw(NamedTuple):
    """One example of the training stream.

    Attributes:
        row: row of the item table.
        seed: seed of the example's augmentation, different for every draw.
    """

    row: int
    seed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """The settings that every sampler shares.

    Attributes:
        batch_size: B, examples of a batch over all processes.
        steps: number of batches in the whole run.
        seed: seed of the order.
        share: the rows of each batch that this process reads.

    Raises:
        InputError: B is not a multiple of the number of processes that read other rows.
    """

    batch_size: int
    steps: int
    seed: int
    share: BatchShare = BatchShare()

    def __post_init__(self):
        if self.batch_size % self.share.count:
            raise InputError(
                f"batch_size={self.batch_size} must be a multiple of the {self.share.count} "
                "processes."
            )

    @property
    def local_batch_size(self) -> int:
        """Examples of a batch that this process reads."""
        return self.batch_size // self.share.count


class ShuffledOrder:
    """A random-access sequence of `Draw`s that depends on the seed and the index alone.

    The order is the same on all processes; each process reads the rows of its share of each batch.

    Attributes:
        order: size, number and seed of the batches.
    """

    def __init__(self, order: BatchOrder):
        self.order = order
        self._slots = order.share.rows(order.batch_size)[order.share.index]

    def __len__(self) -> int:
        return self.order.steps * self.order.local_batch_size

    def __getitem__(self, index: int) -> Draw:
        local = self.order.local_batch_size
        step, offset = divmod(index, local)
        slot = int(self._slots[offset])
        return Draw(self._row(step, slot), (self.order.seed, 2, step, slot))

    def _row(self, step: int, slot: int) -> int:
        raise NotImplementedError

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one sampler lives as long as the run
    def _shuffled(self, epoch: int, count: int) -> np.ndarray:
        return np.random.default_rng([self.order.seed, 0, epoch]).permutation(count)


class RowSampler(ShuffledOrder):
    """Batches of different rows of a table.

    An epoch visits the rows in a random order, each once; when B does not divide their number, the
    rest of them are left out until the next epoch.
    """

    def __init__(self, rows: int, order: BatchOrder):
        """
        Args:
            rows: number of rows.
            order: size, number and seed of the batches.

        Raises:
            InputError: there are fewer than B rows.
        """
        super().__init__(order)
        if rows < order.batch_size:
            raise InputError(
                f"batch_size={order.batch_size} needs as many training examples, and there are "
                f"{rows}."
            )
        self._rows = rows

    def _row(self, step: int, slot: int) -> int:
        size = self.order.batch_size
        epoch, batch = divmod(step, self._rows // size)
        return int(self._shuffled(epoch, self._rows)[batch * size + slot])


class _Sampler(ShuffledOrder):
    """An order of the items of a training split.

    Attributes:
        identities: (n,) int64 class of each item as batches may reveal it, or `NO_IDENTITY`.
        classes: C, number of identities seen by both sources.
        class_sizes: (C,) int64 number of items of each class.
    """

    def __init__(self, items: ItemTable, order: BatchOrder):
        super().__init__(order)
        self.identities = items.training_identities()
        self.classes = int(self.identities.max(initial=NO_IDENTITY)) + 1
        known = self.identities[self.identities != NO_IDENTITY]
        self.class_sizes = np.bincount(known, minlength=self.classes)


class IdentitySampler(_Sampler):
    """Batches of P identities x K views, half of the views from each source.

    An epoch visits the identities in a random order, P a batch, each once; when P does not divide
    their number, the rest of them are left out until the next epoch. Inside a batch, slot
    `view * P + p` holds a view of the p-th identity: neighbours differ in identity, so that the
    groups in which hard negatives are drawn hold many identities. Even views are shop pictures,
    odd ones are consumers' photographs.

    With the grouping "category", the identities of an epoch are grouped by category before they are
    cut into batches. A batch holds more than one category only where two of them meet. With
    "mined", a batch has a random identity and the nearest ones that are left in the epoch, by the
    cosine of their mean embeddings; C^2 F / 2P multiplications an epoch. These batches are visited
    in a random order.
    """

    def __init__(
        self,
        items: ItemTable,
        order: BatchOrder,
        views_per_identity: int,
        grouping: str = "random",
        teacher: np.ndarray | None = None,
    ):
        """
        Args:
            items: items of the training split.
            order: size, number and seed of the batches; B = P x K.
            views_per_identity: K, even.
            grouping: one of `BATCH_IDENTITIES`.
            teacher: (n, F) float embeddings of the items by a teacher, for "mined".

        Raises:
            InputError: K is odd or does not divide B, there are fewer than P identities, or all of
                them have the same category.
        """
        super().__init__(items, order)
        if views_per_identity < 2 or views_per_identity % 2:
            raise InputError(
                f"data.views_per_identity={views_per_identity} must be even, so that both sources "
                "have the same share."
            )
        if order.batch_size % views_per_identity:
            raise InputError(
                f"batch_size={order.batch_size} must be a multiple of data.views_per_identity="
                f"{views_per_identity}."
            )
        self._per_batch = order.batch_size // views_per_identity
        if self.classes < self._per_batch:
            raise InputError(
                f"batch_size={order.batch_size} / data.views_per_identity={views_per_identity} "
                f"needs {self._per_batch} identities seen by both sources, the training split has "
                f"{self.classes}."
            )
        self._grouped, self._starts = _group_rows(self.identities, items.is_shop, self.classes)
        self._grouping = grouping
        if grouping == "category":
            self._categories = self._categories_of(items)
        elif grouping == "mined":
            assert teacher is not None
            self._centres = self._centres_of(teacher)

    def _categories_of(self, items: ItemTable) -> np.ndarray:
        """Returns the (C,) int64 category of each identity, that of its first item."""
        first = self._grouped[self._starts[:-1:2]]
        categories = items["category_id"][first]
        if len(np.unique(categories)) < 2:
            raise InputError(
                "data.batch_identities='category' needs several categories, and all "
                f"{self.classes} identities have category {categories[0]}: set it to 'random'."
            )
        return categories

    def _centres_of(self, teacher: np.ndarray) -> np.ndarray:
        """Returns the (C, F) float32 mean embedding of each identity, L2-normalised."""
        centres = np.zeros((self.classes, teacher.shape[1]), np.float32)
        for row in np.flatnonzero(self.identities != NO_IDENTITY):
            embedding = teacher[row].astype(np.float32)
            centres[self.identities[row]] += embedding / np.linalg.norm(embedding)
        return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)

    def rows_of(self, identity: int, shop: bool) -> np.ndarray:
        """Rows of an identity's items from one source, int64, ascending."""
        group = 2 * identity + (not shop)
        return self._grouped[self._starts[group] : self._starts[group + 1]]

    def _row(self, step: int, slot: int) -> int:
        view, position = divmod(slot, self._per_batch)
        epoch, batch = divmod(step, self.classes // self._per_batch)
        identity = int(self._identities_of(epoch)[batch * self._per_batch + position])
        source = view % 2
        rows = self.rows_of(identity, shop=source == 0)
        seed = [self.order.seed, 1, epoch, identity, source]
        return int(np.random.default_rng(seed).permutation(rows)[view // 2 % len(rows)])

    def _identities_of(self, epoch: int) -> np.ndarray:
        """Returns the identities of an epoch in their order, (at least P x batches,) int64."""
        if self._grouping == "random":
            return self._shuffled(epoch, self.classes)
        return self._in_groups(epoch)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one sampler lives as long as the run
    def _in_groups(self, epoch: int) -> np.ndarray:
        batches = self.classes // self._per_batch
        kept = self._shuffled(epoch, self.classes)[: batches * self._per_batch]
        rng = np.random.default_rng([self.order.seed, 3, epoch])
        group = self._by_category if self._grouping == "category" else self._by_distance
        return rng.permutation(group(kept, rng).reshape(batches, self._per_batch)).reshape(-1)

    def _by_category(self, identities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorts identities by category, in another order of the categories in each epoch."""
        rank = rng.permutation(self._categories.max() + 1)
        return identities[np.argsort(rank[self._categories[identities]], kind="stable")]

    def _by_distance(self, identities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cuts identities into groups of P neighbours, the first of each in the given order."""
        del rng  # the order is random already
        groups, left = [], identities
        while len(left):
            similarity = self._centres[left] @ self._centres[left[0]]
            nearest = np.argsort(-similarity, kind="stable")[: self._per_batch]
            groups.append(left[nearest])
            left = np.delete(left, nearest)
        return np.concatenate(groups)


def _group_rows(
    identities: np.ndarray, is_shop: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups rows by identity and source with a single sort.

    Args:
        identities: (n,) int64 class of each item, or `NO_IDENTITY`.
        is_shop: (n,) bool, True for shop pictures.
        classes: C.

    Returns:
        Rows ordered by group, ascending inside each; and (2C + 1,) int64 starts of the groups:
        group 2c holds the shop pictures of class c, group 2c + 1 the consumers' photographs.
    """
    known = np.flatnonzero(identities != NO_IDENTITY)
    groups = 2 * identities[known] + ~is_shop[known]
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=2 * classes))])
    return known[np.argsort(groups, kind="stable")], starts


class ItemSampler(_Sampler):
    """Batches of the same items in V views each, with their identities hidden.

    An epoch visits the items in a random order, each once; when a batch's B / V items do not divide
    their number, the rest of them are left out until the next epoch. With several views, which
    differ in augmentation alone, each item is its own class (instance discrimination, arXiv
    1805.01978); inside a batch, slot `view * B / V + p` holds a view of the p-th item.
    """

    def __init__(self, items: ItemTable, order: BatchOrder, views_per_item: int = 1):
        """
        Args:
            items: items of the training split.
            order: size, number and seed of the batches.
            views_per_item: V.

        Raises:
            InputError: V does not divide B, or there are fewer than B / V items of identities seen
                by both sources.
        """
        super().__init__(items, order)
        if order.batch_size % views_per_item:
            raise InputError(
                f"batch_size={order.batch_size} must be a multiple of data.views_per_item="
                f"{views_per_item}."
            )
        self._per_batch = order.batch_size // views_per_item
        self._rows = np.flatnonzero(self.identities != NO_IDENTITY)
        if len(self._rows) < self._per_batch:
            raise InputError(
                f"batch_size={order.batch_size} needs {self._per_batch} items of identities seen "
                f"by both sources, and the training split has {len(self._rows)}."
            )
        self.identities = np.full_like(self.identities, NO_IDENTITY)
        if views_per_item > 1:
            self.identities[self._rows] = np.arange(len(self._rows))
            self.classes, self.class_sizes = len(self._rows), np.ones(len(self._rows), np.int64)

    def _row(self, step: int, slot: int) -> int:
        epoch, batch = divmod(step, len(self._rows) // self._per_batch)
        shuffled = self._shuffled(epoch, len(self._rows))
        return int(self._rows[shuffled[batch * self._per_batch + slot % self._per_batch]])


Sampler = IdentitySampler | ItemSampler


def make_sampler(
    items: ItemTable, config: ExperimentConfig, share: BatchShare = BatchShare()
) -> Sampler:
    """Makes the sampler of a run: by identity, or by item where `views_per_identity` is 0.

    Args:
        items: items of the training split.
        config: `batch_size`, `loop.steps`, `seed`, `mode`, and `data.views_per_identity`,
            `data.views_per_item`, `data.batch_identities` and `data.teacher` are read.
        share: the rows of each batch that this process reads.

    Raises:
        InputError: the numbers do not fit each other, or there are too few items.
    """
    order = BatchOrder(config.batch_size, config.loop.steps, config.seed, share)
    if config.data.views_per_identity == 0:
        return ItemSampler(items, order, config.data.views_per_item)
    grouping = config.data.batch_identities
    if grouping == "mined" and config.mode == "evaluate":
        grouping = "random"  # batches are not drawn, and the teacher may be gone
    teacher = open_teacher(config.data.teacher, len(items)) if grouping == "mined" else None
    return IdentitySampler(items, order, config.data.views_per_identity, grouping, teacher)
