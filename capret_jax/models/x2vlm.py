"""X2-VLM (arXiv 2211.12402): encoders and heads in one module, with parameters outside of it.

    graphdef, abstract = abstract_model(config)
    params = init_params(config, jax.random.key(0))
    image = bind(graphdef, params).encode_image(pixels)

`params` is a nested dict. `bind` costs nothing at run time when called inside of `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.errors import InputError
from capret_jax.models.beit import VisionEncoder, pool_regions
from capret_jax.models.bert import TextEncoder
from capret_jax.models.decoder import AnswerDecoder
from capret_jax.models.fusion import FusionEncoder
from capret_jax.models.heads import MlpHead, TokenHead, normalize
from capret_jax.models.layers import dense
from capret_jax.models.location_decoder import LocationDecoder

INITIAL_TEMPERATURE = 0.07
EMBEDDING_STD = 0.02
# Statistics of RGB in [0, 1] with which X2-VLM was trained.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_pixels(image: jax.Array) -> jax.Array:
    """Converts (B, H, W, 3) uint8 RGB to float32, normalised as the model expects."""
    return (image / 255.0 - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


class X2VLM(nnx.Module):
    """Encoders and heads. Methods are pure; a `key` turns dropout and stochastic depth on."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig = PLAIN):
        vision_compute = text_compute = compute
        if compute.remat == "vision":
            vision_compute = dataclasses.replace(compute, remat="attention")
            text_compute = dataclasses.replace(compute, remat="dots")
        self.vision = VisionEncoder(config, vision_compute)
        self.text = TextEncoder(config, text_compute)
        self.fusion = FusionEncoder(config, text_compute)
        self.vision_proj = dense(config.vision_width, config.embed_dim)
        self.text_proj = dense(config.text_width, config.embed_dim)
        self.temperature = nnx.Param(jnp.array(INITIAL_TEMPERATURE, jnp.float32))
        self.itm_head = MlpHead(config.text_width, 2)
        self.bbox_head = MlpHead(config.text_width, 4)
        self.mlm_head = TokenHead(config.text_width, config.vocab_size)
        if config.decoder_layers:
            self.decoder = AnswerDecoder(config, text_compute)
        if config.location_layers:
            self.locations = LocationDecoder(config, text_compute)
        if config.nlvr:
            self.nlvr_head = MlpHead(2 * config.text_width, 2)
        self.frames = config.frames
        if config.frames:
            self.frame_positions = nnx.Param(jnp.zeros((config.frames, config.vision_width)))
        self.embedding = config.embedding
        if config.embedding == "fusion":
            self.fusion_proj = dense(config.text_width, config.embed_dim)

    def encode_image(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes (B, S, S, 3) normalised floats as (B, 1+N, D): mean of the patches, patches."""
        return self.vision(pixels, key)

    def encode_video(self, pixels: jax.Array) -> jax.Array:
        """Encodes (B, F, S, S, 3) normalised frames of videos as (B, 1+N, D), as if an image.

        Each frame is encoded as an image, the embedding of its position in the video is added to
        all of its 1+N states, and the frames are averaged position by position, as X2-VLM does.
        The model has `ModelConfig.frames` positions.

        Raises:
            InputError: there are more frames than positions; a single frame needs none.
        """
        batch, frames = pixels.shape[:2]
        if frames > max(self.frames, 1):
            raise InputError(
                f"{frames} frames of a video do not fit this model, which has {self.frames} frame "
                f"positions: give at most {max(self.frames, 1)}, evenly spaced over the video."
            )
        states = self.encode_image(pixels.reshape(-1, *pixels.shape[2:]))
        states = states.reshape(batch, frames, *states.shape[1:])
        if self.frames:
            states = states + self.frame_positions[:frames, None]
        return states.mean(axis=1)

    def pool_regions(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeds regions from (R, 1+N, D) and a (R, 1+N) 0/1 mask; see `beit.pool_regions`."""
        return pool_regions(image, mask)

    def encode_text(
        self,
        token_ids: jax.Array,
        token_mask: jax.Array,
        key: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes (B, T) int token ids, with a (B, [T,] T) 0/1 mask, as (B, T, D).

        `positions` are (B, T) int positions of the tokens; None for 0, 1 and so on.
        """
        return self.text(token_ids, token_mask, key, positions)

    def fuse(
        self,
        text: jax.Array,
        token_mask: jax.Array,
        image: jax.Array,
        image_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Fuses text (B*K, T, D) with image (B, 1+N, D'); see `FusionEncoder`."""
        return self.fusion(text, token_mask, image, image_mask, key)

    def image_features(self, image: jax.Array) -> jax.Array:
        """Projects (B, 1+N, D) vision states to (B, E) float32 features, L2-normalised."""
        return normalize(_float32(self.vision_proj(image[:, 0])))

    def text_features(self, text: jax.Array) -> jax.Array:
        """Projects (B, T, D) text states to (B, E) float32 features, L2-normalised."""
        return normalize(_float32(self.text_proj(text[:, 0])))

    def item_features(
        self,
        image: jax.Array,
        image_mask: jax.Array | None,
        text: jax.Array | None,
        token_mask: jax.Array | None,
        fused: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the retrieval embeddings of items, of the kind `ModelConfig.embedding`.

        "image": the image features; "text": the text features; "joined": both concatenated, with
        equal weight; "fusion": a projection of the fusion encoder's [CLS].

        Args:
            image: (B, 1+N, D') from `encode_image` or `pool_regions`.
            image_mask: (B, 1+N) 0/1 of regions, or None.
            text, token_mask: (B, T, D) and (B, T) of the items' captions; not used by "image".
            fused: (B, T, D) from `fuse`, if computed already.

        Returns:
            (B, E) float32, or (B, 2E) for "joined"; L2-normalised.

        Raises:
            InputError: this kind of embedding needs captions, and there are none.
        """
        if self.embedding == "image":
            return self.image_features(image)
        if text is None or token_mask is None:
            raise InputError(f"the {self.embedding} embedding reads captions, and there are none.")
        if self.embedding == "text":
            return self.text_features(text)
        if self.embedding == "joined":
            both = self.image_features(image), self.text_features(text)
            return normalize(jnp.concatenate(both, axis=-1))
        if fused is None:
            fused = self.fuse(text, token_mask, image, image_mask)
        return normalize(_float32(self.fusion_proj(fused[:, 0])))

    def match_logits(self, fused: jax.Array) -> jax.Array:
        """Returns (B, 2) float32 logits of (B, T, D) fused states; class 1 is a match."""
        return _float32(self.itm_head(fused[:, 0]))

    def pair_logits(self, fused: jax.Array) -> jax.Array:
        """Returns (B, 2) float32 logits of sentences about two pictures; class 1 is true.

        Args:
            fused: (B, 2, T, D) states of each sentence, fused with its left and its right picture.
        """
        both = fused[:, :, 0].reshape(len(fused), -1)
        return _float32(self.nlvr_head(both))

    def predict_boxes(self, fused: jax.Array) -> jax.Array:
        """Returns (B, 4) float32 cx, cy, w, h, fractions of the image, of (B, T, D) states."""
        return jax.nn.sigmoid(_float32(self.bbox_head(fused[:, 0])))

    def masked_lm_logits(self, fused: jax.Array) -> jax.Array:
        """Returns (B, T, vocab) float32 logits of (B, T, D) fused states."""
        return _float32(self.mlm_head(fused, self.text.embeddings.word.embedding[...]))

    def answer_logits(
        self,
        answer_ids: jax.Array,
        answer_mask: jax.Array,
        question: jax.Array,
        question_mask: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns next-token logits (Q*K, A, vocab); see `AnswerDecoder`."""
        return self.decoder(answer_ids, answer_mask, question, question_mask, key)

    def location_logits(
        self, token_ids: jax.Array, image: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Returns (B, 5n, V) float32 logits of the objects' tokens; see `LocationDecoder`."""
        return _float32(self.locations(token_ids, image, key))


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def abstract_model(
    config: ModelConfig, compute: ComputeConfig = PLAIN
) -> tuple[nnx.GraphDef, dict]:
    """Returns the structure, and the parameters as a nested dict of `jax.ShapeDtypeStruct`."""
    graphdef, params = _abstract_model(config, compute)
    return graphdef, jax.tree.map(lambda x: x, params)  # dicts of the caller's own


@functools.lru_cache(maxsize=32)
def _abstract_model(config: ModelConfig, compute: ComputeConfig) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: X2VLM(config, compute)))
    return graphdef, _string_keys(nnx.to_pure_dict(state))


def init_params(config: ModelConfig, key: jax.Array, only: Collection[str] | None = None) -> dict:
    """Initialises float32 parameters: truncated normal, embeddings with deviation 0.02 as in BERT.

    Linear layers have the deviation fan_in^-0.5, which is close to BERT's 0.02 at base width. In a
    narrow model, 0.02 would make the residual branches so small that training starts slowly.

    The function is traceable: jit it with `out_shardings` for a large model.

    Args:
        config: shapes of the model.
        key: random key.
        only: paths ("itm_head/up/kernel") of the parameters to initialise; None for all.

    Returns:
        A nested dict of arrays.
    """
    params = _string_keys(nnx.to_pure_dict(nnx.state(X2VLM(config))))
    if only is not None:
        flat = flatten_dict(params, sep="/")
        params = unflatten_dict({path: flat[path] for path in only}, sep="/")
    paths, structure = jax.tree.flatten_with_path(params)
    stds = [_initial_std(path[-1].key, leaf) for path, leaf in paths]
    sizes = [leaf.size for (_, leaf), std in zip(paths, stds, strict=True) if std]
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),))
    pieces = iter(jnp.split(draw, np.cumsum(sizes)[:-1]))
    leaves = [
        std * next(pieces).reshape(leaf.shape) if std else leaf
        for (_, leaf), std in zip(paths, stds, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def _initial_std(name: str, leaf: jax.Array) -> float | None:
    """Returns the deviation of a parameter; None if its module has initialised it."""
    if name == "kernel":
        return leaf.shape[0] ** -0.5
    return EMBEDDING_STD if name == "embedding" else None


def bind(graphdef: nnx.GraphDef, params: dict, dtype: str = "float32") -> X2VLM:
    """Returns the module with these parameters.

    Args:
        graphdef: structure from `abstract_model`, or of a submodule.
        params: float32 parameters of that structure, a nested dict.
        dtype: dtype to compute in, `ComputeConfig.dtype`; the temperature stays float32.
    """
    cast = jax.tree.map(lambda x: x.astype(dtype), params)
    if "temperature" in params:
        cast["temperature"] = params["temperature"]
    return nnx.merge(graphdef, _integer_keys(cast))


def _string_keys(tree):
    """Turns keys into strings: NNX numbers layers with ints, Orbax and JSON need strings."""
    if not isinstance(tree, dict):
        return tree
    return {str(name): _string_keys(value) for name, value in tree.items()}


def _integer_keys(tree):
    """Undoes `_string_keys`."""
    if not isinstance(tree, dict):
        return tree
    return {
        int(name) if name.isdigit() else name: _integer_keys(value) for name, value in tree.items()
    }
