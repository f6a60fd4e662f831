"""Features of a record: a photograph and the fashion items in it, as in DeepFashion2.

Source: Ge et al., "DeepFashion2", CVPR 2019, arXiv:1901.07973.
"""

import numpy as np
import tensorflow_datasets as tfds

# The category with id i is CATEGORIES[i - 1].
CATEGORIES = (
    "short sleeve top",
    "long sleeve top",
    "short sleeve outwear",
    "long sleeve outwear",
    "vest",
    "sling",
    "shorts",
    "trousers",
    "skirt",
    "short sleeve dress",
    "long sleeve dress",
    "vest dress",
    "sling dress",
)

SOURCES = ("shop", "user")

# Names of the values 1, 2 and 3 of an item's attributes.
LEVELS = {
    "scale": ("small", "modest", "large"),
    "occlusion": ("slight", "medium", "heavy"),
    "zoom_in": ("no", "medium", "large"),
    "viewpoint": ("no wear", "frontal", "side or back"),
}

# Names of the values 1, 2, ... of the attributes that only synthetic garments have; 0 where an item
# has none. `synthetic.fabric` and `synthetic.outlines` draw them.
DETAILS = {
    "colour": (
        "cream",
        "charcoal",
        "navy",
        "red",
        "mustard",
        "forest",
        "sky",
        "rose",
        "plum",
        "rust",
    ),
    "pattern": (
        "solid",
        "horizontal stripes",
        "vertical stripes",
        "diagonal stripes",
        "checkerboard",
        "window-pane",
        "dots",
        "chevrons",
        "diamonds",
        "halves",
    ),
    "print": (
        "none",
        "disc",
        "ring",
        "star",
        "heart",
        "triangle",
        "cross",
        "bolt",
        "bar",
        "crescent",
        "frame",
    ),
    "neckline": ("round", "v", "square"),
}


def features(outlines: bool = False, details: bool = False) -> tfds.features.FeaturesDict:
    """Features of one photograph.

    An item's identity is (pair_id, style) where style > 0; style 0 is no identity. Its box is
    x1, y1, x2, y2 in pixels. The image is stored as its JPEG file, byte for byte;
    `tfds.decode.SkipDecoding()` returns these bytes.

    Args:
        outlines: adds to each item `outline`, JSON of its `landmarks` x, y, v, ... in pixels (v is
            2 for visible, 1 for occluded, 0 for not labelled) and its `segmentation`, polygons
            x, y, ... in pixels.
        details: adds the `DETAILS` to each item.
    """
    number = tfds.features.Scalar(dtype=np.int64)
    item = {
        "number": number,  # n of the annotation's item<n>
        "category_id": number,  # 1..13
        "style": number,
        "bounding_box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        **dict.fromkeys(LEVELS, number),
        **(dict.fromkeys(DETAILS, number) if details else {}),
    }
    if outlines:
        item["outline"] = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "image_id": number,
            "source": tfds.features.Text(),  # one of SOURCES
            "pair_id": number,
            "items": tfds.features.Sequence(item),
        }
    )
