"""An index on disk: a folder with a manifest that vouches for every file in it.

manifest.json   what it is: items, embedding width, model digest, engine, recall, checksums
vectors.npy     (n, E) float32
alive.npy       (n,) bool, False for deleted rows
items.jsonl     one item a line, in the order of the rows
scann/          ScaNN's own files, where it is the engine
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from capret_jax.errors import InputError
from capret_jax.retrieval.engines import Engine, ScannEngine, ScannSettings
from capret_jax.retrieval.index import Index, IndexConfig, Item, exact_engine
from capret_jax.retrieval.tuning import Tuned

MANIFEST, VECTORS, ITEMS = "manifest.json", "vectors.npy", "items.jsonl"
_ALIVE, _SCANN = "alive.npy", "scann"
_FORMAT = 1


def save_index(index: Index, folder: pathlib.Path) -> None:
    """Writes an index, complete or not at all; an index that is there already is replaced.

    Raises:
        InputError: the folder holds something else.
    """
    folder = folder.resolve()
    check_free(folder)
    partial, before = (folder.with_name(folder.name + end) for end in (".partial", ".before"))
    if before.exists() and not folder.exists():
        before.rename(folder)  # a save was killed between its last two steps
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / VECTORS, index.vectors)
    np.save(partial / _ALIVE, index.alive)
    write_items(partial / ITEMS, index.items)
    if isinstance(index.engine, ScannEngine):
        (partial / _SCANN).mkdir()
        index.engine.save(partial / _SCANN)
    (partial / MANIFEST).write_text(json.dumps(_manifest(index, partial), indent=2) + "\n")
    if folder.exists():
        folder.rename(before)
    partial.rename(folder)
    # What else was beside it, such as pictures of the items, stays.
    for path in before.iterdir() if before.exists() else ():
        if path.name not in (MANIFEST, VECTORS, ITEMS, _ALIVE, _SCANN):
            path.rename(folder / path.name)
    shutil.rmtree(before, ignore_errors=True)


def check_free(folder: pathlib.Path) -> None:
    """Whether an index can be written here.

    Raises:
        InputError: there is something else.
    """
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not (empty or (folder / MANIFEST).is_file()):
        raise InputError(f"{folder} holds something that is no index: choose another folder.")


def load_index(folder: pathlib.Path, model: str | None = None) -> Index:
    """Reads an index, every file of it checked.

    Args:
        folder: what `save_index` wrote.
        model: digest of the model that will embed the queries; None when that is not known.

    Raises:
        InputError: a file is missing, truncated or changed, or another model made the vectors.
    """
    manifest = read_manifest(folder)
    if model is not None and manifest["model"] != model:
        raise InputError(
            f"{folder} was made with another model ({manifest['model'][:12] or 'unknown'} and not "
            f"{model[:12]}): build it again with this one."
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or checksum(path) != expected:
            raise InputError(f"{path} is missing or not what was written: build the index again.")
    vectors, alive = np.load(folder / VECTORS), np.load(folder / _ALIVE)
    config = IndexConfig(**manifest["config"])
    built = manifest["built"]
    measured = manifest["recall"]
    engine = _load_engine(folder, manifest["engine"], vectors[:built], config)
    tuned = Tuned(engine, measured["value"], measured["queries"], 0.0)
    return Index(
        vectors, read_items(folder / ITEMS), config, manifest["model"], tuned, built, alive
    )


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest alone, without any file checked.

    Raises:
        InputError: there is none that this version reads.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is no index ({error}): build one with tools/build_index.py."
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != _FORMAT:
        raise InputError(f"{path} has format {found}, and this reads {_FORMAT}.")
    return manifest


def write_items(path: pathlib.Path, items: list[Item]) -> None:
    """One item a line, as JSON."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read_items(path: pathlib.Path) -> list[Item]:
    """What `write_items` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(index: Index, folder: pathlib.Path) -> dict[str, Any]:
    engine: dict[str, Any] = {"kind": index.engine.kind}
    if isinstance(index.engine, ScannEngine):
        engine |= {
            "scann": importlib.metadata.version("scann"),
            "settings": dataclasses.asdict(index.engine.settings),
        }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": _FORMAT,
        "items": len(index),
        "rows": len(index.items),
        "built": index.built,
        "embedding_dim": index.vectors.shape[1],
        "model": index.model,
        "config": dataclasses.asdict(index.config),
        "engine": engine,
        "recall": {"k": index.config.k, "value": index.recall, "queries": index.recall_queries},
        "files": {str(path.relative_to(folder)): checksum(path) for path in files},
    }


def _load_engine(
    folder: pathlib.Path, engine: dict, vectors: np.ndarray, config: IndexConfig
) -> Engine:
    if "settings" not in engine:
        return exact_engine(vectors, config)
    settings = ScannSettings(**engine["settings"])
    if engine["scann"] != importlib.metadata.version("scann"):
        # Its files are its own version's; the vectors are everybody's.
        return ScannEngine.build(vectors, config.k, settings)
    return ScannEngine.load(folder / _SCANN, len(vectors), config.k, settings)
