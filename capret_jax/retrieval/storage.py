"""Saves and loads an index: a folder whose manifest has a checksum of every file.

manifest.json   number of items, embedding width, model digest, engine, recall, checksums
vectors.npy     (n, E) float32
alive.npy       (n,) bool, False for deleted rows
items.jsonl     one item per line, in the order of the rows
scann/          ScaNN's own files, where ScaNN is the engine
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from capret_jax.errors import MALFORMED_JSON, InputError
from capret_jax.retrieval.engines import Engine, ScannEngine, ScannSettings
from capret_jax.retrieval.index import Index, IndexRows
from capret_jax.retrieval.index_engine import IndexConfig, exact_engine
from capret_jax.retrieval.items import Item
from capret_jax.retrieval.tuning import TunedEngine

MANIFEST, VECTORS, ITEMS = "manifest.json", "vectors.npy", "items.jsonl"
# Files of `retrieval.export`.
EXPORTS = ("export.jsonl", "export.npy", "export.parquet", "export.faiss")
_ACTIVE, _SCANN = "alive.npy", "scann"
_FORMAT = 1


def save_index(index: Index, folder: pathlib.Path) -> None:
    """Writes an index atomically; an index in the folder is replaced.

    Args:
        index: the index.
        folder: its folder; files that are not part of an index, such as thumbnails, are kept, and
            exports of the index that was there are removed.

    Raises:
        InputError: the folder holds something other than an index.
    """
    folder = folder.resolve()
    check_free(folder)
    partial, backup = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".before"))
    if backup.exists() and not folder.exists():
        backup.rename(folder)  # an earlier save was interrupted between its last two steps
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / VECTORS, index.vectors)
    np.save(partial / _ACTIVE, index.active)
    write_items(partial / ITEMS, index.items)
    if isinstance(index.engine, ScannEngine):
        (partial / _SCANN).mkdir()
        index.engine.save(partial / _SCANN)
    (partial / MANIFEST).write_text(json.dumps(_manifest(index, partial), indent=2) + "\n")
    if folder.exists():
        folder.rename(backup)
    partial.rename(folder)
    for path in backup.iterdir() if backup.exists() else ():
        # Rows of an export are rows of the index that it was made from.
        if path.name not in (MANIFEST, VECTORS, ITEMS, _ACTIVE, _SCANN, *EXPORTS):
            path.rename(folder / path.name)
    shutil.rmtree(backup, ignore_errors=True)


def check_free(folder: pathlib.Path) -> None:
    """Checks that an index can be written to a folder.

    Raises:
        InputError: the folder holds something other than an index.
    """
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not (empty or (folder / MANIFEST).is_file()):
        raise InputError(f"{folder} holds something that is not an index: choose another folder.")


def load_index(folder: pathlib.Path, model: str | None = None) -> Index:
    """Reads an index after verifying the checksum of every file.

    Args:
        folder: folder that `save_index` wrote.
        model: `Encoder.digest` of the model that will embed the queries; None when unknown.

    Raises:
        InputError: a file is missing, truncated or changed, or another model, or another
            resizing, computed the vectors.
    """
    manifest = read_manifest(folder)
    try:
        return _load(folder, manifest, model)
    except InputError:
        raise
    except MALFORMED_JSON as error:
        raise InputError(
            f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}): build the index "
            "again."
        ) from error


def _load(folder: pathlib.Path, manifest: dict[str, Any], model: str | None) -> Index:
    if model is not None and manifest["model"] != model:
        (made, _, by), (wanted, _, now) = (
            digest.partition("+") for digest in (manifest["model"], model)
        )
        if made == wanted:
            raise InputError(
                f"{folder} was made with data.read.resize={by or 'fast'} and not {now or 'fast'}: "
                f"add --resize={by or 'fast'}, or build it again."
            )
        raise InputError(
            f"{folder} was made with another model ({manifest['model'][:12] or 'unknown'} and not "
            f"{model[:12]}): build it again with this one."
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or checksum(path) != expected:
            raise InputError(f"{path} is missing or was changed: build the index again.")
    rows = IndexRows(
        np.load(folder / VECTORS), read_items(folder / ITEMS), np.load(folder / _ACTIVE)
    )
    config, engine_rows = IndexConfig(**manifest["config"]), manifest["built"]
    engine = _load_engine(folder, manifest["engine"], rows.vectors[:engine_rows], config)
    tuned = TunedEngine(engine, manifest["recall"]["value"], manifest["recall"]["queries"], 0.0)
    return Index(rows, tuned, engine_rows, config=config, model=manifest["model"])


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of an index without verifying any other file.

    Raises:
        InputError: the manifest is missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder} is not an index ({error}): build one with tools/build_index.py."
        ) from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != _FORMAT:
        raise InputError(f"{path} has format {version}; only format {_FORMAT} can be read.")
    # Absent from older indices.
    if manifest.get("checksum", _seal(manifest)) != _seal(manifest):
        raise InputError(f"{path} is damaged: build the index again.")
    return manifest


def write_items(path: pathlib.Path, items: list[Item]) -> None:
    """Writes items as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def read_items(path: pathlib.Path) -> list[Item]:
    """Reads items from a file of `write_items`."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def checksum(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its own checksum."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(index: Index, folder: pathlib.Path) -> dict[str, Any]:
    engine: dict[str, Any] = {"kind": index.engine.description}
    if isinstance(index.engine, ScannEngine):
        engine |= {
            "scann": importlib.metadata.version("scann"),
            "settings": dataclasses.asdict(index.engine.settings),
        }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": _FORMAT,
        "items": len(index),
        "rows": len(index.items),
        "built": index.engine_rows,
        "embedding_dim": index.vectors.shape[1],
        "model": index.model,
        "config": dataclasses.asdict(index.config),
        "engine": engine,
        "recall": {"k": index.config.k, "value": index.recall, "queries": index.recall_queries},
        "files": {str(path.relative_to(folder)): checksum(path) for path in files},
    }
    return manifest | {"checksum": _seal(manifest)}


def _load_engine(
    folder: pathlib.Path, engine: dict, vectors: np.ndarray, config: IndexConfig
) -> Engine:
    if "settings" not in engine:
        return exact_engine(vectors, config)
    settings = ScannSettings(**engine["settings"])
    if engine["scann"] != importlib.metadata.version("scann"):
        # ScaNN's files can only be read by the version that wrote them: build the engine again.
        return ScannEngine.build(vectors, config.k, settings)
    return ScannEngine.load(folder / _SCANN, len(vectors), config.k, settings)
