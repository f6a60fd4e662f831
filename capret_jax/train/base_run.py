"""The base of a run: a config in a workdir, with the objects that every training needs."""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from capret_jax.buckets.access import open_folder
from capret_jax.buckets.run_files import RunFiles
from capret_jax.checkpoints.converted import is_converted
from capret_jax.checkpoints.fingerprints import check_vocabulary
from capret_jax.checkpoints.initialization import (
    fresh_parameters,
    initial_params,
    parameter_paths,
)
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import ExperimentConfig, check_same_shapes, check_same_training
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.tokenizer import CaptionEncoder, open_tokenizer
from capret_jax.datasets import provide_vocabulary
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import batch_parts, first_process_first, make_mesh
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.train.forward import trained_parts
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.parameter_groups import check_patterns
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import TrainState, abstract_state, init_state


class VocabularyTexts(NamedTuple):
    """Texts that a vocabulary is built from.

    Attributes:
        cleaned: texts that are cleaned before they are tokenised.
        raw: texts that are tokenised as they are.
    """

    cleaned: Iterable[str]
    raw: Iterable[str] = ()


class BaseRun(abc.ABC):
    """A config in a workdir; subclasses open the data, and set `encode` and `setup`.

    Attributes:
        config: the configuration.
        workdir: folder of checkpoints, curves and results, on a disk or in a bucket.
        files: all files of the run but its checkpoints.
        part: this process's part of every global batch.
        share: rows of every global batch that this process reads.
        mesh: mesh of all devices of all processes.
        encode: encoder of texts as tokens.
        setup: configuration, mesh, model structure and optimizer of the training step.
        checkpoints: checkpoints in the workdir, to read; a `Trainer` writes them.
    """

    encode: CaptionEncoder
    setup: StepSetup

    def __init__(self, config: ExperimentConfig, workdir: pathlib.Path):
        """
        Args:
            config: the configuration.
            workdir: an existing folder that can be written.

        Raises:
            InputError: the devices or a checkpoint do not fit the config.
        """
        self.config, self.workdir, self.files = config, workdir, RunFiles(workdir)
        if is_converted(workdir):
            raise InputError(
                f"--workdir={workdir} is a converted checkpoint: choose another folder, and start "
                f"from this one with --config.init_from={workdir}."
            )
        self.part = Part(jax.process_index(), jax.process_count())
        self.mesh = make_mesh(config.mesh)
        self.share = BatchShare.of_mesh(self.mesh)
        _check_divisible(config, batch_parts(self.mesh))
        # Raises its errors before `Checkpoints` starts a thread, which would print after them.
        make_optimizer(config)
        paths = [f"model/{path}" for path in parameter_paths(config.model)]
        check_patterns(config.optimizer, [*paths, "arcface"], _reached(config))
        self.checkpoints = Checkpoints(workdir, read_only=True)
        self._check_start()

    @property
    @abc.abstractmethod
    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the vocabulary and the training data."""

    @abc.abstractmethod
    def check_data(self, saved: Mapping[str, Any]) -> None:
        """Checks that training goes on with the data that it began with.

        Args:
            saved: fingerprints of a checkpoint; empty for one of a version without them.

        Raises:
            InputError: the data differ.
        """

    @abc.abstractmethod
    def training_batches(self) -> BatchIterator:
        """Makes the iterator of this process's part of the training batches, from the first on."""

    @abc.abstractmethod
    def truncated_captions(self) -> float:
        """Estimates the share of texts with more than `data.max_tokens` tokens, in [0, 1]."""

    @abc.abstractmethod
    def _check_evaluable(self) -> None:
        """Checks that the checkpoint of `config.init_from` can be evaluated without training.

        Raises:
            InputError: it lacks a part of the model, whose output would be random.
        """

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the training state, without allocating it."""
        return abstract_state(self.setup)

    def fresh_state(self) -> TrainState:
        """Makes the state of an untrained model."""
        return init_state(self.setup)

    def initial_state(self) -> TrainState:
        """Makes the state before the first step: from `config.init_from`, or from scratch.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        state, source = self.fresh_state(), self.config.init_from
        if not source:
            print("starting from scratch")
            return state
        start = initial_params(source, state.params["model"], self.config.model, self.mesh)
        copies = f"; {start.copies}" if start.copies else ""
        random = f"; fresh: {', '.join(start.fresh)}" if start.fresh else ""
        print(f"starting from {source}, a {start.kind} checkpoint{copies}{random}")
        return state.with_model(start.params)

    def state_to_evaluate(self) -> TrainState:
        """Restores the best checkpoint; without any makes the state of `config.init_from`.

        The best one is the newest unless `loop.keep_best` is set.

        Raises:
            InputError: there is neither, or the model of `config.init_from` lacks a part that is
                evaluated.
        """
        newest, best = self.checkpoints.latest_step(), self.checkpoints.best_step()
        if newest is not None:
            if best is not None:
                metric = self.config.loop.keep_best
                print(f"evaluating step {best}, the best by {metric}; the newest is {newest}")
            return self.checkpoints.restore_best(self.abstract_state)
        if not self.config.init_from:
            raise InputError(
                f"{self.workdir} has no checkpoint to evaluate: train first, with "
                "--config.mode=train_and_evaluate, or set --config.init_from."
            )
        self._check_evaluable()
        return self.initial_state()

    def untrained_parameters(self) -> list[str]:
        """Returns the paths of parameters that neither `config.init_from` nor a loss trained."""
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.metadata().get("untrained", [])
        fresh = fresh_parameters(self.config.init_from, self.config.model)
        trained = trained_parts(self.config.loss, self.config.embedding.kind)
        return [path for path in fresh if path.split("/")[0] not in trained]

    def _check_start(self) -> None:
        """Compares the config with the checkpoint that the run resumes, or is initialised, from."""
        config = self.config
        if self.checkpoints.latest_step() is not None:
            saved = self.checkpoints.metadata()["config"]
            check_same_training(saved, dataclasses.asdict(config), str(self.workdir))
        elif config.init_from:
            start = ModelFolder(config.init_from)
            check_same_shapes(config.model, start.card.config, config.init_from)
            _report_cleaning(start, config)

    def _make_setup(self, class_sizes: np.ndarray) -> StepSetup:
        """Makes the setup of the training step, for (C,) int numbers of examples per identity."""
        # What was fresh at the start stays so, whatever became of `init_from` since.
        saved = self.checkpoints.metadata() if self.checkpoints.latest_step() is not None else {}
        return StepSetup.create(self.config, self.mesh, class_sizes, saved.get("fresh"))

    def _open_encoder(
        self, texts: Callable[[], VocabularyTexts], sample: Sequence[str]
    ) -> CaptionEncoder:
        """Opens the encoder of texts, and checks that its vocabulary is of their language.

        Args:
            texts: function that returns the texts that a vocabulary is built from, where the run
                has none.
            sample: some of the texts.

        Raises:
            InputError: the tokenizer does not fit the model, its start or the texts.
        """
        data = self.config.data
        encode = CaptionEncoder(self._open_tokenizer(texts), data.max_tokens, data.text_cleaning)
        failure = None
        for text in filter(None, sample):
            try:
                encode.check_words(text)
                return encode
            except InputError as error:
                failure = error
        if failure is not None:
            raise InputError(f"data.tokenizer does not fit the captions: {failure}")
        return encode

    def _cut_share(self, texts: Sequence[str]) -> float:
        """Returns the share of texts with more than `data.max_tokens` tokens, in [0, 1]."""
        return float(np.mean([*map(self.encode.cuts, texts)]))

    def _open_tokenizer(self, texts: Callable[[], VocabularyTexts]) -> PreTrainedTokenizerBase:
        """Opens the configured tokenizer, or the run's own vocabulary, and checks its tokens.

        A run has the vocabulary of the run that it starts from, or builds one from texts;
        one that was lost is made again, and an evaluation makes none.
        """
        config, own = self.config, self.files.folder / "vocab.txt"
        resumes = self.checkpoints.latest_step() is not None
        if not config.data.tokenizer and not (resumes and config.mode == "evaluate"):
            first_process_first(lambda: self._provide_vocabulary(own, resumes, texts))
            self.files.publish()
        path = config.data.tokenizer or str(own)
        tokenizer = open_tokenizer(path, config.model.vocab_size)
        check_vocabulary(self._fingerprints_of_start(), tokenizer, path)
        return tokenizer

    def _fingerprints_of_start(self) -> dict[str, Any]:
        """Returns the fingerprints of the model that the run goes on from; empty if unknown."""
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.metadata().get("fingerprints", {})
        source = self.config.init_from
        if not source or is_converted(open_folder(source)):
            return {}
        return {"vocabulary": ModelFolder(source).setup().vocabulary}

    def _provide_vocabulary(
        self, own: pathlib.Path, resumes: bool, texts: Callable[[], VocabularyTexts]
    ) -> None:
        """Copies the vocabulary of the run of `config.init_from`, or builds one from texts.

        Args:
            own: the file to make.
            resumes: True if the run has checkpoints, so that a file that is there stays.
            texts: function that returns the texts.
        """
        config, source = self.config, self.config.init_from
        if resumes and own.exists():
            return
        words = open_folder(ModelFolder(source).setup().tokenizer) if source else None
        if words is not None and (words.is_file() or not is_converted(open_folder(source))):
            # Its words have the numbers that the model learnt.
            if words.is_file() and not own.exists():
                own.write_bytes(words.read_bytes())
            return
        if source and not resumes:
            print(
                f"{config.init_from} was trained with other words than {own}: its text encoder has "
                "to learn them anew. Name its vocabulary in --config.data.tokenizer to avoid this."
            )
        cleaned, raw = texts()
        cleaning = config.data.text_cleaning
        provide_vocabulary(own, cleaned, config.model.vocab_size, cleaning, raw)


def _report_cleaning(start: ModelFolder, config: ExperimentConfig) -> None:
    """Says where a run prepares texts otherwise than the run that it starts from."""
    before, now = start.setup().cleaning, config.data.text_cleaning
    if start.step is not None and before.kind != now.kind:
        print(
            f"{config.init_from} was trained on texts of data.cleaning={before.kind!r}, and this "
            f"run has {now.kind!r}: words with marks in them look new to the model, unless "
            f"--config.data.cleaning={before.kind}."
        )


def _reached(config: ExperimentConfig) -> set[str]:
    """Returns the starts of the paths of the parameters that the losses train."""
    parts = trained_parts(config.loss, config.embedding.kind)
    head = {"arcface"} if config.loss.arcface else set()
    return head | {f"model/{part}" for part in parts}


def _check_divisible(config: ExperimentConfig, parts: int) -> None:
    """Checks that batches divide over the mesh.

    Args:
        config: batch sizes, accumulation and matching group.
        parts: number of parts that the mesh splits a batch into.

    Raises:
        InputError: a size does not divide; the message names it.
    """
    each = parts * config.accumulation
    for name, size, divisor in (
        ("batch_size", config.batch_size, each),
        ("data.region_batch.images", config.data.region_batch.images, each),
        ("data.location_batch.images", config.located_images, each),
        ("evaluation.batch_size", config.evaluation.batch_size, parts),
    ):
        if size % divisor:
            raise InputError(
                f"config.{name}={size} does not divide over mesh.data x mesh.fsdp = {parts} "
                f"parts and config.accumulation={config.accumulation}; make it a multiple of "
                f"{divisor}."
            )
    group, regions = config.loss.matching_group, config.data.region_batch
    for name, images, most in (
        ("batch", config.batch_size, config.data.view.regions_per_image),
        ("region batch", regions.images, regions.regions_per_image),
    ):
        examples = images // each * most
        if config.loss.itm and group and examples % group:
            raise InputError(
                f"config.loss.matching_group={group} does not divide the "
                f"{examples} items of each of {parts} parts of the {name}."
            )
