"""Models from their folders: what convert_torch_ckpt.py wrote, or a training workdir.

model = load_model("DIR")
image = model.encode_image(pixels)
"""

import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.conversion import parts
from capret_jax.checkpoints.converted import (
    ModelCard,
    is_converted,
    load_params,
    on_one_device,
    read_card,
)
from capret_jax.checkpoints.names import COMPLETE
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.checkpoints.training import Checkpoints, has_checkpoints
from capret_jax.config import AugmentConfig, ModelConfig, ViewConfig
from capret_jax.errors import InputError
from capret_jax.models.answer_generation import rank_answers
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind

Array = jax.Array | np.ndarray
# What X2-VLM was trained with.
_BERT, _TOKENS = "bert-base-uncased", 40
# The kind of checkpoint that a captioner's is.
_WRITER = "caption_mlm"


def load_weights(
    folder: str | os.PathLike, place: Callable[[dict], dict] = on_one_device
) -> tuple[dict, ModelCard]:
    """Reads a converted checkpoint, or the newest checkpoint of a training workdir.

    Args:
        folder: of either.
        place: gives the abstract parameters their shardings.

    Returns:
        The parameters, a nested dict as `init_params` makes it, and what is known of them.

    Raises:
        InputError: the folder is neither, or what it holds cannot be read.
    """
    card = load_card(folder)
    abstract, path = place(abstract_model(card.config)[1]), pathlib.Path(folder)
    if is_converted(path):
        return load_params(path, abstract), card
    return Checkpoints(path, read_only=True).restore_model(abstract), card


def load_card(folder: str | os.PathLike) -> ModelCard:
    """The shapes and the kind of the model in a folder; trained models count as "pretrain".

    Raises:
        InputError: the folder holds no model.
    """
    path = pathlib.Path(folder)
    if is_converted(path):
        return read_card(path)
    if not has_checkpoints(path):
        raise InputError(
            f"{path} is neither a converted checkpoint (it has no model.json) nor the workdir of a "
            "training run (it has no checkpoints/)."
        )
    checkpoints = Checkpoints(path, read_only=True)
    if checkpoints.latest_step() is None:
        raise InputError(f"{path} has no complete checkpoint yet.")
    metadata = checkpoints.metadata()
    config = ModelConfig(**metadata["config"]["model"])
    return ModelCard(config, COMPLETE, metadata.get("untrained", []))


def writes_captions(folder: str | os.PathLike) -> bool:
    """Whether the masked language model in a folder has learnt to write, left to right.

    Raises:
        InputError: the folder holds no model.
    """
    path = pathlib.Path(folder)
    card = load_card(path)
    if is_converted(path):
        return card.kind == _WRITER
    loss = Checkpoints(path, read_only=True).metadata()["config"]["loss"]
    return bool(loss["mlm"]) and loss.get("mlm_causal", False)


def load_model(folder: str | os.PathLike, image_size: int | None = None) -> "LoadedModel":
    """A model ready to be called.

    Args:
        folder: what convert_torch_ckpt.py wrote, or a training workdir.
        image_size: pixels, a multiple of 16; what the checkpoint has when None. Images of other
            sizes are taken too, at the cost of interpolating the tables when first met.

    Raises:
        InputError: the folder holds no model, or the image size is impossible.
    """
    params, card = load_weights(folder)
    if image_size is None:
        image_size = card.config.image_size
    random = parts(card.fresh)
    if random and not is_converted(pathlib.Path(folder)):
        # Its owner chose the losses: a warning will do.
        warnings.warn(f"{folder} never trained {', '.join(random)}: random values", stacklevel=2)
        random = []
    return LoadedModel(params, card.config, random, image_size)


class Setup(NamedTuple):
    """How a model was trained to see and read.

    Attributes:
        view: what it sees of an item.
        margin: context around the box of a crop, as a fraction of its sides.
        tokenizer: for `data.tokenizer.load_tokenizer`.
        max_tokens: T.
        data: the run's `config.data`, as nested plain dicts; None of a converted checkpoint.
    """

    view: ViewConfig
    margin: float
    tokenizer: str
    max_tokens: int
    data: dict | None


def load_setup(folder: str | os.PathLike, tokenizer: str = "") -> Setup:
    """How the model in a folder sees and reads.

    Args:
        folder: as `load_model` takes it.
        tokenizer: another than the model's own; a converted checkpoint's is bert-base-uncased.

    Raises:
        InputError: the folder holds no model.
    """
    path = pathlib.Path(folder)
    if is_converted(path):
        return Setup(ViewConfig(), AugmentConfig().margin, tokenizer or _BERT, _TOKENS, None)
    load_card(path)  # says what is wrong with a folder that is neither
    data = Checkpoints(path, read_only=True).metadata()["config"]["data"]
    own = data["tokenizer"] or str(path / "vocab.txt")
    view, margin = ViewConfig(**data["view"]), data["augment"]["margin"]
    return Setup(view, margin, tokenizer or own, data["max_tokens"], data)


def digest(params: dict) -> str:
    """SHA-256 of a model's parameters: what an index remembers of the model that made it."""
    state = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        state.update(f"{path} {array.dtype} {array.shape}".encode())
        state.update(array.data)
    return state.hexdigest()


class LoadedModel:
    """X2-VLM with its parameters; every method is compiled once per shape of its arguments.

    B images, N patches, T tokens, D width, E embedding. Arrays may be NumPy's or JAX's. A method
    whose part of the model was not in the converted file raises an InputError: its answer would
    be random.
    """

    def __init__(self, params: dict, config: ModelConfig, random_parts: list[str], image_size: int):
        """
        Args:
            params: nested dict, as `init_params` makes it.
            config: their shapes.
            random_parts: parts of the model that methods must refuse to use.
            image_size: of `self.params` and `self.config`.
        """
        # Always from the tables as they were trained: interpolating twice loses more.
        self._source = params, config
        self._at_size = functools.lru_cache(maxsize=4)(self._interpolated)
        self.params, self.config = self._at_size(image_size)
        self._random_parts = frozenset(random_parts)
        self._compiled = functools.cache(_compile)

    def encode_image(self, pixels: Array) -> jax.Array:
        """(B, S, S, 3) normalised float, S any multiple of 16 -> (B, 1+N, D)."""
        if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
            raise InputError(f"images must be (B, S, S, 3) and are {pixels.shape}.")
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise InputError(
                f"images are {pixels.dtype} and must be normalised floats: apply "
                "capret_jax.models.x2vlm.normalize_pixels."
            )
        params, config = self._at_size(pixels.shape[1])
        return self._compiled(config, X2VLM.encode_image)(params, pixels)

    def pool_regions(self, image: Array, mask: Array) -> jax.Array:
        """(R, 1+N, D) and (R, 1+N) 0/1 -> (R, 1+N, D) with the region's mean at position 0."""
        return self._call(X2VLM.pool_regions, (), image, mask)

    def encode_text(self, token_ids: Array, token_mask: Array) -> jax.Array:
        """(B, T) int ids and 0/1 mask -> (B, T, D)."""
        return self._call(X2VLM.encode_text, (), token_ids, token_mask)

    def fuse(
        self, text: Array, token_mask: Array, image: Array, image_mask: Array | None = None
    ) -> jax.Array:
        """text (B*K, T, D), image (B, 1+N, D'), masks 0/1 -> (B*K, T, D)."""
        return self._call(X2VLM.fuse, ("fusion",), text, token_mask, image, image_mask)

    def image_features(self, image: Array) -> jax.Array:
        """(B, 1+N, D) -> (B, E), L2-normalised."""
        return self._call(X2VLM.image_features, ("vision_proj",), image)

    def text_features(self, text: Array) -> jax.Array:
        """(B, T, D) -> (B, E), L2-normalised."""
        return self._call(X2VLM.text_features, ("text_proj",), text)

    def match_logits(self, fused: Array) -> jax.Array:
        """(B, T, D) -> (B, 2); class 1 means that text and image match."""
        return self._call(X2VLM.match_logits, ("fusion", "itm_head"), fused)

    def predict_boxes(self, fused: Array) -> jax.Array:
        """(B, T, D) -> (B, 4) cx, cy, w, h as fractions of the image."""
        return self._call(X2VLM.predict_boxes, ("fusion", "bbox_head"), fused)

    def masked_lm_logits(self, fused: Array) -> jax.Array:
        """(B, T, D) -> (B, T, vocab)."""
        return self._call(X2VLM.masked_lm_logits, ("fusion", "mlm_head"), fused)

    def rank_answers(
        self,
        answer_ids: Array,
        answer_mask: Array,
        question: Array,
        question_mask: Array,
        k: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The best k of a list of answers; see `captioning.answers.rank_answers`."""
        if not self.config.decoder_layers:
            raise InputError("this model has no answer decoder: convert a vqa checkpoint.")
        rank = self._compiled(self.config, rank_answers, k=k)
        return rank(self.params, answer_ids, answer_mask, question, question_mask)

    def write_captions(
        self,
        image: Array,
        prompt_ids: Array,
        special: SpecialTokens,
        config: BeamConfig = BeamConfig(),
    ) -> tuple[jax.Array, jax.Array]:
        """One caption per image; see `captioning.writer.write_captions`."""
        self.check_trained("fusion", "mlm_head")
        write = self._compiled(self.config, write_captions, special=special, config=config)
        return write(self.params, image, prompt_ids)

    def _interpolated(self, image_size: int) -> tuple[dict, ModelConfig]:
        params, config = with_image_size(*self._source, image_size)
        return jax.device_put(params), config

    def _call(self, method: Callable, needed: tuple[str, ...], *arguments):
        self.check_trained(*needed)
        return self._compiled(self.config, method)(self.params, *arguments)

    def check_trained(self, *needed: str) -> None:
        """
        Raises:
            InputError: a part of the model is random.
        """
        for part in needed:
            if part in self._random_parts:
                raise InputError(
                    f"the converted checkpoint held no {part}: what it would say is random. "
                    "Convert another kind of checkpoint, or train this one first."
                )


def _compile(config: ModelConfig, function: Callable, /, **options):
    """A jitted `function(model, *arguments)` that takes parameters in place of the model."""
    graphdef, _ = abstract_model(config)
    return jax.jit(
        lambda params, *arguments: function(bind(graphdef, params), *arguments, **options)
    )
