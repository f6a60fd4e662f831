"""Reads a shop's catalogue: a folder of pictures, a CSV file, or the gallery of a run's dataset."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from capret_jax.config import DataConfig, ReadConfig
from capret_jax.data.images import Photograph
from capret_jax.data.pipeline import Split
from capret_jax.data.schema import CATEGORIES
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError
from capret_jax.retrieval.index import Item
from capret_jax.serve.uploads import read_photo

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BOX = ("x1", "y1", "x2", "y2")


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


def read_catalogue(source: pathlib.Path) -> list[Product]:
    """Reads a folder of pictures, or a CSV file that lists them.

    Raises:
        InputError: the source is neither, or lists no pictures.
    """
    if source.is_dir():
        products = read_folder(source)
    elif source.suffix.lower() == ".csv" and source.is_file():
        products = read_csv(source)
    else:
        raise InputError(f"{source} is neither a folder of pictures nor a .csv file.")
    if not products:
        raise InputError(f"{source} lists no pictures ({', '.join(SUFFIXES)}).")
    return products


def read_folder(folder: pathlib.Path) -> list[Product]:
    """Lists all pictures below a folder; the path is the id, and the parent folder the category."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    products: list[Product] = []
    for path in paths:
        relative = path.relative_to(folder)
        item: Item = {"id": _text(relative), "image": _text(path)}
        if relative.parent != pathlib.Path("."):
            item["category"] = _text(relative.parent.name)
        products.append(Product(item, lambda path=path: _read_file(path)))  # type: ignore[misc]
    return products


def read_csv(path: pathlib.Path) -> list[Product]:
    """Reads a CSV file with a column `image`, paths relative to the file.

    The column `id` is the item's id (by default the number of its row), x1, y1, x2 and y2 are its
    box in pixels, and all other columns, such as `category` and `shop`, are properties to filter
    by.

    Raises:
        InputError: a column or a value is missing or invalid; the message has the line.
    """
    products: list[Product] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "image" not in (rows.fieldnames or ()):
                raise InputError(f"{path} has no column 'image'; it has {rows.fieldnames}.")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if not row["image"]:
                    raise InputError(f"{where} names no image.")
                image = path.parent / row["image"]
                item = {"id": row.get("id") or str(len(products)), "image": str(image)}
                item |= {k: v for k, v in row.items() if v and k and k not in (*item, *_BOX)}
                box = _box(row, where)
                read = lambda image=image: _read_file(image)  # noqa: E731
                products.append(Product(item, read, box))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return products


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
    edges = [row.get(name) for name in _BOX]
    if not any(edges):
        return None
    try:
        return np.array([float(edge or "") for edge in edges])
    except ValueError as error:
        raise InputError(f"{where}: {', '.join(_BOX)} must be four numbers: {edges}.") from error


def _read_file(path: pathlib.Path) -> Photograph:
    try:
        return read_photo(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
