"""Responses of the HTTP API, and parsers of its request fields."""

import json
from collections.abc import Collection
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from capret_jax.errors import InputError


class Garment(BaseModel):
    """A garment detected in a photo."""

    category: str
    box: list[float] = Field(description="x1, y1, x2, y2 as fractions of the photo")
    score: float = Field(description="probability that box and category match")


class DetectResponse(BaseModel):
    """Garments detected in a photo of width x height pixels."""

    width: int
    height: int
    garments: list[Garment]
    seconds: float


class SearchResult(BaseModel):
    """A shop item and its similarity with the query."""

    id: str
    score: float = Field(description="cosine with the query")
    picture: str | None = Field(description="path of its thumbnail, if there is one")
    item: dict[str, Any]


class SearchResponse(BaseModel):
    """Shop items, best first."""

    results: list[SearchResult]
    box: list[float] | None = Field(description="box of the garment in the query")
    seconds: float


class HealthResponse(BaseModel):
    """State of the server: its model and its index."""

    status: str
    model: str
    items: int
    index: str
    recall: float
    filters: dict[str, list[str]]


def parse_box(text: str) -> np.ndarray | None:
    """Parses "x1,y1,x2,y2", fractions of a photo.

    Returns:
        (4,) float64, clipped to the photo; None for an empty text.

    Raises:
        InputError: the text is not a box.
    """
    if not text:
        return None
    try:
        edges = np.array([float(edge) for edge in text.split(",")])
        valid = (
            edges.shape == (4,) and bool((edges[:2] < edges[2:]).all()) and np.isfinite(edges).all()
        )
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"box={text[:80]!r} is not x1,y1,x2,y2 as fractions of the photo.")
    return edges.clip(0, 1)


def parse_filter(text: str, names: Collection[str]) -> dict[str, list]:
    """Parses the JSON of a filter.

    Args:
        text: JSON object of a value, or a list of values, by property.
        names: properties that items have.

    Returns:
        Lists of values by property.

    Raises:
        InputError: the text is not a filter, or names an unknown property.
    """
    try:
        where = json.loads(text) if text else {}
        values = [v if isinstance(v, list) else [v] for v in where.values()]
        valid = all(isinstance(value, str | int | float) for group in values for value in group)
    except (ValueError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise InputError(f'where={text[:80]!a} is not a filter such as {{"category": ["skirt"]}}.')
    unknown = where.keys() - set(names)
    if unknown:
        raise InputError(
            f"no filter {min(unknown)!a}; there are {', '.join(sorted(names)) or 'none'}."
        )
    return {name: value if isinstance(value, list) else [value] for name, value in where.items()}
