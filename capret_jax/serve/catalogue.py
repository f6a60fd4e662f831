"""Reads a shop's catalogue: a folder of pictures, a CSV file, or the gallery of a run's dataset."""

import collections
import csv
import dataclasses
import difflib
import os
import pathlib
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from capret_jax.config import DataConfig, ReadConfig
from capret_jax.data.images import Photograph
from capret_jax.data.schema import CATEGORIES
from capret_jax.data.split import Split
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError
from capret_jax.retrieval.index import Item
from capret_jax.serve.boxes import check_pixels
from capret_jax.serve.uploads import read_photo

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip
# Pictures that Pillow does not read, or only with programs beside it.
_UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef")
# First bytes of JPEG, PNG, GIF, WebP, BMP and TIFF.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
# Synology's, macOS's and Windows's.
_THUMBNAIL_FOLDERS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle")
_BOX = ("x1", "y1", "x2", "y2")
# Columns with a meaning of their own.
_MEANINGS = ("image", "id", *_BOX)


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of a shop and its photograph.

    Attributes:
        item: its "id" and other properties.
        read: function that reads the photograph.
        box: (4,) x1, y1, x2, y2 of the garment in pixels; None for the whole picture.
    """

    item: Item
    read: Callable[[], Photograph]
    box: np.ndarray | None = None


class Catalogue(NamedTuple):
    """The products of a source, and what it holds besides.

    Attributes:
        products: its products.
        left_out: reason -> number of files that are none of them.
    """

    products: list[Product]
    left_out: dict[str, int]


def read_catalogue(source: pathlib.Path) -> Catalogue:
    """Reads a folder of pictures, or a CSV file that lists them.

    Raises:
        InputError: the source is neither, or lists no pictures.
    """
    if source.is_dir():
        catalogue = read_folder(source)
    elif source.suffix.lower() == ".csv" and source.is_file():
        catalogue = Catalogue(read_csv(source), {})
    else:
        raise InputError(f"{source} is neither a folder of pictures nor a .csv file.")
    if not catalogue.products:
        counts = catalogue.left_out.items()
        found = "".join(f"; {count} {reason}" for reason, count in counts)
        raise InputError(f"{source} lists no pictures ({', '.join(SUFFIXES)}){found}.")
    return catalogue


def read_folder(folder: pathlib.Path) -> Catalogue:
    """Lists all pictures below a folder; the path is the id, and the parent folder the category.

    A file is a picture by its suffix, or by its content if it has no suffix. Hidden files and
    folders, and folders that programs keep thumbnails in, are left out; links to folders are not
    followed.
    """
    products: list[Product] = []
    left_out: collections.Counter[str] = collections.Counter()
    for parent, folders, files in os.walk(folder):
        hidden = [name for name in folders if _is_hidden(name)]
        left_out["in hidden folders"] += sum(
            len(found) for name in hidden for _, _, found in os.walk(os.path.join(parent, name))
        )
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        left_out["links to folders"] += len(links)
        folders[:] = sorted(set(folders) - {*hidden, *links})
        for name in sorted(files):
            path = pathlib.Path(parent, name)
            if reason := _why_not(path):
                left_out[reason] += 1
            else:
                products.append(_product_of(path, path.relative_to(folder)))
    products.sort(key=lambda product: product.item["id"])
    return Catalogue(products, {reason: count for reason, count in left_out.items() if count})


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _THUMBNAIL_FOLDERS


def _why_not(path: pathlib.Path) -> str:
    """Returns the reason why a file is no picture to index; empty for one that is."""
    if _is_hidden(path.name):
        return "hidden files"
    if not path.is_file():
        return "broken links"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or (not suffix and _looks_like_a_picture(path)):
        return ""
    if suffix in _UNREADABLE:
        return f"{suffix} files, which cannot be read: convert them to .jpg"
    return f"{suffix} files" if suffix else "files without a suffix that are no pictures"


def _looks_like_a_picture(path: pathlib.Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(12).startswith(_SIGNATURES)
    except OSError:
        return False


def _product_of(path: pathlib.Path, relative: pathlib.Path) -> Product:
    item: Item = {"id": _text(relative), "image": _text(path)}
    if relative.parent != pathlib.Path("."):
        item["category"] = _text(relative.parent.name)
    return Product(item, lambda: _read_file(path))


def read_csv(path: pathlib.Path) -> list[Product]:
    """Reads a CSV file with a column `image`, paths relative to the file.

    The column `id` is the item's id (by default the number of its row), x1, y1, x2 and y2 are its
    box in pixels, and all other columns, such as `category` and `shop`, are properties to filter
    by. Spaces around names and values, and the case of these six names, do not matter; the
    delimiter is a comma, or what the header or a line "sep=;" shows; blank rows are skipped.

    Raises:
        InputError: a column or a value is missing or invalid; the message has the line.
    """
    lines, skipped, delimiter = _csv_lines(path)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    products: list[Product] = []
    try:
        header = _header(next(rows, []), path)
        for row in rows:
            where = f"{path}, line {rows.line_num + skipped}"
            values = [value.strip() for value in row]
            if any(values[len(header) :]):
                raise InputError(f"{where} has {len(values)} values for {len(header)} columns.")
            if any(values):
                known = dict(zip(header, values, strict=False))
                products.append(_csv_product(known, where, path.parent, len(products)))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num + skipped}: {error}.") from error
    return products


def _csv_lines(path: pathlib.Path) -> tuple[list[str], int, str]:
    """Returns the lines of a file, how many are left out before them, and its delimiter."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        lines = data.decode(encoding).splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not in UTF-8 (byte {error.start}), perhaps in Windows-1252: save it as "
            "CSV UTF-8."
        ) from error
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:
        return lines[1:], 1, lines[0][4]
    header = lines[0] if lines else ""
    counts = {mark: header.count(mark) for mark in ",;\t|"}
    # A comma if there is one: other marks may then be part of a name.
    return lines, 0, "," if counts[","] else max(counts, key=lambda mark: counts[mark])


def _header(row: list[str], path: pathlib.Path) -> list[str]:
    """Returns the names of the columns, in lower case where they have a meaning.

    Raises:
        InputError: `image` or an edge of the box is missing, or a name occurs twice.
    """
    names = [name.strip() for name in row]
    names = [name.lower() if name.lower() in _MEANINGS else name for name in names]
    while names and not names[-1]:
        names.pop()
    if "image" not in names:
        near = difflib.get_close_matches("image", [name.lower() for name in names], 1, 0.5)
        hint = f" Is it {near[0]!r}?" if near else ""
        raise InputError(f"{path} has no column 'image'; it has {', '.join(names)}.{hint}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has {names.count(name)} columns {name!r}.")
    boxed = [name for name in _BOX if name in names]
    if 0 < len(boxed) < len(_BOX):
        missing = ", ".join(name for name in _BOX if name not in names)
        raise InputError(f"{path} has {', '.join(boxed)} of a box and no {missing}.")
    return names


def _csv_product(row: dict[str, str], where: str, folder: pathlib.Path, number: int) -> Product:
    if not row.get("image"):
        raise InputError(f"{where} names no image.")
    image = _image_path(folder, row["image"], where)
    item = {"id": row.get("id") or str(number), "image": _text(image)}
    item |= {k: v for k, v in row.items() if v and k and k not in _MEANINGS}
    return Product(item, lambda: _read_file(image), _box(row, where))


def _image_path(folder: pathlib.Path, name: str, where: str) -> pathlib.Path:
    """Returns the file that a row names, by other spellings too where there is none by its own."""
    if "://" in name:
        raise InputError(
            f"{where}: {name[:80]} is an address: download the pictures, and name files."
        )
    spellings = [name, name.replace("\\", "/")]
    spellings += [
        unicodedata.normalize(form, spelling) for form in ("NFC", "NFD") for spelling in spellings
    ]
    paths = [folder / spelling for spelling in spellings]
    return next((path for path in paths if path.exists()), paths[0])


def dataset_gallery(data: dict) -> list[Product]:
    """Lists the shop items of the validation split that a run was evaluated on.

    Args:
        data: the run's `config.data`, as nested plain dicts (`loading.Setup.data`).
    """
    read = ReadConfig(**(data["read"] | {"cached_images": 0}))
    known = {key: data[key] for key in ("name", "variant", "source_dir", "prepared_dir")}
    split = open_dataset(DataConfig(read=read, **known)).validation
    rows = np.flatnonzero(split.items.is_shop)
    return [_dataset_product(split, int(row)) for row in rows]


def _dataset_product(split: Split, row: int) -> Product:
    items = split.items
    known = items.attributes_of(row)
    item = {
        "id": f"{known['image_id']}/{known['number']}",
        "category": CATEGORIES[known["category_id"] - 1],
        "shop": f"pair {known['pair_id']}",
        "box": items.box[row].tolist(),
    }
    return Product(item, lambda: split.photograph(row), items.box[row].astype(np.float64))


def _text(path: str | os.PathLike) -> str:
    """Returns a file name as text, even where it is not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def _box(row: dict[str, str], where: str) -> np.ndarray | None:
    edges = [row.get(name, "") for name in _BOX]
    if not any(edges):
        return None
    try:
        box = np.array([float(edge) for edge in edges])
    except ValueError as error:
        raise InputError(f"{where}: {', '.join(_BOX)} must be four numbers: {edges}.") from error
    return check_pixels(box, where)


def _read_file(path: pathlib.Path) -> Photograph:
    try:
        return read_photo(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
