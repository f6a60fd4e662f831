"""Differences between arms, paired by seed and query, and what each shows."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.grid import IMAGE, NONE
from capret_jax.ablation.results import Arm, Table
from capret_jax.ablation.statistics import Interval, family_level, interval

_AXES = ("captions", "objects")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference of mAP between two sets of arms, paired by seed and query.

    Attributes:
        kind: "captions", "objects", "stage" or "embedding".
        name: of what is compared.
        against: with what.
        where: over which arms.
        difference: with a 95 % interval.
        family: with one that holds for all main contrasts at once; None of the others.
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
        """What it shows: of main contrasts for sure, else perhaps."""
        if self.family and self.family.sure:
            return "helps" if self.difference.mean > 0 else "hurts"
        if self.difference.sure:
            return f"may {'help' if self.difference.mean > 0 else 'hurt'}"
        return "no difference shown"

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "difference": self.difference._asdict(),
            "family": self.family and self.family._asdict(),
            "verdict": self.verdict,
            "arms": [arm._asdict() for arm in self.arms],
            "others": [arm._asdict() for arm in self.others],
        }


class _Compared(NamedTuple):
    """Two sets of arms, pair by pair; and whether it is concluded from them."""

    kind: str
    name: str
    against: str
    where: str
    arms: list[Arm]
    others: list[Arm]
    main: bool = True


def contrasts_of(table: Table, read_by: Sequence[str]) -> list[Contrast]:
    """All comparisons that the report makes.

    The main ones are what is concluded from: an arm as a whole, over the arms of the other axis, of
    which the others show the parts. Where no identity is trained, the arm without captions and
    objects is the first model as it is, and what is compared with it is another question than what
    is compared with a trained model: there the parts are the main ones.

    Args:
        table: the results.
        read_by: captions, objects and stage of the embeddings that read captions.
    """
    arms = [arm for arm in table.precision if arm.embedding == IMAGE]
    stages = _values(arm.stage for arm in arms)
    found = []
    for stage in stages:
        here = [arm for arm in arms if arm.stage == stage]
        found += _in_parts(stage, here) if stage == "zero_shot" else _as_a_whole(stage, here)
    if {"zero_shot", "fine_tuned"} <= set(stages):
        tuned = [arm for arm in arms if arm.stage == "fine_tuned"]
        before = [arm._replace(stage="zero_shot") for arm in tuned]
        found.append(_Compared("stage", "fine_tuned", "zero_shot", "mean over all", tuned, before))
    captions, objects, stage = read_by
    image = Arm(captions, objects, stage, IMAGE, NONE)
    for arm in table.precision:
        if arm.embedding != IMAGE:
            name = f"{arm.embedding}, {arm.said} captions"
            found.append(_Compared("embedding", name, IMAGE, ", ".join(read_by), [arm], [image]))
    found = [each for each in found if each.name != NONE and _known(table, each)]
    level = family_level(sum(each.main for each in found))
    return [_contrast(table, level, each) for each in found]


def _as_a_whole(stage: str, arms: list[Arm]) -> list[_Compared]:
    """Captions over all objects, objects over all captions; captions with each of the objects."""
    captions, objects = (_values(getattr(arm, axis) for arm in arms) for axis in _AXES)
    return [
        *(_change(arms, "captions", name, f"{stage}, mean over objects") for name in captions),
        *(_change(arms, "objects", name, f"{stage}, mean over captions") for name in objects),
        *(each._replace(main=False) for each in _by_objects(stage, arms)),
    ]


def _in_parts(stage: str, arms: list[Arm]) -> list[_Compared]:
    """Captions with each of the objects; objects without captions, and over all captions."""
    bare = [arm for arm in arms if arm.captions == NONE]
    spoken = [arm for arm in arms if arm.captions != NONE]
    found = _by_objects(stage, arms)
    for name in _values(arm.objects for arm in arms):
        found.append(_change(bare, "objects", name, f"{stage}, captions none"))
        found.append(_change(spoken, "objects", name, f"{stage}, mean over captions"))
    return found


def _by_objects(stage: str, arms: list[Arm]) -> list[_Compared]:
    """Captions with each of the objects."""
    captions, objects = (_values(getattr(arm, axis) for arm in arms) for axis in _AXES)
    return [
        _change(
            [arm for arm in arms if arm.objects == each],
            "captions",
            name,
            f"{stage}, objects {each}",
        )
        for each in objects
        for name in captions
    ]


def _values(names) -> list[str]:
    return list(dict.fromkeys(names))


def _change(arms: list[Arm], axis: str, name: str, where: str) -> _Compared:
    """An arm of an axis against its "none", over the others."""
    with_it = [arm for arm in arms if getattr(arm, axis) == name]
    others = [arm._replace(**{axis: NONE}) for arm in with_it]
    return _Compared(axis, name, NONE, where, with_it, others)


def _known(table: Table, compared: _Compared) -> bool:
    arms = (*compared.arms, *compared.others)
    return bool(arms) and all(arm in table.precision for arm in arms)


def _contrast(table: Table, level: float, compared: _Compared) -> Contrast:
    kind, name, against, where, arms, others, main = compared
    values = difference_of(table.precision, arms, others)
    return Contrast(
        kind,
        name,
        against,
        where,
        interval(values, table.clusters).within(-1.0, 1.0),
        interval(values, table.clusters, level).within(-1.0, 1.0) if main else None,
        tuple(values.mean(axis=1).tolist()),
        tuple(arms),
        tuple(others),
    )


def difference_of(
    precision: dict[Arm, np.ndarray], arms: Sequence[Arm], others: Sequence[Arm]
) -> np.ndarray:
    """(S, Q) mean difference of pairs of arms."""
    pairs = zip(arms, others, strict=True)
    return np.mean([precision[arm] - precision[other] for arm, other in pairs], axis=0)
