"""The HTTP interface of a `Searcher`."""

import pathlib
from typing import Annotated

import prometheus_client
from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from capret_jax.errors import InputError
from capret_jax.request_batcher import Overloaded
from capret_jax.serve.messages import Detected, Found, Health, parse_box, parse_where
from capret_jax.serve.middleware import BodyLimit, Timed
from capret_jax.serve.searcher import Searcher
from capret_jax.serve.service import Limits, Service

_PAGE = pathlib.Path(__file__).with_name("page.html")
MOST_RESULTS = 200


def create_app(searcher: Searcher, folder: pathlib.Path, limits: Limits = Limits()) -> FastAPI:
    """The server's application.

    Args:
        searcher: warmed up.
        folder: of the index, for its pictures.
        limits: what to take on.
    """
    service = Service(searcher, folder, limits)
    app = FastAPI(title="capret_jax", description="Photo -> shop items", lifespan=service.running)
    app.add_middleware(BodyLimit, limit=limits.upload_bytes)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(Overloaded, _overloaded)
    _add_metrics(app, service)
    _add_answers(app, service)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _PAGE.read_text()

    @app.get("/health")
    async def health() -> Health:
        """What the server answers with."""
        return service.health()

    @app.post("/api/detect")
    async def detect(photo: Annotated[UploadFile, File()]) -> Detected:
        """The garments in a photo."""
        return await service.detect(photo)

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
        wanted = parse_where(where, service.filters)
        return await service.search(photo, text, parse_box(box), k, wanted)

    @app.get("/api/pictures/{name}", response_class=Response)
    async def picture(name: str) -> Response:
        """The small picture of an item, as a result names it."""
        data = await service.in_thread(service.pictures, name)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})


def _add_metrics(app: FastAPI, service: Service) -> None:
    """Counts and times requests; /metrics tells."""
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram(
        "capret_request_seconds", "Time to answer.", ("path", "status"), registry=registry
    )
    waiting = prometheus_client.Gauge(
        "capret_waiting", "Inputs waiting for the model.", ("of",), registry=registry
    )
    for name, count in service.waiting().items():
        waiting.labels(name).set_function(count)

    def observe(route: str, status: int, taken: float) -> None:
        seconds.labels(route, status).observe(taken)

    app.add_middleware(Timed, observe=observe)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(registry).decode()


async def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    return JSONResponse({"detail": str(error)}, status_code=422)


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    del request, error
    return JSONResponse({"detail": "too many requests at once: try again"}, status_code=503)
