"""Makes an index of a shop's product pictures: a folder, a CSV file, or a run's own gallery.

    python tools/build_index.py --model=runs/demo --source=products.csv --out=runs/shop
    python tools/build_index.py --model=runs/demo --out=runs/demo/index   # the run's gallery

Embedding goes by shards, in `OUT.shards`, and goes on where it was stopped; `--processes=4` works
on several at once, and `--part=i/n` is the i-th of n machines that share a disk, of which the one
that finds all shards there makes the index. `--export=npy,parquet,faiss` leaves the embeddings in
those formats, too. PictureBatch that cannot be read are listed and left out.
"""

import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import flags

from capret_jax.command_line import parse_part, run
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.retrieval.export import FORMATS, check_installed, export
from capret_jax.retrieval.index import KINDS, Index, IndexConfig, check_ids
from capret_jax.retrieval.storage import check_free, save_index
from capret_jax.retrieval.thumbnails import write_thumbnails
from capret_jax.serve.catalogue import dataset_gallery, read_catalogue
from capret_jax.serve.encoder import Encoder
from capret_jax.serve.shards import Shards

_MODEL = flags.DEFINE_string("model", None, "Training workdir or converted model.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Folder or CSV file; the run's own gallery if none.")
_OUT = flags.DEFINE_string("out", None, "Folder of the index.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Another than the model's own.")
_KIND = flags.DEFINE_enum("kind", "auto", KINDS, "How to search.")
_TARGET = flags.DEFINE_float("target_recall", 0.99, "Of exact search's neighbours.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of queries to tune with.")
_SHARD = flags.DEFINE_integer("shard_size", 2048, "Items of a shard.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", 1, "That embed at once, here.", lower_bound=1)
_PART = flags.DEFINE_string("part", "0/1", "i/n: the i-th of n machines, from 0.")
_EMBED_ONLY = flags.DEFINE_bool("embed_only", False, "Leave making the index to another call.")
_THREADS = flags.DEFINE_integer("threads", 2, "That decode pictures, per process.", 1)
_EXPORT = flags.DEFINE_list("export", [], f"Of {', '.join(FORMATS)}.")


def main(argv: list[str]) -> None:
    """Embeds, collects, tunes, saves."""
    del argv
    out, part = pathlib.Path(_OUT.value), parse_part(_PART.value)
    unknown = set(_EXPORT.value) - set(FORMATS)
    if unknown:
        raise InputError(f"--export={','.join(_EXPORT.value)}: there are {', '.join(FORMATS)}.")
    check_installed(_EXPORT.value)
    config = IndexConfig(_KIND.value, target_recall=_TARGET.value, seed=_SEED.value)
    check_free(out)
    encoder = Encoder.from_dir(_MODEL.value, _TOKENIZER.value)
    products = _products(encoder)
    check_ids([product.item["id"] for product in products])
    shards = Shards(products, encoder.digest, _shards_folder(out), _SHARD.value)
    _report(_embed(shards, encoder, part))
    missing = shards.missing()
    if _EMBED_ONLY.value or missing:
        print(f"shards of {out}: {missing} still missing, from other parts")
        return
    vectors, items = shards.collect()
    index = Index.build(vectors, items, config, encoder.digest)
    save_index(index, out)
    write_thumbnails(out, shards.pictures())
    for name in _EXPORT.value:
        print(f"exported {export(index, out, name)}")
    shutil.rmtree(_shards_folder(out))
    measured = (
        f"{index.recall:.4f} of {index.recall_queries} queries" if index.recall_queries else "exact"
    )
    print(f"{out}: {len(index)} items, {index.engine.kind}, recall@{config.k} {measured}")


def _embed(shards: Shards, encoder: Encoder, part: Part) -> list[str]:
    """With the help of other processes; returns what was wrong with pictures."""
    count = _PROCESSES.value
    helpers = _start_helpers(part) if count > 1 else []
    try:
        errors = shards.embed(encoder, Part(part.index * count, part.count * count), _THREADS.value)
        if any(helper.wait() for helper in helpers):
            raise InputError("a process that embeds failed; what it said stands above.")
    finally:
        for helper in helpers:
            helper.kill()
    return errors


def _products(encoder: Encoder):
    if _SOURCE.value:
        return read_catalogue(pathlib.Path(_SOURCE.value))
    if encoder.setup.data is None:
        raise InputError("a converted model has no gallery of its own: give --source.")
    return dataset_gallery(encoder.setup.data)


def _shards_folder(out: pathlib.Path) -> pathlib.Path:
    out = out.resolve()
    return out.with_name(out.name + ".shards")


def _start_helpers(part: Part) -> list[subprocess.Popen]:
    """This tool for the other parts of this machine's share."""
    count, size = _PROCESSES.value, part.count * _PROCESSES.value
    # Of a flag that is given twice the last one counts.
    command = [sys.executable, *sys.argv, "--processes=1", "--embed_only"]
    return [
        subprocess.Popen([*command, f"--part={part.index * count + i}/{size}"])
        for i in range(1, count)
    ]


def _report(errors: list[str]) -> None:
    for error in errors[:20]:
        print(f"left out: {error}", file=sys.stderr)
    if len(errors) > 20:
        print(f"left out: {len(errors) - 20} more", file=sys.stderr)


def cli() -> None:
    """Runs the command: the console script, and `tools/build_index.py`."""
    run(main)
