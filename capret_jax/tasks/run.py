"""A run on one of X2-VLM's tasks: a config in a workdir, with its annotation files."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from capret_jax.checkpoints.fingerprints import vocabulary_fingerprint
from capret_jax.checkpoints.initialization import check_parts
from capret_jax.config import ExperimentConfig
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.captions import clean_caption
from capret_jax.data.vqa import answer_cleaning
from capret_jax.errors import InputError
from capret_jax.tasks.batches import make_batches
from capret_jax.tasks.examples import (
    AnnotatedPicture,
    ImageCaptions,
    PairSentence,
    ReferringExpression,
    VisualQuestion,
)
from capret_jax.tasks.readers import Examples, read_test, read_training
from capret_jax.train.base_run import BaseRun, VocabularyTexts

# Number of texts that are tokenised to estimate the share of truncated ones.
_TEXTS_CHECKED = 1000
# Task -> parts of the model that are evaluated besides the three encoders.
TASK_PARTS = {
    "retrieval": ("vision_proj", "text_proj", "itm_head"),
    "vqa": ("decoder",),
    "grounding": ("bbox_head",),
    "captioning": ("mlm_head",),
    "detection": ("locations",),
    "nlvr2": ("nlvr_head",),
}


class TaskRun(BaseRun):
    """A config with a task in a workdir; the constructor raises errors in config and files.

    `tasks.evaluators.make_evaluator` makes its evaluator.

    Attributes:
        train: the training examples; without any in mode "evaluate".
        test: the examples to evaluate on.
    """

    def __init__(self, config: ExperimentConfig, workdir: pathlib.Path):
        """
        Args:
            config: the configuration; `task.name` is not empty.
            workdir: an existing folder that can be written.

        Raises:
            InputError: the devices, the annotation files, the tokenizer or a checkpoint does not
                fit the config.
        """
        super().__init__(config, workdir)
        self.test: Examples = read_test(config.task)
        self.train: Examples = Examples(())
        if config.mode != "evaluate":
            self._check_best()
            self.train = read_training(config.task)
        if jax.process_index() == 0:
            for split, examples in (("training", self.train), ("test", self.test)):
                for note in examples.notes:
                    print(f"{split}: {note}", flush=True)
        self.encode = self._open_encoder(self._texts, self._some_texts())
        # No term of a task has classes; one is enough for the head that every state has.
        self.setup = self._make_setup(np.ones(1, np.int64))

    @functools.cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the vocabulary and the training examples."""
        digest = hashlib.sha256()
        for row in self.train.rows:
            digest.update(repr(row).encode())
        return {
            "vocabulary": vocabulary_fingerprint(self.encode.tokenizer),
            "examples": {"count": len(self.train.rows), "sha256": digest.hexdigest()},
        }

    def check_data(self, saved: Mapping[str, Any]) -> None:
        """Checks that training goes on with its examples; see the base class."""
        before, now = saved["examples"], self.fingerprints["examples"]
        if dict(before) != now:
            raise InputError(
                f"{self.workdir} was trained on {before['count']} examples, and these are "
                f"{now['count']}, or others: restore the files of config.task, or choose another "
                "--workdir."
            )

    def training_batches(self) -> BatchIterator:
        """Makes the iterator of this process's part of the training batches, from the first on."""
        return make_batches(self.train.rows, self.encode, self.config, self.share)

    def truncated_captions(self) -> float:
        """Estimates the share of texts with more than `data.max_tokens` tokens, in [0, 1]."""
        return self._cut_share(self._some_texts())

    def _check_evaluable(self) -> None:
        config = self.config
        check_parts(config.init_from, config.model, TASK_PARTS[config.task.name])

    def _check_best(self) -> None:
        """Checks that the metric by which the best model is kept can be measured.

        Raises:
            InputError: it is the accuracy of questions without answers.
        """
        task, metric = self.config.task, self.config.loop.keep_best
        if metric and task.name == "vqa" and not any(row.answers for row in self.test.rows):
            raise InputError(
                f"config.loop.keep_best={metric!r} needs answers, and config.task.test={task.test} "
                "has none: name a file with answers, or leave keep_best empty."
            )

    def _some_texts(self) -> list[str]:
        """Returns texts of examples that are spread over the split that this mode uses."""
        rows = self.train.rows or self.test.rows
        spread = rows[:: max(len(rows) // _TEXTS_CHECKED, 1)]
        return [text for row in spread for text in _encoded_texts(row)]

    def _texts(self) -> VocabularyTexts:
        """Returns the texts that a vocabulary is built from: those of training, with answers.

        Raises:
            InputError: the run does not train.
        """
        if not self.train.rows:
            raise InputError(
                "config.data.tokenizer is empty, and there is no model with a vocabulary: name the "
                "tokenizer that the model was trained with, such as bert-base-uncased."
            )
        rows, cleaning = self.train.rows, answer_cleaning(self.config.data.text_cleaning)
        texts = {text for row in rows for text in _encoded_texts(row)}
        answers = {text for row in rows if isinstance(row, VisualQuestion) for text in row.answers}
        raw = [clean_caption(answer, cleaning) for answer in sorted(answers)]
        raw += filter(None, [self.config.data.captions.prompt])
        return VocabularyTexts(sorted(texts), raw)


def _encoded_texts(
    row: ImageCaptions | VisualQuestion | ReferringExpression | PairSentence | AnnotatedPicture,
) -> tuple[str, ...]:
    """Returns the texts of an example that the text encoder reads."""
    match row:
        case ImageCaptions():
            return row.captions
        case VisualQuestion():
            return (row.question,)
        case ReferringExpression():
            return (row.text,)
        case PairSentence():
            return (row.sentence,)
        case AnnotatedPicture():  # for the vocabulary of a model that starts from scratch
            return row.names
