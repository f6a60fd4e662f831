"""The BERT text encoder (arXiv 1810.04805), and its layer, which the fusion encoder uses too."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.errors import InputError
from capret_jax.models.attention import attention
from capret_jax.models.layers import (
    Mlp,
    dense,
    drop_branch,
    dropout,
    dropout_arguments,
    embedding,
    layer_norm,
    merge_heads,
    run_layers,
    split_heads,
    split_key,
)

KeysValues = tuple[jax.Array, jax.Array]

EPSILON = 1e-12
_TOKEN_TYPES = 2


class TextEmbeddings(nnx.Module):
    """Layer-normalised sum of token, position and token type (always 0) embeddings."""

    def __init__(self, config: ModelConfig):
        width = config.text_width
        self.dropout_rate = config.dropout
        self.word = embedding(config.vocab_size, width)
        self.position = embedding(config.max_positions, width)
        self.token_type = embedding(_TOKEN_TYPES, width)
        self.norm = layer_norm(width, EPSILON)

    def __call__(
        self, token_ids: jax.Array, key: jax.Array | None = None, start: jax.Array | int = 0
    ) -> jax.Array:
        """Embeds (B, T) int ids from position `start` on as (B, T, D); `key` turns dropout on."""
        positions, limit = token_ids.shape[1], self.position.num_embeddings
        if positions > limit:
            raise InputError(f"{positions} tokens do not fit the model's {limit} positions.")
        position = jax.lax.dynamic_slice_in_dim(self.position.embedding[...], start, positions)
        # `self.word(...)` would promote the result to float32, whatever the dtype of the table.
        x = jnp.take(self.word.embedding[...], token_ids, axis=0) + position
        x = x + self.token_type.embedding[0]
        return dropout(self.norm(x), self.dropout_rate, key)


class BertAttention(nnx.Module):
    """Multi-head self- or cross-attention with residual and post-norm.

    There may be K times as many rows of queries as of keys. K consecutive rows then share the same
    keys, so that several texts can attend to one image without copies of it.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, context_width: int):
        width = config.text_width
        self.implementation = compute.attention
        self.heads = config.text_heads
        self.dropout_rate, self.weights_dropout_rate = config.dropout, config.attention_dropout
        self.query = dense(width, width)
        self.key = dense(context_width, width)
        self.value = dense(context_width, width)
        self.out = dense(width, width)
        self.norm = layer_norm(width, EPSILON)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        mask: jax.Array | None,
        key: jax.Array | None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Attends from texts to a context.

        Args:
            x: (B*K, T, D) states of the texts.
            context: (B, S, D') states that they attend to.
            mask: (B, S), or (B, T, S) where queries differ: 1 for visible positions; None for all.
            key: random key, which turns dropout on.
            drop_path_rate: rate of stochastic depth.

        Returns:
            (B*K, T, D).
        """
        return self.attend(x, self.keys_values(context), mask, key, drop_path_rate)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """Projects context (B, S, D') to keys and values, (B, S, H, D/H) each."""
        keys, values = self.key(context), self.value(context)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def attend(
        self,
        x: jax.Array,
        keys_values: KeysValues,
        mask: jax.Array | None,
        key: jax.Array | None = None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Attends from x (B*K, T, D) to keys and values (B, S, H, D/H); returns (B*K, T, D).

        Raises:
            InputError: the rows of queries are no multiple of the rows of keys.
        """
        if len(x) % len(keys_values[0]):
            raise InputError(
                f"{len(x)} texts cannot share {len(keys_values[0])} images or questions evenly: "
                "give K texts for each, one after the other."
            )
        query = split_heads(self.query(x), self.heads)
        query = query.reshape(len(keys_values[0]), -1, *query.shape[2:])
        drop = None
        if key is not None and self.weights_dropout_rate:
            rate, weights_key = self.weights_dropout_rate, jax.random.fold_in(key, 1)
            drop = functools.partial(dropout, rate=rate, key=weights_key)
        attended = attention(
            query, *keys_values, mask=mask, implementation=self.implementation, drop=drop
        )
        update = merge_heads(attended).reshape(x.shape)
        branch = drop_branch(self.out(update), self.dropout_rate, drop_path_rate, key)
        return self.norm(x + branch)


class BertLayer(nnx.Module):
    """Self-attention, cross-attention when `context_width` is given, and a feed-forward network."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, context_width: int | None = None
    ):
        width = config.text_width
        self.dropout_rate = config.dropout
        self.attention = BertAttention(config, compute, width)
        if context_width is not None:
            self.cross_attention = BertAttention(config, compute, context_width)
        self.mlp = Mlp(width, config.text_hidden)
        self.norm = layer_norm(width, EPSILON)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Computes the states of the next layer.

        Args:
            x: (B*K, T, D) states of the texts.
            mask: (B*K, T), or (B*K, T, T) where queries differ: 1 for visible tokens.
            context: (B, S, D') states of the cross-attention; None for a layer without it.
            context_mask: (B, S), 1 for visible positions; None for all.
            key: random key, which turns dropout on.
            drop_path_rate: rate of stochastic depth, with a key.

        Returns:
            (B*K, T, D).
        """
        self_key, cross_key, mlp_key = split_key(key, 3)
        x = self.attention(x, x, mask, self_key, drop_path_rate)
        if context is not None:
            x = self.cross_attention(x, context, context_mask, cross_key, drop_path_rate)
        branch = drop_branch(self.mlp(x), self.dropout_rate, drop_path_rate, mlp_key)
        return self.norm(x + branch)

    def step(
        self,
        x: jax.Array,
        position: jax.Array | int,
        cache: KeysValues,
        context: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Computes the next positions of a text that is generated from left to right.

        Args:
            x: (B*K, T, D) states from `position` on.
            position: index of the first of them.
            cache: keys and values (B*K, L, H, D/H) of this layer, valid before `position`.
            context: keys and values (B, S, H, D/H) of the cross-attention.

        Returns:
            (B*K, T, D) states, and the cache with these positions filled in.
        """
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=1)
            for old, new in zip(cache, self.attention.keys_values(x), strict=True)
        )
        written = position + jnp.arange(x.shape[1])
        visible = jnp.arange(keys.shape[1]) <= written[:, None]
        mask = jnp.broadcast_to(visible, (len(x), *visible.shape))
        x = self.attention.attend(x, (keys, values), mask)
        if context is not None:
            x = self.cross_attention.attend(x, context, mask=None)
        return self.norm(x + self.mlp(x)), (keys, values)


def causal_mask(token_mask: jax.Array) -> jax.Array:
    """Returns the (B, T, T) bool causal mask of (B, T) 0/1: unmasked tokens up to each token."""
    positions = token_mask.shape[1]
    return jnp.tril(jnp.ones((positions, positions), bool)) & (token_mask[:, None, :] > 0)


class TextEncoder(nnx.Module):
    """Encodes token ids to contextual embeddings; position 0, [CLS], stands for the text."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        self.compute = compute
        self.drop_path_rate = config.text_drop_path
        self.embeddings = TextEmbeddings(config)
        self.layers = nnx.List([BertLayer(config, compute) for _ in range(config.text_layers)])

    def __call__(
        self, token_ids: jax.Array, token_mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes (B, T) int ids with (B, [T,] T) 0/1 mask as (B, T, D); `key`: dropout."""
        first, *rest = split_key(key, 1 + len(self.layers))
        x = self.embeddings(token_ids, first)
        arguments = dropout_arguments(rest, self.drop_path_rate)
        return run_layers(self.layers, x, (token_mask,), arguments, self.compute)
