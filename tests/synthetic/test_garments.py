"""Drawing of garments, their placement in a picture and their annotation."""

import dataclasses

import numpy as np
import pytest

from capret_jax.data.schema import DETAILS
from capret_jax.synthetic import fabric, identities, photographs, placement
from capret_jax.synthetic.garments import CLOTH_PIXELS, Cloth, Garment, draw_garment
from capret_jax.synthetic.outlines import NECKLINES, SILHOUETTES, Cut

STRIPED = Garment(1, colour="navy", second_colour="cream", pattern="horizontal stripes")
CATEGORY_IDS = range(1, len(SILHOUETTES) + 1)


def straight_on(cloth: Cloth, height: float, centre=(100.0, 100.0)) -> placement.Layer:
    """The cloth in a picture of 200 x 200 pixels."""
    matrix = placement.homography(cloth, (200, 200), centre, height, placement.Pose())
    return placement.place(cloth, matrix, (200, 200))


def visible(layer: placement.Layer) -> placement.Appearance | None:
    return placement.measure(layer, np.zeros((200, 200), bool), viewpoint=1)


@pytest.mark.parametrize("category_id", CATEGORY_IDS)
@pytest.mark.parametrize("extreme", [-1.0, 1.0])
def test_every_cut_fills_its_canvas(category_id, extreme):
    cut = Cut("v", extreme, extreme, extreme, extreme)
    cloth = draw_garment(Garment(category_id, cut))
    alpha = np.asarray(cloth.picture.getchannel("A"))
    assert abs(max(cloth.picture.size) - CLOTH_PIXELS) <= 1
    left, top, right, bottom = cloth.picture.getbbox()
    margins = (left, top, cloth.picture.width - right, cloth.picture.height - bottom)
    assert min(margins) > 0 and max(margins) < 0.1 * CLOTH_PIXELS
    # Garments are symmetric except for their prints.
    np.testing.assert_allclose(alpha, alpha[:, ::-1], atol=160)
    assert np.mean(alpha != alpha[:, ::-1]) < 0.05


def test_details_are_those_that_are_drawn():
    drawn = {
        "colour": tuple(fabric.PALETTE),
        "pattern": tuple(fabric.PATTERNS),
        "print": tuple(fabric.MOTIFS),
        "neckline": NECKLINES,
    }
    assert drawn == DETAILS


def test_drawing_is_repeatable():
    first, second = draw_garment(STRIPED), draw_garment(STRIPED)
    assert first.picture.tobytes() == second.picture.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": "vertical stripes"},
        {"pattern_scale": 2},
        {"motif": "star"},
        {"colour": "plum"},
        {"cut": Cut("square")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_attribute_changes_the_picture(change):
    changed = dataclasses.replace(STRIPED, **change)
    layers = [straight_on(draw_garment(garment), 96.0) for garment in (STRIPED, changed)]
    first, second = (np.asarray(layer.picture.convert("RGB"), float) for layer in layers)
    distance = np.abs(first - second).max(axis=-1)
    assert np.sum(distance > 40) > 0.02 * layers[0].covered.sum()


@pytest.mark.parametrize("pattern", [name for name in fabric.PATTERNS if name != "solid"])
def test_patterns_show_both_colours(pattern):
    u, v = np.meshgrid(np.linspace(-3, 3, 300), np.linspace(0, 6, 300))
    assert 0.25 < fabric.PATTERNS[pattern](u, v).mean() < 0.75


def test_a_garment_is_placed_at_the_given_centre():
    cloth = draw_garment(STRIPED)
    box = np.array(visible(straight_on(cloth, 120.0, centre=(90.0, 110.0))).bounding_box)
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, (90, 110), atol=2)
    assert 110 < box[3] - box[1] <= 120


def test_box_is_tight_around_the_drawn_pixels():
    layer = straight_on(draw_garment(STRIPED), 150.0)
    x1, y1, x2, y2 = (int(side) for side in visible(layer).bounding_box)
    covered = layer.covered
    inside = covered[y1:y2, x1:x2]
    assert inside.sum() == covered.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@pytest.mark.parametrize(("height", "scale"), [(50.0, 1), (100.0, 2), (180.0, 3)])
def test_scale_follows_the_size(height, scale):
    assert visible(straight_on(draw_garment(STRIPED), height)).scale == scale


@pytest.mark.parametrize(("centre_y", "zoom_in"), [(100.0, 1), (35.0, 2), (10.0, 3)])
def test_zoom_in_follows_the_share_outside_the_picture(centre_y, zoom_in):
    layer = straight_on(draw_garment(STRIPED), 100.0, centre=(100.0, centre_y))
    assert visible(layer).zoom_in == zoom_in


@pytest.mark.parametrize(("hidden_share", "occlusion"), [(0.0, 1), (0.1, 2), (0.4, 3)])
def test_occlusion_follows_the_hidden_share(hidden_share, occlusion):
    layer = straight_on(draw_garment(STRIPED), 150.0)
    rows, columns = np.nonzero(layer.covered)
    hidden = np.zeros((200, 200), bool)
    count = int(hidden_share * len(rows))
    hidden[rows[:count], columns[:count]] = True
    seen = placement.measure(layer, hidden, viewpoint=2)
    assert seen.occlusion == occlusion
    # An obstacle does not change the box.
    assert seen.bounding_box == visible(layer).bounding_box


def test_a_hidden_garment_has_no_annotation():
    layer = straight_on(draw_garment(STRIPED), 150.0)
    assert placement.measure(layer, np.ones((200, 200), bool), viewpoint=2) is None


@pytest.mark.parametrize("category_id", CATEGORY_IDS)
def test_shop_photographs_show_all_of_the_garment(category_id):
    garment = Garment(category_id)
    photograph = photographs.draw_shop_photograph(
        np.random.default_rng(category_id), garment, draw_garment(garment)
    )
    assert (photograph.main.zoom_in, photograph.main.occlusion) == (1, 1)
    assert photograph.main.viewpoint in (photographs.NOT_WORN, photographs.FRONTAL)
    assert photograph.companion is None


def test_dresses_have_no_companion():
    wardrobe = photographs.Wardrobe(tops=["top"], bottoms=["bottom"])
    rng = np.random.default_rng(0)
    worn_with = [wardrobe.companion(rng, Garment(category_id)) for category_id in CATEGORY_IDS]
    assert worn_with == 6 * ["bottom"] + 3 * ["top"] + 4 * [None]


def test_family_shares_colours_but_no_pattern_or_motif():
    entries = identities.list_families(identities=8, shop_views=1, user_views=1, distractors=4)
    family = [entry.garment for entry in entries if entry.pair_id == 1]
    assert len({garment.category_id for garment in family}) == 1
    assert len({frozenset((g.colour, g.second_colour, g.motif_colour)) for g in family}) == 1
    assert len({garment.pattern for garment in family}) == len(family) == identities.FAMILY_SIZE + 2
    assert len({garment.motif for garment in family}) == len(family)
