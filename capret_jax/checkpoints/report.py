"""Report of a conversion: the use of every name of a PyTorch file."""

import collections
import dataclasses
from collections.abc import Iterable


def model_parts(paths: Iterable[str]) -> list[str]:
    """Returns the names of the parts of the model ("itm_head") that parameters belong to."""
    return sorted({path.split("/")[0] for path in paths})


@dataclasses.dataclass
class Report:
    """Use of every name in a conversion; the content of report.json.

    Attributes:
        kind: kind of the file: a key of `KINDS`, or "beit_bert".
        size: row of `SIZES` with these shapes, or "custom".
        image_size: pixels, after conversion.
        used: name in the file -> paths of the parameters that it fills.
        ignored: name in the file -> reason why it is not a parameter.
        missing: name that a complete file would have -> path of the parameter, initialised fresh.
        notes: other facts, one line each.
        absent: name that a file of this kind would have, and this one lacks without loss -> reason.
    """

    kind: str
    size: str
    image_size: int
    used: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """Returns a short table for printing."""
        fresh_parts = ", ".join(model_parts(self.missing.values()))
        fresh = f"{len(self.missing)} tensors, initialised fresh: {fresh_parts}"
        rows = [
            ("checkpoint", f"{self.kind}, {self.size}, {self.image_size} px"),
            ("used", f"{len(self.used)} tensors"),
            ("ignored", _count(self.ignored) if self.ignored else "nothing"),
            ("missing", fresh if fresh_parts else "nothing"),
        ]
        if self.absent:
            rows.append(("absent", f"{_count(self.absent)}; nothing is lost"))
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:12}{text}" for name, text in rows)


def _count(reasons: dict[str, str]) -> str:
    """Returns "3 tensors: 2 of this reason; 1 of that"."""
    counts = collections.Counter(reasons.values())
    return f"{len(reasons)} tensors: " + "; ".join(f"{n} {reason}" for reason, n in counts.items())
