"""Embedding a catalogue in shards: by several processes, and again from where it was stopped."""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.retrieval.index import Item
from capret_jax.serve.catalogue import Product
from capret_jax.serve.encoder import BATCHES, Encoder
from capret_jax.serve.uploads import jpeg

_PICTURE_SIDE = 192
_MARGIN = 0.1


class Shards:
    """The embeddings of a catalogue as files of a few thousand items each.

    A shard appears when it is complete, and is not made again; its name says which model and which
    items it is of, so shards of others are never taken for it.
    """

    def __init__(self, products: Sequence[Product], digest: str, folder: pathlib.Path, size: int):
        """
        Args:
            products: all of them.
            digest: of the model.
            folder: of the shards.
            size: items of a shard.
        """
        self._products, self._folder, self._digest = products, folder, digest
        self._slices = [slice(i, i + size) for i in range(0, len(products), size)]
        folder.mkdir(parents=True, exist_ok=True)

    def embed(self, encoder: Encoder, part: Part, threads: int) -> list[str]:
        """Makes what is missing of this process's shards.

        Args:
            encoder: the model.
            part: which shards are this process's.
            threads: that decode pictures.

        Returns:
            What was wrong with pictures that could not be read; they are left out.
        """
        mine = range(part.index, len(self._slices), part.count)
        errors: list[str] = []
        progress = tqdm(mine, "embedding", unit="shard", disable=part.index != 0)
        for number in progress:
            if not self._path(number).exists():
                errors += self._embed(number, encoder, threads)
        return errors

    def missing(self) -> int:
        """Shards that nobody has made yet."""
        return sum(not self._path(number).exists() for number in range(len(self._slices)))

    def collect(self) -> tuple[np.ndarray, list[Item]]:
        """All shards' (n, E) float32 embeddings and items.

        Raises:
            InputError: no picture of the catalogue could be read.
        """
        vectors: list[np.ndarray] = []
        items: list[Item] = []
        for number in tqdm(range(len(self._slices)), "collecting", unit="shard"):
            with zipfile.ZipFile(self._path(number)) as shard:
                with shard.open("vectors.npy") as file:
                    vectors.append(np.lib.format.read_array(file))  # type: ignore[arg-type]
                items += json.loads(shard.read("items.json"))
        if not items:
            raise InputError("no picture of the catalogue could be read.")
        return np.concatenate([each for each in vectors if len(each)]), items

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """All shards' small pictures by item id, one after the other."""
        for number in range(len(self._slices)):
            with zipfile.ZipFile(self._path(number)) as shard:
                for i, item in enumerate(json.loads(shard.read("items.json"))):
                    yield item["id"], shard.read(f"{i}.jpg")

    def _embed(self, number: int, encoder: Encoder, threads: int) -> list[str]:
        products = self._products[self._slices[number]]
        vectors: list[np.ndarray] = []
        items: list[Item] = []
        pictures: list[bytes] = []
        errors: list[str] = []

        def look(product: Product):
            try:
                photograph = product.read()
                view = encoder.view(photograph, product.box)
                return product.item, view, jpeg(_cut(photograph, product.box), _PICTURE_SIDE)
            except InputError as error:
                return f"{product.item['id']}: {error}"

        with ThreadPoolExecutor(threads) as pool:
            # A batch at a time, or the views of all would be in memory.
            for start in range(0, len(products), BATCHES[-1]):
                seen = list(pool.map(look, products[start : start + BATCHES[-1]]))
                errors += [each for each in seen if isinstance(each, str)]
                good = [each for each in seen if not isinstance(each, str)]
                if good:
                    batch, views, small = zip(*good, strict=True)
                    vectors.append(encoder.embed(views))
                    items += batch
                    pictures += small
        self._write(number, vectors, items, pictures)
        return errors

    def _write(self, number: int, vectors: list, items: list[Item], pictures: list[bytes]) -> None:
        path = self._path(number)
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w") as shard:
            with shard.open("vectors.npy", "w") as file:
                array = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
                np.lib.format.write_array(file, array)  # type: ignore[arg-type]
            shard.writestr("items.json", json.dumps(items))
            for i, picture in enumerate(pictures):
                shard.writestr(f"{i}.jpg", picture)
        partial.replace(path)

    def _path(self, number: int) -> pathlib.Path:
        state = hashlib.sha256(self._digest.encode())
        for product in self._products[self._slices[number]]:
            box = None if product.box is None else product.box.tolist()
            state.update(json.dumps([product.item, box]).encode())
        return self._folder / f"{number:05d}-{state.hexdigest()[:16]}.zip"


def _cut(photograph, box: np.ndarray | None) -> np.ndarray:
    """The garment with a little around it."""
    pixels = photograph.pixels()
    if box is None:
        return pixels
    margin = _MARGIN * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
    x1, y1, x2, y2 = np.maximum(np.round(box + margin), 0).astype(int)
    return pixels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
