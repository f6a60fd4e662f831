"""X2-VLM's VQA answer decoder: a causal BERT with cross-attention to the question."""

import jax
from flax import nnx

from capret_jax.config import ModelConfig
from capret_jax.models.bert import BertLayer, TextEmbeddings, causal_mask
from capret_jax.models.heads import MaskedLmHead


class AnswerDecoder(nnx.Module):
    """Predicts each next token of an answer from those before it and the question's states.

    Its embeddings are separate from the text encoder's, and it has no dropout.
    """

    def __init__(self, config: ModelConfig):
        self.embeddings = TextEmbeddings(config)
        self.layers = nnx.List(
            [
                BertLayer(config, context_width=config.text_width)
                for _ in range(config.decoder_layers)
            ]
        )
        self.head = MaskedLmHead(config)

    def __call__(
        self,
        answer_ids: jax.Array,
        answer_mask: jax.Array,
        question: jax.Array,
        question_mask: jax.Array,
    ) -> jax.Array:
        """Computes next-token logits.

        Args:
            answer_ids, answer_mask: (Q*K, A), `[CLS] answer [SEP]`; K consecutive answers belong
                to one question.
            question: (Q, T, D) states of the question, fused with its image.
            question_mask: (Q, T) 0/1.

        Returns:
            (Q*K, A, vocab); position t predicts token t+1.
        """
        x, mask = self.embeddings(answer_ids), causal_mask(answer_mask)
        for layer in self.layers:
            x = layer(x, mask, question, question_mask)
        return self.head(x, self.embeddings.word.embedding[...])
