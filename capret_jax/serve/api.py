"""The HTTP interface of a `Searcher`."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import prometheus_client
from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from capret_jax.data.photographs import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.transforms import View
from capret_jax.errors import InputError
from capret_jax.retrieval.pictures import Pictures
from capret_jax.serve.batching import Batcher, Overloaded
from capret_jax.serve.encoder import BATCHES
from capret_jax.serve.middleware import BodyLimit, Timed
from capret_jax.serve.photos import read_photo
from capret_jax.serve.searcher import Searcher, join

_PAGE = pathlib.Path(__file__).with_name("page.html")
# No detector needs more of a photo.
_LONGEST_SIDE = 1024
# Properties with more values than this are no filter for a page.
_FEW_VALUES = 50
MOST_RESULTS = 200


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


class Garment(BaseModel):
    """A garment found in a photo."""

    category: str
    box: list[float] = Field(description="x1, y1, x2, y2 as fractions of the photo")
    score: float = Field(description="probability that box and category match")


class Detected(BaseModel):
    """What is in a photo."""

    width: int
    height: int
    garments: list[Garment]
    seconds: float


class Hit(BaseModel):
    """A shop item."""

    id: str
    score: float = Field(description="cosine with the query")
    picture: str | None = Field(description="where its picture is, if there is one")
    item: dict[str, Any]


class Found(BaseModel):
    """Shop items, the best first."""

    results: list[Hit]
    box: list[float] | None = Field(description="of the garment that was searched for")
    seconds: float


class Health(BaseModel):
    """The server answers, with this model and index."""

    status: str
    model: str
    items: int
    index: str
    recall: float
    filters: dict[str, list[str]]


class _Service:
    """A searcher whose calls are batched, and never run in the event loop."""

    def __init__(self, searcher: Searcher, limits: Limits):
        self.searcher = searcher
        # One thread: calls of the model share all cores as it is.
        model = ThreadPoolExecutor(1, "model")
        self._decoding = ThreadPoolExecutor(limits.decoding, "decoding")
        # Not behind all photos that wait to be decoded.
        self._searching = ThreadPoolExecutor(1, "searching")
        self._photos, self._most = 0, limits.waiting
        encoder = searcher.encoder
        self.embed = Batcher[View, np.ndarray](encoder.embed, model, BATCHES[-1], limits.waiting)
        self.detect = Batcher[Photograph, Sequence](
            encoder.detect, model, BATCHES[1], limits.waiting
        )
        self.text = Batcher[str, np.ndarray](self._texts, model, BATCHES[-1], limits.waiting)
        self._words = functools.lru_cache(1024)(encoder.embed_text)

    def _texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._words(text) for text in texts]

    async def decode(self, upload: UploadFile) -> Photograph:
        """An uploaded photo.

        Raises:
            InputError: it is none.
            Overloaded: too many wait already.
        """
        if self._photos >= self._most:
            raise Overloaded
        self._photos += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoding, _read, upload)
        finally:
            self._photos -= 1

    async def in_thread(self, function: Callable, *arguments):
        """Off the event loop, one at a time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._searching, function, *arguments)

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server does."""
        del app
        batchers = (self.embed, self.detect, self.text)
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.stop()


def create_app(searcher: Searcher, folder: pathlib.Path, limits: Limits = Limits()) -> FastAPI:
    """The server's application.

    Args:
        searcher: warmed up.
        folder: of the index, for its pictures.
        limits: what to take on.
    """
    service, pictures = _Service(searcher, limits), Pictures(folder)
    index = searcher.index
    app = FastAPI(title="capret_jax", description="Photo -> shop items", lifespan=service.running)
    app.add_middleware(BodyLimit, limit=limits.upload_bytes)
    _add_metrics(app, service)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(Overloaded, _overloaded)
    names = sorted({name for item in index.items for name in item} - {"id", "box", "image"})
    values = {name: index.values(name) for name in names}
    filters = {name: known for name, known in values.items() if 1 < len(known) <= _FEW_VALUES}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _PAGE.read_text()

    @app.get("/health")
    async def health() -> Health:
        """What the server answers with."""
        return Health(
            status="ok",
            model=searcher.encoder.digest[:12],
            items=len(index),
            index=index.engine.kind,
            recall=index.recall,
            filters=filters,
        )

    @app.post("/api/detect")
    async def detect(photo: Annotated[UploadFile, File()]) -> Detected:
        """The garments in a photo."""
        start = time.perf_counter()
        photograph = await service.decode(photo)
        found = await service.detect(photograph)
        garments = [
            Garment(
                category=CATEGORIES[detection.category_id - 1],
                box=_fractions(photograph, detection.box),
                score=detection.score,
            )
            for detection in found
        ]
        seconds = time.perf_counter() - start
        size = {"width": photograph.width, "height": photograph.height}
        return Detected(**size, garments=garments, seconds=seconds)

    @app.post("/api/search")
    async def search(
        photo: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=500)] = "",
        box: Annotated[str, Form(description="x1,y1,x2,y2 as fractions of the photo")] = "",
        k: Annotated[int, Form(ge=1, le=MOST_RESULTS)] = 20,
        where: Annotated[str, Form(description='JSON: {"category": ["skirt"]}')] = "",
    ) -> Found:
        """Shop items for a garment in a photo, for words, or for both together.

        Without a box the most certain garment of the photo counts, or all of it where none is
        found.
        """
        start = time.perf_counter()
        wanted, edges, parts = _where(where, filters), _box(box), []
        if photo is not None:
            photograph = await service.decode(photo)
            scale = np.tile([photograph.width, photograph.height], 2)
            if edges is None:
                garments = await service.detect(photograph)
                edges = garments[0].box / scale if garments else None
            pixels = None if edges is None else edges * scale
            view = await service.in_thread(searcher.encoder.view, photograph, pixels)
            parts.append(await service.embed(view))
        if text.strip():
            parts.append(await service.text(text))
        results = await service.in_thread(searcher.nearest, join(parts), k, wanted)
        hits = [
            Hit(
                id=result.item["id"],
                score=result.score,
                picture=name and f"/api/pictures/{name}",
                # Where its file is on this machine is nobody's business.
                item={key: value for key, value in result.item.items() if key != "image"},
            )
            for result in results
            for name in [pictures.name(result.item["id"])]
        ]
        shown = None if edges is None else [float(edge) for edge in edges]
        return Found(results=hits, box=shown, seconds=time.perf_counter() - start)

    @app.get("/api/pictures/{name}", response_class=Response)
    async def picture(name: str) -> Response:
        """The small picture of an item, as a result names it."""
        data = await service.in_thread(pictures, name)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})

    return app


def _add_metrics(app: FastAPI, service: _Service) -> None:
    """Counts and times requests; /metrics tells."""
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram(
        "capret_request_seconds", "Time to answer.", ("path", "status"), registry=registry
    )
    waiting = prometheus_client.Gauge(
        "capret_waiting", "Inputs waiting for the model.", ("of",), registry=registry
    )
    waiting.labels("embed").set_function(service.embed.waiting)
    waiting.labels("detect").set_function(service.detect.waiting)
    waiting.labels("text").set_function(service.text.waiting)

    def observe(route: str, status: int, taken: float) -> None:
        seconds.labels(route, status).observe(taken)

    app.add_middleware(Timed, observe=observe)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(registry).decode()


def _read(upload: UploadFile) -> Photograph:
    return read_photo(upload.file.read(), _LONGEST_SIDE)


def _fractions(photograph: Photograph, box: np.ndarray) -> list[float]:
    return (box / np.tile([photograph.width, photograph.height], 2)).round(4).tolist()


def _box(text: str) -> np.ndarray | None:
    if not text:
        return None
    try:
        edges = np.array([float(edge) for edge in text.split(",")])
        fits = (
            edges.shape == (4,) and bool((edges[:2] < edges[2:]).all()) and np.isfinite(edges).all()
        )
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"box={text[:80]!r} is not x1,y1,x2,y2 as fractions of the photo.")
    return edges.clip(0, 1)


def _where(text: str, filters: dict[str, list[str]]) -> dict[str, Any]:
    try:
        where = json.loads(text) if text else {}
        values = [v if isinstance(v, list) else [v] for v in where.values()]
        fits = all(isinstance(value, str | int) for several in values for value in several)
    except (ValueError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise InputError(f'where={text[:80]!a} is no filter such as {{"category": ["skirt"]}}.')
    unknown = where.keys() - filters.keys()
    if unknown:
        raise InputError(f"no filter {min(unknown)!a}; there are {', '.join(filters) or 'none'}.")
    return {name: value if isinstance(value, list) else [value] for name, value in where.items()}


async def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    return JSONResponse({"detail": str(error)}, status_code=422)


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    del request, error
    return JSONResponse({"detail": "too many requests at once: try again"}, status_code=503)
