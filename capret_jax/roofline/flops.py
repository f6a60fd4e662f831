"""Matrix-product FLOPs of a traced program, and the fewest that a model's step needs."""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr

from capret_jax.config import ExperimentConfig, ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.config.task import VQA_ANSWERS
from capret_jax.data.vqa import ANSWER_TOKENS
from capret_jax.models.kernels.cudnn_attention import CUDNN_BACKWARD, CUDNN_FORWARD
from capret_jax.models.location_tokens import TOKENS, LocationTokens

_MLP_RATIO = 4
# Matrix products of cuDNN's attention; the backward pass computes the logits again.
_CUDNN_PRODUCTS = {CUDNN_FORWARD: 2, CUDNN_BACKWARD: 5}


def program_flops(jaxpr: Jaxpr) -> float:
    """Counts the FLOPs of all matrix products and kernels, of all devices together.

    Loops count for each iteration, recomputation counts again, and kernels count the FLOPs that
    they declare; element-wise operations do not count.

    Raises:
        ValueError: a kernel declares no cost.
    """
    read = {id(x) for x in jaxpr.outvars} | {id(x) for y in jaxpr.eqns for x in y.invars}
    return sum(_flops(equation) for equation in jaxpr.eqns if not _is_dead(equation, read))


def _is_dead(equation, read: set[int]) -> bool:
    """Returns True for a kernel whose results nobody reads.

    Where its output is kept for the backward pass, JAX leaves such a call there; XLA removes it.
    """
    return equation.primitive.name == "pallas_call" and read.isdisjoint(map(id, equation.outvars))


def _flops(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    if name in _CUDNN_PRODUCTS:
        (rows, queries, heads, width), (_, keys, *_) = (x.aval.shape for x in equation.invars[:2])
        return 2.0 * _CUDNN_PRODUCTS[name] * rows * heads * queries * keys * width
    if name == "pallas_call":
        estimate = params["cost_estimate"]
        if estimate is None:
            raise ValueError(f"the kernel {params['name_and_src_info']} declares no cost")
        return float(estimate.flops)
    inside = [program_flops(inner) for inner in _inner(params)]
    if name == "cond":
        return max(inside)
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return times * sum(inside)


def _inner(params: dict) -> list[Jaxpr]:
    values = [
        value
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else (param,))
    ]
    return [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in values
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]


def ideal_embedding_flops(config: ModelConfig, images: int) -> float:
    """Returns the FLOPs of embedding images, each matrix product computed once."""
    return images * (_vision(config) + 2 * config.vision_width * config.embed_dim)


def ideal_matching_flops(config: ModelConfig, images: int, texts: int, tokens: int) -> float:
    """Returns the FLOPs of match logits of encoded images and texts.

    Args:
        config: shapes of the model.
        images: number of images.
        texts: number of texts that are fused with each image.
        tokens: T, tokens of a text.
    """
    head = 4 * config.text_width**2 + 8 * config.text_width
    return images * (_keys_values(config) + texts * (_fusion(config, tokens) + head))


def ideal_step_flops(config: ExperimentConfig, classes: int) -> float:
    """Returns the FLOPs of a training step, three times those of the forward pass.

    The products of `loss.supcon` with its memory count twice, since they have one gradient. No
    product is computed twice; the keys and values of an image are projected once for all texts
    that attend to it.

    Args:
        config: model, losses and sizes of the global batch.
        classes: C, number of classes of the ArcFace head.
    """
    if config.data.region_batch.images:
        batches = config.item_batch(), config.region_batch()
        return sum(ideal_step_flops(batch, classes) for batch in batches)
    model, loss, tokens = config.model, config.loss, config.data.max_tokens
    items = config.batch_size * config.data.view.regions_per_image
    images = config.batch_size * (2 if loss.nlvr else 1)
    forward = images * _vision(model) + items * 2 * model.vision_width * model.embed_dim
    if loss.text:
        forward += items * (_text(model, tokens) + 2 * model.text_width * model.embed_dim)
    if loss.itc:
        forward += 2 * items**2 * model.embed_dim
    if loss.itm:
        forward += items * 3 * _fusion(model, tokens)
    elif loss.box:
        forward += items * _fusion(model, tokens)
    if loss.mlm:
        masked = tokens + loss.inserted_masks
        forward += items * (_text(model, masked) + _fusion(model, masked))
        forward += items * _lm_head(model, loss.mlm_max)
    if loss.vqa:
        forward += items * (_text(model, tokens) + _fusion(model, tokens))
        answers = VQA_ANSWERS if config.task.name else 1
        forward += items * _answer_decoder(model, ANSWER_TOKENS - 1, tokens, answers)
    if loss.nlvr:
        forward += images * _fusion(model, tokens)
    if loss.locations:
        # A task has none beside its own pictures.
        forward += config.located_images * _vision(model)
        forward += (config.located_images or images) * _location_decoder(model)
    if loss.itm or loss.box or loss.mlm or loss.vqa or loss.nlvr:
        forward += images * _keys_values(model)
    if loss.arcface:
        forward += 2 * items * classes * model.item_width
    if loss.supcon:
        forward += 2 * items**2 * model.item_width
    # No gradient flows to the memory: a product forward, one backward.
    memory = 2 * items * loss.supcon_memory * model.item_width
    return 3 * forward + 2 * memory


def _lm_head(config: ModelConfig, positions: int) -> float:
    return 2 * positions * config.text_width * (config.text_width + config.vocab_size)


def _answer_decoder(config: ModelConfig, tokens: int, question: int, answers: int) -> float:
    """Returns the FLOPs of decoding answers with cross-attention to their question's tokens."""
    width = config.text_width
    cross = 2 * tokens * width * 2 * width + 4 * tokens * question * width
    keys_values = 4 * question * width**2
    layer = answers * (_bert_layer(config, tokens) + cross) + keys_values
    return config.decoder_layers * layer + answers * _lm_head(config, tokens)


def _location_decoder(config: ModelConfig) -> float:
    """Returns the FLOPs of the logits of one picture's objects."""
    vocabulary, width = LocationTokens(config.location_classes), config.text_width
    tokens, positions = TOKENS * config.location_items, 1 + config.grid**2
    cross = 2 * tokens * width * 2 * width + 4 * tokens * positions * width
    keys_values = 4 * positions * config.vision_width * width
    head = 2 * tokens * width * (width + vocabulary.size)
    return config.location_layers * (_bert_layer(config, tokens) + cross + keys_values) + head


def _vision(config: ModelConfig) -> float:
    patches, width = config.grid**2, config.vision_width
    tokens = 1 + patches
    block = 2 * tokens * width * (4 + 2 * _MLP_RATIO) * width + 4 * tokens**2 * width
    return config.vision_depth * block + 2 * patches * 3 * PATCH_SIZE**2 * width


def _text(config: ModelConfig, tokens: int) -> float:
    return config.text_layers * _bert_layer(config, tokens)


def _bert_layer(config: ModelConfig, tokens: int) -> float:
    width = config.text_width
    products = 4 * width + 2 * config.text_hidden
    return 2 * tokens * width * products + 4 * tokens**2 * width


def _fusion(config: ModelConfig, tokens: int) -> float:
    """Returns the FLOPs of fusing a text with an image, without the image's keys and values."""
    width, positions = config.text_width, 1 + config.grid**2
    cross = 2 * tokens * width * 2 * width + 4 * tokens * positions * width
    return config.fusion_layers * (_bert_layer(config, tokens) + cross)


def _keys_values(config: ModelConfig) -> float:
    positions = 1 + config.grid**2
    return config.fusion_layers * 4 * positions * config.vision_width * config.text_width
