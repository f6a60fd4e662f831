"""X2-VLM's PyTorch checkpoints to JAX and back; torch is not needed.

    python tools/convert_torch_ckpt.py IN.th OUT_DIR [--image_size=384] [--kind=auto]
    python tools/convert_torch_ckpt.py BEIT.pth OUT_DIR --bert=BERT.safetensors
    python tools/convert_torch_ckpt.py DIR OUT.th --to=torch [--kind=retrieval]

IN may be a torch zip file or safetensors; DIR what this tool wrote, or a training workdir.
docs/checkpoints.md says which checkpoint to take for what.
"""

import os
import pathlib

# Nothing to compute: leave the accelerator to others.
os.environ["JAX_PLATFORMS"] = "cpu"

from absl import flags

from capret_jax.checkpoints.beit_bert import from_beit_and_bert
from capret_jax.checkpoints.conversion import AUTO, Converted, from_reference, parts, to_reference
from capret_jax.checkpoints.converted import (
    ModelCard,
    check_free,
    is_converted,
    load_carried,
    save_converted,
)
from capret_jax.checkpoints.loading import load_weights
from capret_jax.checkpoints.names import KINDS
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.checkpoints.state_dict import FORMATS, read_state_dict, write_state_dict
from capret_jax.command_line import run
from capret_jax.config.model import PATCH_SIZE
from capret_jax.errors import InputError

_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels, a multiple of 16; what the file has by default."
)
flags.register_validator(
    "image_size",
    lambda size: size is None or (size > 0 and size % PATCH_SIZE == 0),
    f"must be a positive multiple of {PATCH_SIZE}.",
)
_KIND = flags.DEFINE_enum("kind", AUTO, [AUTO, *KINDS], "What kind of file it is, or shall be.")
_BERT = flags.DEFINE_string(
    "bert", None, "A BERT file: IN is then BEiT-v2, and the result X2-VLM before pre-training."
)
_TO = flags.DEFINE_enum("to", None, FORMATS, "Convert back, to a file of this format.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is at OUT.")


def main(argv: list[str]) -> None:
    """Converts one way or the other, as the flags say."""
    if len(argv) != 3:
        raise InputError(f"expected IN and OUT, got {argv[1:]}; see --help.")
    source, target = pathlib.Path(argv[1]), pathlib.Path(argv[2])
    if _TO.value:
        _back(source, target)
        return
    check_free(target, _OVERWRITE.value)
    print(f"reading {source} ...")
    converted = _convert(source)
    if _IMAGE_SIZE.value is not None:
        _resize(converted, _IMAGE_SIZE.value)
    print(f"writing {target} ...")
    save_converted(target, converted, _OVERWRITE.value)
    print(converted.report.summary())
    print(f"every name is in {target / 'report.json'}")


def _convert(source: pathlib.Path) -> Converted:
    if _BERT.value is None:
        return from_reference(read_state_dict(source), _KIND.value)
    if _KIND.value != AUTO:
        raise InputError("--bert goes without --kind: IN is a BEiT-v2 file.")
    return from_beit_and_bert(read_state_dict(source), read_state_dict(_BERT.value))


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


def _back(source: pathlib.Path, target: pathlib.Path) -> None:
    if _IMAGE_SIZE.value is not None or _BERT.value is not None:
        raise InputError("--to takes neither --image_size nor --bert.")
    if target.is_dir() or (target.exists() and not _OVERWRITE.value):
        raise InputError(f"{target} exists; add --overwrite, or choose another file.")
    print(f"reading {source} ...")
    params, card = load_weights(source)
    kind = card.kind if _KIND.value == AUTO else _KIND.value
    _check_complete(source, card, kind)
    state = to_reference(params, card.config, kind, load_carried(source))
    partial = target.with_name(f"{target.name}.partial")
    try:
        write_state_dict(partial, state, _TO.value)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{len(state)} tensors of a {kind} checkpoint written to {target}")


def _check_complete(source: pathlib.Path, card: ModelCard, kind: str) -> None:
    """Random values do not go home, unless a run left them so: then that is said."""
    if kind not in KINDS:
        raise InputError(f"this {kind} model was never trained, so there is nothing to send home.")
    random = sorted({*KINDS[kind].parts, "fusion"} & set(parts(card.fresh)))
    if random and not is_converted(source):
        print(f"note        {', '.join(random)} were never trained: their values are random")
    elif random:
        raise InputError(
            f"a {kind} checkpoint has {', '.join(random)}, which this model was never given; "
            "choose another --kind."
        )


def cli() -> None:
    """Runs the command: the console script, and `tools/convert_torch_ckpt.py`."""
    run(main)
