"""A model with its parameters, ready to be called."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.errors import InputError
from capret_jax.models.answer_generation import Answers, FusedQuestions, rank_answers
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.location_generation import WrittenObjects, write_locations
from capret_jax.models.x2vlm import X2VLM, abstract_model, bind

Array = jax.Array | np.ndarray


class LoadedModel:
    """X2-VLM with its parameters; every method is compiled once per shape of its arguments.

    B images, R regions, K texts per image, N patches, T tokens, D width, E embedding. Arguments may
    be arrays of NumPy or JAX; results are float32. A method raises an InputError if the converted
    file lacks a part of the model that the method needs, since its result would be random.

    Attributes:
        params: parameters at the model's image size, a nested dict on the device.
        config: shapes of `params`.
        compute: dtype and implementation of the computation.
    """

    def __init__(
        self,
        params: dict,
        config: ModelConfig,
        untrained_parts: list[str],
        image_size: int,
        compute: ComputeConfig = PLAIN,
    ):
        """
        Args:
            params: parameters, a nested dict with the structure of `init_params`.
            config: shapes of the parameters.
            untrained_parts: parts of the model that methods refuse to use.
            image_size: pixels, for `self.params` and `self.config`.
            compute: dtype and implementation of the computation, resolved for the device.
        """
        self.compute = compute
        # Always interpolated from the trained tables, since repeated interpolation adds errors.
        self._source = params, config
        self._at_size = functools.lru_cache(maxsize=4)(self._interpolated)
        self.params, self.config = self._at_size(image_size)
        self._untrained_parts = frozenset(untrained_parts)
        self._compiled = functools.cache(functools.partial(_compile, compute))

    def encode_image(self, pixels: Array) -> jax.Array:
        """Encodes (B, S, S, 3) normalised float images, S any multiple of 16, as (B, 1+N, D).

        Position 0 is the mean of the patches.

        Raises:
            InputError: the images have another shape, or are not floats.
        """
        _check_pixels(pixels, "images", "(B, S, S, 3)")
        params, config = self._at_size(pixels.shape[1])
        return self._compiled(config, X2VLM.encode_image)(params, pixels)

    def encode_video(self, pixels: Array) -> jax.Array:
        """Encodes (B, F, S, S, 3) normalised float frames of videos as (B, 1+N, D).

        The states of the frames are averaged, see `X2VLM.encode_video`; every method that takes
        the states of an image takes them.

        Raises:
            InputError: the frames have another shape, are not floats, or are more than the frame
                positions of the model.
        """
        _check_pixels(pixels, "videos", "(B, F, S, S, 3)")
        params, config = self._at_size(pixels.shape[2])
        return self._compiled(config, X2VLM.encode_video)(params, pixels)

    def pool_regions(self, image: Array, mask: Array) -> jax.Array:
        """Embeds regions; see `models.beit.pool_regions`.

        Args:
            image: (R, 1+N, D) from `encode_image`.
            mask: (R, 1+N) 0/1, 1 for the positions of the region.

        Returns:
            (R, 1+N, D), with the mean of the region's patches at position 0.
        """
        return self._call(X2VLM.pool_regions, (), image, mask)

    def encode_text(self, token_ids: Array, token_mask: Array) -> jax.Array:
        """Encodes (B, T) int token ids, with a (B, T) 0/1 mask, as (B, T, D)."""
        return self._call(X2VLM.encode_text, (), token_ids, token_mask)

    def fuse(
        self, text: Array, token_mask: Array, image: Array, image_mask: Array | None = None
    ) -> jax.Array:
        """Fuses each text with its image; K consecutive texts belong to one image.

        Args:
            text: (B*K, T, D) from `encode_text`.
            token_mask: (B*K, T) 0/1 of the tokens.
            image: (B, 1+N, D') from `encode_image` or `pool_regions`.
            image_mask: (B, 1+N) 0/1 of visible positions; None for all.

        Returns:
            (B*K, T, D).
        """
        return self._call(X2VLM.fuse, ("fusion",), text, token_mask, image, image_mask)

    def image_features(self, image: Array) -> jax.Array:
        """Projects (B, 1+N, D) vision states to (B, E) features, L2-normalised."""
        return self._call(X2VLM.image_features, ("vision_proj",), image)

    def text_features(self, text: Array) -> jax.Array:
        """Projects (B, T, D) text states to (B, E) features, L2-normalised."""
        return self._call(X2VLM.text_features, ("text_proj",), text)

    def match_logits(self, fused: Array) -> jax.Array:
        """Returns (B, 2) logits of (B, T, D) fused states; class 1: text and image match."""
        return self._call(X2VLM.match_logits, ("fusion", "itm_head"), fused)

    def predict_boxes(self, fused: Array) -> jax.Array:
        """Returns (B, 4) cx, cy, w, h, fractions of the image, of (B, T, D) fused states."""
        return self._call(X2VLM.predict_boxes, ("fusion", "bbox_head"), fused)

    def masked_lm_logits(self, fused: Array) -> jax.Array:
        """Returns (B, T, vocab) logits of (B, T, D) fused states."""
        return self._call(X2VLM.masked_lm_logits, ("fusion", "mlm_head"), fused)

    def rank_answers(
        self,
        answer_ids: Array,
        answer_mask: Array,
        question: Array,
        question_mask: Array,
        k: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Ranks the best k of a list of answers; see `models.answer_generation.rank_answers`.

        Args:
            answer_ids, answer_mask: (N, A) int ids and 0/1 mask of the list of answers.
            question: (Q, T, D) states of the questions, from `encode_text` and `fuse`.
            question_mask: (Q, T) 0/1 of their tokens.
            k: number of answers, at most N.

        Returns:
            (Q, k) int32 rows of the list, best first, and (Q, k) float32 probabilities.

        Raises:
            InputError: the model has no answer decoder, or k is not in 1..N.
        """
        if not self.config.decoder_layers:
            raise InputError("this model has no answer decoder: convert a vqa checkpoint.")
        rank = self._compiled(self.config, rank_answers, k=k)
        answers = Answers(jnp.asarray(answer_ids), jnp.asarray(answer_mask))
        questions = FusedQuestions(jnp.asarray(question), jnp.asarray(question_mask))
        return rank(self.params, answers, questions)

    def write_captions(
        self,
        image: Array,
        prompt_ids: Array,
        special: SpecialTokens,
        config: BeamConfig = BeamConfig(),
    ) -> tuple[jax.Array, jax.Array]:
        """Generates one caption per image; see `models.caption_generation.write_captions`."""
        self.check_trained("fusion", "mlm_head")
        write = self._compiled(self.config, write_captions, special=special, config=config)
        return write(self.params, image, prompt_ids)

    def write_locations(self, image: Array, seed: int = 0, top_p: float = 0.4) -> WrittenObjects:
        """Writes the objects of pictures; see `models.location_generation.write_locations`.

        Args:
            image: (B, 1+N, D) from `encode_image`.
            seed: seed of the samples, which are independent of other pictures'.
            top_p: share of the probability that is drawn from.

        Raises:
            InputError: the model cannot write locations.
        """
        if not self.config.location_layers:
            raise InputError(
                "this model does not write locations: train it with --config.loss.locations=1."
            )
        self.check_trained("locations")
        write = self._compiled(self.config, write_locations, top_p=top_p)
        return write(self.params, image, jnp.broadcast_to(jax.random.key(seed), (len(image),)))

    def _interpolated(self, image_size: int) -> tuple[dict, ModelConfig]:
        params, config = with_image_size(*self._source, image_size)
        return jax.device_put(params), config

    def _call(self, method: Callable, parts: tuple[str, ...], *arguments):
        self.check_trained(*parts)
        return self._compiled(self.config, method)(self.params, *arguments)

    def check_trained(self, *parts: str) -> None:
        """Checks that parts of the model ("itm_head") have trained values.

        Raises:
            InputError: a part is random.
        """
        for part in parts:
            if part in self._untrained_parts:
                raise InputError(
                    f"the converted checkpoint held no {part}: its output would be random. "
                    "Convert another kind of checkpoint, or train this one first."
                )


def _check_pixels(pixels: Array, name: str, shape: str) -> None:
    """Checks that pixels are square RGB floats, with as many axes as in "(B, S, S, 3)"."""
    axes = shape.count(",") + 1
    if pixels.ndim != axes or pixels.shape[-3] != pixels.shape[-2] or pixels.shape[-1] != 3:
        raise InputError(f"{name} must be {shape} and are {pixels.shape}.")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(
            f"{name} are {pixels.dtype} and must be normalised floats: apply "
            "capret_jax.models.x2vlm.normalize_pixels."
        )


def _compile(compute: ComputeConfig, config: ModelConfig, function: Callable, /, **options):
    """Compiles `function(model, *arguments)` to a function of parameters and arguments.

    Arguments are rounded to the dtype of the computation; results are float32.
    """
    graphdef, _ = abstract_model(config, compute)

    def call(params, *arguments):
        model = bind(graphdef, params, compute.dtype)
        return _cast(function(model, *_cast(arguments, compute.dtype), **options), "float32")

    return jax.jit(call)


def _cast(tree, dtype: str):
    """Converts the floating-point arrays of a tree."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
