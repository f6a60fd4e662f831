"""Decoding of untrusted image files."""

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from capret_jax.errors import InputError
from capret_jax.serve.uploads import encode_thumbnail, read_photo
from tests.serve.conftest import picture


def test_transparent_parts_become_white():
    assert (read_photo(picture(mode="RGBA")).pixels() == 255).all()
    half = picture(mode="RGBA", colour=(0, 0, 0, 128))
    np.testing.assert_allclose(read_photo(half).pixels(), 127, atol=1)


def test_16_bit_images_are_scaled_to_8_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x4000, np.uint16)).save(buffer, "PNG")
    assert (read_photo(buffer.getvalue()).pixels() == 0x40).all()


def tiff(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.full((4, 4), 0x4000, np.uint16), 0x40),
        (np.full((4, 4), 0x4000, np.int32), 0x40),
        (np.full((4, 4), 64, np.int32), 64),
        (np.full((4, 4), 0.25, np.float32), 0x3F),
        (np.full((4, 4), 64, np.float32), 64),
        (np.zeros((4, 4), np.float32), 0),
    ],
)
def test_grey_values_of_other_depths_are_scaled(values, expected):
    pixels = read_photo(tiff(values)).pixels()
    np.testing.assert_allclose(pixels, expected, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e9])
def test_grey_values_of_an_unknown_range_are_refused(value):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    with pytest.raises(InputError, match="the photo has values from .*: save it with 8 bits"):
        read_photo(tiff(values))


def swapped_profile():
    """An sRGB profile in which red and green have changed their names."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    return re.sub(b"rXYZ|gXYZ", lambda match: names[match[0]], profile)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colours_are_those_of_the_profile(kind):
    buffer, image = io.BytesIO(), Image.new("RGB", (32, 32), (255, 0, 0))
    image.save(buffer, kind, icc_profile=swapped_profile())
    colour = read_photo(buffer.getvalue()).pixels()[16, 16]
    assert colour[1] > 200 > 60 > colour[0]


def test_a_broken_profile_is_ignored():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "PNG", icc_profile=b"no profile")
    assert read_photo(buffer.getvalue()).pixels()[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_all_modes_are_converted_to_rgb(mode, kind):
    assert read_photo(picture(mode=mode, kind=kind)).pixels().shape == (30, 40, 3)


def test_photos_are_turned_upright():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255  # white at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: the left side becomes the top
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    photo = read_photo(buffer.getvalue())
    assert (photo.width, photo.height) == (20, 40)
    assert photo.pixels()[:20].mean() > 250 and photo.pixels()[20:].mean() < 5


def test_large_photos_are_shrunk_to_the_longest_side():
    data = picture((400, 200), kind="JPEG")
    assert (read_photo(data).width, read_photo(data).height) == (400, 200)
    small = read_photo(data, longest_side=100)
    assert (small.width, small.height) == (100, 50)
    thumbnail = Image.open(io.BytesIO(encode_thumbnail(small.pixels(), 32)))
    assert thumbnail.format == "JPEG" and thumbnail.size == (32, 16)


def scan_bomb(scans=300, side=2000):
    """A progressive JPEG whose last scan is repeated: a small file, minutes to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 20, 60)).save(buffer, "JPEG", progressive=True)
    data, last = buffer.getvalue(), buffer.getvalue().rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_with_many_scans_is_refused_at_once():
    data, start = scan_bomb(), time.perf_counter()
    with pytest.raises(InputError, match="the JPEG has 3.. scans, more than 100"):
        read_photo(data)
    assert time.perf_counter() - start < 1
    assert read_photo(scan_bomb(scans=20, side=64)).width == 64  # odd, but bounded


def decompression_bomb(side):
    """Encodes a PNG of a few hundred bytes whose header claims side x side pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"not a picture", "no picture that can be read"),
        (picture(kind="JPEG")[:200], "no picture that can be read"),
        (decompression_bomb(8_400), "8400 x 8400 pixels, more than 64 million"),
        # Pillow itself warns about, or rejects, images of this size.
        (decompression_bomb(10_000), "10000 x 10000 pixels|100000000 pixels"),
        (decompression_bomb(50_000), "2500000000 pixels"),
        (decompression_bomb(100), "no picture that can be read"),
        (b"GIF89a" + b"\0" * 20, "no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that can be read"),
    ],
    ids=["empty", "text", "truncated", "70 MP", "100 MP", "2500 MP", "no pixels", "gif", "svg"],
)
def test_unreadable_files_are_rejected(data, message):
    with pytest.raises(InputError, match=message):
        read_photo(data)
