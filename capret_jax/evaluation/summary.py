"""The text table that summarises an evaluation on the console."""

import pathlib

from capret_jax.retrieval.metrics import TOP_K

_SHOWN = ("mAP", *(f"top_{k}" for k in TOP_K))


def summary(metrics: dict, folder: pathlib.Path) -> str:
    """Formats the main metrics of an evaluation, one system a line.

    Args:
        metrics: the content of `metrics.json`.
        folder: the evaluation's folder, which holds `report.html`.
    """
    rows = {"this model": metrics}
    if "reranked" in metrics:
        rows["re-ranked"] = metrics["reranked"]
    if "detected" in metrics:
        rows["detected boxes"] = metrics["detected"]
    rows |= {f"at {row['share']:g} from start": row for row in metrics.get("interpolation", [])}
    rows |= metrics["baselines"]
    lines = [f"{'':18}" + "".join(f"{name:>9}" for name in _SHOWN)]
    lines += [
        f"{name:18}" + "".join(f"{row[key]:9.3f}" for key in _SHOWN) for name, row in rows.items()
    ]
    index = metrics["index"]
    return "\n".join(
        [
            "",
            f"{metrics['queries']} queries, {metrics['gallery']} gallery items",
            *lines,
            f"{index['kind']}: recall@20 {index['recall@20']:.3f}",
            *_detection_summary(metrics.get("detection", {})),
            f"report: {folder / 'report.html'}",
        ]
    )


def _detection_summary(detection: dict[str, dict]) -> list[str]:
    """Formats a line of the metrics of each kind of detection."""
    return [
        f"detection by {kind}: AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}; from "
        f"{row['threshold']:.2f} on precision {row['precision']:.3f}, recall {row['recall']:.3f}; "
        f"{1000 * row['seconds_per_photograph']:.0f} ms a photograph"
        for kind, row in detection.items()
    ]
