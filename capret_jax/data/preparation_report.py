"""The report of a preparation: the content of the dataset and everything that was left out."""

import collections
import pathlib
from typing import Any

from capret_jax.data.deepfashion2 import SPLITS
from capret_jax.data.record_shards import Shard, ShardSummary
from capret_jax.errors import InputError

# A larger share of images or items left out suggests the wrong folder or a damaged copy.
_TOLERATED = 0.01


def make_report(written: dict[Shard, ShardSummary]) -> dict[str, Any]:
    """Counts what is in the dataset, and lists what was left out.

    Args:
        written: the shards of all splits with their summaries.

    Returns:
        split -> `files`, `images`, `items`, `identities`, `pairs` (identities seen by both
        sources), `skipped` (reason -> count) and `skipped_records` (all of them).
    """
    return {
        split: _report_split({s: written[s] for s in written if s.split == split})
        for split in SPLITS
    }


def _report_split(written: dict[Shard, ShardSummary]) -> dict[str, Any]:
    summaries = written.values()
    problems = [problem for summary in summaries for problem in summary.problems]
    sources = collections.defaultdict(set)
    for summary in summaries:
        for pair, style, source in summary.identities:
            if style > 0:
                sources[pair, style].add(source)
    return {
        "files": sum(len(shard.files) for shard in written),
        "images": sum(summary.records for summary in summaries),
        "items": sum(summary.items for summary in summaries),
        "identities": len(sources),
        "pairs": sum(len(both) == 2 for both in sources.values()),
        "skipped": dict(collections.Counter(problem.reason for problem in problems)),
        "skipped_records": [problem._asdict() for problem in problems],
    }


def check_broken(source: pathlib.Path, report: dict[str, Any]) -> None:
    """Checks that not too much of the raw folder was left out.

    Args:
        source: the raw folder, for the message.
        report: from `make_report`.

    Raises:
        InputError: more than 1 % of a split's images or items were left out.
    """
    for split, part in report.items():
        images = sum(not skipped["item"] for skipped in part["skipped_records"])
        items = len(part["skipped_records"]) - images
        for kind, broken, usable in (
            ("images", images, part["images"]),
            ("items", items, part["items"]),
        ):
            if broken > _TOLERATED * (broken + usable):
                reasons = ", ".join(f"{n} x {reason}" for reason, n in part["skipped"].items())
                raise InputError(
                    f"{broken} of {broken + usable} {kind} of {source / split} cannot be used "
                    f"({reasons}); if that is as it should be, allow it with "
                    "--config.data.prepare.allow_broken=True (the tool's --allow_broken)."
                )
