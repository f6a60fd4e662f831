"""Which runs an ablation has, and the configuration of each."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections

from capret_jax.captioning.collection import CollectConfig
from capret_jax.checkpoints.loading import load_setup
from capret_jax.config import ExperimentConfig, build, from_config_dict
from capret_jax.config.evaluation import CAPTION_SOURCES
from capret_jax.config.loss import TERMS
from capret_jax.errors import InputError

AXES = ("captions", "objects", "stages", "embeddings", "seeds")
# Every contrast is with these.
NONE, IMAGE = "none", "image"


class Cell(NamedTuple):
    """One training run: an arm of each axis, and a seed."""

    captions: str
    objects: str
    stage: str
    embedding: str
    seed: int

    @property
    def folder(self) -> str:
        """Its name on disk."""
        return "-".join(map(str, self))


class Reading(NamedTuple):
    """One evaluation of a cell: the captions that the validation items have at inference."""

    cell: Cell
    said: str

    @property
    def folder(self) -> str:
        """Its name on disk, below the ablation's."""
        return f"cells/{self.cell.folder}/{self.said}"


class Plan:
    """An ablation's cells and their configurations; impossible ones are refused on construction.

    Attributes:
        cells: of all seeds, one seed after the other.
        seeds: of them.
        collected: captions arm -> how its file of captions is collected, of the arms taken.
        lookers: of these arms, folder of the model that looks at items to caption them.
        pretraining: of the model that every cell starts from; None where `init_from` names it.
    """

    def __init__(
        self,
        values: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        subset: Mapping[str, Sequence] | None = None,
    ):
        """
        Args:
            values: as `configs/ablation.py` returns them.
            workdir: of the ablation.
            subset: axis -> arms to take, in place of `values.run`'s.

        Raises:
            InputError: an axis or arm does not exist, or a configuration is impossible; the message
                names it.
        """
        self._values, self._workdir = values, workdir
        taken = {axis: tuple((subset or {}).get(axis) or values.run[axis]) for axis in AXES}
        for axis in ("captions", "objects", "stages"):
            _check_arms(axis, taken[axis], values[axis])
        _check_arms("embeddings", taken["embeddings"], values.embeddings)
        if not taken["seeds"]:
            raise InputError("an ablation needs at least one seed: set --seeds.")
        _check_distinct("seeds", taken["seeds"])
        self.seeds = taken["seeds"]
        grid = itertools.product(
            taken["seeds"],
            taken["embeddings"],
            taken["stages"],
            taken["objects"],
            taken["captions"],
        )
        self.cells = [
            Cell(captions, objects, stage, embedding, int(seed))
            for seed, embedding, stage, objects, captions in grid
            if embedding == IMAGE or (captions, objects, stage) == tuple(values.read_by)
        ]
        self._check_embeddings(taken, bool((subset or {}).get("embeddings")))
        wanted = {cell.captions for cell in self.cells}
        if any(cell.embedding != IMAGE for cell in self.cells):
            wanted |= {values.oracle}
        self.collected, self.lookers = {}, {}
        for name in values.collected:
            if name in wanted:
                how = values.collected[name].to_dict()
                self.lookers[name] = how.pop("looker", "") or self.start
                self.collected[name] = build(CollectConfig, how, f"config.collected.{name}")
        self.pretraining = None
        if not values.experiment.init_from:
            self.pretraining = from_config_dict(values.pretraining)
        for reading in self.readings():
            self.config_of(reading)

    @property
    def start(self) -> str:
        """Folder of the model that every cell starts from."""
        return self._values.experiment.init_from or str(self._workdir / "pretrained")

    def readings(self) -> list[Reading]:
        """All evaluations, in the order of the cells."""
        return [Reading(cell, said) for cell in self.cells for said in self.said(cell)]

    def said(self, cell: Cell) -> tuple[str, ...]:
        """Which captions a cell's validation items have, one evaluation each."""
        return tuple(self._values.embeddings[cell.embedding].said)

    def captions_file(self, arm: str) -> pathlib.Path:
        """Where a captions arm's collected captions are."""
        return self._workdir / "captions" / f"{arm}.jsonl"

    def trains(self, cell: Cell) -> bool:
        """Whether there is anything to train: without captions, objects and identities not."""
        return any(self._overridden(cell).loss[term] for term in TERMS)

    def config_of(self, reading: Reading) -> ExperimentConfig:
        """The configuration of a cell for one of its evaluations."""
        cell, said = reading
        values = self._overridden(cell)
        values.mode = "train_and_evaluate"
        if not self.trains(cell):
            values.mode, values.loss.itc = "evaluate", 1.0  # a loss there must be, if never used
        values.init_from, values.seed = self.start, cell.seed
        if not values.data.tokenizer:
            values.data.tokenizer = self._vocabulary()
        if cell.captions in self.collected:
            values.data.captions.file = str(self.captions_file(cell.captions))
        values.embedding.kind, values.embedding.captions = cell.embedding, said
        if said != NONE:
            source = cell.captions if said == "generated" else self._values.oracle
            values.embedding.file = str(self.captions_file(source))
        try:
            return from_config_dict(values)
        except InputError as error:
            raise InputError(f"{cell.folder} ({said}): {error}") from error

    def reaches(self, reading: Reading) -> str:
        """What can reach the caption of a validation item, for the record."""
        cell, said = reading
        if said == NONE:
            return "nothing: it is empty"
        source = cell.captions if said == "generated" else self._values.oracle
        return self.collected[source].describe(self._values.experiment.data.name)

    def teaches(self, cell: Cell) -> str:
        """What can reach the captions of training items, for the record."""
        data = self.config_of(Reading(cell, self.said(cell)[0])).data
        if cell.captions in self.collected:
            return self.collected[cell.captions].describe(data.name)
        return data.captions.describe()

    def _check_embeddings(self, taken: Mapping[str, tuple], named: bool) -> None:
        """That there are cells, of each embedding that was named, and the captions they read."""
        values, read_by = self._values, tuple(self._values.read_by)
        found = {cell.embedding for cell in self.cells}
        if not found or (named and found < set(taken["embeddings"])):
            raise InputError(
                f"embeddings that read captions are trained with {' and '.join(read_by)} "
                "(config.read_by) alone, and these arms are not all taken: take them, or "
                f"--embeddings={IMAGE}."
            )
        for name in taken["embeddings"]:
            for said in values.embeddings[name].said:
                if said not in CAPTION_SOURCES:
                    raise InputError(
                        f"config.embeddings.{name}.said has {said!r}, which is none of "
                        f"{', '.join(CAPTION_SOURCES)}."
                    )
                generated = said == "generated"
                key, arm = ("read_by", read_by[0]) if generated else ("oracle", values.oracle)
                if said != NONE and arm not in values.collected:
                    raise InputError(
                        f"config.{key} names {arm!r}, whose captions are not collected: there are "
                        f"{', '.join(values.collected)}."
                    )

    def _vocabulary(self) -> str:
        """The words that the first model knows."""
        if self.pretraining is None:
            return load_setup(self.start).tokenizer
        return self.pretraining.data.tokenizer or str(pathlib.Path(self.start) / "vocab.txt")

    def _overridden(self, cell: Cell) -> ml_collections.ConfigDict:
        values = self._values.experiment.copy_and_resolve_references()
        for axis, arm in (
            ("captions", cell.captions),
            ("objects", cell.objects),
            ("stages", cell.stage),
        ):
            values.update(self._values[axis][arm])
        values.update(self._values.embeddings[cell.embedding].changes)
        return values


def _check_distinct(axis: str, taken: Sequence) -> None:
    if len(set(taken)) < len(taken):
        raise InputError(f"--{axis} names one twice: {', '.join(map(str, taken))}.")


def _check_arms(axis: str, taken: Sequence, known: Mapping) -> None:
    if not taken:
        raise InputError(f"no arm of {axis} is taken: there are {', '.join(known)}.")
    _check_distinct(axis, taken)
    for arm in taken:
        if arm not in known:
            raise InputError(f"{axis} has no arm {arm!r}: there are {', '.join(known)}.")
