"""Writes where the objects of pictures are, as one compiled loop (Pix2Seq, arXiv 2109.10852)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.models.bert import KeysValues
from capret_jax.models.location_tokens import BINS, CLASS, TOKENS, from_bins
from capret_jax.models.sampling import sampling_scores
from capret_jax.models.x2vlm import X2VLM


class WrittenObjects(NamedTuple):
    """N objects of each sequence, in the order in which they were written.

    Attributes:
        boxes: (B, N, 4) float32 cx, cy, w, h as fractions of the picture.
        probabilities: (B, N, C) float32 of each class; what is missing to 1 is that of "fake", of
            boxes without object.
        token_ids: (B, 5N) int32 tokens that were written.
    """

    boxes: jax.Array
    probabilities: jax.Array
    token_ids: jax.Array


def write_locations(
    model: X2VLM, image: jax.Array, keys: jax.Array, top_p: float
) -> WrittenObjects:
    """Writes sequences of N objects, by nucleus sampling, as one compiled loop.

    Coordinates are drawn of the bins, and classes of the classes and "fake". What an object is, its
    probabilities say, whatever was drawn.

    Args:
        model: a model with a decoder of locations.
        image: (B, 1+N, D') states of the pictures.
        keys: (B*K,) random keys, of K sequences of each picture, one after the other; what is
            written with a key does not depend on others.
        top_p: share of the probability that is drawn from, 0.4 in Pix2Seq; 0 takes the most
            probable token.

    Returns:
        The objects of the B*K sequences.
    """
    decoder = model.locations
    tokens, length = decoder.tokens, TOKENS * decoder.items
    table, context = decoder.token_table(), decoder.context(image)
    contexts = [layer.cross_attention.keys_values(context) for layer in decoder.layers]
    kinds = jnp.arange(tokens.size)
    is_class = (kinds >= BINS) & (kinds <= tokens.fake)

    def write(state: _State, position: jax.Array) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        x = decoder.embed(table, state.last[:, None], start=position)
        caches = []
        for layer, cache, layer_context in zip(decoder.layers, state.caches, contexts, strict=True):
            x, cache = layer.step(x, position, cache, layer_context)
            caches.append(cache)
        logits = decoder.head(x[:, 0], table).astype(jnp.float32)
        allowed = jnp.where(position % TOKENS == CLASS, is_class, kinds < BINS)
        log_probs = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
        scores = sampling_scores(log_probs, keys, position, top_p)
        last = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return _State(last, caches), (last, log_probs[:, BINS : tokens.fake])

    batch, heads = len(keys), decoder.layers[0].attention.heads
    empty = jnp.zeros((batch, length, heads, table.shape[1] // heads), image.dtype)
    start = jnp.full((batch,), tokens.start, jnp.int32)
    state = _State(start, [(empty, empty) for _ in decoder.layers])
    _, (written, class_log_probs) = jax.lax.scan(write, state, jnp.arange(length))
    ids = written.T
    of_classes = jnp.exp(class_log_probs[CLASS::TOKENS]).swapaxes(0, 1)
    return WrittenObjects(from_bins(ids.reshape(batch, -1, TOKENS)[..., :CLASS]), of_classes, ids)


class _State(NamedTuple):
    """Loop state: the last token of each picture, (B,) int32, and the layers' keys and values."""

    last: jax.Array
    caches: list[KeysValues]
