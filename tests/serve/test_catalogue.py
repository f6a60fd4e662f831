"""Catalogues as people have them: headers, encodings, paths, boxes, and folders of all kinds."""

import unicodedata

import pytest
from PIL import Image

from capret_jax.errors import InputError
from capret_jax.serve.boxes import check_pixels
from capret_jax.serve.catalogue import read_catalogue


@pytest.fixture
def shop(tmp_path):
    """A folder with two pictures."""
    (tmp_path / "img").mkdir()
    for name in ("0.jpg", "1.jpg"):
        Image.new("RGB", (90, 80)).save(tmp_path / "img" / name)
    return tmp_path


def write(shop, content, encoding="utf-8"):
    path = shop / "shop.csv"
    path.write_bytes(content.encode(encoding))
    return path


PLAIN = "image,id,category,x1,y1,x2,y2\nimg/0.jpg,a,Röcke,5,6,50,60\nimg/1.jpg,b,Tops,,,,\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(",", ", "),
        PLAIN.replace(",", " , "),
        PLAIN.replace("image,id", "Image,ID").replace("x1,y1,x2,y2", "X1,Y1,X2,Y2"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN + "\n\n,,,,,,\n",
        PLAIN.replace("y2\n", "y2,\n").replace("60\n", "60,\n"),
        PLAIN.replace("img/", "img\\"),
        PLAIN.replace("Röcke", '"Röcke"'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_all_spellings_of_a_catalogue_are_the_same(shop, content, encoding):
    first, second = read_catalogue(write(shop, content, encoding)).products
    assert first.item["id"] == "a" and second.item["id"] == "b"
    assert first.item["category"] == "Röcke" and first.item.keys() == {"id", "image", "category"}
    assert first.box.tolist() == [5, 6, 50, 60] and second.box is None
    assert first.read().width == 90


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_found_in_either_form(shop, form):
    Image.new("RGB", (9, 8)).save(shop / unicodedata.normalize("NFD", "é.png"))
    Image.new("RGB", (7, 8)).save(shop / unicodedata.normalize("NFC", "ü.png"))
    content = unicodedata.normalize(form, "image\né.png\nü.png\n")
    products = read_catalogue(write(shop, content)).products
    assert [product.read().width for product in products] == [9, 7]


@pytest.mark.parametrize(
    "content, encoding, message",
    [
        (PLAIN, "cp1252", "is not in UTF-8 .* save it as CSV UTF-8"),
        ("img,id\n0.jpg,a\n", "utf-8", "no column 'image'; it has img, id. Is it 'img'"),
        ("", "utf-8", "no column 'image'"),
        ("image,id,id\nimg/0.jpg,a,b\n", "utf-8", "has 2 columns 'id'"),
        ("image,x1,y1\nimg/0.jpg,1,2\n", "utf-8", "has x1, y1 of a box and no x2, y2"),
        ("image\nhttps://cdn.example.com/0.jpg\n", "utf-8", "line 2: https.* is an address"),
        ("image,id\n,a\n", "utf-8", "line 2 names no image"),
        ("image,id\nimg/0.jpg,a,b\n", "utf-8", "line 2 has 3 values for 2 columns"),
        ('image\n\n"img/0.jpg\n', "utf-8", "line 3: .*unexpected end"),
        (PLAIN.replace("5,6,50,60", "0.1,0.1,0.9,0.9"), "utf-8", "line 2: .*fractions"),
        (PLAIN.replace("5,6,50,60", "50,6,5,60"), "utf-8", "line 2: .*is not x1 < x2"),
        (PLAIN.replace("5,6,50,60", "5,6,nan,60"), "utf-8", "line 2: .*is not x1 < x2"),
        (PLAIN.replace("5,6,50,60", "5,6,inf,60"), "utf-8", "line 2: .*is not x1 < x2"),
        (PLAIN.replace("5,6,50,60", "5,6,wide,60"), "utf-8", "must be four numbers"),
    ],
)
def test_what_is_not_clear_is_refused_by_its_line(shop, content, encoding, message):
    with pytest.raises(InputError, match=message) as error:
        read_catalogue(write(shop, content, encoding))
    assert "\n" not in str(error.value)


def test_every_file_of_a_folder_is_used_or_counted(tmp_path):
    jpeg = tmp_path / "tops" / "a.jpg"
    jpeg.parent.mkdir()
    Image.new("RGB", (9, 8)).save(jpeg)
    data = jpeg.read_bytes()
    for name in ("b.JPG", "c.jfif", "d.jpe", "plain"):
        (tmp_path / name).write_bytes(data)
    for name in ("e.heic", "f.avif", "notes.txt", "README", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"text")
    for name in ("@eaDir", ".cache", "__MACOSX"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "a.jpg").write_bytes(data)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "linked.jpg").symlink_to(jpeg)
    (tmp_path / "again").symlink_to(jpeg.parent)
    products, left_out = read_catalogue(tmp_path)
    ids = [product.item["id"] for product in products]
    assert ids == ["b.JPG", "c.jfif", "d.jpe", "linked.jpg", "plain", "tops/a.jpg"]
    assert all(product.read().width == 9 for product in products)
    assert left_out == {
        "in hidden folders": 3,
        "links to folders": 1,
        "hidden files": 1,
        ".heic files, which cannot be read: convert them to .jpg": 1,
        ".avif files, which cannot be read: convert them to .jpg": 1,
        ".txt files": 1,
        "files without a suffix that are no pictures": 1,
        "broken links": 1,
    }


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"text")
    with pytest.raises(InputError, match="lists no pictures .*; 1 .heic files, which cannot"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    "box", [(0.1, 0.1, 0.9, 0.9), (0, 0, 1, 1), (1, 2, 3), (1, 2, "a", 4), None, (5, 5, 5, 9)]
)
def test_boxes_are_pixels_in_python_too(box):
    with pytest.raises(InputError, match=r"search: the box .* (fractions|is not x1 < x2)"):
        check_pixels(box, "Searcher.search")
    assert check_pixels([1, 2, 30, 40], "x").tolist() == [1, 2, 30, 40]
