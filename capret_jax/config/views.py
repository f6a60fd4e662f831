"""Settings of the views of items: the part of a photograph, and random changes of it."""

import dataclasses

from capret_jax.errors import InputError

VIEWS = ("crop", "image", "region")


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """The part of an item's photograph that is the model's input, in training and at evaluation.

    Attributes:
        kind: "crop", the item's box with a margin; "image", the whole photograph, so that all its
            items look the same; or "region", the whole photograph with position 0 pooled over the
            item's box, so that one pass of the vision encoder serves all its items.
        regions_per_image: M, with "region": maximal number of items of a photograph that train
            together; they share one pass of the vision encoder.
    """

    kind: str = "crop"
    regions_per_image: int = 1

    def __post_init__(self):
        if self.kind not in VIEWS:
            raise InputError(f"data.view.kind={self.kind!r} is none of {', '.join(VIEWS)}.")
        most = self.regions_per_image
        if most < 1 or (most > 1 and not self.regions):
            raise InputError(
                f"data.view.regions_per_image={most} needs data.view.kind='region'; other views "
                "show one item each."
            )

    @property
    def regions(self) -> bool:
        """Returns True if items are regions of a photograph."""
        return self.kind == "region"

    @property
    def whole(self) -> bool:
        """Returns True if the view is the whole photograph."""
        return self.kind != "crop"


@dataclasses.dataclass(frozen=True)
class RegionBatchConfig:
    """A batch of regions beside the batch of items, summed in one step, as X2-VLM pre-trains.

    It has a view of its own, whole photographs or parts of them whose items are regions, and trains
    the weighted ones of ITC, ITM, MLM and boxes, which the batch of items then does not train.

    Attributes:
        images: number of photographs of all processes in a step's region batch; 0 for none.
        regions_per_image: M, maximal number of items of a photograph.
        weight: factor of the region batch's losses; X2-VLM's `iter_perc`.
    """

    images: int = 0
    regions_per_image: int = 5
    weight: float = 1.0

    def __post_init__(self):
        if self.images < 0:
            raise InputError(f"data.region_batch.images={self.images} is negative.")
        if self.regions_per_image < 1:
            raise InputError(
                f"data.region_batch.regions_per_image={self.regions_per_image} is less than 1."
            )
        if self.weight <= 0:
            raise InputError(
                f"data.region_batch.weight={self.weight} is not positive: set "
                "data.region_batch.images to 0 for no region batch."
            )


@dataclasses.dataclass(frozen=True)
class LocationBatchConfig:
    """Whole photographs of a step, of which `loss.locations` learns where all objects are.

    Attributes:
        images: photographs of all processes in a step.
        scale: smallest and largest scale of a photograph, drawn uniformly: above 1 a random part of
            it fills the view, below 1 it is a part of the view (scale jitter of Pix2Seq).
    """

    images: int = 64
    scale: tuple[float, float] = (0.3, 2.0)

    def __post_init__(self):
        if self.images < 1:
            raise InputError(f"data.location_batch.images={self.images} is less than 1.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(
                f"data.location_batch.scale={self.scale} must be the smallest and the largest of "
                "positive scales, such as (0.3, 2.0)."
            )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training views; values are fractions, and 0 turns a change off.

    Attributes:
        margin: context around the box at evaluation, as a fraction of the box's sides; a negative
            one cuts the box's edges away, which are often background. Training draws a margin for
            each side between -shrink and 2 * margin, or 0 where the margin is negative.
        shrink: largest share of a box's side that a training crop may cut off at each edge.
        trim: maximal share of the photograph's width or height that a training view of the whole
            photograph loses at each side; the items' boxes are kept.
        flip: probability of a horizontal flip, except where the caption mentions left or right.
        brightness: each image's gain is drawn from 1 +- this.
        colour: each channel's gain is drawn from 1 +- this.
        contrast, saturation: factors of both are drawn from 1 +- these.
        hue: turn of the hue, +- this fraction of the colour circle.
        grey: probability that a view loses its colours.
        blur: probability that a view is blurred.
        erase: probability that a rectangle is painted grey (arXiv 1708.04896).
        erase_area: largest share of the view that the rectangle covers; the smallest is 0.02.
        crop_area: smallest share of a crop's area that a view shows of it; its aspect changes by up
            to 4/3 (RandomResizedCrop, arXiv 1409.4842). 1 shows all of it. With the view "image",
            this and the next two are of the whole photograph, in place of `trim`; with regions,
            whose boxes must stay, they do nothing.
        rotate: largest rotation of a crop, degrees.
        perspective: largest shift of each corner of a crop, as a fraction of half its sides.
        region_crop: with regions: show a window of the photograph, drawn at random around the drawn
            item; other items are kept where more than half of them is inside. False shows the
            photograph but for `trim`, and keeps all items.
        randaugment: number of random operations on a view (arXiv 1909.13719); 2 in X2-VLM. Those
            that move pixels change crops and whole photographs, and boxes follow; regions and wide
            views keep their pixels in place.
        randaugment_level: their magnitude, 0 to 10; at 0 operations still make views dark and
            smooth, by X2-VLM's formulas.
        wide: probability that a training crop is a window of any size between a box and the whole
            photograph. Such a view trains captions and boxes, which detection by phrases needs, but
            no identity, since other garments may be in it. If the dataset has items without
            identity, one of them replaces the drawn item. With wide views, boxes are learnt from
            these alone: the box of a crop nearly fills it, so that a constant one has an IoU of
            0.8. Views of whole photographs are as wide as can be, and do not change.
    """

    margin: float = 0.1
    shrink: float = 0.05
    trim: float = 0.1
    flip: float = 0.5
    brightness: float = 0.2
    colour: float = 0.05
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.25
    erase_area: float = 0.2
    crop_area: float = 1.0
    rotate: float = 0.0
    perspective: float = 0.0
    region_crop: bool = False
    randaugment: int = 0
    randaugment_level: int = 7
    wide: float = 0.0

    def __post_init__(self):
        shares = ("flip", "brightness", "colour", "contrast", "saturation", "grey", "blur")
        for name in (*shares, "erase", "perspective", "wide"):
            self._check(name, 0, 1)
        for name, low, high in (
            # Sides must keep a length, whatever is drawn.
            ("margin", -0.45, 10),
            ("shrink", 0, 0.45),
            ("trim", 0, 0.45),
            ("hue", 0, 0.5),
            ("erase_area", 0.02, 1),
            ("crop_area", 0.01, 1),
            ("rotate", 0, 180),
            ("randaugment", 0, 10),
            ("randaugment_level", 0, 10),
        ):
            self._check(name, low, high)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise InputError(f"data.augment.{name}={value} is not in [{low}, {high}].")

    @property
    def geometric(self) -> bool:
        """Returns True if crops are cropped further, rotated, or seen in perspective."""
        return self.crop_area < 1 or self.tilts

    @property
    def tilts(self) -> bool:
        """Returns True if crops are rotated or seen in perspective."""
        return bool(self.rotate or self.perspective)

    @property
    def photometric(self) -> bool:
        """Returns True if colours change by more than gains."""
        return bool(self.contrast or self.saturation or self.hue or self.grey)
