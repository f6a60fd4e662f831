"""The HTTP API and web page of a `Searcher`."""

import base64
import dataclasses
import hashlib
import pathlib
import re
from typing import Annotated

import prometheus_client
from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from capret_jax.errors import InputError
from capret_jax.evaluation.templates import render
from capret_jax.request_batcher import Overloaded
from capret_jax.serve.messages import (
    DetectResponse,
    HealthResponse,
    SearchResponse,
    parse_box,
    parse_filter,
)
from capret_jax.serve.middleware import BodyLimit, RequestTimer, SecurityHeaders
from capret_jax.serve.searcher import Searcher
from capret_jax.serve.service import Service, ServiceLimits

_PAGE = pathlib.Path(__file__).with_name("page.html")
_DOCS = pathlib.Path(__file__).with_name("docs.html.jinja")
MAX_RESULTS = 200


@dataclasses.dataclass(frozen=True)
class Access:
    """Clients that are answered, and what they may ask for.

    Attributes:
        hosts: names by which clients may address the server, "*" for any. Naming them keeps other
            sites from reading answers through a name of theirs (DNS rebinding).
        metrics: serve /metrics.
    """

    hosts: tuple[str, ...] = ("*",)
    metrics: bool = True


def create_app(
    searcher: Searcher,
    index_dir: pathlib.Path,
    limits: ServiceLimits = ServiceLimits(),
    access: Access = Access(),
) -> FastAPI:
    """Creates the application.

    Args:
        searcher: searcher whose encoder is warmed up.
        index_dir: folder of the index, for its thumbnails.
        limits: limits on the load.
        access: names of the server, and whether it shows its metrics.
    """
    service = Service(searcher, index_dir, limits)
    # FastAPI's own pages of the API load scripts of another host.
    app = FastAPI(
        title="capret_jax",
        description="Photo -> shop items",
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=limits.upload_bytes, seconds=limits.upload_seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts))
    app.add_middleware(SecurityHeaders, policy=_policy())
    app.add_exception_handler(InputError, _respond_invalid)
    app.add_exception_handler(Overloaded, _respond_overloaded)
    _add_metrics(app, service, access.metrics)
    _add_routes(app, service)
    return app


def _policy() -> str:
    """Returns the Content-Security-Policy: nothing of other hosts, and no script but the page's."""
    script = re.search(r"<script>(.*?)</script>", _PAGE.read_text(), re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return (
        f"default-src 'self'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return _PAGE.read_text()

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return render(_DOCS, schema=app.openapi())

    @app.get("/health")
    async def health() -> HealthResponse:
        """Describes the server's model and index."""
        return service.health()

    @app.post("/api/detect")
    async def detect(photo: Annotated[UploadFile, File()]) -> DetectResponse:
        """Detects the garments in a photo."""
        return await service.detect(photo)

    @app.post("/api/search")
    async def search(
        photo: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=500)] = "",
        box: Annotated[str, Form(description="x1,y1,x2,y2 as fractions of the photo")] = "",
        k: Annotated[int, Form(ge=1, le=MAX_RESULTS)] = 20,
        where: Annotated[str, Form(description='JSON: {"category": ["skirt"]}')] = "",
    ) -> SearchResponse:
        """Searches for the shop items most similar to a garment in a photo, to a text, or to both.

        Without a box, the detected garment with the highest score is used, or the whole photo where
        none is detected.
        """
        filters = parse_filter(where, service.properties)
        return await service.search(photo, text, parse_box(box), k, filters)

    @app.get("/api/pictures/{name}", response_class=Response)
    async def picture(name: str) -> Response:
        """Returns the thumbnail of an item; results have its path."""
        data = await service.in_thread(service.thumbnails.read, name)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=60"})


def _add_metrics(app: FastAPI, service: Service, shown: bool) -> None:
    """Measures requests, and adds the route /metrics if they are shown."""
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram(
        "capret_request_seconds", "Time to answer.", ("path", "status"), registry=registry
    )
    waiting = prometheus_client.Gauge(
        "capret_waiting", "Inputs waiting for the model.", ("of",), registry=registry
    )
    for name, count in service.queue_lengths().items():
        waiting.labels(name).set_function(count)

    def observe(route: str, status: int, duration: float) -> None:
        seconds.labels(route, status).observe(duration)

    app.add_middleware(RequestTimer, observe=observe)
    if not shown:
        return

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Returns the metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(registry).decode()


async def _respond_invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    return JSONResponse({"detail": str(error)}, status_code=422)


async def _respond_overloaded(request: Request, error: Exception) -> JSONResponse:
    del request, error
    return JSONResponse({"detail": "too many requests at once: try again"}, status_code=503)
