"""The evaluation report: one self-contained HTML page of tables and example queries."""

import base64
import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from capret_jax.data.split import Split
from capret_jax.evaluation.mesh_ranking import Ranking
from capret_jax.evaluation.official_scorer import FLOOR_KEY, QUERY_IOU_FLOOR
from capret_jax.evaluation.protocol import Protocol
from capret_jax.evaluation.templates import render
from capret_jax.retrieval.metrics import TOP_K

_QUERIES_SHOWN = 8  # for each group: first result relevant, and not
_RESULTS_SHOWN = 8
_PICTURE_SIZE = 128
_MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A retrieved item in the page.

    Attributes:
        source: the item's crop as a data URI.
        score: cosine with the query.
        right: True if it is relevant to the query.
    """

    source: str
    score: float
    right: bool


@dataclasses.dataclass(frozen=True)
class ReportExamples:
    """The ranking that the example queries are taken from.

    Attributes:
        split: the validation split, for the pictures.
        protocol: its queries and gallery.
        ranking: the model's results.
    """

    split: Split
    protocol: Protocol
    ranking: Ranking


def write_report(path: pathlib.Path, title: str, metrics: dict, examples: ReportExamples) -> None:
    """Renders `report.html.jinja`.

    Args:
        path: the page to write.
        title: its heading.
        metrics: the content of `metrics.json`.
        examples: the ranking that the example queries are taken from.
    """
    right, wrong = _spread(examples.ranking)
    page = render(
        pathlib.Path(__file__).with_name("report.html.jinja"),
        title=title,
        metrics=metrics,
        top_k=TOP_K,
        systems=_systems(metrics),
        protocols=_protocols(metrics),
        floor=QUERY_IOU_FLOOR,
        examples={
            "Relevant at the first rank": [_example(examples, query) for query in right],
            "Missed at the first rank": [_example(examples, query) for query in wrong],
        },
    )
    path.write_text(page)


def _systems(metrics: dict) -> dict[str, dict]:
    """Returns the rows of the baselines' table: name -> metrics."""
    model = {name: metrics[name] for name in ("mAP", *(f"top_{k}" for k in TOP_K))}
    return {"this model": model, **metrics["baselines"]}


def _protocols(metrics: dict) -> dict[str, dict]:
    """Returns the rows of the official protocol's table: boxes x rules x queries."""
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
                rows[f"{name}, more than 5 relevant"] = part["more_than_5_answers"]
    return rows


def _spread(ranking: Ranking) -> list[np.ndarray]:
    """Chooses queries evenly over average precision: first result relevant, and not."""
    order = np.argsort(ranking.precision, kind="stable")
    first = ranking.first[order]
    groups = (order[first == 0], order[first > 0])
    return [
        group[np.linspace(0, len(group) - 1, min(_QUERIES_SHOWN, len(group))).astype(int)]
        for group in groups
    ]


def _example(examples: ReportExamples, query: int) -> dict:
    """Returns the pictures of a query and of its nearest gallery items."""
    split, protocol, ranking = examples.split, examples.protocol, examples.ranking
    nearest = ranking.neighbours[query, :_RESULTS_SHOWN]
    relevant = protocol.gallery_identity[nearest] == protocol.query_identity[query]
    results = [
        Picture(data_uri(split, protocol.gallery[position]), float(ranking.scores[query, i]), right)
        for i, (position, right) in enumerate(zip(nearest, relevant.tolist(), strict=True))
    ]
    return {
        "query": data_uri(split, protocol.queries[query]),
        "precision": float(ranking.precision[query]),
        "results": results,
    }


def data_uri(split: Split, row: int) -> str:
    """Encodes the crop of an item as a JPEG data URI.

    Args:
        split: the split with the item.
        row: the item's row in `split.items`.
    """
    view = split.crop_view(int(row), _PICTURE_SIZE, _MARGIN)
    buffer = io.BytesIO()
    Image.fromarray(view.image).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
