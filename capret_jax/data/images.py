"""Decoding and resizing of JPEG files; docs/performance.md compares decoders."""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from capret_jax.errors import InputError

# Grain runs the threads; OpenCV's own would compete with them.
cv2.setNumThreads(1)
# JPEG's orientation tag, and its value for an upright picture.
_ORIENTATION, _UPRIGHT = 0x0112, 1
# libjpeg can decode at 1/factor of the size, from fewer coefficients.
_FACTORS = (8, 4, 2)


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
    """

    def __init__(self, jpeg: bytes, name: str):
        """
        Args:
            jpeg: the file's bytes.
            name: name of the photograph, for error messages.

        Raises:
            InputError: the bytes are not an image.
        """
        self._jpeg, self._name = jpeg, name
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
        photograph._decoded = {1: pixels}
        photograph.height, photograph.width = pixels.shape[:2]
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
        return _resize(pixels[rows, columns], size)

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
        sides = np.linalg.norm(quadrilateral - np.roll(quadrilateral, 1, axis=0), axis=1)
        shrink = sides.min() / size
        factor = self._factor(shrink)
        pixels, corners = _reduce(self.pixels(factor), quadrilateral / factor, shrink / factor)
        square = np.array([[0, 0], [size, 0], [size, size], [0, size]])
        # OpenCV counts from the centre of the first pixel.
        to_square = cv2.getPerspectiveTransform(
            (corners - 0.5).astype(np.float32), (square - 0.5).astype(np.float32)
        )
        return cv2.warpPerspective(
            pixels, to_square, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )

    def _factor(self, shrink: float) -> int:
        """Returns the largest decoding factor that is at most `shrink`."""
        if not self._plain:
            return 1
        return next((factor for factor in _FACTORS if factor <= shrink), 1)

    def _decode(self, factor: int) -> np.ndarray:
        if self._plain:
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


def _reduce(
    pixels: np.ndarray, corners: np.ndarray, shrink: float
) -> tuple[np.ndarray, np.ndarray]:
    """Averages pixels around a quadrilateral, so that less than a factor of two remains.

    Args:
        pixels: (H, W, 3) uint8.
        corners: (4, 2) corners of the quadrilateral, pixels.
        shrink: factor by which the quadrilateral will be reduced.

    Returns:
        The reduced window of the quadrilateral, and the corners in its pixels.
    """
    if shrink < 2:
        return pixels, corners
    limit = np.array(pixels.shape[1::-1])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), low + 1, limit)
    window = pixels[low[1] : high[1], low[0] : high[0]]
    sides = np.maximum((high - low) // int(shrink), 1)
    reduced = cv2.resize(window, tuple(map(int, sides)), interpolation=cv2.INTER_AREA)
    return reduced, (corners - low) * sides / (high - low)


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes (h, w, 3) to (size, size, 3), close to Pillow's bicubic in a tenth of its time.

    Below a factor of two interpolation uses every pixel; from there on, pixels are averaged.
    """
    return cv2.resize(pixels, (size, size), interpolation=_method(max(pixels.shape[:2]) / size))


def _method(shrink: float) -> int:
    if shrink >= 2:
        return cv2.INTER_AREA
    return cv2.INTER_LINEAR if shrink > 1 else cv2.INTER_CUBIC
