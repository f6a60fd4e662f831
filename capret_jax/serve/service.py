"""Answers concurrent requests with one searcher."""

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
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.thumbnails import Thumbnails
from capret_jax.serve.encoder import BATCH_SIZES
from capret_jax.serve.messages import (
    DetectResponse,
    Garment,
    HealthResponse,
    SearchResponse,
    SearchResult,
)
from capret_jax.serve.searcher import RankedItem, Searcher, combine_embeddings
from capret_jax.serve.uploads import read_photo

# Larger photos are shrunk: garment detection needs no more pixels.
_MAX_PHOTO_SIDE = 1024
# The page offers no filter by properties with more values than this; the API does.
_MAX_FILTER_VALUES = 50


@dataclasses.dataclass(frozen=True)
class ServiceLimits:
    """Limits on the load of one server.

    Attributes:
        upload_bytes: size of a request.
        upload_seconds: time in which a request has to arrive.
        waiting: photos that may wait to be decoded, and inputs that may wait for the model; further
            requests are answered with 503.
        decoding: photos that are decoded at once, which bounds the memory they take.
    """

    upload_bytes: int = 20 * 2**20
    upload_seconds: float = 60.0
    waiting: int = 512
    decoding: int = 2


class Service:
    """Batches calls of the model, and keeps slow work off the event loop.

    Attributes:
        thumbnails: thumbnails of the index's items.
        properties: names of the properties that requests may filter by.
        filters: values of those that the page offers.
    """

    def __init__(self, searcher: Searcher, index_dir: pathlib.Path, limits: ServiceLimits):
        """
        Args:
            searcher: searcher whose encoder is warmed up.
            index_dir: folder of the index, for its thumbnails.
            limits: limits on the load.
        """
        self._searcher, self.thumbnails = searcher, Thumbnails(index_dir)
        # One thread: a call of the model uses all cores.
        model = ThreadPoolExecutor(1, "model")
        self._decode_pool = ThreadPoolExecutor(limits.decoding, "decoding")
        # A pool of its own, so that a search does not wait behind photos to be decoded.
        self._search_pool = ThreadPoolExecutor(1, "searching")
        self._decoding, self._max_decoding = 0, limits.waiting
        encoder, waiting = searcher.encoder, limits.waiting
        self._embed = Batcher[View, np.ndarray](encoder.embed, model, BATCH_SIZES[-1], waiting)
        at_once = encoder.detector.call_sizes[-1]
        self._detect = Batcher[Photograph, Sequence](encoder.detect, model, at_once, waiting)
        self._embed_text = Batcher[str, np.ndarray](
            self._embed_texts, model, BATCH_SIZES[-1], waiting
        )
        self._cached_embed_text = functools.lru_cache(1024)(encoder.embed_text)
        self.properties = _properties(searcher.index)
        self.filters = _shown_filters(searcher.index, self.properties)

    def queue_lengths(self) -> dict[str, Callable[[], int]]:
        """Returns, by operation, a function that counts the inputs that wait for the model."""
        batchers: dict[str, Batcher] = {
            "embed": self._embed,
            "detect": self._detect,
            "text": self._embed_text,
        }
        return {name: batcher.waiting for name, batcher in batchers.items()}

    def health(self) -> HealthResponse:
        """Describes the model and the index."""
        index = self._searcher.index
        return HealthResponse(
            status="ok",
            model=self._searcher.encoder.digest[:12],
            items=len(index),
            index=index.engine.description,
            recall=index.recall,
            filters=self.filters,
        )

    async def detect(self, photo: UploadFile) -> DetectResponse:
        """Detects the garments in a photo.

        Raises:
            InputError: the photo cannot be read.
            Overloaded: too many requests wait already.
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
        return DetectResponse(
            width=photograph.width,
            height=photograph.height,
            garments=garments,
            seconds=time.perf_counter() - start,
        )

    async def search(
        self,
        photo: UploadFile | None,
        text: str,
        box: np.ndarray | None,
        k: int,
        where: dict[str, list],
    ) -> SearchResponse:
        """Searches for the items nearest to a garment, to a text, or to both.

        Args:
            photo: photo of the garment.
            text: description of the item; not used when blank.
            box: (4,) fractions of the photo; the detected garment with the highest score when None.
            k: number of items.
            where: lists of values by property.

        Raises:
            InputError: there is neither photo nor text, or one of them cannot be used.
            Overloaded: too many requests wait already.
        """
        start, embeddings = time.perf_counter(), []
        if photo is not None:
            photograph, garment = await self._decode(photo), None
            if box is None and (garments := await self._detect(photograph)):
                garment, box = garments[0].embedding, garments[0].box / _scale(photograph)
            if garment is None:
                pixel_box = None if box is None else box * _scale(photograph)
                view = await self.in_thread(self._searcher.encoder.view, photograph, pixel_box)
                garment = await self._embed(view)
            embeddings.append(garment)
        if text.strip():
            embeddings.append(await self._embed_text(text))
        query = combine_embeddings(embeddings)
        ranked = await self.in_thread(self._searcher.nearest, query, k, where)
        return SearchResponse(
            results=[self._search_result(item) for item in ranked],
            box=None if box is None else [float(edge) for edge in box],
            seconds=time.perf_counter() - start,
        )

    async def in_thread(self, function: Callable, *arguments: Any) -> Any:
        """Calls a function in the search thread, off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._search_pool, function, *arguments)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs the batchers while the application runs."""
        del app
        batchers = (self._embed, self._detect, self._embed_text)
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.stop()

    def _embed_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._cached_embed_text(text) for text in texts]

    async def _decode(self, upload: UploadFile) -> Photograph:
        if self._decoding >= self._max_decoding:
            raise Overloaded
        self._decoding += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decode_pool, _read_upload, upload)
        finally:
            self._decoding -= 1

    def _search_result(self, ranked: RankedItem) -> SearchResult:
        name = self.thumbnails.file_name(ranked.item["id"])
        return SearchResult(
            id=ranked.item["id"],
            score=ranked.score,
            picture=name and f"/api/pictures/{name}",
            # Clients must not learn the paths of files on this machine.
            item={key: value for key, value in ranked.item.items() if key != "image"},
        )


def _read_upload(upload: UploadFile) -> Photograph:
    return read_photo(upload.file.read(), _MAX_PHOTO_SIDE)


def _scale(photograph: Photograph) -> np.ndarray:
    """Returns (4,) width, height, width, height: factors from fractions to pixels."""
    return np.tile([photograph.width, photograph.height], 2)


def _properties(index: Index) -> list[str]:
    """Returns the names of the properties that requests may filter by."""
    return sorted({name for item in index.items for name in item} - {"id", "box", "image"})


def _shown_filters(index: Index, names: list[str]) -> dict[str, list[str]]:
    """Returns the values of the properties that the page offers: some, but not too many."""
    values = {name: index.values(name) for name in names}
    return {name: known for name, known in values.items() if 1 < len(known) <= _MAX_FILTER_VALUES}
