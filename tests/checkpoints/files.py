"""Random checkpoint files of BEiT-v2 and BERT."""

import numpy as np

from capret_jax.config import ModelConfig


def beit_file(config: ModelConfig, shared: bool) -> dict[str, np.ndarray]:
    """Random weights under BEiT-v2's names."""
    rng = np.random.default_rng(0)
    width, rows = config.vision_width, (2 * config.grid - 1) ** 2 + 3
    shapes = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    if shared:
        shapes["rel_pos_bias.relative_position_bias_table"] = (rows, config.vision_heads)
        shapes["rel_pos_bias.relative_position_index"] = (1 + config.grid**2,) * 2
    for i in range(config.vision_depth):
        block = {
            "gamma_1": (width,),
            "gamma_2": (width,),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        for norm in ("norm1", "norm2"):
            block |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        if not shared:
            block["attn.relative_position_bias_table"] = (rows, config.vision_heads)
            block["attn.relative_position_index"] = (1 + config.grid**2,) * 2
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def bert_file(config: ModelConfig, layers: int) -> dict[str, np.ndarray]:
    """Random weights under bert-base-uncased's names, with its pre-training heads."""
    rng = np.random.default_rng(1)
    width, hidden = config.text_width, config.text_hidden
    shapes = {
        "bert.embeddings.word_embeddings.weight": (config.vocab_size, width),
        "bert.embeddings.position_embeddings.weight": (config.max_positions, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.embeddings.position_ids": (1, config.max_positions),
        "bert.pooler.dense.weight": (width, width),
        "bert.pooler.dense.bias": (width,),
        "cls.predictions.bias": (config.vocab_size,),
        "cls.predictions.decoder.weight": (config.vocab_size, width),
        "cls.predictions.transform.dense.weight": (width, width),
        "cls.predictions.transform.dense.bias": (width,),
        "cls.seq_relationship.weight": (2, width),
        "cls.seq_relationship.bias": (2,),
    }
    linear = {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
    linear |= {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
    linear["attention.output.dense"] = (width, width)
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
