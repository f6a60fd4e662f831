"""Captions from the masked language model, written left to right (X2-VLM's own captioner).

[MASK] stands after what is written so far and is predicted; its place is then taken by the token.
Tokens see only those before them, so their keys and values are kept, and each step runs two
positions: the last token, and [MASK].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig, beam_search
from capret_jax.models.x2vlm import X2VLM


class SpecialTokens(NamedTuple):
    """Token ids of the vocabulary: [MASK], and [SEP], which ends a caption."""

    mask: int
    end: int


def write_captions(
    model: X2VLM,
    image: jax.Array,
    prompt_ids: jax.Array,
    special: SpecialTokens,
    config: BeamConfig,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One caption per image: the best that a beam search finds, or one drawn.

    Args:
        model: with an MLM head.
        image: (B, 1+N, D) from `encode_image`.
        prompt_ids: (P,) int, `[CLS]` and perhaps words that each caption begins with.
        special: ids of the vocabulary.
        config: of the search; `max_tokens` do not count the prompt. Drawing takes one beam.
        keys: (B,) draw every token of their captions from the model's distribution; None searches.

    Returns:
        (B, max_tokens) int32 without the prompt, 0 after the end; (B,) summed log-probabilities,
        of drawn captions with the noise that drew them.

    Raises:
        InputError: prompt and caption do not fit the model's positions, or several beams draw.
    """
    if keys is not None and config.beams != 1:
        raise InputError(f"captions are drawn with one beam, not {config.beams}.")
    prompt, length = len(prompt_ids), len(prompt_ids) + config.max_tokens
    limit = model.text.embeddings.position.num_embeddings
    if length > limit:
        raise InputError(f"{length} tokens, prompt included, do not fit {limit} positions.")
    layers = [*model.text.layers, *model.fusion.layers]
    # Once per image: its beams share them.
    contexts = [None] * len(model.text.layers) + [
        layer.cross_attention.keys_values(image) for layer in model.fusion.layers
    ]

    def run(token_ids, position, cache):
        x, filled = model.text.embeddings(token_ids, start=position), []
        for layer, kept, context in zip(layers, cache, contexts, strict=True):
            x, kept = layer.step(x, position, kept, context)
            filled.append(kept)
        return x, filled

    def next_token(last, written, cache):
        pair = jnp.stack([last, jnp.full_like(last, special.mask)], axis=1)
        x, cache = run(pair, prompt - 1 + written, cache)
        log_probs = jax.nn.log_softmax(model.masked_lm_logits(x[:, 1]))
        if keys is not None:
            # The largest of log-probabilities with Gumbel noise is a draw from them.
            log_probs += jax.vmap(
                lambda key: jax.random.gumbel(jax.random.fold_in(key, written), log_probs.shape[1:])
            )(keys)
        return log_probs, cache

    batch, ids = len(image), jnp.asarray(prompt_ids, jnp.int32)
    shape = (batch, length, model.text.layers[0].attention.heads, -1)
    empty = jnp.zeros((batch, length, model.text.embeddings.word.features), image.dtype)
    cache = [(empty.reshape(shape), empty.reshape(shape)) for _ in layers]
    _, cache = run(jnp.broadcast_to(ids, (batch, prompt)), 0, cache)
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, config.beams, axis=0), cache)
    first = jnp.broadcast_to(ids[-1], (batch,))
    return beam_search(next_token, cache, first, special.end, config)
