"""A searcher that answers many requests at a time."""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from fastapi import FastAPI, UploadFile

from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.transforms import View
from capret_jax.request_batcher import Batcher, Overloaded
from capret_jax.retrieval.thumbnails import Thumbnails
from capret_jax.serve.encoder import BATCHES
from capret_jax.serve.messages import Detected, Found, Garment, Health, Hit
from capret_jax.serve.searcher import Result, Searcher, join
from capret_jax.serve.uploads import read_photo

# No detector needs more of a photo.
_LONGEST_SIDE = 1024
# Properties with more values than this are no filter for a page.
_FEW_VALUES = 50


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        upload_bytes: of one request.
        waiting: photos that may wait to be decoded, and inputs that may wait for the model; what
            comes on top is refused with 503.
        decoding: photos decoded at once, which bounds the memory they take.
    """

    upload_bytes: int = 20 * 2**20
    waiting: int = 512
    decoding: int = 2


class Service:
    """Calls of the model are batched, and nothing that takes time runs in the event loop.

    Attributes:
        pictures: of the index's items.
        filters: values of the properties that requests may filter by.
    """

    def __init__(self, searcher: Searcher, folder: pathlib.Path, limits: Limits):
        """
        Args:
            searcher: warmed up.
            folder: of the index, for its pictures.
            limits: what to take on.
        """
        self._searcher, self.pictures = searcher, Thumbnails(folder)
        # One thread: calls of the model share all cores as it is.
        model = ThreadPoolExecutor(1, "model")
        self._decoding = ThreadPoolExecutor(limits.decoding, "decoding")
        # Not behind all photos that wait to be decoded.
        self._searching = ThreadPoolExecutor(1, "searching")
        self._photos, self._most = 0, limits.waiting
        encoder, waiting = searcher.encoder, limits.waiting
        self._embed = Batcher[View, np.ndarray](encoder.embed, model, BATCHES[-1], waiting)
        self._detect = Batcher[Photograph, Sequence](encoder.detect, model, BATCHES[1], waiting)
        self._text = Batcher[str, np.ndarray](self._texts, model, BATCHES[-1], waiting)
        self._words = functools.lru_cache(1024)(encoder.embed_text)
        self.filters = _filters(searcher)

    def waiting(self) -> dict[str, Callable[[], int]]:
        """How many inputs wait for the model, by what is done with them."""
        batchers: dict[str, Batcher] = {
            "embed": self._embed,
            "detect": self._detect,
            "text": self._text,
        }
        return {name: batcher.waiting for name, batcher in batchers.items()}

    def health(self) -> Health:
        """What answers."""
        index = self._searcher.index
        return Health(
            status="ok",
            model=self._searcher.encoder.digest[:12],
            items=len(index),
            index=index.engine.kind,
            recall=index.recall,
            filters=self.filters,
        )

    async def detect(self, photo: UploadFile) -> Detected:
        """The garments in a photo.

        Raises:
            InputError: it is none.
            Overloaded: too many wait already.
        """
        start = time.perf_counter()
        photograph = await self._decode(photo)
        garments = [
            Garment(
                category=CATEGORIES[detection.category_id - 1],
                box=(detection.box / _scale(photograph)).round(4).tolist(),
                score=detection.score,
            )
            for detection in await self._detect(photograph)
        ]
        seconds = time.perf_counter() - start
        size = {"width": photograph.width, "height": photograph.height}
        return Detected(**size, garments=garments, seconds=seconds)

    async def search(
        self,
        photo: UploadFile | None,
        text: str,
        box: np.ndarray | None,
        k: int,
        where: dict[str, list],
    ) -> Found:
        """The items nearest to a garment, to words, or to both.

        Args:
            photo: with the garment.
            text: the words; none when blank.
            box: (4,) fractions of the photo; None for its most certain garment.
            k: how many.
            where: values by property.

        Raises:
            InputError: there is neither photo nor text, or one of them cannot be used.
            Overloaded: too many wait already.
        """
        start, parts = time.perf_counter(), []
        if photo is not None:
            photograph = await self._decode(photo)
            if box is None:
                garments = await self._detect(photograph)
                box = garments[0].box / _scale(photograph) if garments else None
            pixels = None if box is None else box * _scale(photograph)
            look = self._searcher.encoder.view
            parts.append(await self._embed(await self.in_thread(look, photograph, pixels)))
        if text.strip():
            parts.append(await self._text(text))
        results = await self.in_thread(self._searcher.nearest, join(parts), k, where)
        shown = None if box is None else [float(edge) for edge in box]
        hits = [self._hit(result) for result in results]
        return Found(results=hits, box=shown, seconds=time.perf_counter() - start)

    async def in_thread(self, function: Callable, *arguments: Any) -> Any:
        """Off the event loop, one at a time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._searching, function, *arguments)

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server does."""
        del app
        batchers = (self._embed, self._detect, self._text)
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.stop()

    def _texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._words(text) for text in texts]

    async def _decode(self, upload: UploadFile) -> Photograph:
        if self._photos >= self._most:
            raise Overloaded
        self._photos += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoding, _read, upload)
        finally:
            self._photos -= 1

    def _hit(self, result: Result) -> Hit:
        name = self.pictures.name(result.item["id"])
        return Hit(
            id=result.item["id"],
            score=result.score,
            picture=name and f"/api/pictures/{name}",
            # Where its file is on this machine is nobody's business.
            item={key: value for key, value in result.item.items() if key != "image"},
        )


def _read(upload: UploadFile) -> Photograph:
    return read_photo(upload.file.read(), _LONGEST_SIDE)


def _scale(photograph: Photograph) -> np.ndarray:
    return np.tile([photograph.width, photograph.height], 2)


def _filters(searcher: Searcher) -> dict[str, list[str]]:
    index = searcher.index
    names = sorted({name for item in index.items for name in item} - {"id", "box", "image"})
    values = {name: index.values(name) for name in names}
    return {name: known for name, known in values.items() if 1 < len(known) <= _FEW_VALUES}
