"""Builds an index of a shop's product pictures: a folder, a CSV file, or a run's own gallery.

    python tools/build_index.py --model=runs/demo --source=products.csv --out=runs/shop
    python tools/build_index.py --model=runs/demo --out=runs/demo/index   # the run's gallery

Pictures are embedded in shards, in `OUT.shards`; an interrupted call is resumed by the same
command. `--processes=4` embeds with four processes. `--part=i/n` embeds the i-th of n parts, for n
machines that share a disk; the one that finds all shards complete builds the index.
`--export=npy,parquet,faiss` also writes the embeddings in those formats, and so does every
later call. Pictures that cannot be read are reported and left out.
"""

import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import flags

from capret_jax.command_line import parse_part, run
from capret_jax.config import DetectionConfig
from capret_jax.config.data import RESIZES
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.retrieval.export import FORMATS, check_installed, export, exported
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.index_engine import KINDS, IndexConfig
from capret_jax.retrieval.items import check_unique_ids
from capret_jax.retrieval.storage import check_free, save_index
from capret_jax.retrieval.thumbnails import write_thumbnails
from capret_jax.serve.catalogue import Product, dataset_gallery, read_catalogue
from capret_jax.serve.encoder import Encoder
from capret_jax.serve.shards import CatalogueShards

_MODEL = flags.DEFINE_string("model", None, "Training workdir or converted model.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", None, "Folder or CSV file; by default the gallery of the run's own dataset."
)
_OUT = flags.DEFINE_string("out", None, "Folder of the index.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Tokenizer in place of the model's own.")
_RESIZE = flags.DEFINE_enum(
    "resize", None, RESIZES, "How pictures are resized; by default as in the model's training."
)
_KIND = flags.DEFINE_enum("kind", "auto", KINDS, "Search method.")
_TARGET = flags.DEFINE_float(
    "target_recall", 0.99, "Share of exact search's neighbours that ScaNN must find."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of queries for tuning.")
_SHARD = flags.DEFINE_integer("shard_size", 2048, "Items per shard.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes on this machine that embed.", lower_bound=1
)
_PART = flags.DEFINE_string("part", "0/1", "i/n: the i-th of n machines, from 0.")
_EMBED_ONLY = flags.DEFINE_bool("embed_only", False, "Embed, and leave the index to another call.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads per process that decode pictures.", 1)
_EXPORT = flags.DEFINE_list("export", [], f"Formats to export to: {', '.join(FORMATS)}.")

_MAX_ERRORS_SHOWN = 20


def main(argv: list[str]) -> None:
    """Embeds the pictures, then builds and saves the index."""
    del argv
    out, part = pathlib.Path(_OUT.value), parse_part(_PART.value)
    unknown = set(_EXPORT.value) - set(FORMATS)
    if unknown:
        raise InputError(f"--export={','.join(_EXPORT.value)}: there are {', '.join(FORMATS)}.")
    # Exports that are there would not fit to the new index.
    formats = sorted({*_EXPORT.value, *exported(out)})
    check_installed(formats)
    config = IndexConfig(_KIND.value, target_recall=_TARGET.value, seed=_SEED.value)
    check_free(out)
    # Nothing is detected here, so that no setting of the run's detection can be in the way.
    encoder = Encoder.from_dir(
        _MODEL.value, _TOKENIZER.value, detection=DetectionConfig(), resize=_RESIZE.value
    )
    products = _read_products(encoder)
    check_unique_ids([product.item["id"] for product in products])
    shards = CatalogueShards(products, encoder.digest, _shards_folder(out), _SHARD.value)
    errors = _embed(shards, encoder, part)
    missing = shards.count_missing()
    # Those of other processes and machines, too, once their shards are there.
    _print_errors(errors if missing else shards.errors())
    if _EMBED_ONLY.value or missing:
        print(f"shards of {out}: {missing} still missing, from other parts")
        return
    vectors, items = shards.load()
    index = Index.build(vectors, items, config, encoder.digest)
    save_index(index, out)
    write_thumbnails(out, shards.thumbnails())
    for name in formats:
        print(f"exported {export(index, out, name)}")
    shutil.rmtree(_shards_folder(out))
    measured = (
        f"{index.recall:.4f} of {index.recall_queries} queries" if index.recall_queries else "exact"
    )
    print(f"{out}: {len(index)} items, {index.engine.description}, recall@{config.k} {measured}")


def _embed(shards: CatalogueShards, encoder: Encoder, part: Part) -> list[str]:
    """Embeds this machine's part with `--processes` processes.

    Returns:
        An error message for each picture that this process could not read.
    """
    count = _PROCESSES.value
    helpers = _start_helpers(part) if count > 1 else []
    try:
        errors = shards.embed(encoder, Part(part.index * count, part.count * count), _THREADS.value)
        if any(helper.wait() for helper in helpers):
            raise InputError("a process that embeds failed; see its error message above.")
    finally:
        for helper in helpers:
            helper.kill()
    return errors


def _read_products(encoder: Encoder) -> list[Product]:
    if _SOURCE.value:
        catalogue = read_catalogue(pathlib.Path(_SOURCE.value))
        for reason, count in catalogue.left_out.items():
            print(f"left out: {count} {reason}", file=sys.stderr)
        return catalogue.products
    if encoder.setup.data is None:
        raise InputError("a converted model has no gallery of its own: give --source.")
    return dataset_gallery(encoder.setup.data)


def _shards_folder(out: pathlib.Path) -> pathlib.Path:
    out = out.resolve()
    return out.with_name(out.name + ".shards")


def _start_helpers(part: Part) -> list[subprocess.Popen]:
    """Starts this command for the other processes' parts of this machine's part."""
    count, size = _PROCESSES.value, part.count * _PROCESSES.value
    # By its module's name, since sys.argv[0] need not be a Python file. Of repeated flags, the last
    # one applies.
    command = [sys.executable, "-m", "capret_jax.commands.build_index", *sys.argv[1:]]
    command += ["--processes=1", "--embed_only"]
    return [
        subprocess.Popen([*command, f"--part={part.index * count + i}/{size}"])
        for i in range(1, count)
    ]


def _print_errors(errors: list[str]) -> None:
    for error in errors[:_MAX_ERRORS_SHOWN]:
        print(f"left out: {error}", file=sys.stderr)
    if len(errors) > _MAX_ERRORS_SHOWN:
        print(f"left out: {len(errors) - _MAX_ERRORS_SHOWN} more", file=sys.stderr)


def cli() -> None:
    """Runs the command: the console script, and `tools/build_index.py`."""
    run(main, buckets=("model", "tokenizer"))


if __name__ == "__main__":
    cli()
