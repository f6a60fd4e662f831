"""A run: a config in a workdir, with the objects that training and evaluation share."""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from capret_jax.buckets.access import open_folder
from capret_jax.buckets.run_files import RunFiles
from capret_jax.checkpoints.converted import is_converted
from capret_jax.checkpoints.fingerprints import (
    check_vocabulary,
    items_fingerprint,
    table_fingerprint,
    vocabulary_fingerprint,
)
from capret_jax.checkpoints.initialization import (
    check_projection,
    fresh_parameters,
    initial_params,
    parameter_paths,
)
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import ExperimentConfig, check_same_shapes, check_same_training
from capret_jax.data.captions import (
    TrainingCaptions,
    clean_caption,
    load_captions,
    template_captions,
    template_phrases,
)
from capret_jax.data.sampler import make_sampler
from capret_jax.data.teacher import open_teacher
from capret_jax.data.tokenizer import CaptionEncoder, open_tokenizer
from capret_jax.data.vqa import answer_cleaning, answers_of, questions_about, vocabulary_of
from capret_jax.datasets import open_dataset, provide_vocabulary
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import batch_parts, first_process_first, make_mesh
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.train.forward import trained_parts
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.parameter_groups import check_patterns
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import TrainState, abstract_state, init_state

# Number of captions of a split that are tokenised to estimate the share of truncated ones.
_CAPTIONS_CHECKED = 1000


class Run:
    """A config in a workdir; the constructor raises errors in config, data and checkpoints.

    Attributes:
        config: the configuration.
        workdir: folder of checkpoints, curves and results, on a disk or in a bucket.
        files: all files of the run but its checkpoints.
        part: this process's part of every global batch.
        mesh: mesh of all devices of all processes.
        dataset: both splits.
        captions: captions of the training items.
        evaluation_captions: one caption for each validation item, for embeddings that read
            captions; all empty where `embedding.captions` is "none".
        encode: encoder of texts as tokens.
        sampler: order of the training items.
        setup: configuration, mesh, model structure and optimizer of the training step.
        checkpoints: checkpoints in the workdir, to read; a `Trainer` writes them.
    """

    def __init__(self, config: ExperimentConfig, workdir: pathlib.Path):
        """
        Args:
            config: the configuration.
            workdir: an existing folder that can be written.

        Raises:
            InputError: the devices, the dataset, the tokenizer or a checkpoint does not fit the
                config.
        """
        self.config, self.workdir, self.files = config, workdir, RunFiles(workdir)
        self._teacher: np.ndarray | None = None
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
        self.dataset = first_process_first(lambda: open_dataset(config.data))
        self.captions = TrainingCaptions(config.data.captions, self.dataset.train.items)
        cleaning = config.data.text_cleaning
        self.encode = CaptionEncoder(self._open_tokenizer(), config.data.max_tokens, cleaning)
        self._check_words()
        self.sampler = make_sampler(self.dataset.train.items, config, self.share)
        self.evaluation_captions = self._load_evaluation_captions()
        if config.data.teacher and config.mode != "evaluate":
            self._teacher = open_teacher(config.data.teacher, len(self.dataset.train.items))
        self.setup = StepSetup.create(config, self.mesh, self.sampler.class_sizes)

    @functools.cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the vocabulary, the training items and the teacher."""
        return {
            "vocabulary": vocabulary_fingerprint(self.encode.tokenizer),
            "items": items_fingerprint(self.dataset.train.items, self.sampler.identities),
            "teacher": "" if self._teacher is None else table_fingerprint(self._teacher),
        }

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
        params, kind, fresh = initial_params(
            source, state.params["model"], self.config.model.image_size, self.mesh
        )
        random = f"; fresh: {', '.join(fresh)}" if fresh else ""
        print(f"starting from {source}, a {kind} checkpoint{random}")
        return state.with_model(params)

    def state_to_evaluate(self) -> TrainState:
        """Restores the best checkpoint; without any makes the state of `config.init_from`.

        The best one is the newest unless `loop.keep_best` is set.

        Raises:
            InputError: there is neither, or the model of `config.init_from` has no image
                projection, so that its embeddings would be random.
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
        check_projection(self.config.init_from, self.config.model)
        return self.initial_state()

    def truncated_captions(self) -> float:
        """Estimates the share of captions with more than `data.max_tokens` tokens.

        Returns:
            The larger one of both splits' shares, in [0, 1].
        """
        texts = self.evaluation_captions
        samples = (
            self.captions.some(_CAPTIONS_CHECKED),
            texts[:: max(len(texts) // _CAPTIONS_CHECKED, 1)],
        )
        return float(max(np.mean([*map(self.encode.cuts, sample)]) for sample in samples))

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

    def _open_tokenizer(self) -> PreTrainedTokenizerBase:
        """Opens the configured tokenizer, or the run's own vocabulary, and checks its tokens.

        A run has the vocabulary of the run that it starts from, or builds one from its captions;
        one that was lost is made again, and an evaluation makes none.
        """
        config, own = self.config, self.files.folder / "vocab.txt"
        resumes = self.checkpoints.latest_step() is not None
        if not config.data.tokenizer and not (resumes and config.mode == "evaluate"):
            first_process_first(lambda: self._provide_vocabulary(own, resumes))
            self.files.publish()
        path = config.data.tokenizer or str(own)
        tokenizer = open_tokenizer(path, config.model.vocab_size)
        check_vocabulary(self._fingerprints_of_start(), tokenizer, path)
        return tokenizer

    def _check_words(self) -> None:
        """Checks that the vocabulary is of the captions' language."""
        failure = None
        for caption in filter(None, self.captions.some(_CAPTIONS_CHECKED)):
            try:
                return self.encode.check_words(caption)
            except InputError as error:
                failure = error
        if failure is not None:
            raise InputError(f"data.tokenizer does not fit the captions: {failure}")

    def _fingerprints_of_start(self) -> dict[str, Any]:
        """Returns the fingerprints of the model that the run goes on from; empty if unknown."""
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.metadata().get("fingerprints", {})
        source = self.config.init_from
        if not source or is_converted(open_folder(source)):
            return {}
        return {"vocabulary": ModelFolder(source).setup().vocabulary}

    def _provide_vocabulary(self, own: pathlib.Path, resumes: bool) -> None:
        """Copies the vocabulary of the run of `config.init_from`, or builds one from captions.

        Args:
            own: the file to make.
            resumes: True if the run has checkpoints, so that a file that is there stays.
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
        data, asked = config.data, questions_about(config.data.name) if config.loss.vqa else ()
        further = [*vocabulary_of(asked), *template_phrases(data.vocabulary)]
        texts, size = itertools.chain(self.captions, further), config.model.vocab_size
        raw = [clean_caption(x, answer_cleaning(data.text_cleaning)) for x in answers_of(asked)]
        raw += filter(None, [data.captions.prompt])
        provide_vocabulary(own, texts, size, data.text_cleaning, raw)

    def _load_evaluation_captions(self) -> list[str]:
        config, items = self.config.embedding, self.dataset.validation.items
        if config.file:
            return [texts[0] for texts in load_captions(config.file, items, "validation")]
        if config.captions == "oracle":
            return template_captions(self.config.data.captions.fields, items)
        return [""] * len(items)


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
    for name, size, divisor in (
        ("batch_size", config.batch_size, parts * config.accumulation),
        ("evaluation.batch_size", config.evaluation.batch_size, parts),
    ):
        if size % divisor:
            raise InputError(
                f"config.{name}={size} does not divide over mesh.data x mesh.fsdp = {parts} "
                f"parts and config.accumulation={config.accumulation}; make it a multiple of "
                f"{divisor}."
            )
    group = config.loss.matching_group
    examples = config.batch_size // config.accumulation // parts
    examples *= config.data.view.regions_per_image
    if config.loss.itm and group and examples % group:
        raise InputError(
            f"config.loss.matching_group={group} does not divide the "
            f"{examples} items of each of {parts} parts of the batch."
        )
