"""Initial values of the VQA answer decoder: copies of text and fusion encoder, as in X2-VLM."""

from collections.abc import Collection, Mapping, Sequence

from capret_jax.config import ModelConfig

_CONTEXT = ("cross_attention/key/", "cross_attention/value/")


def decoder_sources(model: ModelConfig, paths: Collection[str]) -> dict[str, str]:
    """Returns the parameter of the encoders that each parameter of the decoder starts from.

    Embeddings and head start from the text encoder and its masked language model head, layers from
    the fusion layers that `decoder_layer_sources` names. Keys and values of the cross-attention
    read the text's width there and the image's width here, and are left out where these differ.

    Args:
        model: shapes of the model.
        paths: paths of all parameters of the model.

    Returns:
        Path ("decoder/layers/0/norm/scale") -> path ("fusion/layers/0/norm/scale").
    """
    starts = {"decoder/embeddings/": "text/embeddings/", "decoder/head/": "mlm_head/"}
    starts |= {
        f"decoder/layers/{i}/": f"fusion/layers/{layer}/"
        for i, layer in enumerate(decoder_layer_sources(model))
    }
    same_width = model.vision_width == model.text_width
    return {
        path: source + path.removeprefix(start)
        for start, source in starts.items()
        for path in paths
        if path.startswith(start) and (same_width or not _reads_context(path))
    }


def decoder_layer_sources(model: ModelConfig) -> list[int]:
    """Returns the fusion layer that each decoder layer starts from.

    They are taken in order: for six layers, these are X2-VLM's text-encoder layers 12 to 17. For
    half as many layers as the fusion encoder has, X2-VLM takes every second one: 13, 15 and 17.
    Layers beyond the last fusion layer have no source.
    """
    step = 2 if 2 * model.decoder_layers == model.fusion_layers else 1
    return list(range(step - 1, model.fusion_layers, step))[: model.decoder_layers]


def describe_copies(model: ModelConfig, copied: Mapping[str, str]) -> str:
    """Describes the initial values of the decoder; empty if it is no copy.

    Args:
        model: shapes of the model.
        copied: the part of `decoder_sources` for which the checkpoint has trained values.
    """
    starts = {path.split("/")[1] for path in copied}
    described = []
    if "layers" in starts:
        sources = [model.text_layers + i for i in decoder_layer_sources(model)]
        own, layers = _numbers(range(len(sources))), "layers" if len(sources) > 1 else "layer"
        described.append(f"decoder {layers} {own} from text-encoder {layers} {_numbers(sources)}")
        if len(sources) > 1 and sources[1] > sources[0] + 1:
            described[-1] += " (half as many: X2-VLM takes every second one)"
    if others := [part for part in ("embeddings", "head") if part in starts]:
        described.append(f"decoder {' and '.join(others)} from the text encoder")
    return ", ".join(described)


def _numbers(numbers: Sequence[int]) -> str:
    """Formats numbers as "12-17", or "13, 15, 17" where they do not follow each other."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and last - first == len(numbers) - 1:
        return f"{first}-{last}"
    return ", ".join(map(str, numbers))


def describe_fresh(fresh: Collection[str], paths: Collection[str]) -> list[str]:
    """Returns the names of the parts of the decoder without trained values.

    Args:
        fresh: paths of the parameters of the model without trained values.
        paths: paths of all parameters of the model.
    """
    parts = [path for path in fresh if path.startswith("decoder/")]
    if len(parts) == sum(path.startswith("decoder/") for path in paths):
        return ["decoder"] if parts else []
    others = {"/".join(path.split("/")[:2]) for path in parts if not _reads_context(path)}
    if any(map(_reads_context, parts)):
        others.add("decoder's cross-attention keys and values")
    return sorted(others)


def _reads_context(path: str) -> bool:
    return any(name in path for name in _CONTEXT)
