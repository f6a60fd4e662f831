"""Wires data, model, training and retrieval into one run."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from capret_jax.checkpoints.converted import is_converted
from capret_jax.checkpoints.initialization import check_projection, fresh_parameters, initial_params
from capret_jax.checkpoints.loading import LoadedModel, digest, load_card
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import ExperimentConfig, ViewConfig, check_same_shapes, check_same_training
from capret_jax.data.captions import (
    TrainingCaptions,
    captions_from,
    phrases_of,
    template_captions,
)
from capret_jax.data.items import ItemTable
from capret_jax.data.masking import Masker
from capret_jax.data.pipeline import Split, training_iterator
from capret_jax.data.sampler import make_sampler
from capret_jax.data.tokenizer import CaptionEncoder, Tokens
from capret_jax.data.vqa import VqaSampler, questions_about, vocabulary_of
from capret_jax.datasets import open_dataset, open_tokenizer
from capret_jax.detection.phrases import PhraseDetector
from capret_jax.detection.threshold import write_threshold
from capret_jax.distributed.mesh import batch_parts, first_process_first, make_mesh
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.evaluation import second_look
from capret_jax.evaluation.colour_histogram import histograms
from capret_jax.evaluation.detected_boxes import make_detections, read_detections
from capret_jax.evaluation.protocol import make_protocol, read_truth
from capret_jax.evaluation.retrieval import Conditions, evaluate, rank
from capret_jax.evaluation.summary import summary
from capret_jax.models.x2vlm import abstract_model
from capret_jax.retrieval.embedding import Embedder, EvaluationViews, no_caption
from capret_jax.retrieval.metrics import summarize
from capret_jax.retrieval.vision_tokens import Compute, DiskTokens, MemoryTokens, TokenSource
from capret_jax.train.forward import trained_parts
from capret_jax.train.loop import train
from capret_jax.train.metrics import MetricsWriter
from capret_jax.train.optimizer import make_optimizer
from capret_jax.train.preemption import RESUME, PreemptionSignal
from capret_jax.train.state import TrainState, abstract_state, init_state
from capret_jax.train.step import StepFunction, make_step

EVALUATION = "evaluation"
# Captions whose length is looked at before training.
_LOOKED_AT = 1000


class Experiment:
    """One config in one workdir. Everything that can be refused is refused on construction."""

    def __init__(self, config: ExperimentConfig, workdir: pathlib.Path):
        """
        Args:
            config: checked.
            workdir: exists and can be written.

        Raises:
            InputError: the devices, the dataset, the tokenizer or a checkpoint does not fit.
        """
        self.config = config
        self._workdir = workdir
        if is_converted(workdir):
            raise InputError(
                f"--workdir={workdir} is a converted checkpoint: choose another folder, and start "
                f"from this one with --config.init_from={workdir}."
            )
        self.mesh = make_mesh(config.mesh)
        self._check_divisible()
        # Before the checkpoints, whose thread would speak after a mistake's one line.
        self._optimizer = make_optimizer(config.optimizer, config.loop.steps)
        self._checkpoints = Checkpoints(workdir)
        if self._checkpoints.latest_step() is not None:
            saved = self._checkpoints.metadata()["config"]
            current = dataclasses.asdict(config)
            check_same_training(saved, current, str(workdir))
        elif config.init_from:
            check_same_shapes(config.model, load_card(config.init_from).config, config.init_from)
        dataset = first_process_first(lambda: open_dataset(config.data))
        self._train_split, self._validation_split = dataset.train, dataset.validation
        self._protocol = make_protocol(dataset.validation.items, read_truth(dataset.folder))
        self._detections = None
        if config.evaluation.detections:
            path = config.evaluation.detections
            self._detections = read_detections(path, dataset.validation.items)
        self._captioner = TrainingCaptions(config.data.captions, self._train_split.items)
        self._questions = questions_about(config.data.name)
        asked = vocabulary_of(self._questions) if config.loss.vqa else []
        others = phrases_of(config.data.vocabulary)
        # Read only to make a vocabulary.
        said = itertools.chain(self._captioner, asked, others)
        tokenizer = first_process_first(
            lambda: open_tokenizer(config.data, said, workdir, config.model.vocab_size)
        )
        self._encoder = CaptionEncoder(tokenizer, config.data.max_tokens)
        self._sampler = make_sampler(
            self._train_split.items,
            config.batch_size,
            config.data.views_per_identity,
            config.loop.steps,
            config.seed,
            Part(jax.process_index(), jax.process_count()),
        )
        self._said = self._captions_at_inference()
        self._compute = config.compute.on(self.mesh.devices.flat[0].platform)
        self._graphdef, _ = abstract_model(config.model, self._compute)
        self._abstract = abstract_state(
            config.model,
            self._sampler.classes,
            self._optimizer,
            self.mesh,
            config.loss.arcface_subcentres,
            config.optimizer.ema_decay > 0,
        )

    def train(self) -> bool:
        """Trains to the last step, from the newest checkpoint if there is one.

        Returns:
            False when SIGTERM came first: everything is saved, and the next call goes on.

        Raises:
            InputError: an image does not decode.
            FloatingPointError: a loss is not finite.
        """
        done, last = self._checkpoints.latest_step() or 0, self.config.loop.steps
        if done >= last:
            print(f"{self._workdir} is trained to step {done} already.")
            return True
        if cut := self.captions_cut():
            print(
                f"config.data.max_tokens={self.config.data.max_tokens} cuts {100 * cut:.1f} % of "
                "the captions: they lose their ends."
            )
        iterator = self.training_iterator()
        if done:
            state = self._checkpoints.restore(self._abstract, iterator)
            done = int(state.step)
            print(f"resuming from step {done} of {last}")
        else:
            state = self.initial_state()
        writer = MetricsWriter(self._workdir, start=done)
        try:
            state = self._train(state, iterator, writer)
        finally:
            self._checkpoints.close()
            writer.close()
        done = int(state.step)
        if done < last:
            print(f"stopped by SIGTERM at step {done} of {last}, saved: {RESUME}")
        return done == last

    def _train(
        self, state: TrainState, iterator: grain.DatasetIterator, writer: MetricsWriter
    ) -> TrainState:
        with PreemptionSignal() as interruption:
            return train(
                state,
                self.make_step(),
                iterator,
                self._checkpoints,
                self.config.loop,
                {"config": dataclasses.asdict(self.config), "untrained": self._untrained()},
                self.mesh,
                writer,
                interruption,
                self._retrieval_metrics if self.config.loop.evaluate_every else None,
            )

    def captions_cut(self) -> float:
        """Share of captions that have more than T tokens, of some of each split's: the larger."""
        said = self._said[:: max(len(self._said) // _LOOKED_AT, 1)]
        some = (self._captioner.some(_LOOKED_AT), said)
        return float(max(np.mean([*map(self._encoder.cuts, each)]) for each in some))

    def evaluate(self, name: str = EVALUATION) -> None:
        """Evaluates the newest checkpoint beside its baselines.

        Before any training that is the model of `config.init_from`: zero-shot.

        Args:
            name: of the folder that it leaves in the workdir.

        Raises:
            InputError: there is neither, its image embedding is random, or an image does not
                decode.
        """
        if self._checkpoints.latest_step() is not None:
            state = self._checkpoints.restore(self._abstract)
        elif self.config.init_from:
            check_projection(self.config.init_from, self.config.model)
            state = self.initial_state()
        else:
            raise InputError(
                f"{self._workdir} has no checkpoint to evaluate: train first, with "
                "--config.mode=train_and_evaluate, or set --config.init_from."
            )
        embeddings = {"this model": self._embed(state)}
        if self.config.evaluation.baselines:
            embeddings["untrained model"] = self._embed(self.fresh_state())
            embeddings["colour histogram"] = self._histograms()
        more = self._second_look(state, embeddings["this model"])
        detected = None
        if self._detections:
            detected = self._detections, self._embed(state, self._detections.items)
        if jax.process_index():
            return
        metrics = evaluate(
            self._validation_split,
            self._protocol,
            embeddings,
            self._workdir / name,
            f"Photo → shop item: {self.config.data.name}, step {int(state.step)}",
            Conditions(
                self.config.data.view.kind,
                self.config.data.captions.describe(),
                self.config.embedding.kind,
                self.config.embedding.describe(self.config.data.captions.fields),
            ),
            detected,
            more,
        )
        print(summary(metrics, self._workdir / name))

    def _second_look(self, state: TrainState, embeddings: np.ndarray) -> dict:
        """Detection by phrases and re-ranking, where they are asked for.

        Every process does all of it, on its own first device.
        """
        wanted, data = self.config.evaluation, self.config.data
        more: dict = {}
        if not (wanted.detect or wanted.rerank):
            return more
        params = multihost_utils.process_allgather(state.model, tiled=True)
        size = self.config.model.image_size
        if wanted.detect:
            detector = PhraseDetector(
                self.config.model, jax.device_put(params), self._encoder, wanted.detection
            )
            looked = second_look.detect(detector, self._train_split, self._validation_split)
            more["detection"] = looked.metrics
            items = self._validation_split.items
            found = make_detections(looked.boxes, items)
            # With nothing found on a side there is nothing to search with, or for.
            self._detections = found if len(np.unique(found.items.is_shop)) == 2 else None
            if jax.process_index() == 0:
                write_threshold(self._workdir, looked.calibration)
        if wanted.rerank:
            _, more["reranked"] = second_look.rerank(
                LoadedModel(params, self.config.model, [], size),
                self._encoder,
                self._validation_split,
                data.view,
                data.augment.margin,
                self._protocol,
                rank(self._protocol, embeddings),
                wanted.rerank,
                functools.partial(self._keep_tokens, params),
            )
        return more

    def _keep_tokens(self, params: dict, compute: Compute) -> TokenSource:
        wanted = self.config.evaluation
        if not wanted.cache_dir:
            return MemoryTokens(compute, wanted.cache_mb * 2**20)
        # One folder per model, and per process, since they would write the same rows.
        folder = f"{digest(params)[:16]}-{jax.process_index()}"
        items = len(self._validation_split.items)
        return DiskTokens(compute, items, pathlib.Path(wanted.cache_dir) / folder)

    def make_step(self) -> StepFunction:
        """The jitted training step."""
        return make_step(
            self._graphdef,
            self.config.loss,
            self.config.data.view.regions,
            self._compute.dtype,
            self._optimizer,
            self.mesh,
            self._abstract,
            self.config.seed,
            self._sampler.class_sizes,
            self.config.accumulation,
            self.config.optimizer.ema_decay,
        )

    def initial_state(self) -> TrainState:
        """The state before the first step: from `config.init_from`, or from scratch.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        config, state = self.config, self.fresh_state()
        source = config.init_from
        if not source:
            print("starting from scratch")
            return state
        params, kind, fresh = initial_params(
            source, state.params["model"], config.model.image_size, self.mesh
        )
        state = state.with_model(params)
        random = f"; fresh: {', '.join(fresh)}" if fresh else ""
        print(f"starting from {source}, a {kind} checkpoint{random}")
        return state

    def fresh_state(self) -> TrainState:
        """The state of a model that has seen nothing."""
        config = self.config
        return init_state(
            config.model,
            self._sampler.classes,
            self._optimizer,
            config.seed,
            self.mesh,
            config.loss.arcface_subcentres,
            config.optimizer.ema_decay > 0,
        )

    def training_iterator(self) -> grain.DatasetIterator:
        """This process's batches, from the first."""
        config = self.config
        return training_iterator(
            self._train_split,
            self._sampler,
            config.batch_size // jax.process_count(),
            config.model.image_size,
            config.data.view,
            config.data.augment,
            self._captioner,
            self._encoder,
            Masker(self._encoder.tokenizer, config.loss.mlm_causal) if config.loss.mlm else None,
            config.data.read,
            VqaSampler(self._questions, self._train_split.items, self._encoder)
            if config.loss.vqa
            else None,
        )

    def views(self) -> EvaluationViews:
        """The validation items as the model sees them; this process's part of every batch."""
        return self._views(self._validation_split)

    def _views(self, split: Split) -> EvaluationViews:
        data, shard = self.config.data, Part(jax.process_index(), jax.process_count())
        captions = self._read_captions if self.config.embedding.kind != "image" else None
        return self._make_views(split, data.view, data.augment.margin, shard, captions)

    def _captions_at_inference(self) -> list[str]:
        """What embeddings of the validation items read."""
        wanted, items = self.config.embedding, self._validation_split.items
        if wanted.file:
            return [texts[0] for texts in captions_from(wanted.file, items, "validation")]
        if wanted.captions == "oracle":
            return template_captions(self.config.data.captions.fields, items)
        return [""] * len(items)

    def _read_captions(self, row: int) -> Tokens:
        return self._encoder(self._said[row])

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The jitted image embedding."""
        return Embedder(
            self._graphdef,
            self._abstract.params["model"],
            self.config.data.view.regions,
            self._compute.dtype,
            self.mesh,
        )

    def _make_views(
        self,
        split: Split,
        view: ViewConfig,
        margin: float,
        shard: Part,
        captions: Callable[[int], Tokens] | None = None,
    ) -> EvaluationViews:
        config = self.config
        return EvaluationViews(
            split,
            config.model.image_size,
            view,
            margin,
            config.evaluation.batch_size,
            config.data.read,
            shard,
            captions or no_caption,
        )

    def _embed(self, state: TrainState, items: ItemTable | None = None) -> np.ndarray:
        """Of the validation items, or of others in the same photographs."""
        split = self._validation_split
        if items is not None:
            split = Split(split.records, items)
        return self.embedder(state.model, self._views(split))

    def _histograms(self) -> np.ndarray:
        """Of the ground-truth crops, the whole split on every process."""
        views = self._make_views(self._validation_split, ViewConfig(), 0.0, Part())
        return views.by_item(np.concatenate([histograms(batch.image)[:, None] for batch in views]))

    def _retrieval_metrics(self, state: TrainState) -> dict[str, float]:
        """mAP and top-k of a state, for the training curve."""
        ranking = rank(self._protocol, self._embed(state))
        return {f"retrieval/{k}": v for k, v in summarize(ranking.precision, ranking.first).items()}

    def _untrained(self) -> list[str]:
        """Parameters that stay as random as they began."""
        if self._checkpoints.latest_step() is not None:
            return self._checkpoints.metadata().get("untrained", [])
        fresh = fresh_parameters(self.config.init_from, self.config.model)
        trained = trained_parts(self.config.loss, self.config.embedding.kind)
        return [path for path in fresh if path.split("/")[0] not in trained]

    def _check_divisible(self) -> None:
        config, parts = self.config, batch_parts(self.mesh)
        for name, size, over in (
            ("batch_size", config.batch_size, parts * config.accumulation),
            ("evaluation.batch_size", config.evaluation.batch_size, parts),
        ):
            if size % over:
                raise InputError(
                    f"config.{name}={size} does not divide over mesh.data x mesh.fsdp = {parts} "
                    f"parts and config.accumulation={config.accumulation}; make it a multiple of "
                    f"{over}."
                )
        group = config.loss.matching_group
        examples = config.batch_size // config.accumulation // parts
        examples *= config.data.view.regions_per_image
        if config.loss.itm and examples % group:
            raise InputError(
                f"config.loss.matching_group={group} does not divide the "
                f"{examples} items of each of {parts} parts of the batch."
            )
