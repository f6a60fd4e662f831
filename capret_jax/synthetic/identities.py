"""The garments of the synthetic dataset, their identities, and the records of each.

Identities come in families. The members of a family have one category and one set of colours,
and differ in pattern, print and cut; sets of colours recur between families. So neither a
category nor a colour histogram distinguishes identities.

This module imports neither JAX nor TFDS: the processes that draw start quickly.
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from capret_jax.synthetic import fabric, photographs
from capret_jax.synthetic.garments import Garment, draw_garment
from capret_jax.synthetic.outlines import NECKLINES, SILHOUETTES, Cut
from capret_jax.synthetic.placement import Appearance

FAMILY_SIZE = 3
_JPEG_QUALITY = 88
# The first number of a random stream's seed, after the dataset's own.
_FAMILY_STREAM, _VIEW_STREAM, _WARDROBE_STREAM = range(3)

# Main, second and motif colour; few, so that many families share one.
COLOURWAYS = (
    ("navy", "cream", "red"),
    ("charcoal", "sky", "mustard"),
    ("forest", "cream", "rust"),
    ("plum", "mustard", "cream"),
    ("red", "sky", "charcoal"),
    ("navy", "rose", "mustard"),
    ("rust", "cream", "navy"),
    ("forest", "rose", "plum"),
    ("charcoal", "rose", "red"),
    ("plum", "sky", "rose"),
    ("red", "cream", "forest"),
    ("rust", "sky", "cream"),
)


@dataclass(frozen=True)
class GarmentEntry:
    """One garment of the dataset and the number of its photographs."""

    pair_id: int
    style: int  # 0: a distractor, no identity
    garment: Garment
    seed: tuple[int, ...]  # seed of the photographs
    shop_views: int
    user_views: int


def _members(rng: np.random.Generator, category_id: int, count: int) -> list[Garment]:
    """Draws garments of one category and colourway; no two share a pattern or a motif."""
    main, second, motif_colour = COLOURWAYS[int(rng.integers(len(COLOURWAYS)))]
    patterns = rng.permutation(list(fabric.PATTERNS))
    motifs = rng.permutation(list(fabric.MOTIFS))
    members = []
    for pattern, motif in zip(patterns[:count], motifs[:count], strict=True):
        swap = bool(rng.integers(2)) and pattern != "solid"
        members.append(
            Garment(
                category_id,
                Cut(NECKLINES[int(rng.integers(3))], *(rng.uniform(-1, 1, 4).tolist())),
                colour=second if swap else main,
                second_colour=main if swap else second,
                pattern=str(pattern),
                pattern_scale=int(rng.integers(len(fabric.PATTERN_PERIODS))),
                motif=str(motif),
                motif_colour=motif_colour,
            )
        )
    return members


def list_families(
    *,
    identities: int,
    shop_views: int,
    user_views: int,
    distractors: int = 0,
    first_pair_id: int = 1,
    seed: int = 0,
) -> list[GarmentEntry]:
    """Lists a split's garments: `identities` in families, then the distractors of those families.

    A family has one pair_id, and its members have styles from 1. Splits with disjoint pair_ids
    share no identity. Each distractor has one photograph, from the shop.
    """
    families = -(-identities // FAMILY_SIZE)
    extra = -(-distractors // families)
    named, unnamed = [], []
    for family in range(families):
        pair_id = first_pair_id + family
        rng = np.random.default_rng([seed, _FAMILY_STREAM, pair_id])
        category_id = 1 + family % len(SILHOUETTES)
        for member, garment in enumerate(_members(rng, category_id, FAMILY_SIZE + extra)):
            stream = (seed, _VIEW_STREAM, pair_id, member)
            if member < FAMILY_SIZE:
                named.append(
                    GarmentEntry(pair_id, member + 1, garment, stream, shop_views, user_views)
                )
            else:
                unnamed.append(GarmentEntry(pair_id, 0, garment, stream, 1, 0))
    return named[:identities] + unnamed[:distractors]


def list_singles(count: int, first_pair_id: int, seed: int) -> list[GarmentEntry]:
    """Lists garments without identity, evenly over all categories, with one photograph each.

    Shop's and users' photographs alternate. There are more of these garments than identities,
    which learning to distinguish categories needs.
    """
    entries = []
    for number in range(count):
        pair_id = first_pair_id + number
        rng = np.random.default_rng([seed, _FAMILY_STREAM, pair_id])
        (garment,) = _members(rng, 1 + number % len(SILHOUETTES), 1)
        by_shop = number // len(SILHOUETTES) % 2
        stream = (seed, _VIEW_STREAM, pair_id, 0)
        entries.append(GarmentEntry(pair_id, 0, garment, stream, by_shop, 1 - by_shop))
    return entries


@functools.cache
def _wardrobe(seed: int) -> photographs.Wardrobe:
    def draw(category_ids: range) -> list[tuple[Garment, Any]]:
        rng = np.random.default_rng([seed, _WARDROBE_STREAM, *category_ids])
        garments = [_members(rng, category_id, 2) for category_id in category_ids]
        return [(garment, draw_garment(garment)) for pair in garments for garment in pair]

    return photographs.Wardrobe(tops=draw(range(1, 7)), bottoms=draw(range(7, 10)))


def _item(number: int, garment: Garment, style: int, appearance: Appearance) -> dict[str, Any]:
    return {
        "number": number,
        "category_id": garment.category_id,
        "style": style,
        "bounding_box": np.array(appearance.bounding_box, np.float32),
        "scale": appearance.scale,
        "occlusion": appearance.occlusion,
        "zoom_in": appearance.zoom_in,
        "viewpoint": appearance.viewpoint,
        "colour": 1 + list(fabric.PALETTE).index(garment.colour),
        "pattern": 1 + list(fabric.PATTERNS).index(garment.pattern),
        "print": 1 + list(fabric.MOTIFS).index(garment.motif),
        "neckline": 1 + NECKLINES.index(garment.cut.neckline) if garment.silhouette.top else 0,
    }


def _record(
    entry: GarmentEntry, source: str, photograph: photographs.DrawnPhotograph
) -> dict[str, Any]:
    jpeg = io.BytesIO()
    photograph.picture.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    items = [_item(1, entry.garment, entry.style, photograph.main)]
    if photograph.companion is not None:
        garment, appearance = photograph.companion
        items.append(_item(2, garment, 0, appearance))
    return {
        "image": jpeg.getvalue(),
        "source": source,
        "pair_id": entry.pair_id,
        "items": items,
    }


def draw_records(entry: GarmentEntry) -> list[dict[str, Any]]:
    """Draws all records of one garment, shop views first.

    Returns:
        Records with the features of `schema.features(details=True)` except `image_id`.
    """
    cloth = draw_garment(entry.garment)
    records = []
    for view in range(entry.shop_views + entry.user_views):
        rng = np.random.default_rng([*entry.seed, view])
        if view < entry.shop_views:
            picture = photographs.draw_shop_photograph(rng, entry.garment, cloth)
            records.append(_record(entry, "shop", picture))
        else:
            picture = photographs.draw_user_photograph(
                rng, entry.garment, cloth, _wardrobe(entry.seed[0])
            )
            records.append(_record(entry, "user", picture))
    return records
