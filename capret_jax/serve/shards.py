"""Embeds a catalogue in shards, by several processes and resumably."""

import contextlib
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from capret_jax.data.images import Photograph
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.retrieval.items import Item
from capret_jax.serve.catalogue import Product
from capret_jax.serve.encoder import BATCH_SIZES, Encoder
from capret_jax.serve.uploads import encode_thumbnail

# File in a shard with the messages for pictures that could not be read.
_ERRORS = "errors.json"
_THUMBNAIL_SIDE = 192  # pixels
_THUMBNAIL_MARGIN = 0.1  # around the box, as a fraction of its sides


class CatalogueShards:
    """Embeddings, items and thumbnails of a catalogue in files of a few thousand items each.

    A shard is written atomically. Its name has a digest of the model, of its items and of the state
    of their files, so a shard of another model or catalogue, or of pictures that have changed, is
    never mistaken for it. A shard with pictures that could not be read is embedded again by the
    next call.
    """

    def __init__(self, products: Sequence[Product], digest: str, folder: pathlib.Path, size: int):
        """
        Args:
            products: all products of the catalogue.
            digest: digest of the model.
            folder: folder of the shards.
            size: items per shard.
        """
        self._products, self._folder, self._digest = products, folder, digest
        self._slices = [slice(i, i + size) for i in range(0, len(products), size)]
        self._paths: dict[int, pathlib.Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def embed(self, encoder: Encoder, part: Part, threads: int) -> list[str]:
        """Embeds the shards of one part that are missing, or lack pictures.

        Args:
            encoder: the model.
            part: the part of the shards to embed.
            threads: threads that decode pictures.

        Returns:
            An error message for each picture that could not be read; their items are left out.
        """
        numbers = range(part.index, len(self._slices), part.count)
        errors: list[str] = []
        progress = tqdm(numbers, "embedding", unit="shard", disable=part.index != 0)
        for number in progress:
            path = self._path(number)
            if not path.exists() or _read_errors(path):
                errors += self._embed(number, encoder, threads)
        return errors

    def errors(self) -> list[str]:
        """Returns the message for each picture that no part could read; all shards must exist."""
        return [error for i in range(len(self._slices)) for error in _read_errors(self._path(i))]

    def count_missing(self) -> int:
        """Returns the number of shards, of all parts, that do not exist yet."""
        return sum(not self._path(number).exists() for number in range(len(self._slices)))

    def load(self) -> tuple[np.ndarray, list[Item]]:
        """Reads the (n, E) float32 embeddings and the n items of all shards.

        Raises:
            InputError: no picture of the catalogue could be read.
        """
        vectors: list[np.ndarray] = []
        items: list[Item] = []
        for number in tqdm(range(len(self._slices)), "loading", unit="shard"):
            with zipfile.ZipFile(self._path(number)) as shard:
                with shard.open("vectors.npy") as file:
                    vectors.append(np.lib.format.read_array(file))  # type: ignore[arg-type]
                items += json.loads(shard.read("items.json"))
        if not items:
            raise InputError("no picture of the catalogue could be read.")
        return np.concatenate([part for part in vectors if len(part)]), items

    def thumbnails(self) -> Iterator[tuple[str, bytes]]:
        """Yields (item id, JPEG file) for all items of all shards."""
        for number in range(len(self._slices)):
            with zipfile.ZipFile(self._path(number)) as shard:
                for i, item in enumerate(json.loads(shard.read("items.json"))):
                    yield item["id"], shard.read(f"{i}.jpg")

    def _embed(self, number: int, encoder: Encoder, threads: int) -> list[str]:
        products = self._products[self._slices[number]]
        vectors: list[np.ndarray] = []
        items: list[Item] = []
        thumbnails: list[bytes] = []
        errors: list[str] = []

        def prepare(product: Product):
            try:
                photograph = product.read()
                view = encoder.view(photograph, product.box)
                crop = _crop(photograph, product.box)
                return product.item, view, encode_thumbnail(crop, _THUMBNAIL_SIDE)
            except InputError as error:
                return f"{product.item['id']}: {error}"

        with ThreadPoolExecutor(threads) as pool:
            # Prepares one batch at a time: the views of a whole shard need too much memory.
            for start in range(0, len(products), BATCH_SIZES[-1]):
                prepared = list(pool.map(prepare, products[start : start + BATCH_SIZES[-1]]))
                errors += [result for result in prepared if isinstance(result, str)]
                valid = [result for result in prepared if not isinstance(result, str)]
                if valid:
                    batch_items, views, batch_thumbnails = zip(*valid, strict=True)
                    vectors.append(encoder.embed(views))
                    items += batch_items
                    thumbnails += batch_thumbnails
        with self._writing(number) as shard:
            with shard.open("vectors.npy", "w") as file:
                array = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
                np.lib.format.write_array(file, array)  # type: ignore[arg-type]
            shard.writestr("items.json", json.dumps(items))
            shard.writestr(_ERRORS, json.dumps(errors))
            for i, thumbnail in enumerate(thumbnails):
                shard.writestr(f"{i}.jpg", thumbnail)
        return errors

    @contextlib.contextmanager
    def _writing(self, number: int) -> Iterator[zipfile.ZipFile]:
        """Opens the file of a shard, which appears under its name when it is complete."""
        path = self._path(number)
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w") as shard:
            yield shard
        partial.replace(path)

    def _path(self, number: int) -> pathlib.Path:
        if number not in self._paths:
            state = hashlib.sha256(self._digest.encode())
            for product in self._products[self._slices[number]]:
                box = None if product.box is None else product.box.tolist()
                state.update(json.dumps([product.item, box, _file_state(product)]).encode())
            self._paths[number] = self._folder / f"{number:05d}-{state.hexdigest()[:16]}.zip"
        return self._paths[number]


def _file_state(product: Product) -> list[int] | None:
    """Returns size and time of a product's file; None if there is none."""
    try:
        status = os.stat(product.item["image"])
    except (KeyError, OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_errors(path: pathlib.Path) -> list[str]:
    """Returns the messages for the pictures that a shard lacks."""
    with zipfile.ZipFile(path) as shard:
        return json.loads(shard.read(_ERRORS)) if _ERRORS in shard.namelist() else []


def _crop(photograph: Photograph, box: np.ndarray | None) -> np.ndarray:
    """Returns the (H, W, 3) uint8 pixels of the garment and a margin around it."""
    pixels = photograph.pixels()
    if box is None:
        return pixels
    margin = _THUMBNAIL_MARGIN * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
    x1, y1, x2, y2 = np.maximum(np.round(box + margin), 0).astype(int)
    return pixels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
