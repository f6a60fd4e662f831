"""Loads models from folders: checkpoints of convert_torch_ckpt.py, and training workdirs.

model = load_model("DIR")
image = model.encode_image(pixels)
"""

import dataclasses
import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from transformers import PreTrainedTokenizerBase

from capret_jax.buckets.access import open_folder
from capret_jax.checkpoints.converted import (
    CAPTION_KIND,
    VOCABULARY,
    ModelCard,
    is_converted,
    load_params,
    on_one_device,
    read_card,
)
from capret_jax.checkpoints.fingerprints import check_vocabulary
from capret_jax.checkpoints.kinds import COMPLETE
from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.checkpoints.report import model_parts
from capret_jax.checkpoints.training import Checkpoints, has_checkpoints
from capret_jax.config import (
    AugmentConfig,
    Cleaning,
    ComputeConfig,
    DetectionConfig,
    ModelConfig,
    ViewConfig,
    build,
)
from capret_jax.config.captions import EARLIER_CLEANING
from capret_jax.config.model import DTYPES
from capret_jax.data.tokenizer import open_tokenizer
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model

# Tokenizer and text length of X2-VLM's pre-training.
_TOKENIZER, _MAX_TOKENS = "bert-base-uncased", 40


class Setup(NamedTuple):
    """Preprocessing with which a model was trained.

    Attributes:
        view: view of an item that the model encodes.
        margin: context around the box of a crop, as a fraction of its sides.
        tokenizer: name or path for `data.tokenizer.load_tokenizer`.
        vocabulary: fingerprint of the tokens that it was trained with; empty if it is not known.
        max_tokens: T.
        data: `config.data` of the run, as nested dicts; None for a converted checkpoint.
        resize: how views are resized, one of `config.data.RESIZES`.
        cleaning: preparation of texts; that of X2-VLM's fine-tuning for a converted checkpoint.
    """

    view: ViewConfig
    margin: float
    tokenizer: str
    vocabulary: str
    max_tokens: int
    data: dict | None
    resize: str = "fast"
    cleaning: Cleaning = Cleaning()


class ModelFolder:
    """A converted checkpoint, or a training workdir; opened read only.

    Of a workdir's checkpoints it is the newest, or the best one of a run with `loop.keep_best`.

    Attributes:
        path: the folder.
        card: shapes and kind of the model; a trained model has the kind "pretrain".
    """

    def __init__(self, path: str | os.PathLike):
        """
        Args:
            path: folder that convert_torch_ckpt.py wrote, or training workdir.

        Raises:
            InputError: the folder holds no model, or it cannot be read.
        """
        self.path = open_folder(path)
        self._checkpoints: Checkpoints | None = None
        if is_converted(self.path):
            self.card = read_card(self.path)
            return
        if not has_checkpoints(self.path):
            raise InputError(
                f"{self.path} is neither a converted checkpoint (it has no model.json) nor the "
                "workdir of a training run (it has no checkpoints/)."
            )
        self._checkpoints = Checkpoints(self.path, read_only=True)
        if self._checkpoints.latest_step() is None:
            raise InputError(f"{self.path} has no complete checkpoint yet.")
        metadata = self._checkpoints.metadata()
        self._run_config = metadata["config"]
        self._vocabulary = metadata.get("fingerprints", {}).get("vocabulary", "")
        model = ModelConfig(**self._run_config["model"])
        prompt = self._run_config["data"]["captions"].get("prompt", "")
        self.card = ModelCard(model, COMPLETE, metadata.get("untrained", []), prompt=prompt)

    @property
    def step(self) -> int | None:
        """Returns the step of the training that the model is of; None if it was converted."""
        return None if self._checkpoints is None else self._checkpoints.model_step()

    @property
    def detection(self) -> DetectionConfig:
        """Returns the settings that the model detects with in its run; else the defaults."""
        if self._checkpoints is None:
            return DetectionConfig()
        saved = self._run_config["evaluation"].get("detection", {})
        # Other versions have other keys.
        names = {field.name for field in dataclasses.fields(DetectionConfig)} & saved.keys()
        values = {name: saved[name] for name in names}
        return build(DetectionConfig, values, "config.evaluation.detection")

    @property
    def writes_captions(self) -> bool:
        """Returns True if the masked LM was trained to generate text from left to right."""
        if self._checkpoints is None:
            return self.card.kind == CAPTION_KIND
        loss = self._run_config["loss"]
        return bool(loss["mlm"]) and loss.get("mlm_causal", False)

    def setup(self, tokenizer: str = "") -> Setup:
        """Returns the preprocessing of the model.

        Args:
            tokenizer: tokenizer to use instead of the model's; empty for the model's, which is
                bert-base-uncased for a converted checkpoint without a vocab.txt.
        """
        own = self.path / VOCABULARY
        if self._checkpoints is None:
            tokenizer = tokenizer or (str(own) if own.is_file() else _TOKENIZER)
            return Setup(ViewConfig(), AugmentConfig().margin, tokenizer, "", _MAX_TOKENS, None)
        data = self._run_config["data"]
        tokenizer = tokenizer or data["tokenizer"] or str(own)
        view, margin = ViewConfig(**data["view"]), data["augment"]["margin"]
        cleaning = EARLIER_CLEANING
        if "cleaning" in data:
            cleaning = Cleaning(data["cleaning"], data["max_words"])
        resize = data["read"].get("resize", "fast")  # absent from older checkpoints
        tokens = self._vocabulary, data["max_tokens"]
        return Setup(view, margin, tokenizer, *tokens, data, resize, cleaning)

    def load_params(self, place: Callable[[dict], dict] = on_one_device) -> dict:
        """Reads the parameters, averaged ones if the run has averages.

        Args:
            place: function that gives abstract parameters their shardings.

        Returns:
            A nested dict with the structure of `init_params`.

        Raises:
            InputError: the parameters cannot be read.
        """
        abstract = place(abstract_model(self.card.config)[1])
        if self._checkpoints is None:
            return load_params(self.path, abstract)
        return self._checkpoints.restore_model(abstract)

    def load_model(self, image_size: int | None = None, precision: str = "float32") -> LoadedModel:
        """Loads the model; see the function `load_model`."""
        if precision not in DTYPES:
            raise InputError(f"precision={precision!r} is none of {', '.join(DTYPES)}.")
        compute = ComputeConfig(precision).on(jax.devices()[0].platform)
        params = self.load_params()
        untrained = model_parts(self.card.fresh)
        if untrained and self._checkpoints is not None:
            # Only a warning, since the user chose the losses of the run.
            names = ", ".join(untrained)
            warnings.warn(f"{self.path} never trained {names}: random values", stacklevel=2)
            untrained = []
        size = self.card.config.image_size if image_size is None else image_size
        return LoadedModel(params, self.card.config, untrained, size, compute)


def load_model(
    folder: str | os.PathLike, image_size: int | None = None, precision: str = "float32"
) -> LoadedModel:
    """Loads a model from a folder.

    Args:
        folder: folder that convert_torch_ckpt.py wrote, or training workdir.
        image_size: pixels, a multiple of 16; None for the image size of the checkpoint. The model
            also encodes images of other sizes; it interpolates its tables at the first use of each.
        precision: "float32" for matrix products that are exact to float32 on every device, or
            "bfloat16", which is several times as fast on GPUs and TPUs; results are float32.

    Raises:
        InputError: the folder holds no model, or image size or precision are impossible.
    """
    return ModelFolder(folder).load_model(image_size, precision)


def open_model_tokenizer(setup: Setup, model: ModelConfig) -> PreTrainedTokenizerBase:
    """Opens the tokenizer of a model.

    Args:
        setup: preprocessing of the model, which names the tokenizer.
        model: shapes of the model.

    Raises:
        InputError: there is no such tokenizer, or the model was trained with other tokens.
    """
    if not open_folder(setup.tokenizer).exists():
        print(
            f"the model's folder has no vocab.txt: {setup.tokenizer} comes from the cache of "
            "transformers, or from its hub",
            file=sys.stderr,
        )
    tokenizer = open_tokenizer(setup.tokenizer, model.vocab_size)
    check_vocabulary({"vocabulary": setup.vocabulary}, tokenizer, setup.tokenizer)
    return tokenizer


def digest(params: dict) -> str:
    """Returns the SHA-256 of a model's parameters, by which an index identifies its model."""
    state = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        state.update(f"{path} {array.dtype} {array.shape}".encode())
        state.update(array.data)
    return state.hexdigest()
