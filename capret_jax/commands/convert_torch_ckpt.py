"""Converts X2-VLM's PyTorch checkpoints to JAX and back, without PyTorch.

    python tools/convert_torch_ckpt.py IN.th OUT_DIR [--image_size=384] [--tokenizer=vocab.txt]
    python tools/convert_torch_ckpt.py BEIT.pth OUT_DIR --bert=BERT.safetensors
    python tools/convert_torch_ckpt.py DIR OUT.th --to=torch [--kind=retrieval]

IN is a torch zip file or safetensors. DIR is a folder that this tool wrote, or a training workdir.
--like=DIR names a model with the shapes of IN, if IN neither has a published size nor says them.
docs/checkpoints.md lists the published checkpoints and their uses.
"""

import dataclasses
import os
import pathlib

# Nothing is computed here, so other programs may use the accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"

from absl import flags

from capret_jax.checkpoints.beit_bert import from_beit_and_bert
from capret_jax.checkpoints.conversion import (
    AUTO,
    Converted,
    from_reference,
    to_reference,
)
from capret_jax.checkpoints.converted import (
    ModelCard,
    check_free,
    is_converted,
    load_retained,
    save_converted,
)
from capret_jax.checkpoints.kinds import KINDS
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.checkpoints.recognition import config_of_shapes
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.checkpoints.report import model_parts
from capret_jax.checkpoints.state_dict import (
    FORMATS,
    read_checkpoint,
    read_state_dict,
    write_state_dict,
)
from capret_jax.command_line import run
from capret_jax.config.model import PATCH_SIZE
from capret_jax.data.tokenizer import open_tokenizer
from capret_jax.errors import InputError

_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels, a multiple of 16; by default that of the file."
)
flags.register_validator(
    "image_size",
    lambda size: size is None or (size > 0 and size % PATCH_SIZE == 0),
    f"must be a positive multiple of {PATCH_SIZE}.",
)
_KIND = flags.DEFINE_enum(
    "kind", AUTO, [AUTO, *KINDS], "Kind of the PyTorch file that is read or written."
)
_BERT = flags.DEFINE_string(
    "bert", None, "BERT file: IN is then BEiT-v2, and the result X2-VLM before its pre-training."
)
_LIKE = flags.DEFINE_string(
    "like", None, "Folder of a model with the shapes of IN, which has no published size."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "The model's vocab.txt, which is copied, so that no hub is asked for it."
)
_TO = flags.DEFINE_enum("to", None, FORMATS, "Export to PyTorch, to a file of this format.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing OUT.")


def main(argv: list[str]) -> None:
    """Converts to JAX, or exports to PyTorch with --to."""
    if len(argv) != 3:
        raise InputError(f"expected IN and OUT, got {argv[1:]}; see --help.")
    source, target = pathlib.Path(argv[1]), pathlib.Path(argv[2])
    if _TO.value:
        _export(source, target, _TO.value)
        return
    check_free(target, _OVERWRITE.value)
    vocabulary = pathlib.Path(_TOKENIZER.value) if _TOKENIZER.value else None
    if vocabulary is not None and not vocabulary.is_file():
        raise InputError(f"--tokenizer={vocabulary} is no file: name the model's vocab.txt.")
    print(f"reading {source} ...")
    converted = _convert(source)
    if _IMAGE_SIZE.value is not None:
        _resize(converted, _IMAGE_SIZE.value)
    if vocabulary is not None:
        open_tokenizer(str(vocabulary), converted.config.vocab_size)
    print(f"writing {target} ...")
    save_converted(target, converted, _OVERWRITE.value, vocabulary)
    print(converted.report.summary())
    print(f"every name is in {target / 'report.json'}")


def _convert(source: pathlib.Path) -> Converted:
    state, shapes = read_checkpoint(source)
    config = ModelFolder(_LIKE.value).card.config if _LIKE.value else config_of_shapes(shapes)
    if _BERT.value is None:
        return from_reference(state, _KIND.value, config)
    if _KIND.value != AUTO:
        raise InputError("--bert goes without --kind: IN is a BEiT-v2 file.")
    return from_beit_and_bert(state, read_state_dict(_BERT.value), config)


def _resize(converted: Converted, image_size: int) -> None:
    before = converted.config.image_size
    converted.params, converted.config = with_image_size(
        converted.params, converted.config, image_size
    )
    converted.report.image_size = image_size
    if image_size != before:
        converted.report.notes.append(
            f"relative position tables were interpolated from {before} to {image_size} pixels"
        )


def _export(source: pathlib.Path, target: pathlib.Path, file_format: str) -> None:
    if any(flag.value is not None for flag in (_IMAGE_SIZE, _BERT, _LIKE, _TOKENIZER)):
        raise InputError("--to takes neither --image_size, --bert, --like nor --tokenizer.")
    if target.is_dir() or (target.exists() and not _OVERWRITE.value):
        raise InputError(f"{target} exists; add --overwrite, or choose another file.")
    print(f"reading {source} ...")
    folder = ModelFolder(source)
    kind = folder.card.kind if _KIND.value == AUTO else _KIND.value
    _check_complete(source, folder.card, kind)
    params = folder.load_params()
    config = folder.card.config
    state = to_reference(params, config, kind, load_retained(source))
    partial = target.with_name(f"{target.name}.partial")
    try:
        write_state_dict(partial, state, file_format, dataclasses.asdict(config))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{len(state)} tensors of a {kind} checkpoint written to {target}")


def _check_complete(source: pathlib.Path, card: ModelCard, kind: str) -> None:
    """Refuses to export random values of a converted model, and reports those of a trained one."""
    if kind not in KINDS:
        raise InputError(f"this {kind} model was never trained, so there is nothing to export.")
    random = sorted({*KINDS[kind].parts, "fusion"} & set(model_parts(card.fresh)))
    if random and not is_converted(source):
        print(f"note        {', '.join(random)} were never trained: their values are random")
    elif random:
        raise InputError(
            f"a {kind} checkpoint has {', '.join(random)}, which have no trained values here; "
            "choose another --kind."
        )


def cli() -> None:
    """Runs the command; entry point of the console script and `tools/convert_torch_ckpt.py`."""
    run(main)
