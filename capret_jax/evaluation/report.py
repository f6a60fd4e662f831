"""The evaluation as one self-contained HTML page: tables, and queries with their results."""

import base64
import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from capret_jax.data.pipeline import Split
from capret_jax.evaluation.official_scorer import FLOOR_KEY, QUERY_IOU_FLOOR
from capret_jax.evaluation.templates import render
from capret_jax.retrieval.metrics import TOP_K

_QUERIES_SHOWN = 8  # of the right ones, and of the wrong ones
_RESULTS_SHOWN = 8
_PICTURE_SIZE = 128
_MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A crop in the page: a data URI, a score, and whether it is a right answer."""

    source: str
    score: float
    right: bool


def write_report(
    path: pathlib.Path,
    title: str,
    metrics: dict,
    split: Split,
    protocol,
    ranking,
) -> None:
    """Renders `report.html.jinja`.

    Args:
        path: of the page.
        title: its heading.
        metrics: as `evaluate` returns them.
        split: the validation split, for the pictures.
        protocol: its queries and gallery (`deepfashion2.Protocol`).
        ranking: the model's answers (`evaluate.Ranking`).
    """
    right, wrong = _spread(ranking.precision, ranking.first)
    page = render(
        pathlib.Path(__file__).with_name("report.html.jinja"),
        title=title,
        metrics=metrics,
        top_k=TOP_K,
        systems=_systems(metrics),
        protocols=_protocols(metrics),
        floor=QUERY_IOU_FLOOR,
        examples={
            "Neighbours at the first rank": [_row(split, protocol, ranking, q) for q in right],
            "Missed at the first rank": [_row(split, protocol, ranking, q) for q in wrong],
        },
    )
    path.write_text(page)


def _systems(metrics):
    model = {name: metrics[name] for name in ("mAP", *(f"top_{k}" for k in TOP_K))}
    return {"this model": model, **metrics["baselines"]}


def _protocols(metrics):
    """The rows of the official numbers: boxes x rules x queries."""
    rows = {}
    for name, part in (
        ("ground-truth boxes", metrics),
        ("detected boxes", metrics.get("detected")),
    ):
        if part:
            official = part["official"]
            rows[name] = {"mAP": part["mAP"], **official}
            rows[f"{name}, floor {QUERY_IOU_FLOOR}"] = official[FLOOR_KEY]
            if part["more_than_5_answers"]["queries"]:
                rows[f"{name}, more than 5 answers"] = part["more_than_5_answers"]
    return rows


def _spread(precision, first):
    """Query numbers evenly spread over average precision, right and wrong ones apart."""
    order = np.argsort(precision, kind="stable")
    groups = (order[first[order] == 0], order[first[order] > 0])
    return [
        group[np.linspace(0, len(group) - 1, min(_QUERIES_SHOWN, len(group))).astype(int)]
        for group in groups
    ]


def _row(split, protocol, ranking, query):
    """The query's picture and its best results'."""
    found = ranking.neighbours[query, :_RESULTS_SHOWN]
    same = protocol.gallery_identity[found] == protocol.query_identity[query]
    results = [
        Picture(data_uri(split, protocol.gallery[position]), float(ranking.scores[query, i]), ok)
        for i, (position, ok) in enumerate(zip(found, same.tolist(), strict=True))
    ]
    return {
        "query": data_uri(split, protocol.queries[query]),
        "precision": float(ranking.precision[query]),
        "results": results,
    }


def data_uri(split: Split, row: int) -> str:
    """The item in a row, as a picture to put into a page."""
    view = split.crop_view(int(row), _PICTURE_SIZE, _MARGIN)
    buffer = io.BytesIO()
    Image.fromarray(view.image).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
