"""What the API answers with, and how the fields of its requests are read."""

import json
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from capret_jax.errors import InputError


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


def parse_box(text: str) -> np.ndarray | None:
    """ "x1,y1,x2,y2" as fractions of a photo -> (4,) float64 inside it; None for nothing.

    Raises:
        InputError: it is something else.
    """
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


def parse_where(text: str, filters: dict[str, list[str]]) -> dict[str, list]:
    """JSON of a filter -> values by name.

    Args:
        text: of the request.
        filters: values of what may be filtered by.

    Raises:
        InputError: it is something else, or there is no such filter.
    """
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
