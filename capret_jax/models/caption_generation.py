"""Generates captions with the masked language model from left to right, as X2-VLM's captioner does.

Each step appends [MASK] to the text, predicts it, and puts the predicted token in its place. Tokens
attend only to those before them, so their keys and values are cached, and each step runs two
positions: the last token and [MASK].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig, beam_search
from capret_jax.models.sampling import sampling_scores
from capret_jax.models.x2vlm import X2VLM


class SpecialTokens(NamedTuple):
    """Ids of [MASK], and of [SEP], which ends a caption."""

    mask: int
    end: int


def write_captions(
    model: X2VLM,
    image: jax.Array,
    prompt_ids: jax.Array,
    special: SpecialTokens,
    config: BeamConfig,
    *,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generates one caption per image, by beam search or by sampling.

    Args:
        model: a model with an MLM head.
        image: (B, 1+N, D) from `encode_image`.
        prompt_ids: (P,) int, `[CLS]` and the words that each caption begins with, if any.
        special: ids of the special tokens.
        config: settings of the search; `max_tokens` excludes the prompt. Sampling takes one beam.
        keys: (B,) random keys, to sample every token from the model's distribution; None for
            beam search.

    Returns:
        (B, max_tokens) int32 token ids without the prompt, 0 after the end; (B,) float32 summed
        log-probabilities, which for sampled captions include the sampling noise.

    Raises:
        InputError: prompt and caption do not fit the model's positions, or sampling is combined
            with several beams.
    """
    if keys is not None and config.beams != 1:
        raise InputError(f"captions are sampled with one beam, not {config.beams}.")
    prompt, length = len(prompt_ids), len(prompt_ids) + config.max_tokens
    limit = model.text.embeddings.position.num_embeddings
    if length > limit:
        raise InputError(f"{length} tokens, prompt included, do not fit {limit} positions.")
    layers = [*model.text.layers, *model.fusion.layers]
    # Computed once per image, because its beams share them.
    contexts = [None] * len(model.text.layers) + [
        layer.cross_attention.keys_values(image) for layer in model.fusion.layers
    ]

    def run(token_ids, position, cache):
        x, new_cache = model.text.embeddings(token_ids, start=position), []
        for layer, layer_cache, context in zip(layers, cache, contexts, strict=True):
            x, layer_cache = layer.step(x, position, layer_cache, context)
            new_cache.append(layer_cache)
        return x, new_cache

    def next_token(last, written, cache):
        pair = jnp.stack([last, jnp.full_like(last, special.mask)], axis=1)
        x, cache = run(pair, prompt - 1 + written, cache)
        log_probs = jax.nn.log_softmax(model.masked_lm_logits(x[:, 1]))
        if keys is not None:
            log_probs = sampling_scores(log_probs, keys, written)
        return log_probs, cache

    batch, ids = len(image), jnp.asarray(prompt_ids, jnp.int32)
    shape = (batch, length, model.text.layers[0].attention.heads, -1)
    empty = jnp.zeros((batch, length, model.text.embeddings.word.features), image.dtype)
    cache = [(empty.reshape(shape), empty.reshape(shape)) for _ in layers]
    _, cache = run(jnp.broadcast_to(ids, (batch, prompt)), 0, cache)
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, config.beams, axis=0), cache)
    first = jnp.broadcast_to(ids[-1], (batch,))
    return beam_search(next_token, cache, first, special.end, config)
