"""The runs of an ablation, and the configuration of each."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections

from capret_jax.captioning.config import CollectConfig
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.config import ExperimentConfig, build, from_config_dict
from capret_jax.config.evaluation import CAPTION_SOURCES
from capret_jax.config.loss import TERMS
from capret_jax.errors import InputError

AXES = ("captions", "objects", "stages", "embeddings", "seeds")
# The reference arms of the contrasts.
NONE, IMAGE = "none", "image"
# Group of `configs/ablation.py`, old key and new key of each of its entries.
_RENAMED_KEYS = (("collected", "looker", "vqa_model"), ("embeddings", "said", "captions"))


class Cell(NamedTuple):
    """One training run: an arm of each axis, and a seed."""

    captions: str
    objects: str
    stage: str
    embedding: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        return "-".join(map(str, self))


class EvaluationRun(NamedTuple):
    """One evaluation of a cell.

    Attributes:
        cell: the training run.
        caption_source: one of `CAPTION_SOURCES`, the origin of the validation items' captions.
    """

    cell: Cell
    caption_source: str

    @property
    def folder(self) -> str:
        """The folder, relative to the ablation's."""
        return f"cells/{self.cell.folder}/{self.caption_source}"


class Grid:
    """The cells of an ablation and their configurations.

    Attributes:
        cells: all training runs, ordered by seed.
        seeds: the seeds.
        collected: captions arm -> settings of its caption collection, for the selected arms.
        vqa_models: captions arm -> folder of the model that answers or captions for it.
        pretraining: configuration of the initial model; None where `experiment.init_from` names a
            checkpoint.
    """

    def __init__(
        self,
        values: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        subset: Mapping[str, Sequence] | None = None,
    ):
        """Selects the cells and checks the configuration of each.

        Args:
            values: the config, as `configs/ablation.py` returns it.
            workdir: folder of the ablation.
            subset: axis -> arms that replace those of `values.run`.

        Raises:
            InputError: an axis or arm does not exist, or a configuration is impossible; the message
                names it.
        """
        _check_renamed_keys(values)
        self._values, self._workdir = values, workdir
        subset = subset or {}
        arms = _select_arms(values, subset)
        self.seeds = arms["seeds"]
        self.cells = [
            Cell(captions, objects, stage, embedding, int(seed))
            for seed, embedding, stage, objects, captions in itertools.product(
                arms["seeds"], arms["embeddings"], arms["stages"], arms["objects"], arms["captions"]
            )
            if embedding == IMAGE or (captions, objects, stage) == tuple(values.read_by)
        ]
        self._check_embeddings(arms["embeddings"], required=bool(subset.get("embeddings")))
        self.collected: dict[str, CollectConfig] = {}
        self.vqa_models: dict[str, str] = {}
        for name in self._collected_arms():
            settings = values.collected[name].to_dict()
            settings.pop("looker", None)
            self.vqa_models[name] = settings.pop("vqa_model", "") or self.initial_model
            self.collected[name] = build(CollectConfig, settings, f"config.collected.{name}")
        self.pretraining = None
        if not values.experiment.init_from:
            self.pretraining = from_config_dict(values.pretraining)
        for evaluation in self.evaluations():
            self.config_of(evaluation)

    @property
    def initial_model(self) -> str:
        """Folder of the model that every cell starts from."""
        return self._values.experiment.init_from or str(self._workdir / "pretrained")

    def evaluations(self) -> list[EvaluationRun]:
        """Returns all evaluations, in the order of the cells."""
        return [
            EvaluationRun(cell, source)
            for cell in self.cells
            for source in self.caption_sources(cell)
        ]

    def caption_sources(self, cell: Cell) -> tuple[str, ...]:
        """Returns the caption source of each evaluation of a cell."""
        return tuple(self._values.embeddings[cell.embedding].captions)

    def captions_file(self, arm: str) -> pathlib.Path:
        """Returns the file of a captions arm's collected captions."""
        return self._workdir / "captions" / f"{arm}.jsonl"

    def trains(self, cell: Cell) -> bool:
        """Returns True if a loss of the cell has a weight: otherwise there is nothing to train."""
        return any(self._overridden(cell).loss[term] for term in TERMS)

    def config_of(self, evaluation: EvaluationRun) -> ExperimentConfig:
        """Returns the configuration of a cell for one of its evaluations.

        Raises:
            InputError: it is impossible.
        """
        cell, source = evaluation
        values = self._overridden(cell)
        values.mode = "train_and_evaluate"
        if not self.trains(cell):
            # A config needs a loss, even if none is computed.
            values.mode, values.loss.itc = "evaluate", 1.0
        values.init_from, values.seed = self.initial_model, cell.seed
        if not values.data.tokenizer:
            values.data.tokenizer = self._vocabulary()
        if cell.captions in self.collected:
            values.data.captions.file = str(self.captions_file(cell.captions))
        values.embedding.kind, values.embedding.captions = cell.embedding, source
        if source != NONE:
            values.embedding.file = str(self.captions_file(self._evaluation_arm(evaluation)))
        try:
            return from_config_dict(values)
        except InputError as error:
            raise InputError(f"{cell.folder} ({source}): {error}") from error

    def describe_evaluation_captions(self, evaluation: EvaluationRun) -> str:
        """Describes, for the audit, the information that can reach a validation item's caption."""
        if evaluation.caption_source == NONE:
            return "nothing: it is empty"
        collection = self.collected[self._evaluation_arm(evaluation)]
        return collection.describe(self._values.experiment.data.name)

    def describe_training_captions(self, cell: Cell) -> str:
        """Describes, for the audit, the information that can reach a training item's caption."""
        data = self.config_of(EvaluationRun(cell, self.caption_sources(cell)[0])).data
        if cell.captions in self.collected:
            return self.collected[cell.captions].describe(data.name)
        return data.captions.describe()

    def _evaluation_arm(self, evaluation: EvaluationRun) -> str:
        """Returns the captions arm whose collected captions the validation items have."""
        generated = evaluation.caption_source == "generated"
        return evaluation.cell.captions if generated else self._values.oracle

    def _collected_arms(self) -> list[str]:
        """Returns the arms that need collected captions, in training or at inference."""
        needed = {cell.captions for cell in self.cells}
        if any(cell.embedding != IMAGE for cell in self.cells):
            needed |= {self._values.oracle}
        return [name for name in self._values.collected if name in needed]

    def _check_embeddings(self, embeddings: Sequence[str], required: bool) -> None:
        """Checks that embeddings have cells, and that the captions they read are collected.

        Args:
            embeddings: the selected arms.
            required: True where each of them must have a cell.

        Raises:
            InputError: one of them does not.
        """
        values, read_by = self._values, tuple(self._values.read_by)
        with_cells = {cell.embedding for cell in self.cells}
        if not with_cells or (required and with_cells < set(embeddings)):
            raise InputError(
                f"embeddings that read captions are trained with {' and '.join(read_by)} "
                "(config.read_by) alone, and these arms are not all selected: select them, or "
                f"--embeddings={IMAGE}."
            )
        for name in embeddings:
            for source in values.embeddings[name].captions:
                if source not in CAPTION_SOURCES:
                    raise InputError(
                        f"config.embeddings.{name}.captions has {source!r}, which is none of "
                        f"{', '.join(CAPTION_SOURCES)}."
                    )
                generated = source == "generated"
                key, arm = ("read_by", read_by[0]) if generated else ("oracle", values.oracle)
                if source != NONE and arm not in values.collected:
                    raise InputError(
                        f"config.{key} names {arm!r}, whose captions are not collected: there are "
                        f"{', '.join(values.collected)}."
                    )

    def _vocabulary(self) -> str:
        """The initial model's tokenizer."""
        if self.pretraining is None:
            return ModelFolder(self.initial_model).setup().tokenizer
        return self.pretraining.data.tokenizer or str(
            pathlib.Path(self.initial_model) / "vocab.txt"
        )

    def _overridden(self, cell: Cell) -> ml_collections.ConfigDict:
        """`config.experiment` with the changes of a cell's arms."""
        values = self._values.experiment.copy_and_resolve_references()
        for axis, arm in (
            ("captions", cell.captions),
            ("objects", cell.objects),
            ("stages", cell.stage),
        ):
            values.update(self._values[axis][arm])
        values.update(self._values.embeddings[cell.embedding].changes)
        return values


def _check_renamed_keys(values: ml_collections.ConfigDict) -> None:
    for group, old, new in _RENAMED_KEYS:
        for name, settings in values[group].items():
            if settings.get(old) is not None:
                raise InputError(
                    f"config.{group}.{name}.{old} has a new name: set "
                    f"config.{group}.{name}.{new} in its place."
                )


def _select_arms(
    values: ml_collections.ConfigDict, subset: Mapping[str, Sequence]
) -> dict[str, tuple]:
    """Returns axis -> selected arms.

    Raises:
        InputError: an arm does not exist, or there is none.
    """
    arms = {axis: tuple(subset.get(axis) or values.run[axis]) for axis in AXES}
    for axis in ("captions", "objects", "stages", "embeddings"):
        if not arms[axis]:
            raise InputError(f"no arm of {axis} is selected: there are {', '.join(values[axis])}.")
        _check_distinct(axis, arms[axis])
        for arm in arms[axis]:
            if arm not in values[axis]:
                raise InputError(f"{axis} has no arm {arm!r}: there are {', '.join(values[axis])}.")
    if not arms["seeds"]:
        raise InputError("an ablation needs at least one seed: set --seeds.")
    _check_distinct("seeds", arms["seeds"])
    return arms


def _check_distinct(axis: str, arms: Sequence) -> None:
    if len(set(arms)) < len(arms):
        raise InputError(f"--{axis} names one twice: {', '.join(map(str, arms))}.")
