"""Decoding and views of JPEG files; docs/performance.md compares decoders."""

import copy
import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from capret_jax.data import resizing
from capret_jax.errors import InputError

# JPEG's orientation tag, and its value for an upright picture.
_ORIENTATION, _UPRIGHT = 0x0112, 1
# libjpeg can decode at 1/factor of the size, from fewer coefficients. It averages blocks, and the
# windows of views are rounded to them, so that this much is left to resizing.
_FACTORS, _LEFT = (8, 4, 2), 4
# Bilinear interpolation blurs as much as this part of a shrink, by measurement.
_BILINEAR_BLUR = 0.25

# A progressive JPEG has about ten scans; each one makes the decoder work through the whole picture,
# so that a small file with many of them would take minutes.
MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"


def check_scans(data: bytes) -> None:
    """Checks that a JPEG file has no more scans than programs write.

    Args:
        data: content of an image file; of other formats nothing is checked.

    Raises:
        InputError: it has more than `MAX_SCANS`.
    """
    # The bytes of the marker do not occur in compressed data, where 0 follows each 0xff.
    if data.startswith(b"\xff\xd8") and (scans := data.count(_START_OF_SCAN)) > MAX_SCANS:
        raise InputError(f"the JPEG has {scans} scans, more than {MAX_SCANS}: save it anew.")


class Photograph:
    """An upright RGB picture, decoded at first use and at the smallest scale that suffices.

    Attributes:
        width, height: pixels.
        resize: how views are resized, one of `config.data.RESIZES`. With "pillow" Pillow decodes,
            too, and always at full size.
    """

    def __init__(self, jpeg: bytes, name: str, resize: str = "fast"):
        """
        Args:
            jpeg: the file's bytes.
            name: name of the photograph, for error messages.
            resize: how views are resized.

        Raises:
            InputError: the bytes are not an image.
        """
        self._jpeg, self._name, self.resize = jpeg, name, resize
        try:
            header = Image.open(io.BytesIO(jpeg))
            turned = header.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._broken(error) from error
        self._plain = header.format == "JPEG" and header.mode in ("RGB", "L") and not turned
        self._decoded: dict[int, np.ndarray] = {}  # by factor
        self.width, self.height = header.size
        if turned:
            self.height, self.width = self.pixels().shape[:2]

    @classmethod
    def from_pixels(cls, pixels: np.ndarray) -> "Photograph":
        """Makes a photograph of decoded pixels, (H, W, 3) uint8, upright."""
        photograph = cls.__new__(cls)
        photograph._jpeg, photograph._name, photograph._plain = b"", "", False
        photograph.resize = "fast"
        photograph._decoded = {1: pixels}
        photograph.height, photograph.width = pixels.shape[:2]
        return photograph

    def resized_by(self, resize: str) -> "Photograph":
        """Returns the photograph with views that are resized another way.

        Args:
            resize: one of `config.data.RESIZES`.
        """
        if resize == self.resize:
            return self
        photograph = copy.copy(self)
        photograph.resize = resize
        if self._jpeg:
            photograph._decoded = {}  # by the decoder of `resize`
        return photograph

    def pixels(self, factor: int = 1) -> np.ndarray:
        """Returns the pixels, reduced by a factor; callers must not change them.

        Args:
            factor: 1, 2, 4 or 8.

        Returns:
            (H / factor, W / factor, 3) uint8, sides rounded up.

        Raises:
            InputError: the bytes do not decode.
        """
        if factor not in self._decoded:
            self._decoded[factor] = self._decode(factor)
        return self._decoded[factor]

    def crop(self, window: np.ndarray, size: int) -> np.ndarray:
        """Crops a window and resizes it.

        Args:
            window: (4,) int x1, y1, x2, y2 in pixels, inside the picture and not empty.
            size: S, pixels.

        Returns:
            (S, S, 3) uint8.
        """
        x1, y1, x2, y2 = (int(edge) for edge in window)
        factor = self._factor(min(x2 - x1, y2 - y1) / size)
        pixels = self.pixels(factor)
        rows, columns = (slice(a // factor, -(-b // factor)) for a, b in ((y1, y2), (x1, x2)))
        return resizing.resize(pixels[rows, columns], size, self.resize)

    def warp(self, quadrilateral: np.ndarray, size: int) -> np.ndarray:
        """Maps a quadrilateral to a square, with bilinear interpolation.

        Beyond the edges the picture is reflected, so that no view gets a frame of one colour.

        Args:
            quadrilateral: (4, 2) x, y in pixels of the top left, top right, bottom right and bottom
                left corner of the result.
            size: S, pixels.

        Returns:
            (S, S, 3) uint8.
        """
        shrink = _footprint(quadrilateral) / size
        factor = self._factor(shrink.min())
        pixels, corners = _antialias(
            self.pixels(factor), quadrilateral / factor, shrink / factor - _BILINEAR_BLUR
        )
        square = np.array([[0, 0], [size, 0], [size, size], [0, size]])
        # OpenCV counts from the centre of the first pixel.
        to_square = cv2.getPerspectiveTransform(
            (corners - 0.5).astype(np.float32), (square - 0.5).astype(np.float32)
        )
        return cv2.warpPerspective(
            pixels, to_square, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )

    def _factor(self, shrink: float) -> int:
        """Returns the largest decoding factor that leaves enough of a shrink to resizing."""
        if not self._plain or self.resize == "pillow":
            return 1
        return next((factor for factor in _FACTORS if factor * _LEFT <= shrink), 1)

    def _decode(self, factor: int) -> np.ndarray:
        if self._plain and self.resize != "pillow":
            try:
                return simplejpeg.decode_jpeg(
                    self._jpeg,
                    min_height=-(-self.height // factor),
                    min_width=-(-self.width // factor),
                    min_factor=factor,
                )
            except ValueError:
                pass  # stricter than Pillow, which decides whether the file is broken
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(self._jpeg))).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise self._broken(error) from error
        self._plain = False
        return np.asarray(image.reduce(factor) if factor > 1 else image)

    def _broken(self, error: Exception) -> InputError:
        return InputError(
            f"image {self._name} does not decode ({error}): remove it from the dataset and prepare "
            "again."
        )


def _footprint(quadrilateral: np.ndarray) -> np.ndarray:
    """Returns the extent (2,) in x and y of a quadrilateral's mean horizontal and vertical side."""
    edges = np.roll(quadrilateral, -1, axis=0) - quadrilateral
    across, down = (edges[0] - edges[2]) / 2, (edges[1] - edges[3]) / 2
    return np.hypot(across, down)


def _antialias(
    pixels: np.ndarray, corners: np.ndarray, shrink: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Removes the details around a quadrilateral that a smaller picture cannot show.

    Args:
        pixels: (H, W, 3) uint8.
        corners: (4, 2) corners of the quadrilateral, pixels.
        shrink: (2,) factors by which it will be reduced in x and y.

    Returns:
        The smooth window of the quadrilateral, and the corners in its pixels.
    """
    if shrink.max() <= 1:
        return pixels, corners
    limit = np.array(pixels.shape[1::-1])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), low + 1, limit)
    smooth = resizing.antialias(pixels[low[1] : high[1], low[0] : high[0]], shrink)
    return smooth, (corners - low) * smooth.shape[1::-1] / (high - low)
