"""Placement of drawn garments in a picture, and the annotation of what is visible of them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from capret_jax.synthetic.garments import Cloth

# Upper ends of levels 1 and 2, as fractions.
_SCALE_STEPS = (0.15, 0.40)  # the box's share of the picture
_OCCLUSION_STEPS = (0.05, 0.20)  # the hidden share of the garment in the picture
_ZOOM_STEPS = (0.03, 0.20)  # the share of the garment beyond the picture's edge
_OPAQUE = 128  # alpha from which a pixel counts as covered


@dataclass(frozen=True)
class Pose:
    """The position of a body in front of the camera."""

    tilt: float = 0.0  # sine of the turn in the picture's plane
    shear: float = 0.0
    squeeze: float = 1.0  # width over height, relative to a frontal view
    perspective: tuple[float, float] = (0.0, 0.0)  # nearer right / lower parts, over half a garment


@dataclass(frozen=True, eq=False)
class Layer:
    """A garment placed in a picture: (H, W, 4) RGBA, and its share inside the picture."""

    picture: Image.Image
    inside: float

    @property
    def covered(self) -> np.ndarray:
        """Returns (H, W) bool, True for pixels of the garment, hidden or not."""
        return np.asarray(self.picture.getchannel("A")) >= _OPAQUE


@dataclass(frozen=True)
class Appearance:
    """DeepFashion2's annotation of a garment in a picture."""

    bounding_box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
    scale: int
    occlusion: int
    zoom_in: int
    viewpoint: int


def homography(
    cloth: Cloth, size: tuple[int, int], centre: np.ndarray, height: float, pose: Pose
) -> np.ndarray:
    """Returns the (3, 3) float64 homography from body units to pixels of a picture.

    `size` is the picture's (width, height). The middle of the cloth is mapped to `centre`; the
    cloth is about `height` pixels high.
    """
    x1, y1, x2, y2 = cloth.extent
    middle, half = ((x1 + x2) / 2, (y1 + y2) / 2), max(x2 - x1, y2 - y1) / 2
    scale = height / (y2 - y1)
    cosine = (1 - pose.tilt**2) ** 0.5
    turn = np.array([[cosine, -pose.tilt], [pose.tilt, cosine]])
    linear = scale * turn @ np.array([[1.0, pose.shear], [0.0, 1.0]]) @ np.diag([pose.squeeze, 1.0])
    to_origin = np.array([[1, 0, -middle[0]], [0, 1, -middle[1]], [0, 0, 1]])
    lens = np.eye(3)
    lens[:2, :2] = linear
    lens[2, :2] = np.divide(pose.perspective, half)
    to_centre = np.array([[1, 0, centre[0]], [0, 1, centre[1]], [0, 0, 1]])
    return to_centre @ lens @ to_origin


def project(matrix: np.ndarray, points) -> np.ndarray:
    """Maps (N, 2) points with a (3, 3) homography to (N, 2)."""
    points = np.asarray(points, np.float64)
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def place(cloth: Cloth, matrix: np.ndarray, size: tuple[int, int]) -> Layer:
    """Draws the cloth into an empty picture of `size` through a map from body units to pixels."""
    x1, y1, x2, y2 = cloth.extent
    corners = project(matrix, [(x1, y1), (x1, y2)])
    picture = cloth.picture
    if np.abs(corners[1] - corners[0]).max() < 0.6 * picture.height:
        picture = picture.reduce(2)  # sampling alone would alias
    kx, ky = picture.width / (x2 - x1), picture.height / (y2 - y1)
    to_cloth = np.array([[kx, 0, -kx * x1], [0, ky, -ky * y1], [0, 0, 1]]) @ np.linalg.inv(matrix)
    coefficients = (to_cloth / to_cloth[2, 2]).ravel()[:8].tolist()
    layer = picture.transform(
        size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    return Layer(layer, _inside(cloth, matrix, size))


def _inside(cloth: Cloth, matrix: np.ndarray, size: tuple[int, int]) -> float:
    """Returns the share of the cloth's area that is inside the picture."""
    alpha = np.asarray(cloth.picture.getchannel("A").reduce(6))
    rows, columns = np.nonzero(alpha >= _OPAQUE)
    x1, y1, x2, y2 = cloth.extent
    x = x1 + (columns + 0.5) / alpha.shape[1] * (x2 - x1)
    y = y1 + (rows + 0.5) / alpha.shape[0] * (y2 - y1)
    mapped = project(matrix, np.stack([x, y], axis=1))
    return float(np.all((mapped >= 0) & (mapped < size), axis=1).mean())


def _level(value: float, steps: tuple[float, float]) -> int:
    return 1 + sum(value >= step for step in steps)


def measure(layer: Layer, hidden: np.ndarray, viewpoint: int) -> Appearance | None:
    """Annotates a placed garment.

    Args:
        layer: the garment.
        hidden: (H, W) bool, True where an obstacle covers the picture.
        viewpoint: DeepFashion2's viewpoint, 1 to 3.

    Returns:
        The annotation; None where too little of the garment is visible to be annotated.
    """
    covered = layer.covered
    area = np.count_nonzero(covered)
    seen = np.count_nonzero(covered & ~hidden)
    if seen < 0.01 * covered.size or seen < 0.3 * area or layer.inside < 0.3:
        return None
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    share = (box[2] - box[0]) * (box[3] - box[1]) / covered.size
    return Appearance(
        bounding_box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        scale=_level(share, _SCALE_STEPS),
        occlusion=_level(1 - seen / area, _OCCLUSION_STEPS),
        zoom_in=_level(1 - layer.inside, _ZOOM_STEPS),
        viewpoint=viewpoint,
    )
