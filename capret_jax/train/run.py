"""A run on photographs and shop items: a config in a workdir, with its dataset and captions."""

import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from capret_jax.checkpoints.fingerprints import (
    check_data,
    items_fingerprint,
    table_fingerprint,
    vocabulary_fingerprint,
)
from capret_jax.checkpoints.initialization import check_parts, check_projection
from capret_jax.config import ExperimentConfig
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.captions import (
    TrainingCaptions,
    clean_caption,
    load_captions,
    template_captions,
    template_phrases,
)
from capret_jax.data.masking import MaskedCaptions
from capret_jax.data.pipeline import TrainingText, training_iterator
from capret_jax.data.sampler import make_sampler
from capret_jax.data.teacher import open_teacher
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.data.vqa import (
    VqaSampler,
    answer_cleaning,
    answers_of,
    questions_about,
    vocabulary_of,
)
from capret_jax.datasets import open_dataset
from capret_jax.detection.detectors import resolve_kind
from capret_jax.distributed.mesh import first_process_first
from capret_jax.train.base_run import BaseRun, VocabularyTexts

# Number of captions of a split that are tokenised to estimate the share of truncated ones.
_CAPTIONS_CHECKED = 1000


class Run(BaseRun):
    """A config in a workdir; the constructor raises errors in config, data and checkpoints.

    Attributes:
        dataset: both splits.
        captions: captions of the training items.
        evaluation_captions: one caption for each validation item, for embeddings that read
            captions; all empty where `embedding.captions` is "none".
        sampler: order of the training items.
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
        super().__init__(config, workdir)
        self._teacher: np.ndarray | None = None
        self.dataset = first_process_first(lambda: open_dataset(config.data))
        self.captions = TrainingCaptions(config.data.captions, self.dataset.train.items)
        sample = self.captions.some(_CAPTIONS_CHECKED)
        self.encode = self._open_encoder(self._vocabulary_texts, sample)
        self.sampler = make_sampler(self.dataset.train.items, config, self.share)
        self.evaluation_captions = self._load_evaluation_captions()
        if config.data.teacher and config.mode != "evaluate":
            self._teacher = open_teacher(config.data.teacher, len(self.dataset.train.items))
        self.setup = self._make_setup(self.sampler.class_sizes)
        if config.mode != "evaluate":
            self._report_crowded()

    @functools.cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the vocabulary, the training items and the teacher."""
        return {
            "vocabulary": vocabulary_fingerprint(self.encode.tokenizer),
            "items": items_fingerprint(self.dataset.train.items, self.sampler.identities),
            "teacher": "" if self._teacher is None else table_fingerprint(self._teacher),
        }

    def check_data(self, saved: Mapping[str, Any]) -> None:
        """Checks that training goes on with its items and teacher; see the base class."""
        check_data(saved, self.fingerprints, str(self.workdir))

    def training_batches(self) -> BatchIterator:
        """Makes the iterator of this process's part of the training batches, from the first on."""
        loss, data, train = self.config.loss, self.config.data, self.dataset.train
        masker = None
        if loss.mlm:
            tokenizer, prompt = self.encode.tokenizer, data.captions.prompt
            prompted = CaptionEncoder(tokenizer, data.max_tokens, data.text_cleaning, prompt)
            masker = MaskedCaptions(prompted, loss)
        vqa = None
        if loss.vqa:
            questions = questions_about(data.name)
            vqa = VqaSampler(questions, train.items, self.encode)
        text = TrainingText(self.captions, self.encode, masker, vqa)
        return training_iterator(train, self.sampler, text, self.config)

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
        return max(map(self._cut_share, samples))

    def _check_evaluable(self) -> None:
        config = self.config
        check_projection(config.init_from, config.model)
        kinds = (config.evaluation.detection.kind, *config.evaluation.detectors)
        if config.evaluation.detect and any(
            resolve_kind(kind, config.model) != "phrases" for kind in kinds
        ):
            check_parts(config.init_from, config.model, ("locations",))

    def _report_crowded(self) -> None:
        """Says how many photographs have more items than the model writes objects."""
        most, record = self.config.model.location_items, self.dataset.train.items.record
        crowded = int((np.unique(record, return_counts=True)[1] > most).sum())
        if crowded and self.config.located_images and self.part.index == 0:
            print(
                f"training: {crowded} photographs have more than {most} items, of which the "
                "largest are learnt: config.model.location_items.",
                flush=True,
            )

    def _vocabulary_texts(self) -> VocabularyTexts:
        config = self.config
        data, asked = config.data, questions_about(config.data.name) if config.loss.vqa else ()
        further = [*vocabulary_of(asked), *template_phrases(data.vocabulary)]
        raw = [clean_caption(x, answer_cleaning(data.text_cleaning)) for x in answers_of(asked)]
        raw += filter(None, [data.captions.prompt])
        return VocabularyTexts(itertools.chain(self.captions, further), raw)

    def _load_evaluation_captions(self) -> list[str]:
        config, items = self.config.embedding, self.dataset.validation.items
        if config.file:
            return [texts[0] for texts in load_captions(config.file, items, "validation")]
        if config.captions == "oracle":
            return template_captions(self.config.data.captions.fields, items)
        return [""] * len(items)
