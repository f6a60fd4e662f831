"""X2-VLM's VQA answer decoder: a causal BERT with cross-attention to the question."""

import jax
from flax import nnx

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.models.bert import BertLayer, TextEmbeddings, causal_mask
from capret_jax.models.heads import TokenHead
from capret_jax.models.layers import split_key


class AnswerDecoder(nnx.Module):
    """Predicts each next token of an answer from those before it and the question's states.

    Its embeddings are separate from the text encoder's.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        self.embeddings = TextEmbeddings(config)
        self.layers = nnx.List(
            [
                BertLayer(config, compute, context_width=config.text_width)
                for _ in range(config.decoder_layers)
            ]
        )
        self.head = TokenHead(config.text_width, config.vocab_size)

    def __call__(
        self,
        answer_ids: jax.Array,
        answer_mask: jax.Array,
        question: jax.Array,
        question_mask: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Computes next-token logits.

        Args:
            answer_ids, answer_mask: (Q*K, A), `[CLS] answer [SEP]`; K consecutive answers belong
                to one question.
            question: (Q, T, D) states of the question, fused with its image.
            question_mask: (Q, T) 0/1.
            key: random key, which turns dropout on.

        Returns:
            (Q*K, A, vocab); position t predicts token t+1.
        """
        first, *rest = split_key(key, 1 + len(self.layers))
        x, mask = self.embeddings(answer_ids, first), causal_mask(answer_mask)
        for layer, layer_key in zip(self.layers, rest, strict=True):
            x = layer(x, mask, question, question_mask, key=layer_key)
        return self.head(x, self.embeddings.word.embedding[...])
