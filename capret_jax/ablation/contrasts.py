"""Differences of mAP between arms, paired by seed and query, with confidence intervals."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.grid import IMAGE, NONE
from capret_jax.ablation.results import Arm, ResultTable
from capret_jax.ablation.statistics import Interval, confidence_interval, family_level

_AXES = ("captions", "objects")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference of mAP between two sets of arms, paired by seed and query.

    Attributes:
        kind: "captions", "objects", "stage" or "embedding".
        name: the arm that is compared.
        against: the arm that it is compared with.
        where: the arms of the other axes.
        difference: the difference, with a 95 % interval.
        family: the same with a family-wise interval, which holds for all primary contrasts jointly;
            None of secondary ones.
        by_seed: the difference of each seed.
        arms, others: the two sets, pair by pair.
    """

    kind: str
    name: str
    against: str
    where: str
    difference: Interval
    family: Interval | None
    by_seed: tuple[float, ...]
    arms: tuple[Arm, ...]
    others: tuple[Arm, ...]

    @property
    def verdict(self) -> str:
        """Describes the effect; with "may" where only the single interval excludes zero."""
        if self.family and self.family.significant:
            return "helps" if self.difference.mean > 0 else "hurts"
        if self.difference.significant:
            return f"may {'help' if self.difference.mean > 0 else 'hurt'}"
        return "no difference shown"

    def as_dict(self) -> dict:
        """Returns the attributes and the verdict, for JSON."""
        return {
            **dataclasses.asdict(self),
            "difference": self.difference._asdict(),
            "family": self.family and self.family._asdict(),
            "verdict": self.verdict,
            "arms": [arm._asdict() for arm in self.arms],
            "others": [arm._asdict() for arm in self.others],
        }


class _ContrastSpec(NamedTuple):
    """A contrast before it is computed; conclusions use only the primary ones."""

    kind: str
    name: str
    against: str
    where: str
    arms: list[Arm]
    others: list[Arm]
    primary: bool = True


def contrasts_of(table: ResultTable, read_by: Sequence[str]) -> list[Contrast]:
    """Returns all contrasts of the report.

    A primary contrast is the main effect of an arm, averaged over the arms of the other axis; its
    simple effects, with one arm of the other axis each, are secondary. In zero_shot, the arm
    without captions and objects is the initial model without a step of training, and a contrast
    with it answers another question than one between trained models: there the simple effects are
    primary.

    Args:
        table: the results.
        read_by: captions, objects and stage of the embeddings that read captions.
    """
    image_arms = [arm for arm in table.precision if arm.embedding == IMAGE]
    stages = _unique(arm.stage for arm in image_arms)
    specs = []
    for stage in stages:
        arms = [arm for arm in image_arms if arm.stage == stage]
        specs += _zero_shot_effects(arms) if stage == "zero_shot" else _effects(stage, arms)
    if {"zero_shot", "fine_tuned"} <= set(stages):
        tuned = [arm for arm in image_arms if arm.stage == "fine_tuned"]
        untuned = [arm._replace(stage="zero_shot") for arm in tuned]
        specs.append(
            _ContrastSpec("stage", "fine_tuned", "zero_shot", "mean over all", tuned, untuned)
        )
    captions, objects, stage = read_by
    image_arm = Arm(captions, objects, stage, IMAGE, NONE)
    for arm in table.precision:
        if arm.embedding != IMAGE:
            name = f"{arm.embedding}, {arm.caption_source} captions"
            specs.append(
                _ContrastSpec("embedding", name, IMAGE, ", ".join(read_by), [arm], [image_arm])
            )
    specs = [spec for spec in specs if spec.name != NONE and _has_results(table, spec)]
    level = family_level(sum(spec.primary for spec in specs))
    return [_compute(table, level, spec) for spec in specs]


def _effects(stage: str, arms: list[Arm]) -> list[_ContrastSpec]:
    """Returns the main effects of captions and objects; simple effects of captions as secondary."""
    captions, objects = (_unique(getattr(arm, axis) for arm in arms) for axis in _AXES)
    return [
        *(
            _against_none(arms, "captions", name, f"{stage}, mean over objects")
            for name in captions
        ),
        *(_against_none(arms, "objects", name, f"{stage}, mean over captions") for name in objects),
        *(spec._replace(primary=False) for spec in _simple_effects(stage, arms)),
    ]


def _zero_shot_effects(arms: list[Arm]) -> list[_ContrastSpec]:
    """Returns simple effects of captions; effects of objects, without and over all captions."""
    without = [arm for arm in arms if arm.captions == NONE]
    with_captions = [arm for arm in arms if arm.captions != NONE]
    specs = _simple_effects("zero_shot", arms)
    for name in _unique(arm.objects for arm in arms):
        specs += [
            _against_none(without, "objects", name, "zero_shot, captions none"),
            _against_none(with_captions, "objects", name, "zero_shot, mean over captions"),
        ]
    return specs


def _simple_effects(stage: str, arms: list[Arm]) -> list[_ContrastSpec]:
    """Returns the effects of captions in each objects arm."""
    captions, objects = (_unique(getattr(arm, axis) for arm in arms) for axis in _AXES)
    return [
        _against_none(
            [arm for arm in arms if arm.objects == name],
            "captions",
            caption,
            f"{stage}, objects {name}",
        )
        for name in objects
        for caption in captions
    ]


def _unique(names: Iterable[str]) -> list[str]:
    """Returns the distinct names, in their order."""
    return list(dict.fromkeys(names))


def _against_none(arms: list[Arm], axis: str, name: str, where: str) -> _ContrastSpec:
    """Returns the contrast of an axis's arm with the axis's "none", over `arms`."""
    compared = [arm for arm in arms if getattr(arm, axis) == name]
    others = [arm._replace(**{axis: NONE}) for arm in compared]
    return _ContrastSpec(axis, name, NONE, where, compared, others)


def _has_results(table: ResultTable, spec: _ContrastSpec) -> bool:
    arms = (*spec.arms, *spec.others)
    return bool(arms) and all(arm in table.precision for arm in arms)


def _compute(table: ResultTable, level: float, spec: _ContrastSpec) -> Contrast:
    values = paired_difference(table.precision, spec.arms, spec.others)
    family = None
    if spec.primary:
        family = confidence_interval(values, table.clusters, level).clip(-1.0, 1.0)
    return Contrast(
        spec.kind,
        spec.name,
        spec.against,
        spec.where,
        confidence_interval(values, table.clusters).clip(-1.0, 1.0),
        family,
        tuple(values.mean(axis=1).tolist()),
        tuple(spec.arms),
        tuple(spec.others),
    )


def paired_difference(
    precision: dict[Arm, np.ndarray], arms: Sequence[Arm], others: Sequence[Arm]
) -> np.ndarray:
    """Returns the difference between two sets of arms, averaged over their pairs.

    Args:
        precision: arm -> (S, Q) float average precision.
        arms, others: the two sets, pair by pair.

    Returns:
        (S, Q) float, for each seed and query.
    """
    pairs = zip(arms, others, strict=True)
    return np.mean([precision[arm] - precision[other] for arm, other in pairs], axis=0)
