"""The BERT text encoder (arXiv 1810.04805), and the layer it shares with the fusion encoder."""

import jax
from flax import nnx

from capret_jax.models.attention import attention
from capret_jax.models.config import ModelConfig
from capret_jax.models.layers import (
    Mlp,
    dense,
    dropout,
    embedding,
    layer_norm,
    merge_heads,
    split_heads,
    split_key,
)

EPSILON = 1e-12
_TOKEN_TYPES = 2


class TextEmbeddings(nnx.Module):
    """Token + position + token type (always 0), normalised."""

    def __init__(self, config: ModelConfig):
        width = config.text_width
        self.dropout_rate = config.dropout
        self.word = embedding(config.vocab_size, width)
        self.position = embedding(config.max_positions, width)
        self.token_type = embedding(_TOKEN_TYPES, width)
        self.norm = layer_norm(width, EPSILON)

    def __call__(self, token_ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        positions, limit = token_ids.shape[1], self.position.num_embeddings
        if positions > limit:
            raise ValueError(f"{positions} tokens do not fit the model's {limit} positions.")
        x = self.word(token_ids) + self.position.embedding[:positions]
        x = x + self.token_type.embedding[0]
        return dropout(self.norm(x), self.dropout_rate, key)


class BertAttention(nnx.Module):
    """Multi-head attention, residual and post-norm. Keys and values may come from elsewhere.

    The attention weights themselves are not dropped: fused attention kernels cannot.
    """

    def __init__(self, config: ModelConfig, context_width: int):
        width = config.text_width
        self.heads = config.text_heads
        self.dropout_rate = config.dropout
        self.query = dense(width, width)
        self.key = dense(context_width, width)
        self.value = dense(context_width, width)
        self.out = dense(width, width)
        self.norm = layer_norm(width, EPSILON)

    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """x (B, T, D), context (B, S, D'), mask (B, S) 0/1 or None -> (B, T, D)."""
        query, keys, value = (
            split_heads(part, self.heads)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        update = self.out(merge_heads(attention(query, keys, value, mask=mask)))
        return self.norm(x + dropout(update, self.dropout_rate, key))


class BertLayer(nnx.Module):
    """Self-attention, cross-attention when `context_width` is given, and a feed-forward network."""

    def __init__(self, config: ModelConfig, context_width: int | None = None):
        width = config.text_width
        self.dropout_rate = config.dropout
        self.attention = BertAttention(config, width)
        if context_width is not None:
            self.cross_attention = BertAttention(config, context_width)
        self.mlp = Mlp(width, config.text_hidden)
        self.norm = layer_norm(width, EPSILON)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        self_key, cross_key, mlp_key = split_key(key, 3)
        x = self.attention(x, x, mask, self_key)
        if context is not None:
            x = self.cross_attention(x, context, context_mask, cross_key)
        return self.norm(x + dropout(self.mlp(x), self.dropout_rate, mlp_key))


class TextEncoder(nnx.Module):
    """Token ids to contextual embeddings; the text's feature is position 0, [CLS]."""

    def __init__(self, config: ModelConfig):
        self.embeddings = TextEmbeddings(config)
        self.layers = nnx.List([BertLayer(config) for _ in range(config.text_layers)])

    def __call__(
        self, token_ids: jax.Array, token_mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """(B, T) int ids and 0/1 mask -> (B, T, D); `key` turns dropout on."""
        first, *rest = split_key(key, 1 + len(self.layers))
        x = self.embeddings(token_ids, first)
        for layer, layer_key in zip(self.layers, rest, strict=True):
            x = layer(x, token_mask, key=layer_key)
        return x
